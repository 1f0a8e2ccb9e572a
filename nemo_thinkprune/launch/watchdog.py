"""End a job that has silently stopped getting on: a process of its own, beside whatever trains.

    python -m nemo_thinkprune.launch.watchdog --run-dir RUN [--factor 10] [--floor-s 600] [--patience-s 7200]

Leaves with 76 and one line when nothing in the run folder has moved for too long; runs until it is killed
otherwise (SIGTERM: 0).  It shares nothing with the trainer but the folder, so a frozen supervisor is seen too.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nemo_thinkprune.launch.run_progress import Look, RunProgress, StepRow
from nemo_thinkprune.training.run_folder import METRICS
from nemo_thinkprune.training.watch import FORGIVEN_GAP_S

EXIT_STALLED = 76
FACTOR = 10.0
FLOOR_S = 600.0
PATIENCE_S = 7200.0
POLL_S = 10.0
STEPS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long nothing may move: `factor` times the median step, never less than `floor_s` seconds.

    `patience_s` holds where no step's length says how long something takes: a start, a conversion, a compilation,
    an evaluation, what happens between two rounds.  `poll_s`: between two looks.
    """

    factor: float = FACTOR
    floor_s: float = FLOOR_S
    patience_s: float = PATIENCE_S
    poll_s: float = POLL_S


@dataclass(frozen=True, slots=True)
class Bound:
    """Seconds that nothing may move for, and why so many."""

    seconds: float
    why: str


@dataclass(slots=True)
class _Run:
    """One train run or evaluation of the folder."""

    began: float
    pending: bool = False
    last_step: int | None = None
    row_at: float | None = None
    steps_s: deque[float] = field(default_factory=lambda: deque(maxlen=STEPS))
    validate_s: float | None = None
    start_s: float | None = None
    save_s: float = 0.0


