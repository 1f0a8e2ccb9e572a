"""Where every process of a job on this node stands: Python and native stacks, without ending or changing any.

    python -m nemo_thinkprune.launch.stacks --job-id ID --into DIR

Run once on every node; writes DIR/NODENAME.txt.  py-spy reads the stacks from outside, of stopped processes too.
Where it is missing or may not, a process that has registered faulthandler on SIGUSR2 (the local engine's ranks do)
is asked by that signal, and of any other the kernel tells in which system call it waits.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from nemo_thinkprune.recipe.files import write_atomic
from nemo_thinkprune.training.crew import STACKS_GRACE_S

DEADLINE_S = 30.0
ONE_S = 10.0
AT_ONCE = 8
_ARGV_CHARACTERS = 300
_SETTLE_S = 0.1
_PROGRAMS = ("python", "ray", "pt_main_thread", "vllm", "thinkprune")
_STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "waiting in the kernel, cannot be interrupted",
    "T": "stopped by a signal",
    "t": "stopped by a debugger",
}


@dataclass(frozen=True, slots=True)
class Process:
    """A process of the job."""

    pid: int
    parent: int
    state: str
    name: str
    argv: tuple[str, ...]

    @property
    def title(self) -> str:
        """What the process says it is: its rank or Ray's name of it, else the program's."""
        if self.argv and self.argv[0].startswith("ray::"):
            return " ".join(self.argv).strip()
        for flag, value in zip(self.argv, self.argv[1:], strict=False):
            if flag == "--rank":
                return f"rank {value}"
        return self.name


def processes_of(job_id: str, *, proc: Path = Path("/proc")) -> list[Process]:
    """This user's Python and Ray processes with SLURM_JOB_ID = `job_id` in their environment, but not this one."""
    found = []
    wanted = f"SLURM_JOB_ID={job_id}".encode()
    for entry in sorted((e for e in proc.iterdir() if e.name.isdigit()), key=lambda e: int(e.name)):
        with contextlib.suppress(OSError, ValueError):
            if int(entry.name) == os.getpid() or entry.stat().st_uid != os.getuid():
                continue
            if wanted not in (entry / "environ").read_bytes().split(b"\0"):
                continue
            process = _read(entry)
            if _is_program(process):
                found.append(process)
    return found


def _read(entry: Path) -> Process:
    """A process as /proc tells of it: proc(5), stat fields 2 to 4.

    Raises:
        OSError: It is gone.
        ValueError: Its stat line is none.
    """
    stat = (entry / "stat").read_text(errors="replace")
    name = stat[stat.index("(") + 1 : stat.rindex(")")]
    state, parent = stat[stat.rindex(")") + 2 :].split()[:2]
    argv = (entry / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    return Process(int(entry.name), int(parent), state, name, tuple(argv) if argv != [""] else ())


def _is_program(process: Process) -> bool:
    if process.state in "ZX":
        return False
    first = os.path.basename(process.argv[0]) if process.argv else process.name
    return any(word in text for word in _PROGRAMS for text in (first, process.name))


def stacks_of(process: Process, *, py_spy: str | None, until: float) -> str:
    """What is known of where `process` stands; `until` is on the monotonic clock."""
    refused = "py-spy is not installed"
    if py_spy is not None:
        text, refused = _by_py_spy(process, py_spy, until)
        if text:
            return text
    asked = _by_signal(process, until)
    return f"({refused})\n{asked or ''}{_by_kernel(process.pid)}"


def _by_py_spy(process: Process, py_spy: str, until: float) -> tuple[str, str]:
    """(the stacks, why there are none): with native frames where that works."""
    refused = ""
    for native in (["--native"], []):
        left = min(ONE_S, until - time.monotonic())
        if left <= 0:
            return "", refused or "the time was over before it was asked"
        command = [py_spy, "dump", "--nonblocking", *native, "--pid", str(process.pid)]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=left)
        except subprocess.TimeoutExpired:
            refused = f"py-spy gave no answer within {left:.1f} s"
            continue
        except OSError as error:
            return "", f"py-spy cannot be run: {error}"
        if ended.returncode == 0 and "Thread" in ended.stdout:
            return ended.stdout, ""
        refused = "py-spy: " + " ".join((ended.stderr or ended.stdout).split())[:200]
    return "", refused


