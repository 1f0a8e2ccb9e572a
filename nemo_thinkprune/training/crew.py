"""The processes of the ranks: start, listen, ask for stacks, notice the end, reap."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_thinkprune.training import worker
from nemo_thinkprune.training.job import JOB_FILE, Job
from nemo_thinkprune.training.process_tree import die_with_parent, process_stat
from nemo_thinkprune.training.watch import Watch

STACKS_GRACE_S = 3.0
_READ_BYTES = 1 << 16
_SETTLE_S = 0.1


@dataclass(slots=True)
class Rank:
    """A running worker."""

    number: int
    process: subprocess.Popen[bytes]
    pipe: int
    log: Path
    stacks: Path
    partial: bytes = b""
    ended: bool = False
    closed: bool = False

    @property
    def pid(self) -> int:
        """Process id, which is also that of its session."""
        return self.process.pid


def start_rank(
    job: Job,
    attempt: Path,
    number: int,
    *,
    world: int,
    entry: str,
    lock: int,
    environment: Mapping[str, str],
) -> Rank:
    """Start worker `number` of `world`, its output in `attempt`/rank_N.log; `lock` stays open in it."""
    log = attempt / f"rank_{number}.log"
    reader, writer = os.pipe()
    try:
        with open(log, "wb") as output:
            process = subprocess.Popen(
                _command(attempt, number, world=world, entry=entry, pipe=writer),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**worker_environment(job), **environment},
                pass_fds=(writer, lock),
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    os.set_blocking(reader, False)
    return Rank(number, process, reader, log, attempt / f"rank_{number}.stacks")


def _command(attempt: Path, number: int, *, world: int, entry: str, pipe: int) -> list[str]:
    return [
        sys.executable,
        "-P",  # a file in the current folder must not stand in for a module of the same name
        "-u",
        "-m",
        worker.__name__,
        str(attempt / JOB_FILE),
        *("--rank", str(number), "--world", str(world), "--entry", entry),
        *("--rendezvous", str((attempt / "rendezvous").resolve())),
        *("--pipe", str(pipe), "--stacks", str(attempt / f"rank_{number}.stacks")),
    ]


def worker_environment(job: Job) -> dict[str, str]:
    """The parent's environment with the thread settings of a rank and a fixed order of sets of strings."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(job.recipe.thinkprune.runtime.threads_per_rank),
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONHASHSEED": "0",
    }


def drain(ranks: Sequence[Rank], wait_s: float) -> Iterator[tuple[int, dict[str, Any]]]:
    """All messages there are, as (rank, message); waits up to `wait_s` seconds for the first."""
    with selectors.DefaultSelector() as selector:
        for rank in ranks:
            if not rank.closed:
                selector.register(rank.pipe, selectors.EVENT_READ, rank)
        if not selector.get_map():
            time.sleep(wait_s)
            return
        # Until a whole pass is empty: else a message could be seen before an earlier one of another rank.
        while ready := selector.select(wait_s):
            wait_s = 0.0
            for key, _ in ready:
                yield from _read(key.data, selector)


def _read(rank: Rank, selector: selectors.BaseSelector) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        data = os.read(rank.pipe, _READ_BYTES)
    except BlockingIOError:
        return
    if not data:
        selector.unregister(rank.pipe)
        os.close(rank.pipe)
        rank.closed = True
        return
    *lines, rank.partial = (rank.partial + data).split(b"\n")
    for line in lines:
        yield rank.number, json.loads(line)


def poll_exits(ranks: Sequence[Rank]) -> Iterator[tuple[int, int]]:
    """(rank, exit code) of the workers that ended since the last call; a negative code is a signal.

    They stay zombies until `reap`, so that the kernel cannot give their ids to others meanwhile.
    """
    for rank in ranks:
        if rank.ended:
            continue
        found = os.waitid(os.P_PID, rank.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is not None:
            rank.ended = True
            yield rank.number, found.si_status if found.si_code == os.CLD_EXITED else -found.si_status


def paused_ranks(ranks: Sequence[Rank]) -> set[int]:
    """The ranks whose process a signal has stopped."""
    states = {rank.number: process_stat(rank.pid) for rank in ranks if not rank.ended}
    return {number for number, stat in states.items() if stat is not None and stat[0] in "Tt"}


def collect_stacks(ranks: Sequence[Rank], watch: Watch) -> dict[int, str]:
    """Have every living rank write the stacks of its threads; what each wrote, or why there is nothing."""
    asked: list[Rank] = []
    for rank, state in zip(ranks, watch.ranks, strict=True):
        if rank.ended or not state.ready:
            continue
        with contextlib.suppress(ProcessLookupError):
            os.kill(rank.pid, signal.SIGUSR2)
            # A stopped process runs the handler as soon as it is let go on.
            if rank.number in paused_ranks(ranks):
                os.kill(rank.pid, signal.SIGCONT)
            asked.append(rank)
    _wait_for_stacks(asked)
    return {rank.number: _stacks_of(rank, rank in asked) for rank in ranks}


def _wait_for_stacks(ranks: Sequence[Rank]) -> None:
    """Until every file has content and stopped growing, within the grace."""
    deadline = time.monotonic() + STACKS_GRACE_S
    sizes: list[int] = []
    while time.monotonic() < deadline:
        before, sizes = sizes, [_size(rank.stacks) for rank in ranks]
        if all(sizes) and sizes == before:
            return
        time.sleep(_SETTLE_S)


def _stacks_of(rank: Rank, asked: bool) -> str:
    text = ""
    with contextlib.suppress(OSError):
        text = rank.stacks.read_text(encoding="utf-8", errors="replace")
    if text:
        return text
    if rank.ended:
        return "no stacks: the process had already ended\n"
    if not asked:
        return "no stacks: the process had not started its program yet\n"
    return f"no stacks: the process did not answer within {STACKS_GRACE_S:g} s (it may hang in the kernel)\n"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def reap(ranks: Sequence[Rank]) -> None:
    """Collect the ended workers and close their pipes."""
    for rank in ranks:
        with contextlib.suppress(subprocess.TimeoutExpired):
            rank.process.wait(timeout=1.0)
        if not rank.closed:
            os.close(rank.pipe)
            rank.closed = True
