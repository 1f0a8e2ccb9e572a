"""Tokenizer and configuration of the tiny Qwen2 that learns the running-total task."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from nemo_thinkprune.data.running_total import MAX_OPERAND, MAX_OPERATIONS, MAX_VALUE
from nemo_thinkprune.recipe.files import fsync_dir, write_atomic

END = "<|im_end|>"
PAD = "<|endoftext|>"
UNKNOWN = "<|unknown|>"
VOCABULARY_SIZE = 62
MAX_POSITIONS = 512

# Qwen's chat layout; line breaks separate words here and are no tokens of their own.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|> ' + message['role'] + '\n' + message['content'] + ' <|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|> assistant\n' }}{% endif %}"
)


def vocabulary() -> list[str]:
    """Return the 62 words in the order of their ids; the last few are reserved."""
    words = [PAD, "<|im_start|>", END, UNKNOWN, "system", "user", "assistant"]
    words += ["<think>", "</think>", "\\boxed{", "}", "start", "result", "?", ";", ":", "=", ","]
    words += ["wait", "check"]
    words += list("abcdef")[:MAX_OPERATIONS]
    words += [f"{d:+d}" for d in range(-MAX_OPERAND, MAX_OPERAND + 1) if d != 0]
    words += [str(value) for value in range(MAX_VALUE + 1)]
    return words + [f"<|reserved_{i}|>" for i in range(VOCABULARY_SIZE - len(words))]


def build_tokenizer(folder: str | Path) -> None:
    """Write the tokenizer's files into `folder`, as transformers' AutoTokenizer loads them.

    Words are split at white space, the text around special tokens included.  The end of a turn, and of a
    response, is `<|im_end|>`; padding is `<|endoftext|>`, as in Qwen.

    Raises:
        OSError: when the folder cannot be written.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: index for index, word in enumerate(vocabulary())}
    backend = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".tokenizer.") as aside:
        tokenizer.save_pretrained(aside)
        _forget_class(Path(aside) / "tokenizer_config.json")
        for file in sorted(Path(aside).iterdir()):
            write_atomic(target / file.name, file.read_bytes())
    fsync_dir(target)


def _forget_class(tokenizer_config: Path) -> None:
    # With a class named here, AutoTokenizer takes Qwen2's byte-level one for a qwen2 model; without, the one
    # that config.json names.
    config = json.loads(tokenizer_config.read_text("utf-8"))
    config.pop("tokenizer_class", None)
    tokenizer_config.write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def model_config() -> dict[str, Any]:
    """Return config.json of the tiny Qwen2: 304,000 parameters."""
    end, pad = vocabulary().index(END), vocabulary().index(PAD)
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 256,
        "hidden_act": "silu",
        "max_position_embeddings": MAX_POSITIONS,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "attention_dropout": 0.0,
        # The usual 0.02 stays on the plateau at this width.
        "initializer_range": 0.09,
        "eos_token_id": end,
        "pad_token_id": pad,
        "bos_token_id": None,
        "dtype": "float32",
    }


def write_model_folder(folder: str | Path) -> Path:
    """Write configuration and tokenizer of the tiny model into `folder`; the warm-up makes its weights.

    Raises:
        OSError: when the folder cannot be written.
    """
    target = Path(folder)
    config = model_config()
    build_tokenizer(target)
    generation = {"eos_token_id": config["eos_token_id"], "pad_token_id": config["pad_token_id"]}
    write_atomic(target / "generation_config.json", json.dumps(generation, indent=2) + "\n")
    # Last, since a folder with config.json counts as a model.
    write_atomic(target / "config.json", json.dumps(config, indent=2) + "\n")
    return target
