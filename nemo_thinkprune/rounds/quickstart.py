"""The whole of ThinkPrune in minutes on a CPU: a tiny model learns long thoughts, then is pruned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from checkpoints_tools.hf_config import config_from_dict
from checkpoints_tools.random_init import random_hf_init
from nemo_thinkprune.data.running_total import write_dataset
from nemo_thinkprune.data.tiny_model import model_config, write_model_folder
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.files import write_atomic
from nemo_thinkprune.recipe.load import with_values
from nemo_thinkprune.recipe.schema import Recipe
from nemo_thinkprune.reporting import run_files
from nemo_thinkprune.rounds.plan import Engine
from nemo_thinkprune.rounds.prune import Say, prune
from nemo_thinkprune.training.attempts import make_run_folder
from nemo_thinkprune.training.run_settings import raise_changes
from nemo_thinkprune.training.start import warmup


def quickstart(recipe: Recipe, run_dir: Path, *, engine: Engine, say: Say) -> dict[str, Any]:
    """Make the running-total task, warm up a tiny Qwen2 on redundant traces, prune it, and show the table.

    Each stage is skipped when an earlier call finished it. Paths of data and model in ``recipe`` are replaced
    by those inside ``run_dir``.

    Returns:
        The content of summary.json.

    Raises:
        UserError: the recipe has no warm-up, the warm-up misses its target accuracy, or the folder holds data or
            a warm-up made with other settings.
    """
    if recipe.thinkprune.warmup is None:
        raise UserError("the quickstart needs a recipe with a section thinkprune.warmup")
    say("Stage 1 of 4: the task. `start 13 ; a +3 ; b -4 ; result ?` is to be answered after a thought that")
    say(
        "  keeps a running total. The teacher's thoughts check many steps twice: they are longer than needed."
    )
    run_dir = run_dir.resolve()
    make_run_folder(run_dir)
    recipe = place(recipe, run_dir)
    make_data(run_dir, seed=recipe.grpo.seed, say=say)
    say("Stage 2 of 4: the warm-up. A tiny Qwen2 imitates the teacher until it is right often enough, and")
    say("  thus thinks as long as the teacher does.")
    model = warm_up(recipe, run_dir, engine=engine, say=say)
    limits = ", ".join(map(str, recipe.thinkprune.limits))
    say(f"Stage 3 of 4: the rounds. The limit falls ({limits}); a thought cut by it earns nothing.")
    if recipe.thinkprune.control.enabled:
        say("  The control trains for as many steps without the limits: what it shortens, plain RL shortens.")
    pruned = with_values(recipe, {"policy.model_name": str(model), "policy.tokenizer.name": str(model)})
    return prune(pruned, run_dir, engine=engine, say=say, before_table=_RESULT)


_RESULT = (
    "Stage 4 of 4: the result, on problems that took no part in training or selection. Compare the last round\n"
    "  with the control: what the control gained or shortened, plain RL does; the rest is the limits' work.\n"
)


def place(recipe: Recipe, run_dir: Path) -> Recipe:
    """The recipe with data and model inside ``run_dir``."""
    warmup = recipe.thinkprune.warmup
    assert warmup is not None
    data, model = run_dir / "data", str(run_dir / "model")
    return with_values(
        recipe,
        {
            "policy.model_name": model,
            "policy.tokenizer.name": model,
            "data.train": [{"data_path": str(data / "train.jsonl")}],
            "data.validation": [{"data_path": str(data / "selection.jsonl")}],
            "thinkprune.report_data": str(data / "report.jsonl"),
            "thinkprune.warmup.data_path": str(data / "sft.jsonl"),
        },
    )


def make_data(run_dir: Path, *, seed: int, say: Say) -> None:
    """Write the task's files and the tiny model's configuration once.

    Raises:
        UserError: they were written with another seed.
    """
    done = run_dir / "data" / "made.json"
    made = run_files.read_json(done) or {}
    if made and made.get("seed") != seed:
        raise_changes(run_dir, [f"grpo.seed: was {made.get('seed')}, is {seed}"])
    if not done.exists():
        paths = write_dataset(run_dir / "data", seed=seed)
        make_model(run_dir / "model", seed=seed)
        counts = {name: _lines(path) for name, path in paths.items()}
        write_atomic(done, json.dumps({"seed": seed, "rows": counts}, indent=2) + "\n")
    rows = (run_files.read_json(done) or {}).get("rows", {})
    say("  " + ", ".join(f"{name}: {count:,} rows" for name, count in rows.items()))


def make_model(folder: Path, *, seed: int) -> None:
    """Write the tiny Qwen2 with random weights, its tokenizer and its configuration, anew."""
    shutil.rmtree(folder, ignore_errors=True)
    random_hf_init(config_from_dict(model_config()), folder, seed)
    write_model_folder(folder)


def warm_up(recipe: Recipe, run_dir: Path, *, engine: Engine, say: Say) -> Path:
    """Run the warm-up job unless it is done; the HF folder that it leaves."""
    folder = run_dir / run_files.WARMUP
    model = warmup(recipe, folder, run=engine.run)
    measured = run_files.read_train(folder).validation
    if measured:
        last = measured[-1]
        say(
            f"  after {last['step']} steps: accuracy {100 * last['accuracy']:.1f}%, "
            f"{last['mean_tokens']:.1f} tokens on average (selection set)"
        )
    return model


def _lines(path: Path) -> int:
    with path.open("rb") as stream:
        return sum(1 for _ in stream)
