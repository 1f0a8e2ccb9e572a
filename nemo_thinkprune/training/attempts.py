"""One process at a time in a run folder, and a folder of logs for each attempt."""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nemo_thinkprune.recipe.errors import UserError

LOCK_FILE = ".lock"
LOGS = "logs"
LOCK_PATIENCE_S = 5.0
_ATTEMPT = re.compile(r"attempt_(\d+)")


@contextmanager
def run_lock(run_dir: Path) -> Iterator[int]:
    """Hold the run folder; gives a descriptor that keeps it locked in every process that inherits it.

    Waits a few seconds for the processes of a killed attempt to vanish.

    Raises:
        UserError: Another run uses the folder, or it cannot be made.
    """
    make_run_folder(run_dir)
    descriptor = os.open(run_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _take(descriptor, run_dir)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def make_run_folder(run_dir: Path) -> None:
    """Make the folder of a run.

    Raises:
        UserError: It cannot be made: a file is in its way, or the place may not be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot make the folder {run_dir} ({reason}): give another place") from error


def _take(descriptor: int, run_dir: Path) -> None:
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            raise UserError(
                f"{run_dir} is in use by process {owner or '?'}: wait for it, end it, or use another folder"
            ) from None


def new_attempt(run_dir: Path) -> Path:
    """Make ``logs/attempt_K`` with the next free K, from 1."""
    logs = run_dir / LOGS
    logs.mkdir(parents=True, exist_ok=True)
    numbers = [int(match[1]) for item in logs.iterdir() if (match := _ATTEMPT.fullmatch(item.name))]
    folder = logs / f"attempt_{max(numbers, default=0) + 1}"
    folder.mkdir()
    return folder