class Watchdog:
    """Decides from what `RunProgress` saw, and from seconds of its own monotonic clock, whether the run stands still.

    A job that has begun and shown no step yet keeps the patience on, also while another one beside it (the control)
    gets on: an evaluation writes nothing until it is over.
    """

    def __init__(self, progress: RunProgress, limits: Limits, *, now: float) -> None:
        self._progress, self._limits = progress, limits
        self._runs: dict[Path, _Run] = {}
        self._active: Path | None = None
        self._moved: Path = progress.root
        self._sign = self._asked = now
        self._in_trouble = False
        self._take(progress.look(), now, begun=False)

    def check(self, now: float) -> str | None:
        """Look once; a line that says what stands still and for how long, None while the run gets on."""
        self._forgive_gap(now)
        look = self._progress.look()
        self._take(look, now, begun=True)
        if look.moved:
            self._sign, self._moved = now, look.moved[-1]
        if look.trouble is None and self._in_trouble:
            self._sign = now  # the run may have waited for the same file system
        self._in_trouble = look.trouble is not None
        bound, silent = self.bound(), now - self._sign
        if look.trouble is not None:
            bound = Bound(self._limits.patience_s, f"the patience, as a file cannot be read: {look.trouble}")
        return None if silent <= bound.seconds else self._stalled(silent, bound)

    def bound(self) -> Bound:
        """How long nothing may move at present."""
        patience = self._limits.patience_s
        waiting = [folder for folder, run in self._runs.items() if run.pending]
        if waiting:
            return Bound(
                patience, f"the patience, as {self._name(waiting[-1])} has begun and shown no step yet"
            )
        if self._active is None:
            return Bound(patience, "the patience, as this attempt has shown no step yet")
        run, settings = self._runs[self._active], self._progress.settings(self._active)
        if run.last_step is None or not run.steps_s:
            return Bound(patience, "the patience, as no step's length is known")
        if settings.last_step and run.last_step >= settings.last_step:
            return Bound(patience, f"the patience, as step {run.last_step} was the last of its run")
        return self._by_median(run, validates=settings.validates(run.last_step + 1))

    def _name(self, folder: Path) -> str:
        root = self._progress.root
        return root.name if folder == root else folder.relative_to(root).as_posix()

    def _by_median(self, run: _Run, *, validates: bool) -> Bound:
        limits, median = self._limits, statistics.median(run.steps_s)
        why = f"{limits.factor:g} x the median step of {median:.1f} s, at least {limits.floor_s:g} s"
        seconds = max(limits.floor_s, limits.factor * median)
        extra = 2 * run.save_s
        if validates and run.validate_s is not None:
            extra += 2 * run.validate_s
        elif validates and run.start_s is not None:  # the start and a validation: more than one takes
            extra += run.start_s
        elif validates:
            return Bound(limits.patience_s, "the patience, as the first validation is due")
        if extra:
            why += f", and {extra:.1f} s for saving and validating"
        return Bound(seconds + extra, why)

    def _take(self, look: Look, now: float, *, begun: bool) -> None:
        """Take in attempts, rows and results; what was there before this process looked only teaches durations."""
        for folder in look.attempts:
            run = self._runs.setdefault(folder, _Run(now))
            run.began, run.pending, run.row_at = now, True, None
        for folder in look.validations if begun else ():
            run = self._runs.setdefault(folder, _Run(now))
            if run.pending:
                run.start_s = now - run.began
        for folder, row in look.steps:
            self._step(self._runs.setdefault(folder, _Run(now)), row, now)
            if begun:
                self._runs[folder].pending, self._active = False, folder
        for folder in look.results:
            if folder in self._runs:
                self._runs[folder].pending = False

    def _step(self, run: _Run, row: StepRow, now: float) -> None:
        arrived = None if run.row_at is None else now - run.row_at
        seconds = row.step_s if row.step_s is not None else arrived
        if seconds is not None:
            run.steps_s.append(seconds)
        if row.validate_s:
            run.validate_s = max(run.validate_s or 0.0, row.validate_s)
        run.save_s = max(run.save_s, row.save_s)
        run.last_step, run.row_at = row.step, now

    def _stalled(self, silent: float, bound: Bound) -> str:
        run = self._runs.get(self._active) if self._active else None
        file = (self._active or self._progress.root) / METRICS
        step = "no step" if run is None or run.last_step is None else f"step {run.last_step}"
        return (
            f"stalled: {file} has not moved for {silent:.0f} s after {step}, nor has anything else of the run "
            f"(the bound is {bound.seconds:.0f} s: {bound.why}; what moved last is {self._moved})"
        )

    def _forgive_gap(self, now: float) -> None:
        """Blame nobody for a time in which this process itself did not run."""
        gap, self._asked = now - self._asked - self._limits.poll_s, now
        if gap > max(FORGIVEN_GAP_S, self._limits.poll_s):
            self._sign = min(self._sign + gap, now)


def watch(watchdog: Watchdog, *, poll_s: float, clock: Callable[[], float] = time.monotonic) -> str:
    """Look every `poll_s` seconds until the run stands still; the line that says so."""
    while True:
        time.sleep(poll_s)
        if (line := watchdog.check(clock())) is not None:
            return line


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 76 when the run stands still."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # the wish to save, sent to all steps of a job
    args = _parser().parse_args(arguments)
    limits = Limits(
        factor=args.factor,
        floor_s=args.floor_s,
        patience_s=max(args.patience_s, args.floor_s),
        poll_s=min(POLL_S, args.floor_s / 4),
    )
    root = args.run_dir.absolute()
    watchdog = Watchdog(RunProgress(root), limits, now=time.monotonic())
    print(
        f"watching {root}: {limits.factor:g} x the median step, at least {limits.floor_s:g} s; "
        f"{limits.patience_s:g} s before the first step",
        flush=True,
    )
    print(watch(watchdog, poll_s=limits.poll_s), flush=True)
    return EXIT_STALLED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="watchdog", description="Leave with 76 when a run stands still.")
    parser.add_argument("--run-dir", type=Path, required=True, help="folder of a train or prune run")
    parser.add_argument(
        "--factor", type=_positive, default=FACTOR, help="times the median step (default %(default)s)"
    )
    parser.add_argument("--floor-s", type=_positive, default=FLOOR_S, help="at least (default %(default)s s)")
    parser.add_argument(
        "--patience-s",
        type=_positive,
        default=PATIENCE_S,
        help="before the first step of an attempt, in evaluations, between rounds (default %(default)s s)",
    )
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


if __name__ == "__main__":
    sys.exit(main())
