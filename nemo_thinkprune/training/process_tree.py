"""Find and kill every process of a session, and the processor time of one and its children.  Linux.

A worker leads a session, and what it starts stays in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection

_PR_SET_PDEATHSIG = 1
_POLL_S = 0.02


def die_with_parent(parent: int | None = None) -> Callable[[], None]:
    """Return what a child of `parent` (default: this process) must call so that it cannot outlive it.

    It asks the kernel for a SIGKILL when the thread that forked ends, and leaves at once when the parent is
    already gone.  The C library is looked up here: a forked child of a threaded process should not.
    """
    parent = os.getpid() if parent is None else parent
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def arm() -> None:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return arm


def session_members(sessions: Collection[int]) -> list[int]:
    """Ids of the processes, zombies left out, whose session is one of `sessions`."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and (stat := process_stat(int(name))) is not None:
            state, session = stat
            if session in sessions and state not in "ZX":
                found.append(int(name))
    return found


def process_stat(pid: int) -> tuple[str, int] | None:
    """(state letter, session id) of a process, None when there is none: proc(5), fields 3 and 6."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            text = stream.read()
    except OSError:
        return None
    fields = text[text.rindex(b")") + 2 :].split()
    return fields[0].decode(), int(fields[3])


def kill_sessions(sessions: Collection[int], *, timeout_s: float = 10.0) -> list[int]:
    """SIGKILL every process of the sessions, again and again until none is left.

    Returns the ids that were still there after `timeout_s` seconds: processes stuck in the kernel.
    """
    deadline = time.monotonic() + timeout_s
    while members := session_members(sessions):
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return members
        time.sleep(_POLL_S)
    return []


def processor_seconds() -> float:
    """Processor seconds of this process, all threads, and of the processes that the calling thread started.

    User and system.  Of a living child the kernel tells them in clock ticks (proc(5), /proc/PID/stat, fields 14
    and 15).
    """
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    ticks = sum(_ticks(pid) for pid in _children())
    return time.process_time() + ended.ru_utime + ended.ru_stime + ticks / os.sysconf("SC_CLK_TCK")


def _children() -> list[int]:
    """Ids of the children of this thread (a rank has dozens: to ask all takes a millisecond); none if not told."""
    try:
        with open(f"/proc/self/task/{threading.get_native_id()}/children", "rb") as stream:
            return [int(pid) for pid in stream.read().split()]
    except OSError:
        return []


def _ticks(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            text = stream.read()
    except OSError:
        return 0
    fields = text[text.rindex(b")") + 2 :].split()
    return int(fields[11]) + int(fields[12])
