"""Leave NeMo-RL's trainer when asked to, at a step that is saved."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

from nemo_thinkprune.training.worker import RankContext


class StopTraining(BaseException):
    """The run was asked to stop and `step` is over: saved, or saving is switched off.

    No `Exception`, because NeMo-RL's asynchronous trainer prints those and goes on as if it had finished.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped as asked after step {step}")
        self.step = step


class Stopping:
    """Turns the wish to stop into a checkpoint of the present step, and then into `StopTraining`.

    NeMo-RL's trainers look up `save_period` at the end of every step, after training and validation, so a wish
    that comes before that is granted in the same step; a later one a step later.

    Args:
        context: where the wish arrives.
        checkpointing: NeMo-RL's live settings; `save_period` becomes 1 once the run is asked to stop.
        last_step: step with which the run ends anyhow.
        settle: waits until a checkpoint whose saving goes on in the background has its name.
    """

    def __init__(
        self,
        context: RankContext,
        checkpointing: MutableMapping[str, Any],
        *,
        last_step: int,
        settle: Callable[[], None] | None = None,
    ) -> None:
        self._context = context
        self._checkpointing = checkpointing
        self._last_step = last_step
        self._settle = settle
        context.when_asked_to_stop(self._save_soon)

    def after(self, step: int) -> None:
        """To be called when a step is recorded; returns unless the run is to end here.

        Raises:
            StopTraining: The run was asked to stop, and goes on from this step when it is started again.
        """
        if self._context.stop_requested() and step < self._last_step and self._is_safe(step):
            raise StopTraining(step)

    def _is_safe(self, step: int) -> bool:
        if not self._checkpointing["enabled"]:
            return True
        if self._settle is not None:
            self._settle()
        return (Path(self._checkpointing["checkpoint_dir"]) / f"step_{step}").is_dir()

    def _save_soon(self) -> None:
        self._checkpointing["save_period"] = 1
