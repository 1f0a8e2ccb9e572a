"""A run that is asked to stop saves the step it is in and leaves behind it, whenever the wish comes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemo_thinkprune.cluster.stopping import Stopping, StopTraining
from nemo_thinkprune.training.worker import RankContext

STEPS = 6
MOMENTS = ("rollout", "train", "saved", "logged")


@pytest.fixture
def context() -> Iterator[RankContext]:
    pipe = os.open(os.devnull, os.O_WRONLY)
    yield RankContext(rank=0, world=1, rendezvous=Path("none"), pipe=pipe)
    os.close(pipe)


def settings(folder: Path, **values: Any) -> dict[str, Any]:
    return {"enabled": True, "save_period": 4, "checkpoint_dir": str(folder), **values}


def trainer(stopping: Stopping, checkpointing: dict[str, Any], at: Any) -> None:
    """NeMo-RL's loop as far as saving and stopping go; `at(step, moment)` is called on the way."""
    for step in range(1, STEPS + 1):
        at(step, "rollout")
        at(step, "train")
        due = step == STEPS or step % checkpointing["save_period"] == 0
        if checkpointing["enabled"] and due:
            (Path(checkpointing["checkpoint_dir"]) / f"step_{step}").mkdir()
        at(step, "saved")
        stopping.after(step)
        at(step, "logged")


def stopped_at(context: RankContext, folder: Path, step: int, moment: str, **values: Any) -> int | None:
    checkpointing = settings(folder, **values)
    stopping = Stopping(context, checkpointing, last_step=STEPS)

    def at(now: int, reached: str) -> None:
        if (now, reached) == (step, moment):
            context.request_stop()

    try:
        trainer(stopping, checkpointing, at)
    except StopTraining as stop:
        return stop.step
    return None


@pytest.mark.parametrize(
    ("step", "moment", "expected"),
    [
        (2, "rollout", 2),
        (2, "train", 2),
        (2, "saved", 3),  # too late to save step 2
        (2, "logged", 3),
        (4, "saved", 4),  # step 4 is saved anyhow
        (5, "train", 5),
        (5, "saved", None),  # the last step ends by itself
        (6, "rollout", None),
    ],
)
def test_it_leaves_at_the_first_step_that_is_saved(
    context: RankContext, tmp_path: Path, step: int, moment: str, expected: int | None
) -> None:
    assert stopped_at(context, tmp_path, step, moment) == expected
    saved = {int(path.name.removeprefix("step_")) for path in tmp_path.iterdir()}
    assert saved == {n for n in (4, expected or STEPS) if n <= (expected or STEPS)}


def test_a_wish_from_before_counts(context: RankContext, tmp_path: Path) -> None:
    context.request_stop()
    assert stopped_at(context, tmp_path, 0, "never") == 1
    assert (tmp_path / "step_1").is_dir()


def test_a_signal_arrives_while_nobody_asks(context: RankContext, tmp_path: Path) -> None:
    checkpointing = settings(tmp_path)
    Stopping(context, checkpointing, last_step=STEPS)
    before = signal.signal(signal.SIGUSR1, lambda *_: context.request_stop())
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert checkpointing["save_period"] == 1


def test_without_checkpoints_any_step_will_do(context: RankContext, tmp_path: Path) -> None:
    assert stopped_at(context, tmp_path, 2, "saved", enabled=False) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_written_in_the_background_is_waited_for(context: RankContext, tmp_path: Path) -> None:
    (tmp_path / "tmp_step_1").mkdir()

    def settle() -> None:
        (tmp_path / "tmp_step_1").rename(tmp_path / "step_1")

    stopping = Stopping(context, settings(tmp_path), last_step=STEPS, settle=settle)
    context.request_stop()
    with pytest.raises(StopTraining) as stop:
        stopping.after(1)
    assert stop.value.step == 1


def test_nobody_asks_nobody_stops(context: RankContext, tmp_path: Path) -> None:
    assert stopped_at(context, tmp_path, 0, "never") is None


def test_it_passes_handlers_of_ordinary_errors() -> None:
    """NeMo-RL's asynchronous trainer prints every `Exception` and returns."""
    assert not issubclass(StopTraining, Exception)
