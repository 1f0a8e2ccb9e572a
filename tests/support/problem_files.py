"""Problem files as the public ones are, a tokenizer that only its file describes, and a recipe that names them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LIMIT = 30
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def eurus_row(question: str, gold: str, source: str) -> dict[str, Any]:
    """A row of Eurus-2-RL-Data."""
    suffix = "\n\nPresent the answer in LaTex format: \\boxed{Your answer}"
    return {
        "data_source": source,
        "prompt": [{"role": "system", "content": "plan"}, {"role": "user", "content": question + suffix}],
        "ability": "math",
        "reward_model": {"ground_truth": gold, "style": "rule"},
    }


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows as a Parquet file."""
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def training_rows(n: int = 17) -> list[dict[str, Any]]:
    """Every third row is of another source, and one prompt is far too long."""
    rows = [
        eurus_row(
            f"What is {i} + 1234{i}?", str(i + int(f"1234{i}")), "taco" if i % 3 == 2 else "numina_amc_aime"
        )
        for i in range(n)
    ]
    rows[4] = eurus_row("Why? " * 400, "4", "numina_amc_aime")
    return rows


def validation_rows() -> list[dict[str, Any]]:
    """Two problems of each year."""
    return [
        eurus_row(f"{year} number {i}: find x.", str(i), f"AIME{year}")
        for year in (22, 23, 24)
        for i in (1, 2)
    ]


def write_tokenizer(folder: Path) -> Path:
    """Bytes, with digits merged: AutoTokenizer would make a Qwen2 tokenizer of it, which splits them."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("1", "2"), ("3", "4"), ("12", "34")]
    words = [*alphabet, *("".join(pair) for pair in merges)]
    backend = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    special = [AddedToken(name, special=True) for name in ("<|im_start|>", "<|im_end|>", "<|endoftext|>")]
    backend.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    config = folder / "tokenizer_config.json"
    text = config.read_text("utf-8")
    for name in ("TokenizersBackend", "PreTrainedTokenizerFast"):
        text = text.replace(f'"{name}"', '"Qwen2Tokenizer"')
    config.write_text(text, "utf-8")
    return folder


def make_recipe(root: Path, **values: Any) -> Any:
    """A recipe of three prompts a step on the files above, which are written under `root`."""
    from nemo_thinkprune.recipe.load import recipe_from_dict, with_values

    write_tokenizer(root / "model")
    train = write_parquet(root / "eurus" / "train.parquet", training_rows())
    validation = write_parquet(root / "aime.parquet", validation_rows())
    data = {
        "max_input_seq_length": 600,
        "train": {"data_path": str(train), "sources": ["numina_amc_aime"]},
        "validation": {"data_path": str(validation), "sources": ["AIME22", "AIME23"]},
    }
    recipe = recipe_from_dict(
        {
            "policy": {"model_name": str(root / "model")},
            "data": data,
            "grpo": {"num_prompts_per_step": 3, "max_num_epochs": 3, "max_num_steps": 8, "seed": 5},
            "thinkprune": {"limits": [LIMIT], "validation": {"samples": 4}},
        }
    )
    return with_values(recipe, {key.replace("__", "."): value for key, value in values.items()})


def local_plan(recipe: Any, limit: int = LIMIT) -> Any:
    """What the local engine's own loop plans for the recipe."""
    from types import SimpleNamespace

    from nemo_thinkprune.data.tokenizer import load_tokenizer
    from nemo_thinkprune.training.problems import make_plan

    notes: list[str] = []
    session = SimpleNamespace(
        recipe=recipe,
        tokenizer=load_tokenizer(recipe.policy.model_name),
        job=SimpleNamespace(limit=limit),
        layout=SimpleNamespace(dp=1),
        beat=lambda *_, note: notes.append(note),
    )
    return make_plan(session), notes
