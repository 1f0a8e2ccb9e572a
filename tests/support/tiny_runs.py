"""A warmed-up tiny model and a recipe of a few steps that really learns something, for end-to-end tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
WEIGHTS = Path("policy/weights/iter_0000000")


def make_root(root: Path) -> Any:
    """Task, tiny model and a short warm-up (short traces only) under `root`; the recipe that trains on it."""
    from nemo_thinkprune.recipe.load import load_recipe, with_values
    from nemo_thinkprune.rounds.quickstart import make_data, place
    from nemo_thinkprune.training.job import Job
    from nemo_thinkprune.training.supervisor import run_job

    overrides = [
        "thinkprune.warmup.steps=110",
        "thinkprune.warmup.short_share=1.0",
        "thinkprune.warmup.target_accuracy=0.02",
        "thinkprune.limits=[60]",
        "thinkprune.long_limit=60",
        "grpo.max_num_steps=3",
        "grpo.num_prompts_per_step=6",
        "grpo.num_generations_per_prompt=8",
        "grpo.max_val_samples=32",
        "grpo.val_period=2",
        "checkpointing.save_period=1",
        "policy.megatron_cfg.optimizer.lr=1e-3",
    ]
    recipe = place(load_recipe(RECIPE, overrides), root)
    make_data(root, seed=0, say=lambda _: None)
    warmup = Job(kind="warmup", run_dir=root / "warmup", recipe=recipe, model=str(root / "model"), limit=60)
    run_job(warmup)
    model = str(root / "warmup" / "model")
    return with_values(recipe, {"policy.model_name": model, "policy.tokenizer.name": model})


def train_job(recipe: Any, run_dir: Path, **values: Any) -> Any:
    """A training job in `run_dir` with recipe values replaced."""
    from nemo_thinkprune.recipe.load import with_values
    from nemo_thinkprune.training.job import Job

    recipe = with_values(recipe, {key.replace("__", "."): value for key, value in values.items()})
    return Job(kind="train", run_dir=run_dir, recipe=recipe, model=recipe.policy.model_name, limit=60)


def records(run_dir: Path) -> dict[str, Any]:
    """Everything a run leaves that must not depend on how often it was interrupted."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("timing", None)
    steps = sorted((run_dir / "checkpoints").glob("step_*"), key=lambda p: int(p.name.removeprefix("step_")))
    return {
        "metrics": [json.dumps(row) for row in rows],
        "ledger": (run_dir / "ledger.jsonl").read_bytes(),
        "rollouts": {p.name: p.read_bytes() for p in sorted((run_dir / "rollouts").iterdir())},
        "checkpoints": [p.name for p in steps],
        "weights": {p.name: p.read_bytes() for p in sorted((steps[-1] / WEIGHTS).glob("*.distcp"))},
    }
