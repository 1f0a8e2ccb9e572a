"""Where every process of a job on this node stands: Python and native stacks, without ending any.

    python -m nemo_thinkprune.launch.stacks --job-id ID --into DIR

Run once on every node; writes DIR/NODENAME.txt.  py-spy reads the stacks from outside, of stopped processes too.
Where it is missing or may not, a process that was given a file for it (the ranks of the local engine and the driver
of NeMo-RL) is asked by SIGUSR2, and of any other the kernel tells where it waits.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field
from pathlib import Path

from nemo_thinkprune.launch.job_processes import Process, catches, job_processes, state_of, told_by_kernel
from nemo_thinkprune.recipe.files import write_atomic
from nemo_thinkprune.training.crew import STACKS_GRACE_S

DEADLINE_S = 30.0
ONE_S = 10.0
WRITE_S = 3.0
AT_ONCE = 8
_NAME_CHARACTERS = 160  # a C++ template's name has thousands
_SETTLE_S = 0.1


@dataclass(slots=True)
class Found:
    """What is known of where a process stands; filled in by and by, as the time may end at any moment."""

    process: Process
    python: str = ""
    native: str = ""
    asked: str = ""
    kernel: str = ""
    refused: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Header and the best there is."""
        notes = [f"({note})" for note in self.refused]
        stacks = [self.native or self.python] if self.native or self.python else [self.asked, self.kernel]
        known = [part for part in stacks if part] or ["no stacks: the time was over"]
        return self.process.header() + "\n".join([*notes, *(part.rstrip() for part in known)]) + "\n"


def write_stacks(job_id: str, into: Path, *, deadline_s: float = DEADLINE_S, py_spy: str | None) -> Path:
    """Write the stacks of the job's processes on this node to `into`/NODENAME.txt, in the time there is; the file.

    Raises:
        OSError: The folder cannot be written.
    """
    until = time.monotonic() + deadline_s - WRITE_S
    node = socket.gethostname().partition(".")[0]
    found = [Found(process) for process in job_processes(job_id)]
    if py_spy is None:
        for each in found:
            each.refused.append("py-spy is not installed: pip install py-spy")
    else:
        _of_all(found, lambda each: _python_stacks(each, py_spy, until), until)
    _of_all([each for each in found if not each.python], lambda each: _other_means(each, until), until)
    if py_spy is not None:
        running = [each for each in found if each.python and each.process.state in "RS"]
        _of_all(running, lambda each: _native_stacks(each, py_spy, until), until)
    parts = [each.text() for each in found] or [f"no Python or Ray process of job {job_id} runs here\n"]
    target = into / f"{node}.txt"
    write_atomic(target, f"{len(found)} processes of job {job_id} on {node}\n\n" + "\n".join(parts))
    return target


def find_py_spy() -> str | None:
    """py-spy beside this Python, or on the PATH."""
    beside = os.path.join(sysconfig.get_path("scripts"), "py-spy")
    return beside if os.access(beside, os.X_OK) else shutil.which("py-spy")


def _of_all(found: Sequence[Found], work: Callable[[Found], None], until: float) -> None:
    """Do `work` for several at once, and wait no longer than `until` for those that hang in the kernel."""
    pool = ThreadPoolExecutor(AT_ONCE)
    futures = [pool.submit(work, each) for each in found]
    done, _ = wait_for(futures, timeout=max(0.0, until - time.monotonic()))
    pool.shutdown(wait=False, cancel_futures=True)
    for future in done:
        if not future.cancelled() and (error := future.exception()) is not None:
            raise error


def _python_stacks(found: Found, py_spy: str, until: float) -> None:
    """Read without stopping the process: this works on one that is stopped."""
    found.python, refused = _dump(found.process, [py_spy, "dump", "--nonblocking"], until)
    if refused:
        found.refused.append(refused)


