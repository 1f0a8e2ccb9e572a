"""An engine without a model: leaves the files of a real one, resumes, and fails where it is told to."""

import json
import os
import time
from pathlib import Path

import fake_run

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.load import recipe_from_dict
from nemo_thinkprune.training.checkpoint_files import publish

STEPS = 6
SHORTEST = {128: 68.0, 96: 55.0, 64: 48.0, 240: 72.0}


class Crash(RuntimeError):
    """What a killed worker looks like to the driver."""


def recipe(root: Path, **thinkprune):
    return recipe_from_dict(
        {
            "policy": {"model_name": "tiny"},
            "data": {
                "max_input_seq_length": 64,
                "train": [{"data_path": "train.jsonl"}],
                "validation": [{"data_path": "selection.jsonl"}],
            },
            "grpo": {"max_num_steps": STEPS, "val_period": 3},
            "checkpointing": {"save_period": 3},
            "thinkprune": {
                "limits": [128, 96, 64],
                "long_limit": 240,
                "report_data": "report.jsonl",
                "control": {"enabled": True},
                "warmup": {"data_path": "sft.jsonl"},
                **thinkprune,
            },
        }
    )


def calls(root: Path) -> list[dict]:
    path = root / "calls.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(job) -> None:
    """Do a job at once; ``crash_NAME`` in the run's folder makes job NAME die in its middle, once."""
    root = next(
        p for p in [job.run_dir, *job.run_dir.parents] if (p / "config.yaml").exists() or p.name == "qs"
    )
    entry = {
        "kind": job.kind,
        "name": job.run_dir.name,
        "init": None if job.init_weights is None else str(job.init_weights.relative_to(root)),
        "model": job.model,
        "limit": job.limit,
        "steps": job.recipe.grpo.max_num_steps,
        "pid": os.getpid(),
    }
    with (root / "calls.jsonl").open("a") as stream:
        stream.write(json.dumps(entry) + "\n")
    {"train": _train, "eval": _evaluate, "warmup": _warm_up}[job.kind](job, root)


def run_slowly(job) -> None:
    time.sleep(0.05)
    run(job)


def refuse(job) -> None:
    raise UserError("the tokenizer has no end token")


def _train(job, root: Path) -> None:
    folder, steps = job.run_dir, job.recipe.grpo.max_num_steps
    done = [int(p.name.removeprefix("step_")) for p in (folder / "checkpoints").glob("step_*")]
    first = max(done, default=0) + 1
    crash = root / f"crash_{folder.name}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metrics.jsonl").open("a") as stream:
        if first == 1:
            stream.write(json.dumps(fake_run.validation_row(0, accuracy=0.95, tokens=98.0)) + "\n")
        for step in range(first, steps + 1):
            if crash.exists() and step > 4:
                crash.unlink()
                raise Crash(f"rank 0 of {folder.name} died")
            tokens = SHORTEST[job.limit] + 2 * (steps - step)
            accuracy = (
                json.loads((root / "accuracy.json").read_text())
                if (root / "accuracy.json").exists()
                else 0.96
            )
            row = {"step": step, "response_tokens_mean": tokens, "reward_mean": 0.9}
            stream.write(json.dumps(row) + "\n")
            if step % 3 == 0:
                stream.write(
                    json.dumps(fake_run.validation_row(step, accuracy=accuracy, tokens=tokens)) + "\n"
                )
                _save(folder / "checkpoints", step)


def _save(folder: Path, step: int) -> None:
    aside = folder / f"tmp_step_{step}"
    weights = aside / "policy" / "weights" / "iter_0000000"
    weights.mkdir(parents=True)
    (weights / "metadata.json").write_text("{}")
    (weights / ".metadata").write_text(f"weights of step {step}")
    (aside / "training_info.json").write_text(json.dumps({"step": step}))
    publish(aside, folder / f"step_{step}")


def _evaluate(job, root: Path) -> None:
    crash = root / f"crash_{job.run_dir.name}"
    if crash.exists():
        crash.unlink()
        raise Crash("the evaluation died")
    checks = {"start": 0.53, "control": 0.38, "round_1_L128": 0.32, "round_2_L96": 0.17}.get(
        job.run_dir.name, 0.06
    )
    rows = fake_run.sample_rows(checks=checks, skill=0.97, limit=job.eval.limit, problems=12)
    assert job.eval.out.parent.name == "eval"
    fake_run.write_eval(job.eval.out.parent.parent, job.eval.out.stem, rows, limits=job.eval.limits)


def _warm_up(job, root: Path) -> None:
    assert (Path(job.model) / "config.json").exists()
    assert Path(job.recipe.thinkprune.warmup.data_path).exists()
    rows = [{"step": 700, "loss": 0.1}, fake_run.validation_row(700, accuracy=0.96, tokens=98.0)]
    fake_run.write_jsonl(job.run_dir / "metrics.jsonl", rows)
    fake_run.write_json(job.run_dir / "model" / "config.json", {})
