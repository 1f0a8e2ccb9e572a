"""How far a copy is: a bar on a terminal, a line every few seconds elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

_LINE_SECONDS = 5.0


@contextlib.contextmanager
def progress(
    total: int,
    what: str,
    *,
    done: int = 0,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Callable[[int], None]]:
    """Show `what` (a word such as export) with bytes, bytes/s and time left; call the result with bytes copied.

    `total` and `done` (finished by an earlier run) are bytes. `stream` is stderr unless told.
    """
    target = sys.stderr if stream is None else stream
    if target.isatty():
        with _bar(total, what, done, target) as advance:
            yield advance
    else:
        yield _lines(total, what, done, target, clock)


@contextlib.contextmanager
def _bar(total: int, what: str, done: int, stream: TextIO) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.progress import TransferSpeedColumn as Speed

    columns = (TextColumn(what), BarColumn(), DownloadColumn(), Speed(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=stream)) as bar:
        task = bar.add_task(what, total=total, completed=done)
        yield lambda nbytes: bar.advance(task, nbytes)


def _lines(
    total: int, what: str, done: int, stream: TextIO, clock: Callable[[], float]
) -> Callable[[int], None]:
    begin = last = clock()
    copied = 0

    def advance(nbytes: int) -> None:
        nonlocal copied, last
        copied += nbytes
        now = clock()
        if now - last < _LINE_SECONDS:
            return
        last = now
        speed = copied / (now - begin)
        at = done + copied
        left = f", {_time((total - at) / speed)} left" if speed else ""
        share = f" ({100 * at // total}%)" if total else ""
        with contextlib.suppress(OSError):  # a closed pipe must not end the copy
            stream.write(f"{what}: {_size(at)} of {_size(total)}{share}, {_size(speed)}/s{left}\n")
            stream.flush()

    return advance


def _size(nbytes: float) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"


def _time(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
