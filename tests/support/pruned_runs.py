"""A finished prune run whose records the real writers made, with a real small model in the last checkpoint."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from checkpoints_tools.convert import import_model
from checkpoints_tools.hf_folder import carried_files
from checkpoints_tools.random_init import random_hf_init
from support.models import small_config

TESTS = Path(__file__).resolve().parents[1]
LAST = Path("round_3_L64", "checkpoints", "step_6")
CARD = "---\nlicense: apache-2.0\nlicense_link: https://example.org/LICENSE\n---\n# Base\n"


def base_model(root: Path) -> Path:
    """A model as the hub's cache keeps one: weights, tokenizer, card and licence."""
    folder = root / "hub" / "models--Lab--Base-1B" / "snapshots" / "0123abcd"
    random_hf_init(small_config("Qwen2ForCausalLM", dtype="bfloat16"), folder, 3, randomize_all=True)
    (folder / "tokenizer.json").write_bytes(b'{"caf\xc3\xa9":\r\n1}')
    (folder / "generation_config.json").write_text('{"temperature": 0.6}')
    (folder / "LICENSE").write_text("Do what is right.\n")
    (folder / "README.md").write_text(CARD)
    return folder


def fake(name: str) -> Any:
    """The module fake_engine or fake_run, which stand with the tests of rounds and reports."""
    for folder in ("rounds", "reporting"):
        if str(TESTS / folder) not in sys.path:
            sys.path.append(str(TESTS / folder))
    return importlib.import_module(name)


def pruned_run(root: Path, base: Path, *, weights: bool = False, **thinkprune: Any) -> Path:
    """A run in three rounds (limits 128, 96, 64) with a control; `weights`: LAST holds the base model's.

    Its records come from rounds.prune, the recipe's own writer and what a Checkpointer leaves beside weights.
    """
    fake_engine = fake("fake_engine")
    from nemo_thinkprune.recipe.load import dump_yaml, with_values
    from nemo_thinkprune.rounds.plan import Engine
    from nemo_thinkprune.rounds.prune import prune

    run = root / "run"
    run.mkdir(parents=True)
    settings = {"prompt_family": "qwen", "length_hint": True} | thinkprune
    recipe = with_values(fake_engine.recipe(run, **settings), {"policy.model_name": str(base)})
    prune(recipe, run, engine=Engine(run=fake_engine.run), say=lambda _: None)
    for step in run.glob("*/checkpoints/step_*"):
        number, limit = int(step.name[5:]), int(step.parts[-3].partition("_L")[2] or 240)
        info = {
            "step": number,
            "limit": limit,
            "model": str(base),
            "val:accuracy": 0.96,
            "val:mean_tokens": 50.5,
        }
        (step / "training_info.json").write_text(json.dumps(info))
        (step / "config.yaml").write_text(dump_yaml(recipe))
    if weights:
        _put_weights(run / LAST, base, root / "imported")
    return run


def _put_weights(step: Path, base: Path, scratch: Path) -> None:
    import_model(base, scratch, threads=1)
    (iteration,) = scratch.glob("iter_*")
    place = step / "policy" / "weights" / "iter_0000000"
    shutil.rmtree(place)
    shutil.copytree(iteration, place)
    (step / "policy" / "tokenizer").mkdir()
    for file in carried_files(base):
        shutil.copyfile(file, step / "policy" / "tokenizer" / file.name)
