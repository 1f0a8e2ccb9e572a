"""Linux namespaces from outside: starting a process with its own, finding who lives in one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class NodeProcess:
    """A process in a pid namespace: `pid` as the host counts, `node_pid` as the namespace does."""

    pid: int
    node_pid: int
    argv: tuple[str, ...]
    environ: Mapping[str, str]


def system_program(name: str) -> str | None:
    """Where the system keeps a program, sbin included, whatever PATH says."""
    return shutil.which(name, path=SYSTEM_PATH)


def start_bound(
    command: Sequence[str | Path], *, log: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start a process that the kernel kills when this thread ends, however it ends; it gets `environment` only."""
    with open(log, "ab") as output:
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env={"PATH": SYSTEM_PATH, "LANG": "C.UTF-8", "HOME": "/root", **environment},
            start_new_session=True,
        )


def descendant(starter: subprocess.Popen[bytes], *, depth: int) -> int:
    """Wait for the process `depth` forks below `starter`; when unshare has forked, the namespaces are made."""
    deadline = time.monotonic() + 20
    while starter.poll() is None and time.monotonic() < deadline:
        pid: int | None = starter.pid
        for _ in range(depth):
            pid = next(iter(_children(pid)), None) if pid else None
        if pid:
            return pid
        time.sleep(0.005)
    raise AssertionError(f"{starter.args!r} did not start")


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def namespace(kind: str, pid: int) -> int | None:
    """The number of a process's namespace, None when the process is gone or not for us to see."""
    try:
        return os.stat(f"/proc/{pid}/ns/{kind}").st_ino
    except OSError:
        return None


def inhabitants(kind: str, numbers: Collection[int | None]) -> list[int]:
    """Every process whose namespace of that kind is one of `numbers`."""
    pids = [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()]
    return [pid for pid in pids if (number := namespace(kind, pid)) is not None and number in numbers]


def processes_around(pid: int) -> Iterator[NodeProcess]:
    """The processes of the pid namespace that `pid` lives in."""
    for other in inhabitants("pid", {namespace("pid", pid)}):
        try:
            status = Path(f"/proc/{other}/status").read_text()
            argv = Path(f"/proc/{other}/cmdline").read_text(errors="replace").split("\0")[:-1]
            environ = Path(f"/proc/{other}/environ").read_text(errors="replace").split("\0")
        except OSError:  # it has just ended
            continue
        numbers = re.search(r"^NSpid:\s+(.*)$", status, re.MULTILINE)
        assert numbers
        pairs = dict(pair.split("=", 1) for pair in environ if "=" in pair)
        yield NodeProcess(other, int(numbers[1].split()[-1]), tuple(argv), pairs)