def _by_signal(process: Process, until: float) -> str | None:
    """Have a process that catches SIGUSR2 and was given a file for it (--stacks) write its threads there."""
    file = _stacks_file(process)
    if file is None or not _catches(process.pid, signal.SIGUSR2):
        return None
    before = _size(file)
    with contextlib.suppress(OSError):
        os.kill(process.pid, signal.SIGUSR2)
        if process.state == "T":  # it runs the handler as soon as it is let go on
            os.kill(process.pid, signal.SIGCONT)
    deadline, last = min(until, time.monotonic() + STACKS_GRACE_S), -1
    while time.monotonic() < deadline and not (last == _size(file) > before):
        last = _size(file)
        time.sleep(_SETTLE_S)
    try:
        with open(file, "rb") as stream:
            stream.seek(before)
            text = stream.read().decode(errors="replace")
    except OSError as error:
        return f"asked by SIGUSR2 to write to {file}, which cannot be read ({error.strerror})\n"
    return f"asked by SIGUSR2; from {file}:\n{text or 'it did not answer'}\n"


def _stacks_file(process: Process) -> Path | None:
    for flag, value in zip(process.argv, process.argv[1:], strict=False):
        if flag == "--stacks":
            with contextlib.suppress(OSError):
                return Path(os.readlink(f"/proc/{process.pid}/cwd")) / value
    return None


def _catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal: SigCgt of proc(5)."""
    for line in _text(f"/proc/{pid}/status").splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def _by_kernel(pid: int) -> str:
    """What the kernel tells of each thread: its state, where it waits, and for root the kernel's own stack."""
    lines = []
    with contextlib.suppress(OSError):
        for task in sorted(os.listdir(f"/proc/{pid}/task"), key=int)[:200]:
            at = f"/proc/{pid}/task/{task}"
            stat = _text(f"{at}/stat")
            state = stat[stat.rindex(")") + 2 :][:1] if ")" in stat else "?"
            waits = _text(f"{at}/wchan").strip()
            call = _text(f"{at}/syscall").split(" ")[0].strip()
            name = _text(f"{at}/comm").strip()
            lines.append(f"thread {task} {name}: {state}, waits in {waits or '?'}, system call {call or '?'}")
            lines += [f"    {line}" for line in _text(f"{at}/stack").splitlines()]
    return "\n".join(lines) + "\n"


def _text(path: str) -> str:
    try:
        with open(path, "rb") as stream:
            return stream.read().decode(errors="replace")
    except OSError:
        return ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def header(process: Process) -> str:
    """What the process is; its argv shortened, never its environment."""
    words = " ".join(process.argv) or f"[{process.name}]"
    short = words if len(words) <= _ARGV_CHARACTERS else f"{words[:_ARGV_CHARACTERS]} ..."
    state = _STATES.get(process.state, "?")
    return (
        f"==== pid {process.pid} (parent {process.parent}): {process.title}\n"
        f"state {process.state} ({state})\n{short}\n"
    )


def find_py_spy() -> str | None:
    """py-spy beside this Python, or on the PATH."""
    beside = os.path.join(sysconfig.get_path("scripts"), "py-spy")
    return beside if os.access(beside, os.X_OK) else shutil.which("py-spy")


def write_stacks(job_id: str, into: Path, *, deadline_s: float = DEADLINE_S) -> Path:
    """Write the stacks of the job's processes on this node to `into`/NODENAME.txt; the file.

    Raises:
        OSError: The folder cannot be written.
    """
    until = time.monotonic() + deadline_s
    node = socket.gethostname().partition(".")[0]
    py_spy, found = find_py_spy(), processes_of(job_id)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        texts = list(pool.map(lambda p: stacks_of(p, py_spy=py_spy, until=until), found))
    parts = [f"{header(process)}{text.rstrip()}\n" for process, text in zip(found, texts, strict=True)]
    parts = parts or [f"no Python or Ray process of job {job_id} runs here\n"]
    target = into / f"{node}.txt"
    write_atomic(target, f"{len(found)} processes of job {job_id} on {node}\n\n" + "\n".join(parts))
    return target


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="stacks", description="Write the stacks of a job on this node.")
    parser.add_argument("--job-id", required=True)
    parser.add_argument("--into", type=Path, required=True, help="folder of NODENAME.txt")
    parser.add_argument("--deadline-s", type=float, default=DEADLINE_S, help="default %(default)s")
    args = parser.parse_args(arguments)
    print(f"stacks: {write_stacks(args.job_id, args.into, deadline_s=args.deadline_s)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