def _native_stacks(found: Found, py_spy: str, until: float) -> None:
    """With frames of C and C++; the process stands still for a moment."""
    before = state_of(found.process.pid)
    found.native, _ = _dump(found.process, [py_spy, "dump", "--native"], until)
    if not found.native and before in ("R", "S") and state_of(found.process.pid) == "T":
        with contextlib.suppress(OSError):  # py-spy was cut short
            os.kill(found.process.pid, signal.SIGCONT)


def _dump(process: Process, command: Sequence[str], until: float) -> tuple[str, str]:
    """(the stacks, why there are none)."""
    left = min(ONE_S, until - time.monotonic())
    if left <= 0:
        return "", "the time was over before py-spy was asked"
    try:
        child = subprocess.Popen(
            [*command, "--json", "--pid", str(process.pid)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
    except OSError as error:
        return "", f"py-spy cannot be run: {error}"
    try:
        out, err = child.communicate(timeout=left)
    except subprocess.TimeoutExpired:
        child.kill()  # and no more: it may hang in the kernel itself
        return "", f"py-spy gave no answer within {left:.1f} s"
    if child.returncode == 0 and (stacks := _threads(out)):
        return stacks, ""
    reason = " ".join(err.partition("Stack backtrace")[0].split())
    return "", f"py-spy: {reason or f'ended with {child.returncode}'}"


def _threads(dump: str) -> str:
    """py-spy's JSON as text: its own text repeats the process's command line in full."""
    try:
        threads = json.loads(dump)
    except ValueError:
        return ""
    lines = []
    for thread in sorted(threads, key=lambda thread: thread.get("thread_name") != "MainThread"):
        doing = "active" if thread["active"] else "idle"
        gil = ", holds the GIL" if thread["owns_gil"] else ""
        number = thread.get("os_thread_id") or thread["thread_id"]
        lines.append(f"Thread {number} ({doing}{gil}): {thread.get('thread_name') or '?'}")
        for frame in thread["frames"]:
            place = frame.get("short_filename") or frame.get("filename") or frame.get("module") or "?"
            line = f":{frame['line']}" if frame.get("line") else ""
            lines.append(f"    {frame['name'][:_NAME_CHARACTERS]} ({place}{line})")
    return "\n".join(lines)


def _other_means(found: Found, until: float) -> None:
    found.kernel = told_by_kernel(found.process.pid)
    file = _stacks_file(found.process)
    if file is not None and catches(found.process.pid, signal.SIGUSR2):
        found.asked = _by_signal(found.process, file, until)
        found.kernel = told_by_kernel(found.process.pid) if not found.asked else found.kernel


def _stacks_file(process: Process) -> Path | None:
    """The file that training/worker.py was given for the stacks of its threads."""
    name = process.option("--stacks")
    if name is None:
        return None
    try:
        return Path(os.readlink(f"/proc/{process.pid}/cwd")) / name
    except OSError:
        return None


def _by_signal(process: Process, file: Path, until: float) -> str:
    """Have the process write the stacks of its threads to `file`; what it wrote."""
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
        return f"asked by SIGUSR2 to write to {file}, which cannot be read ({error.strerror})"
    answer = text or f"no answer within {STACKS_GRACE_S:g} s: it may hang in the kernel"
    return f"asked by SIGUSR2, it wrote to {file}:\n{answer}"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="stacks", description="Write the stacks of a job on this node.")
    parser.add_argument("--job-id", required=True)
    parser.add_argument("--into", type=Path, required=True, help="folder of NODENAME.txt")
    parser.add_argument("--deadline-s", type=float, default=DEADLINE_S, help="default %(default)s")
    args = parser.parse_args(arguments)
    threading.Thread(target=_leave_after, args=(args.deadline_s + 2 * WRITE_S,), daemon=True).start()
    try:
        file = write_stacks(args.job_id, args.into, deadline_s=args.deadline_s, py_spy=find_py_spy())
    except OSError as error:
        print(f"no stacks: cannot write to {args.into}: {error}", flush=True)
        return 1
    print(f"stacks: {file}", flush=True)
    return 0


def _leave_after(seconds: float) -> None:
    """The end even where writing hangs."""
    time.sleep(seconds)
    os._exit(1)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # threads that hang in the kernel are not waited for
