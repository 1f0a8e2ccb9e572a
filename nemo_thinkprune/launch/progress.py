"""How far a run is, read from its folder: round, step, last metrics, last checkpoint, time left."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from nemo_thinkprune.reporting import run_files
from nemo_thinkprune.reporting.damage import number
from nemo_thinkprune.training.checkpoint_files import Checkpoint, complete_checkpoints
from nemo_thinkprune.training.run_folder import METRICS

UNBOUNDED_STEPS = 1_000_000  # the default of grpo.max_num_steps: the epochs end such a run
_RECENT_STEPS = 20
_TAIL_BYTES = 1 << 18
# What training.console prints for a step, and training.supervisor.JobStopped says.
_STEP = re.compile(r"\btrain L=(\d+)  step (\d+)/(\d+)\b")
_SAVED = re.compile(r"\bstopped as asked with step (\d+) saved\b")


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the training of a run is.

    `folder` is the train run that it is about: RUN itself, or the newest round. `round` counts from 1, None
    outside of rounds; `steps` is None where the number of steps is not known yet; `row` holds the numbers of the
    last step; `age_s` is the time since they were written; `seconds_a_step` covers validation and saving.
    """

    folder: Path
    round: int | None
    rounds: int | None
    limit: int | None
    selected: bool
    step: int | None
    steps: int | None
    row: dict[str, Any]
    age_s: float | None
    seconds_a_step: float | None
    checkpoint: Checkpoint | None

    @property
    def left_s(self) -> float | None:
        """Estimated seconds until the last step of this round or run."""
        if self.seconds_a_step is None or self.steps is None or self.step is None:
            return None
        return max(self.steps - self.step, 0) * self.seconds_a_step


def read_progress(run_dir: Path, *, driver_logs: Sequence[Path] = ()) -> Progress:
    """Read how far a run is, whatever is there of it.

    Args:
        run_dir: train or prune folder.
        driver_logs: of the job's attempts, newest first; they tell how many steps there will be.
    """
    files = run_files.read_run(run_dir)
    pruning = files.kind == "prune"
    train = _current(files)
    step = train.steps[-1]["step"] if train and train.steps else None
    folder = train.folder if train else run_dir
    name = run_files.parse_round(folder.name) if pruning else None
    config = run_files.read_run(folder).config if pruning else files.config
    return Progress(
        folder=folder,
        round=name[0] if name else None,
        rounds=len(files.limits) if pruning else None,
        limit=train.limit if train else None,
        selected=train is not None and train.decision is not None,
        step=step,
        steps=_planned(
            config or files.config, driver_logs, limit=train.limit if train else None, at_least=step or 0
        ),
        row=dict(train.steps[-1]) if train and train.steps else {},
        age_s=_age(folder / METRICS) if step is not None else None,
        seconds_a_step=seconds_a_step(train.steps) if train else None,
        checkpoint=newest_checkpoint(run_dir),
    )


def newest_checkpoint(run_dir: Path) -> Checkpoint | None:
    """The last complete checkpoint of a train run, or of the newest round that has one."""
    folders = sorted(
        ((parsed, path) for path in _children(run_dir) if (parsed := run_files.parse_round(path.name))),
        reverse=True,
    )
    for folder in [path for _, path in folders] or [run_dir]:
        config = run_files.read_run(folder).config
        place = run_files.dig(config, "checkpointing", "checkpoint_dir")
        found = complete_checkpoints(
            folder / (place if isinstance(place, str) else "checkpoints"), require_manifest=False
        )
        if found:
            return found[0]
    return None


def seconds_a_step(rows: Sequence[dict[str, Any]]) -> float | None:
    """Median duration of the last steps, and what validation and saving add to one on average."""
    timings = [run_files.dig(row, "timing") or {} for row in rows[-_RECENT_STEPS:]]
    steps = [timing["step_s"] for timing in timings if number(timing.get("step_s")) is not None]
    if not steps:
        return None
    beside = [timing.get(key) or 0.0 for timing in timings for key in ("validate_s", "save_s")]
    return median(steps) + sum(beside) / len(timings)


@dataclass(frozen=True, slots=True)
class LoggedStep:
    """The last step that a driver's log tells of, and the limit it was trained at where that is known."""

    step: int
    limit: int | None = None


def step_in_log(driver_log: Path) -> LoggedStep | None:
    """The last step that a driver's log tells of; None when there is none."""
    text = _tail(driver_log)
    steps = list(_STEP.finditer(text))
    limit = int(steps[-1][1]) if steps else None
    saved = [match for match in _SAVED.finditer(text) if not steps or match.start() > steps[-1].start()]
    if saved:
        return LoggedStep(int(saved[-1][1]), limit)
    return LoggedStep(int(steps[-1][2]), limit) if steps else None


def _current(files: run_files.RunFiles) -> run_files.TrainFiles | None:
    """The round that trains, else the last one; of a train run itself."""
    undecided = [train for train in files.rounds if train.decision is None]
    return (undecided or list(files.rounds) or [None])[-1]  # type: ignore[list-item]


def _planned(
    config: dict[str, Any], driver_logs: Sequence[Path], *, limit: int | None, at_least: int
) -> int | None:
    """The last step: as the driver counts it, else grpo.max_num_steps where the recipe sets it."""
    for log in driver_logs:
        found = [m for m in _STEP.finditer(_tail(log)) if limit is None or int(m[1]) == limit]
        if found and int(found[-1][3]) >= at_least:
            return int(found[-1][3])
    steps = run_files.dig(config, "grpo", "max_num_steps")
    known = isinstance(steps, int) and at_least <= steps < UNBOUNDED_STEPS
    return steps if known else None


def _age(path: Path) -> float | None:
    try:
        return max(time.time() - path.stat().st_mtime, 0.0)
    except OSError:
        return None


def _children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _tail(path: Path) -> str:
    try:
        with open(path, "rb") as stream:
            stream.seek(max(0, stream.seek(0, 2) - _TAIL_BYTES))
            return stream.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
