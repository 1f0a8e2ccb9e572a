"""The processes of a job on this node, from /proc alone: what they are and what the kernel tells of them."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

_READ_S = 2.0
_WORDS, _WORD_CHARACTERS, _ARGV_CHARACTERS = 60, 120, 400
_PROGRAMS = ("python", "ray", "gcs_server", "vllm", "thinkprune", "pt_main_thread")
_SERVANTS = ("raylet", "gcs_server", "dashboard", "log_monitor", "monitor.py", "runtimeenvagent", "ray::idle")
# The environment of Ray's workers comes in their arguments too.
_HIDDEN_FLAG = re.compile(r"(--?[\w-]*(?:env|key|token|secret|passw|credential)[\w-]*)(=.*)?", re.I | re.S)
_HIDDEN_VALUE = re.compile(r"(\b[A-Z][A-Z0-9_]*=)\S+")
_STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "waits in the kernel and cannot be interrupted",
    "T": "stopped by a signal",
    "t": "stopped by a debugger",
}
ID_VARIABLES = ("SLURM_JOB_ID", "THINKPRUNE_JOB")
"""By which the processes of a job are known: Slurm's, and that of the script of a Ray job."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Process:
    """A process: ids, state letter and name as in proc(5), and its arguments (or the title it gave itself)."""

    pid: int
    parent: int
    state: str
    name: str
    argv: tuple[str, ...]

    @property
    def title(self) -> str:
        """Its rank, the name that Ray or vLLM gave it, else that of the program."""
        if self.argv and "::" in self.argv[0]:
            return self.argv[0].strip()
        if (rank := self.option("--rank")) is not None:
            return f"rank {rank}"
        return self.name

    def option(self, flag: str) -> str | None:
        """The word behind a flag of its command line."""
        pairs = zip(self.argv, self.argv[1:], strict=False)
        return next((value for word, value in pairs if word == flag), None)

    @property
    def serves(self) -> bool:
        """Whether it is one of Ray's own servants, of which the work of a job knows nothing."""
        text = " ".join((self.name, *self.argv[:4])).lower()
        return any(word in text for word in _SERVANTS)

    @property
    def is_program(self) -> bool:
        """Whether it is Python's or Ray's, and not a shell or a tool of Slurm."""
        first = os.path.basename(self.argv[0].split(" ")[0]) if self.argv else ""
        texts = (first.lower(), self.name.lower())
        return any(word in text for word in _PROGRAMS for text in texts)

    def header(self) -> str:
        """What it is, in three lines; nothing of its environment."""
        return (
            f"==== pid {self.pid} (parent {self.parent}): {self.title}\n"
            f"state {self.state}: {_STATES.get(self.state, '?')}\n{shown(self.argv) or f'[{self.name}]'}\n"
        )


def shown(argv: Iterable[str]) -> str:
    """A command line, shortened, without values of settings that may be secret."""
    words, hide = [], False
    for word in list(argv)[:_WORDS]:
        flag = _HIDDEN_FLAG.fullmatch(word)
        if hide and not word.startswith("-"):
            word = "***"
        elif flag:
            word = f"{flag[1]}=***" if flag[2] else word
        elif "{" in word:
            word = f"{word.partition('{')[0]}{{***}}"
        else:
            word = _HIDDEN_VALUE.sub(r"\1***", word)
        hide = bool(flag and not flag[2])
        words.append(word if len(word) <= _WORD_CHARACTERS else f"{word[:_WORD_CHARACTERS]}...")
    text = " ".join(" ".join(words).split())
    return text if len(text) <= _ARGV_CHARACTERS else f"{text[:_ARGV_CHARACTERS]} ..."


def job_processes(job_id: str, *, proc: Path = Path("/proc")) -> list[Process]:
    """This user's Python and Ray processes of a job, those of its work first; without this one.

    A process belongs to the job when its environment gives one of ID_VARIABLES as `job_id`, or when it comes from
    one whose does: one that gives itself a title (vLLM's engines, Ray's agents) overwrites what the kernel shows.
    """
    own = [entry for entry in proc.iterdir() if entry.name.isdigit() and _is_own(entry)]
    found = {p.pid: p for entry in own if (p := _process(entry)) is not None}
    wanted = {f"{name}={job_id}".encode() for name in ID_VARIABLES}
    members = {pid for pid, p in found.items() if wanted & _environment(proc, p)}
    while more := {pid for pid, p in found.items() if p.parent in members and pid not in members}:
        members |= more
    members -= {os.getpid()}
    chosen = [found[pid] for pid in sorted(members) if found[pid].is_program]
    return sorted(chosen, key=lambda p: p.serves)


def in_time(seconds: float, work: Callable[[], T]) -> T | None:
    """What `work` returns, None where it takes longer: reading of a process that hangs in the kernel may hang too."""
    result: list[T] = []
    thread = threading.Thread(target=lambda: result.append(work()), daemon=True)
    thread.start()
    thread.join(seconds)
    return result[0] if result else None


def state_of(pid: int) -> str:
    """The state letter of a process, empty when there is none."""
    process = _stat(Path(f"/proc/{pid}"))
    return process[2] if process else ""


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal: SigCgt of proc(5)."""
    for line in _text(Path(f"/proc/{pid}/status")).splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def told_by_kernel(pid: int, *, threads: int = 200) -> str:
    """Of each thread its state, where in the kernel it waits, and for root the kernel's own stack."""
    lines = []
    for task in sorted(Path(f"/proc/{pid}/task").glob("[0-9]*"), key=lambda path: int(path.name))[:threads]:
        if (stat := _stat(task)) is None:
            continue
        waits, call = _text(task / "wchan").strip(), _text(task / "syscall").split(" ")[0].strip()
        where = f"waits in {waits}" if waits not in ("", "0") else "waits nowhere in the kernel"
        lines.append(
            f"thread {task.name} {stat[3]}: state {stat[2]}, {where}, system call {call or 'unknown'}"
        )
        lines += [f"    {line}" for line in _text(task / "stack").splitlines()]
    return "\n".join(lines)


def _is_own(entry: Path) -> bool:
    with contextlib.suppress(OSError):
        return entry.stat().st_uid == os.getuid()
    return False


def _process(entry: Path) -> Process | None:
    stat = _stat(entry)
    if stat is None or stat[2] in "ZX":
        return None
    argv = in_time(_READ_S, lambda: _text(entry / "cmdline")) if stat[2] == "D" else _text(entry / "cmdline")
    words = (argv or "").rstrip("\0").split("\0")
    return Process(stat[0], stat[1], stat[2], stat[3], tuple(words) if words != [""] else ())


def _environment(proc: Path, process: Process) -> frozenset[bytes]:
    def read() -> bytes:
        with contextlib.suppress(OSError):
            return (proc / str(process.pid) / "environ").read_bytes()
        return b""

    # Reading waits for whoever holds the lock of the process's memory.
    data = in_time(_READ_S, read) if process.state == "D" else read()
    return frozenset((data or b"").split(b"\0"))


def _stat(entry: Path) -> tuple[int, int, str, str] | None:
    """(id, parent, state, name): proc(5), stat; None when there is no such process."""
    text = _text(entry / "stat")
    if ")" not in text:
        return None
    state, parent = text[text.rindex(")") + 2 :].split()[:2]
    return int(entry.name), int(parent), state, text[text.index("(") + 1 : text.rindex(")")]


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""
