"""Start the ranks of a job, watch them, and leave nothing behind however it ends.

The parent imports no torch.  Each worker leads a session of its own, dies with its parent, and holds the lock
of the run folder, so that a new attempt cannot begin before the last process of the old one is gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.training import guardian
from nemo_thinkprune.training.attempts import new_attempt, run_lock
from nemo_thinkprune.training.crew import (
    Rank,
    collect_stacks,
    drain,
    paused_ranks,
    poll_exits,
    reap,
    start_rank,
)
from nemo_thinkprune.training.job import JOB_FILE, Job
from nemo_thinkprune.training.postmortem import tail, with_disk, write_report
from nemo_thinkprune.training.process_tree import kill_sessions
from nemo_thinkprune.training.run_settings import record_settings
from nemo_thinkprune.training.stopping import stop_signals
from nemo_thinkprune.training.watch import Failure, FailureKind, Stopped, Verdict, Watch
from nemo_thinkprune.training.worker import DEFAULT_ENTRY

POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Event:
    """A worker entered a phase of a step, or finished a row; `extra` holds whatever else the worker told."""

    rank: int
    phase: str
    step: int
    row: dict[str, Any] | None = None
    total: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)


class JobFailed(RuntimeError):
    """A rank died or hung.  `log` is the log of `rank`, `report` the file with the stacks of all ranks."""

    def __init__(self, failure: Failure, *, log: Path, report: Path) -> None:
        self.kind: FailureKind = failure.kind
        self.rank = failure.rank
        self.reason = failure.reason
        self.log = log
        self.report = report
        text = f"{failure.reason}\n{failure.positions}\nlog: {log}\nstacks of all ranks: {report}"
        last = tail(log)
        super().__init__(f"{text}\nlast lines of the log:\n{last}" if last else text)


class JobStopped(RuntimeError):
    """The job left because it was asked to, with `step` saved (None: nothing); start it again to go on."""

    def __init__(self, step: int | None, message: str = "stopped as asked; the same command goes on") -> None:
        self.step = step
        saved = f"stopped as asked with step {step} saved; the same command goes on from there"
        super().__init__(message if step is None else saved)


def run_job(
    job: Job,
    *,
    on_event: Callable[[Event], None] | None = None,
    entry: str = DEFAULT_ENTRY,
    processes: int | None = None,
    environment: Callable[[Path], Mapping[str, str]] | None = None,
    worth_saving: bool = True,
) -> None:
    """Run `job` on all of its ranks and return when it is done.

    SIGTERM and SIGUSR1 ask the ranks to save at the next step boundary and leave; an evaluation, which has
    nothing to save, is ended at once.  `entry` names the function "package.module:function" that every rank
    calls with the job and its `worker.RankContext`.  `processes` is the number of ranks to start, where it is
    not the job's world size: an engine that starts its own workers is one process here.  `environment`
    gives, from the folder of this attempt, what is added to that of the ranks.  `worth_saving` false ends the
    ranks at once when asked to stop, as an evaluation.

    Raises:
        UserError: A worker found one; another process uses the run folder; or it has a run of other settings.
        JobFailed: A rank died, raised or gave no sign of life for `thinkprune.runtime.stall_timeout_s`.
        JobStopped: The job was asked to stop, be it on its last step: whoever runs jobs one after the other
            must not start the next.
    """
    with stop_signals() as stop:
        if stop.is_set():
            raise JobStopped(None)
        with run_lock(job.run_dir) as lock:
            if job.kind != "eval":
                record_settings(job)
            attempt = new_attempt(job.run_dir)
            job.write(attempt / JOB_FILE)
            world = job.world_size if processes is None else processes
            added = {} if environment is None else environment(attempt)
            start = partial(start_rank, job, attempt, world=world, entry=entry, lock=lock, environment=added)
            crew = Crew(world, start, attempt, lock)
            can_save = worth_saving and job.kind != "eval"
            verdict = _run_attempt(job, crew, stop, on_event or (lambda event: None), can_save=can_save)
    if isinstance(verdict, Failure):
        raise _failed(verdict, attempt)
    if isinstance(verdict, Stopped) or stop.is_set():
        raise _stopped(job, verdict)


def _failed(failure: Failure, attempt: Path) -> UserError | JobFailed:
    if failure.kind is FailureKind.USER_ERROR:
        return UserError(failure.reason)
    log = attempt / f"rank_{failure.rank}.log"
    return JobFailed(failure, log=log, report=attempt / "failure.txt")


def _stopped(job: Job, verdict: Verdict) -> JobStopped:
    """What a stop leaves, in words that are true of this job."""
    if not isinstance(verdict, Stopped):
        return JobStopped(
            None, "stopped as asked when the job had just ended; the same command goes on after it"
        )
    if job.kind == "eval":
        return JobStopped(
            None,
            "stopped as asked; an evaluation saves nothing on its way, so the same command starts it again",
        )
    if job.kind == "train" and not job.recipe.checkpointing.enabled:
        return JobStopped(
            None,
            f"stopped as asked after step {verdict.step} with nothing saved, as checkpointing.enabled is false; "
            "the same command starts over",
        )
    return JobStopped(verdict.step)


@dataclass(frozen=True, slots=True)
class Crew:
    """The ranks of one attempt: how many, what starts one, the folder of their logs, and the run's lock."""

    world: int
    start: Callable[[int], Rank]
    attempt: Path
    lock: int


