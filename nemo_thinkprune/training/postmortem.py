"""What is written down about a failed attempt."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from nemo_thinkprune.recipe.files import write_atomic
from nemo_thinkprune.training.watch import Failure, FailureKind

_TAIL_BYTES = 1 << 16  # much of it may be noise
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# Where a warning was given, progress bars, what Ray's daemon notes in passing, and empty lines.
_WARNING = re.compile(r":\d+: \w*Warning: ")
_NOISE = re.compile(r"\d+%\||\d(?:it/s|s/it)\b|^\s*\[[\d:, -]+ I \d+ \d+\] |^\s*warnings\.warn\(")
_OF_ACTOR = re.compile(r"^\([^()]*pid=[^()]*\) ?")
_ALMOST_FULL = 100 << 20  # less than this is no place to write a checkpoint
_UNEXPLAINED = (FailureKind.EXITED, FailureKind.KILLED, FailureKind.RAISED)


def with_disk(failure: Failure, run_dir: Path) -> Failure:
    """Say it where a disk that the job writes to is full: processes die of that without a word.

    The disks are those of the run folder and of temporary files, where Ray keeps its own.
    """
    if failure.kind not in _UNEXPLAINED:
        return failure
    for folder in (run_dir, Path(tempfile.gettempdir())):
        if (free := _free_bytes(folder)) is not None and free < _ALMOST_FULL:
            hint = (
                f"the file system of {folder} is full ({free / 1e6:.0f} MB free), which may be why: make room and "
                "run the same command again"
            )
            return replace(failure, reason=f"{failure.reason}\n{hint}")
    return failure


def _free_bytes(folder: Path) -> int | None:
    """What an ordinary user may still write; None where it cannot be told."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return None
    out_of_files = status.f_files > 0 and status.f_favail == 0
    return 0 if out_of_files else status.f_bavail * status.f_frsize


def tail(path: Path, lines: int = 12) -> str:
    """The last lines of a log that say something, empty when it cannot be read."""
    try:
        with open(path, "rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = stream.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(list(_telling(_COLOUR.sub("", text).splitlines()))[-lines:])


def _telling(lines: Iterable[str]) -> Iterator[str]:
    """Leave out warnings, each with the line of code that follows it, and other noise."""
    warned = False
    for line in lines:
        content = _OF_ACTOR.sub("", line)
        is_code, warned = warned and content[:1].isspace(), _WARNING.search(content) is not None
        if content.strip() and not (is_code or warned or _NOISE.search(content)):
            yield line


def write_report(path: Path, failure: Failure, stacks: Mapping[int, str]) -> None:
    """Write reason, positions and stacks of all ranks; a full disk must not hide the reason itself."""
    parts = [failure.reason, "", failure.positions]
    for rank, text in stacks.items():
        parts += ["", f"==== stacks of rank {rank} ====", text.rstrip()]
    with contextlib.suppress(OSError):
        write_atomic(path, "\n".join(parts) + "\n")
