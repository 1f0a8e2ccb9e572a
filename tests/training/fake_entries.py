"""Entry functions for workers without torch: each lives, dies or hangs in its own way."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.training.job import Job
from nemo_thinkprune.training.process_tree import process_stat
from nemo_thinkprune.training.worker import RankContext

LONG_S = 300


def finish(job: Job, context: RankContext) -> None:
    context.beat("generate", 1)
    if context.rank == 0:
        context.beat("step", 1, row={"reward_mean": 0.5, "text": "x" * 100_000}, total=1, produced="a model")


def tell_place(job: Job, context: RankContext) -> None:
    path, threads = os.environ["PYTHONPATH"], os.environ["OMP_NUM_THREADS"]
    searched = all(folder in sys.path for folder in path.split(os.pathsep))
    context.beat("place", 0, world=context.world, path=path, threads=threads, searched=searched)


def together(job: Job, context: RankContext) -> None:
    """Wait until every rank is here, as a barrier does."""
    here = job.run_dir / f"here_{context.rank}"
    here.with_suffix(".tmp").write_text(str(os.getpid()))
    here.with_suffix(".tmp").rename(here)
    while not all((job.run_dir / f"here_{rank}").exists() for rank in range(context.world)):
        time.sleep(0.01)


def kill_self(job: Job, context: RankContext) -> None:
    context.beat("update", 7)
    together(job, context)
    if context.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    break_when_gone(job)


def exit_three(job: Job, context: RankContext) -> None:
    context.beat("score", 2)
    together(job, context)
    if context.rank == 1:
        print("about to leave with three")
        sys.exit(3)
    wait()


def raise_error(job: Job, context: RankContext) -> None:
    context.beat("generate", 4)
    together(job, context)
    if context.rank == 1:
        raise ZeroDivisionError("a made-up error")
    break_when_gone(job)


def run_out_of_memory(job: Job, context: RankContext) -> None:
    context.beat("update", 1)
    raise MemoryError("made-up")


def user_error(job: Job, context: RankContext) -> None:
    if context.rank == 0:
        raise UserError("the data file is empty: give one with problems")
    wait()


def sleep_on_rank_one(job: Job, context: RankContext) -> None:
    context.beat("generate", 3)
    together(job, context)
    if context.rank == 1:
        hang_here()
    for _ in range(20):  # busy for a little while, then waiting for rank 1 as in a collective
        context.pulse()
        time.sleep(0.02)
    wait_for_peer()


def hang_here() -> None:
    wait()


def wait_for_peer() -> None:
    wait()


def pulse_while_the_other_waits(job: Job, context: RankContext) -> None:
    context.beat("score", 3)
    together(job, context)
    done = job.run_dir / "scored"
    if context.rank == 1:
        while not done.exists():
            time.sleep(0.05)
        return
    deadline = time.monotonic() + 3 * job.recipe.thinkprune.runtime.stall_timeout_s
    while time.monotonic() < deadline:
        context.pulse()
        time.sleep(0.05)
    done.touch()


def raise_in_a_session_that_hangs_at_its_end(job: Job, context: RankContext) -> None:
    with session_that_hangs(), context.reporting():
        raise ZeroDivisionError("a made-up error")


def user_error_in_a_session_that_hangs(job: Job, context: RankContext) -> None:
    with session_that_hangs(), context.reporting():
        raise UserError("give another file")


@contextlib.contextmanager
def session_that_hangs() -> Iterator[None]:
    try:
        yield
    finally:
        wait()


def evaluates_for_long(job: Job, context: RankContext) -> None:
    context.beat("generate", 0)
    pulse_forever(context)


def saves_on_the_last_step(job: Job, context: RankContext) -> None:
    """Finish although a stop was asked for, as the last step of a run does."""
    context.beat("step", 1)
    while not context.stop_requested():
        time.sleep(0.02)


def stop_self(job: Job, context: RankContext) -> None:
    context.beat("save", 5)
    together(job, context)
    if context.rank == 1:
        stopped_here()
    pulse_forever(context)


def stopped_here() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def deaf(job: Job, context: RankContext) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    context.beat("generate", 1)
    together(job, context)
    if context.rank == 1:
        os._exit(9)
    wait()


def with_grandchildren(job: Job, context: RankContext) -> None:
    child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({LONG_S})"])
    if context.rank == 1 and (pid := os.fork()) == 0:
        time.sleep(LONG_S)
        os._exit(0)
    pids = [os.getpid(), child.pid] + ([pid] if context.rank == 1 else [])
    temporary = job.run_dir / f"pids.{context.rank}"
    temporary.write_text(" ".join(map(str, pids)))
    temporary.rename(job.run_dir / f"pids_{context.rank}")
    context.beat("generate", 1)
    if (job.run_dir / "fail").exists() and context.rank == 1:
        while not (job.run_dir / "pids_0").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGSEGV)
    pulse_forever(context)


def until_stopped(job: Job, context: RankContext) -> None:
    (job.run_dir / f"started_{context.rank}").touch()
    for step in range(1, 10_000):
        context.beat("step", step)
        time.sleep(0.02)
        if context.stop_requested():
            Path(job.run_dir / f"saved_{context.rank}").write_text(str(step))
            return context.stopped(step)


def lingers(job: Job, context: RankContext) -> None:
    import atexit

    atexit.register(time.sleep, LONG_S)


def pulse_forever(context: RankContext) -> None:
    while True:
        context.pulse()
        time.sleep(0.02)


def wait() -> None:
    time.sleep(LONG_S)


def break_when_gone(job: Job) -> None:
    """What a collective does on the peers of a dead rank 1."""
    pid = int((job.run_dir / "here_1").read_text())
    while (stat := process_stat(pid)) is not None and stat[0] != "Z":
        time.sleep(0.001)
    raise ConnectionError("a peer closed the connection")
