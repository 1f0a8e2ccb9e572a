"""How far a copy is: a bar on a terminal, a line every few seconds elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TextIO

from checkpoints_tools.sizes import size

_LINE_SECONDS = 5.0


class Progress:
    """Shows bytes, bytes/s and time left.

        with Progress(total, "export") as progress:
            run_jobs(jobs, ..., on_bytes=progress.advance)

    `total` and `done` (by an earlier run, not part of the speed) are bytes. `stream` is stderr unless told.
    """

    def __init__(
        self,
        total: int,
        what: str,
        *,
        done: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._what, self._done = total, what, done
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._copied = 0
        self._bar: Any = None
        self._begin = self._last = clock()

    def __enter__(self) -> Self:
        if self._stream.isatty():
            self._bar = _bar(self._total, self._what, self._done, self._stream)
            self._bar.start()
        self._begin = self._last = self._clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, nbytes: int) -> None:
        """Count bytes that were copied."""
        self._copied += nbytes
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done + self._copied)
            return
        now = self._clock()
        if now - self._last < _LINE_SECONDS:
            return
        self._last = now
        with contextlib.suppress(OSError):  # a closed pipe must not end the copy
            self._stream.write(self._line(now - self._begin) + "\n")
            self._stream.flush()

    def _line(self, seconds: float) -> str:
        speed, at = self._copied / seconds, self._done + self._copied
        share = f" ({100 * at // self._total}%)" if self._total else ""
        left = f", {_time((self._total - at) / speed)} left" if speed else ""
        return f"{self._what}: {size(at)} of {size(self._total)}{share}, {size(speed)}/s{left}"


def _bar(total: int, what: str, done: int, stream: TextIO) -> Any:
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    bar = progress.Progress(*columns, console=Console(file=stream))
    bar.add_task(what, total=total, completed=done)
    return bar


def _time(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
