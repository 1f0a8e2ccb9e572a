"""The records of a run: metrics.jsonl, ledger.jsonl, rollouts/; written step by step, cut back on resume."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.files import fsync_dir, write_atomic
from nemo_thinkprune.training.disk import append_durably, disk_errors

METRICS = "metrics.jsonl"
LEDGER = "ledger.jsonl"
ROLLOUTS = "rollouts"

_ROLLOUT_FILE = re.compile(r"step_(\d+)\.jsonl")
# What recipe.files.write_atomic leaves behind when it is killed.
_TEMPORARY = ".*.tmp"

Row = Mapping[str, Any]


class RunFolder:
    """Writes the records of one run; with `write` false (every rank but the main one) it does nothing.

    A row of metrics.jsonl is written last of all that belongs to its step, so that its presence means that
    the rest is there.  Every method raises `DiskFull`, with earlier rows intact, when there is no room.
    """

    def __init__(self, run_dir: Path, *, write: bool) -> None:
        self.run_dir = run_dir
        self._write = write

    def write_step(
        self,
        step: int,
        *,
        row: Row,
        rollouts: Sequence[Row] | None,
        ledger_row: Row | None,
        validation: Row | None = None,
    ) -> None:
        """Record a step: its responses, the prompts it took, its metrics, perhaps a validation after it."""
        self.write_responses(step, rollouts=rollouts, ledger_row=ledger_row)
        self.write_metrics(step, row, validation=validation)

    def write_responses(self, step: int, *, rollouts: Sequence[Row] | None, ledger_row: Row | None) -> None:
        """Record the responses of a step and the prompts it took, before its metrics are known."""
        if not self._write:
            return
        if rollouts is not None:
            path = self.run_dir / ROLLOUTS / f"step_{step}.jsonl"
            with disk_errors(path):
                write_atomic(path, b"".join(map(_line, rollouts)))
        if ledger_row is not None:
            append_durably(self.run_dir / LEDGER, _line({"step": step, **ledger_row}))

    def write_metrics(self, step: int, row: Row, *, validation: Row | None = None) -> None:
        """Record the metrics of a step whose responses are recorded, perhaps with a validation after it."""
        if not self._write:
            return
        lines = _line({"step": step, **row})
        if validation is not None:
            lines += _validation_line(step, validation)
        append_durably(self.run_dir / METRICS, lines)

    def write_validation(self, step: int, validation: Row) -> None:
        """Record a validation by itself: the one before the first step, or one that is over before its step is."""
        if self._write:
            append_durably(self.run_dir / METRICS, _validation_line(step, validation))

    def truncate_after(self, step: int) -> None:
        """Cut the records back to checkpoint `step`; what is kept stays byte for byte as it was.

        A last line torn by a power cut goes too.  0 stands for no checkpoint: everything goes.

        Raises:
            UserError: A row that should be kept stands behind a damaged one.
        """
        if not self._write:
            return
        for name in (METRICS, LEDGER):
            truncate_rows(self.run_dir / name, step)
        _remove_rollouts(self.run_dir / ROLLOUTS, step)
        for leftover in [*self.run_dir.glob(_TEMPORARY), *self.run_dir.glob(f"{ROLLOUTS}/{_TEMPORARY}")]:
            leftover.unlink(missing_ok=True)


def truncate_rows(path: Path, step: int) -> None:
    """Cut a JSON-lines file behind its last row of `step`, in place; nothing to do when there is no file.

    Raises:
        UserError: as `RunFolder.truncate_after`.
    """
    if not path.exists():
        return
    keep, cut_at = 0, 0
    for number, (end, row_step) in enumerate(_row_steps(path.read_bytes()), start=1):
        wanted = step > 0 and row_step is not None and row_step <= step
        if wanted and cut_at:
            raise UserError(
                f"{path}: line {cut_at} is damaged or out of order, but line {number} belongs to step {row_step}, "
                f"which the checkpoint of step {step} covers: mend the line, or start again in another folder"
            )
        if wanted:
            keep = end
        else:
            cut_at = cut_at or number
    if keep == path.stat().st_size:
        return
    with disk_errors(path), open(path, "r+b") as stream:
        stream.truncate(keep)
        os.fsync(stream.fileno())


def _row_steps(data: bytes) -> Iterator[tuple[int, int | None]]:
    """(offset behind the line, step) of every line; a line that is no whole row has step None."""
    end = 0
    for line in re.split(rb"(?<=\n)", data):
        end += len(line)
        yield end, _step_of(line)


def _step_of(line: bytes) -> int | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return step if isinstance(step, int) and not isinstance(step, bool) else None


def _remove_rollouts(folder: Path, step: int) -> None:
    if not folder.is_dir():
        return
    for path in list(folder.iterdir()):
        if (match := _ROLLOUT_FILE.fullmatch(path.name)) and int(match[1]) > step:
            path.unlink()
    fsync_dir(folder)


def _line(row: Row) -> bytes:
    return (json.dumps(row, allow_nan=False) + "\n").encode()


def _validation_line(step: int, validation: Row) -> bytes:
    return _line({"step": step, "validation": dict(validation)})
