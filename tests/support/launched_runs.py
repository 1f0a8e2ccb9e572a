"""Run folders as jobs of `thinkprune launch` leave them, without a job."""

from __future__ import annotations

import json
from pathlib import Path

from nemo_thinkprune.training.checkpoint_files import publish

CONFIG = """\
grpo: {max_num_steps: 200}
thinkprune: {limits: [4000, 3000, 2000]}
checkpointing: {checkpoint_dir: checkpoints}
"""


def row(step: int, *, step_s: float = 70.0, **timing: float) -> dict[str, object]:
    """A row of metrics.jsonl."""
    return {
        "step": step,
        "reward_mean": 0.5312,
        "accuracy": 0.612,
        "response_tokens_mean": 2310.44,
        "truncated_share": 0.121,
        "timing": {"step_s": step_s, **timing},
    }


def train_folder(folder: Path, *, steps: int, saved: int = 0, config: str = CONFIG) -> Path:
    """A train run of so many steps, with a checkpoint of step `saved` unless that is 0."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row(s)) + "\n" for s in range(1, steps + 1)))
    if saved:
        checkpoint(folder, saved)
    return folder


def checkpoint(folder: Path, step: int) -> Path:
    """An empty checkpoint, sealed as the trainer's."""
    aside, final = folder / "checkpoints" / f"tmp_step_{step}", folder / "checkpoints" / f"step_{step}"
    aside.mkdir(parents=True)
    (aside / "training_info.json").write_text(json.dumps({"step": step}))
    publish(aside, final)
    return final


def prune_folder(folder: Path, *, decided: int, steps: int, saved: int = 0) -> Path:
    """A prune run in the round behind `decided` ones, at step `steps` of it."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG)
    limits = (4000, 3000, 2000)
    for number in range(1, decided + 1):
        done = train_folder(folder / f"round_{number}_L{limits[number - 1]}", steps=200, saved=200)
        (done / "decision.json").write_text(json.dumps({"round": number, "reason": "shortest"}))
    train_folder(folder / f"round_{decided + 1}_L{limits[decided]}", steps=steps, saved=saved)
    return folder


def job_records(run_dir: Path, job: int | str, events: str, *, drivers: dict[int, str] | None = None) -> Path:
    """RUN/logs/job_ID with events.tsv (given with spaces for tabs, three to a line) and logs of the driver."""
    folder = run_dir / "logs" / f"job_{job}"
    folder.mkdir(parents=True)
    lines = (line.strip().split(" ", 3) for line in events.strip().splitlines())
    (folder / "events.tsv").write_text("".join("\t".join(line) + "\n" for line in lines))
    for number, text in (drivers or {}).items():
        (folder / f"attempt_{number}").mkdir()
        (folder / f"attempt_{number}" / "driver.log").write_text(text)
    (run_dir / "logs" / f"job_{job}.log").write_text("from the script\n")
    return folder
