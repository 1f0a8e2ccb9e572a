"""What is written down about a failed attempt."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from nemo_thinkprune.recipe.files import write_atomic
from nemo_thinkprune.training.watch import Failure

_TAIL_BYTES = 1 << 14


def tail(path: Path, lines: int = 12) -> str:
    """The last lines of a text file, empty when it cannot be read."""
    try:
        with open(path, "rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = stream.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def write_report(path: Path, failure: Failure, stacks: Mapping[int, str]) -> None:
    """Write reason, positions and stacks of all ranks; a full disk must not hide the reason itself."""
    parts = [failure.reason, "", failure.positions]
    for rank, text in stacks.items():
        parts += ["", f"==== stacks of rank {rank} ====", text.rstrip()]
    with contextlib.suppress(OSError):
        write_atomic(path, "\n".join(parts) + "\n")