def _run_attempt(
    job: Job, crew: Crew, stop: threading.Event, on_event: Callable[[Event], None], *, can_save: bool
) -> Verdict:
    watch = Watch(crew.world, job.recipe.thinkprune.runtime.stall_timeout_s, time.monotonic())
    ranks: list[Rank] = []
    with _guard(crew.lock) as register:
        try:
            for number in range(crew.world):
                ranks.append(crew.start(number))
                register(ranks[-1].pid)
            verdict = _supervise(ranks, watch, stop, on_event, can_save=can_save)
            if isinstance(verdict, Failure) and verdict.kind is not FailureKind.USER_ERROR:
                verdict = with_disk(verdict, job.run_dir)
                write_report(crew.attempt / "failure.txt", verdict, collect_stacks(ranks, watch))
            return verdict
        finally:
            kill_sessions({rank.pid for rank in ranks})
            reap(ranks)


def _supervise(
    ranks: list[Rank],
    watch: Watch,
    stop: threading.Event,
    on_event: Callable[[Event], None],
    *,
    can_save: bool,
) -> Verdict:
    """Watch until there is a verdict; ranks that cannot save are not waited for when asked to stop."""

    def listen(wait_s: float) -> None:
        for rank, message in drain(ranks, wait_s):
            watch.record(rank, message, time.monotonic())
            if message.get("kind") == "beat":
                on_event(_event(message))

    asked: set[int] = set()
    while True:
        listen(POLL_S)
        for number, code in poll_exits(ranks):
            watch.exited(number, code, time.monotonic())
        # What a rank wrote just before it left must be known before anything is concluded from its leaving.
        listen(0.0)
        watch.paused(paused_ranks(ranks), time.monotonic())
        if stop.is_set() and can_save:
            _ask_to_stop(ranks, watch, asked)
        if (verdict := watch.verdict(time.monotonic())) is not None:
            return verdict
        if stop.is_set() and not can_save:
            return Stopped(0)


def _ask_to_stop(ranks: list[Rank], watch: Watch, asked: set[int]) -> None:
    """Forward the wish to stop, once, to every rank whose handler stands."""
    for rank, state in zip(ranks, watch.ranks, strict=True):
        if state.ready and state.alive and rank.number not in asked:
            asked.add(rank.number)
            os.kill(rank.pid, signal.SIGTERM)


def _event(message: dict[str, Any]) -> Event:
    return Event(
        rank=message["rank"],
        phase=message["phase"],
        step=message["step"],
        row=message["row"],
        total=message["total"],
        extra=message["extra"],
    )


@contextlib.contextmanager
def _guard(lock: int) -> Iterator[Callable[[int], None]]:
    """Run the guardian; gives the function that tells it of a session."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", guardian.__name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=(lock,),
        text=True,
    )
    assert process.stdin is not None
    tell = process.stdin

    def register(session: int) -> None:
        tell.write(f"{session}\n")
        tell.flush()

    try:
        yield register
        tell.write(f"{guardian.DONE}\n")
    finally:
        with contextlib.suppress(BrokenPipeError):
            tell.close()
        process.wait()
