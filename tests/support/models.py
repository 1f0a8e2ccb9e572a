"""Small random Hugging Face models of each architecture, and policies built from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.random_init import random_hf_init
from checkpoints_tools.weight_map import ARCHITECTURES

FAMILIES = ("qwen2", "qwen2_untied", "qwen3", "llama3")


def small_config(architecture: str, **values: Any) -> ModelConfig:
    """Two layers, four heads in two groups: enough for TP 2 and PP 2; `values` replaces fields."""
    description = ARCHITECTURES[architecture]
    fields: dict[str, Any] = {
        "architecture": architecture,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "ffn": 48,
        "vocab_size": 300,
        "tied": False,
        "rope_theta": 1e4,
        "rope_scaling": None,
        "rms_norm_eps": 1e-6,
        "qkv_bias": description.qkv_bias,
        "qk_norm": description.qk_norm,
        "max_position_embeddings": 128,
        "initializer_range": 0.1,
        "dtype": "float32",
    }
    return ModelConfig(**{**fields, **values})


# One of each architecture; between them: bfloat16, a head size of its own, tied embeddings, an odd vocabulary.
MODELS = {
    "qwen2": small_config("Qwen2ForCausalLM", dtype="bfloat16"),
    "qwen3": small_config("Qwen3ForCausalLM", head_dim=16),
    "llama": small_config("LlamaForCausalLM", vocab_size=70, tied=True),
}


def write_hf(family: str, folder: Path, *, seed: int = 0) -> Any:
    """Let Transformers save a random model (vocabulary 61, so that Megatron pads it); returns the HF model."""
    import torch
    import transformers as hf

    shared: dict[str, Any] = {
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "vocab_size": 61,
        "max_position_embeddings": 512,
        "initializer_range": 0.15,
        "tie_word_embeddings": family == "qwen2",
        "bos_token_id": 1,
        "eos_token_id": 3,
    }
    torch.manual_seed(seed)
    if family.startswith("qwen2"):
        model = hf.Qwen2ForCausalLM(hf.Qwen2Config(**shared))
    elif family == "qwen3":
        model = hf.Qwen3ForCausalLM(hf.Qwen3Config(**shared, head_dim=24))
    else:
        scaling = {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        model = hf.LlamaForCausalLM(hf.LlamaConfig(**shared, rope_parameters=scaling))
    model = model.float()
    with torch.no_grad():  # norms and biases start at 1 and 0: make a wrong one visible
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model.eval()


def load_policy(layout: Any, folder: Path, *, optimizer: dict[str, Any] | None = None, **options: Any) -> Any:
    """A `Policy` with the folder's weights; `optimizer` holds OptimizerConfig arguments, None: not trainable."""
    import torch
    from megatron.core.optimizer import OptimizerConfig

    from checkpoints_tools.hf_config import read_hf_config
    from nemo_thinkprune.policy.model import ModelOptions
    from nemo_thinkprune.policy.policy import BatchOptions, Policy
    from nemo_thinkprune.policy.weights import load_hf

    config = read_hf_config(Path(folder))
    policy = Policy(
        config,
        layout=layout,
        device=torch.device("cpu"),
        options=ModelOptions(**options),
        batch=BatchOptions(max_tokens=100, logprob_chunk=32),
        optimizer=OptimizerConfig(optimizer="adam", clip_grad=1.0, **optimizer) if optimizer else None,
    )
    load_hf([policy.network], config, folder)
    policy.make_trainable()
    return policy


CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_bpe_model(folder: Path, texts: Sequence[str]) -> Path:
    """A random Qwen2 of some 100,000 parameters with a byte-level BPE tokenizer learnt from `texts`."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    end, pad, start = "<|im_end|>", "<|endoftext|>", "<|im_start|>"
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=500, special_tokens=[pad, start, end], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, eos_token=end, pad_token=pad, additional_special_tokens=[start]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    config = small_config(
        "Qwen2ForCausalLM", hidden_size=64, head_dim=16, ffn=128, vocab_size=512, max_position_embeddings=2048
    )
    random_hf_init(config, folder, 0, token_ids={"eos_token_id": 2, "pad_token_id": 0, "bos_token_id": None})
    tokenizer.save_pretrained(folder)
    generation = {"eos_token_id": [2, 0], "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder
