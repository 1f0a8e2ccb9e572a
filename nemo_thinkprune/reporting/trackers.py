"""Optional mirrors of metrics.jsonl, which is always written: Weights & Biases and TensorBoard."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.load import to_dict
from nemo_thinkprune.recipe.schema import Recipe


class Tracker(Protocol):
    """Receives numbers by step."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of a step."""

    def close(self) -> None:
        """Write out what is pending."""


class WandbTracker:
    """A Weights & Biases run; offline unless WANDB_MODE says otherwise, its key only from the environment."""

    def __init__(self, recipe: Recipe, run_dir: Path, *, name: str) -> None:
        wandb = _require("wandb", "logger.wandb_enabled")
        mode = os.environ.get("WANDB_MODE", "offline")
        if mode not in ("offline", "disabled") and not os.environ.get("WANDB_API_KEY"):
            raise UserError(f"WANDB_MODE is {mode} but WANDB_API_KEY is not set in the environment")
        settings = recipe.logger.wandb
        self._run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            name=settings.name or name,
            dir=str(run_dir),
            mode=mode,
            config=to_dict(recipe),
            settings=wandb.Settings(console="off", silent=True, disable_git=True, save_code=False),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of a step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """End the run; an offline one is sent later with `wandb sync`."""
        self._run.finish()


class TensorboardTracker:
    """A TensorBoard event file."""

    def __init__(self, recipe: Recipe, run_dir: Path) -> None:
        try:
            summaries = importlib.import_module("torch.utils.tensorboard")
        except ImportError:
            raise _missing("tensorboard", "logger.tensorboard_enabled") from None
        folder = run_dir / (recipe.logger.tensorboard.log_dir or "tensorboard")
        self._writer = summaries.SummaryWriter(log_dir=str(folder))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()


@contextmanager
def open_trackers(recipe: Recipe, run_dir: Path, *, name: str) -> Iterator[list[Tracker]]:
    """The trackers that the recipe's ``logger`` section asks for, closed on leaving the block.

    Raises:
        UserError: one is asked for whose package is not installed.
    """
    trackers: list[Tracker] = []
    try:
        if recipe.logger.wandb_enabled:
            trackers.append(WandbTracker(recipe, run_dir, name=name))
        if recipe.logger.tensorboard_enabled:
            trackers.append(TensorboardTracker(recipe, run_dir))
        yield trackers
    finally:
        for tracker in trackers:
            tracker.close()


class StepEvent(Protocol):
    """What a tracker needs of a supervisor's event."""

    @property
    def rank(self) -> int:
        """Rank that sent it."""

    @property
    def row(self) -> dict[str, Any] | None:
        """A row of metrics.jsonl, if the event brings one."""

    @property
    def extra(self) -> dict[str, Any]:
        """Whatever else it brings; `validation` is mirrored with the row."""


@contextmanager
def tracked_events(recipe: Recipe, run_dir: Path, *, name: str) -> Iterator[Callable[[StepEvent], None]]:
    """A listener for a supervisor's events that mirrors each row of rank 0; raises as open_trackers."""
    with open_trackers(recipe, run_dir, name=name) as trackers:

        def listen(event: StepEvent) -> None:
            if event.rank == 0 and event.row is not None and "step" in event.row:
                validation = event.extra.get("validation")
                log_row(trackers, {**event.row, "validation": validation} if validation else event.row)

        yield listen


def log_row(trackers: list[Tracker], row: Mapping[str, Any]) -> None:
    """Send one row of metrics.jsonl (a step, a validation, or both) to each tracker."""
    values = flatten(row)
    if values:
        for tracker in trackers:
            tracker.log(int(row["step"]), values)


def flatten(row: Mapping[str, Any], prefix: str = "train/") -> dict[str, float]:
    """The finite numbers of a row as ``train/kl``, ``timing/step_s``, ``validation/accuracy`` and so on."""
    values: dict[str, float] = {}
    for key, value in row.items():
        if key == "step":
            continue
        if isinstance(value, Mapping):
            values |= flatten(value, prefix=f"{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            values[prefix + key] = float(value)
    return values


def _require(package: str, key: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise _missing(package, key) from None


def _missing(package: str, key: str) -> UserError:
    return UserError(
        f"{key} is true but {package} is not installed: pip install 'nemo-thinkprune[tracking]', "
        "or set the key to false"
    )
