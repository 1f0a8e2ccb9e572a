"""Entry functions for workers without torch: each lives, dies or hangs in its own way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.training.job import Job
from nemo_thinkprune.training.worker import RankContext

LONG_S = 300


def finish(job: Job, context: RankContext) -> None:
    context.beat("generate", 1)
    if context.rank == 0:
        context.beat("step", 1, row={"reward_mean": 0.5, "text": "x" * 100_000}, total=1, produced="a model")


def kill_self(job: Job, context: RankContext) -> None:
    context.beat("update", 7)
    if context.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    _others_break(job)


def exit_three(job: Job, context: RankContext) -> None:
    context.beat("score", 2)
    if context.rank == 1:
        print("about to leave with three")
        sys.exit(3)
    wait()


def raise_error(job: Job, context: RankContext) -> None:
    context.beat("generate", 4)
    if context.rank == 1:
        (job.run_dir / "raised").touch()
        raise ZeroDivisionError("a made-up error")
    while not (job.run_dir / "raised").exists():
        time.sleep(0.01)
    time.sleep(0.05)
    raise ConnectionError("a peer closed the connection")


def run_out_of_memory(job: Job, context: RankContext) -> None:
    context.beat("update", 1)
    raise MemoryError("made-up")


def user_error(job: Job, context: RankContext) -> None:
    if context.rank == 0:
        raise UserError("the data file is empty: give one with problems")
    wait()


def sleep_on_rank_one(job: Job, context: RankContext) -> None:
    context.beat("generate", 3)
    if context.rank == 1:
        hang_here()
    pulse_forever(context)


def hang_here() -> None:
    wait()


def stop_self(job: Job, context: RankContext) -> None:
    context.beat("save", 5)
    if context.rank == 1:
        stopped_here()
    pulse_forever(context)


def stopped_here() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def deaf(job: Job, context: RankContext) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    context.beat("generate", 1)
    if context.rank == 1:
        time.sleep(0.3)
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


def _others_break(job: Job) -> None:
    """What a collective does on the peers of a dead rank."""
    time.sleep(0.2)
    raise ConnectionError("a peer closed the connection")
