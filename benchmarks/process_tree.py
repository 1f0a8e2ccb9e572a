"""Run a command and measure the memory of it and of everything it starts."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_SAMPLE_S = 0.01


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished command.

    `seconds` is wall time. Memory in MB (10^6 bytes): `tree_mb` is the largest sum of resident sets over the
    whole process tree in one sample (pages that processes share count once for each), `bound_mb` the sum of
    each process's own highest resident set as the kernel kept it, which no moment can have exceeded except in a
    process that lived between two samples; `maxrss_mb` is wait4's ru_maxrss, the largest single process, which
    the kernel counts from the fork on: never less than this process's own.
    """

    code: int
    seconds: float
    tree_mb: float
    bound_mb: float
    maxrss_mb: float
    text: str


def run(command: Sequence[str], *, output: Path) -> Outcome:
    """Run `command` to its end with its output in the file `output`; memory is sampled every 10 ms."""
    peaks: dict[int, int] = {}
    largest = 0
    with open(output, "wb") as stream:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True
        )
        try:
            while True:
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                if pid:
                    break
                largest = max(largest, _sample(process.pid, peaks))
                time.sleep(_SAMPLE_S)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
        seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    return Outcome(
        code=process.returncode,
        seconds=seconds,
        tree_mb=largest * 1024 / 1e6,
        bound_mb=sum(peaks.values()) * 1024 / 1e6,
        maxrss_mb=usage.ru_maxrss * 1024 / 1e6,
        text=output.read_text(errors="replace"),
    )


def _sample(root: int, peaks: dict[int, int]) -> int:
    """Resident KiB of the tree now; notes each process's own highest in `peaks`."""
    total = 0
    for pid in _tree(root):
        now, highest = _resident(pid)
        total += now
        peaks[pid] = max(peaks.get(pid, 0), highest)
    return total


def _resident(pid: int) -> tuple[int, int]:
    now = highest = 0
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                now = int(line.split()[1])
            elif line.startswith("VmHWM:"):
                highest = int(line.split()[1])
    return now, highest


def _tree(root: int) -> Iterator[int]:
    yield root
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{root}/task").iterdir():  # a child belongs to the thread that started it
            for child in (thread / "children").read_text().split():
                yield from _tree(int(child))
