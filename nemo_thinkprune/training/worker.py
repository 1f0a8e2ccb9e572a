"""The program of one rank: joins the job that the supervisor wrote down and reports where it is.

Messages go through a pipe as JSON lines.  Each has a "kind": "ready" (signal handlers stand), "beat" (a new
phase, step or row), "pulse" (still alive), "error", "user_error" or "finished".
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.training.job import Job
from nemo_thinkprune.training.watch import EXIT_STOPPED, EXIT_USER_ERROR

if TYPE_CHECKING:
    from nemo_thinkprune.policy.parallel import Layout

DEFAULT_ENTRY = "nemo_thinkprune.training.entry:run"
PULSE_PERIOD_S = 0.2
_MAX_MESSAGE = 4000

Entry = Callable[[Job, "RankContext"], None]


class RankContext:
    """This rank's place in the job and its line to the supervisor."""

    def __init__(self, *, rank: int, world: int, rendezvous: Path, pipe: int) -> None:
        self.rank = rank
        self.world = world
        self.rendezvous = rendezvous
        self.stopped_step: int | None = None
        self._pipe = pipe
        self._lock = threading.Lock()
        self._last_sent = 0.0
        self._stop = False
        self._when_asked: list[Callable[[], None]] = []
        self._reported: Exception | None = None

    def beat(
        self,
        phase: str,
        step: int,
        *,
        row: dict[str, Any] | None = None,
        total: int | None = None,
        **extra: Any,
    ) -> None:
        """Tell the supervisor that this rank enters `phase` of `step`, perhaps with a row of metrics.

        `total` is the last step of the job; `extra` (JSON values) reaches the listener as `Event.extra`.
        """
        self.send("beat", phase=phase, step=step, row=row, total=total, extra=extra)

    def pulse(self) -> None:
        """Tell the supervisor that this rank is alive; cheap enough to be called in every inner loop."""
        if time.monotonic() - self._last_sent >= PULSE_PERIOD_S:
            self.send("pulse")

    def stop_requested(self) -> bool:
        """Whether this rank has been asked to save and leave at the next step boundary."""
        return self._stop

    def when_asked_to_stop(self, act: Callable[[], None]) -> None:
        """Call `act` as soon as this rank is asked to stop, at once when it has been.

        It runs in the signal's handler, perhaps twice: it must be quick and take no lock.
        """
        self._when_asked.append(act)
        if self._stop:
            act()

    def stop_requested_anywhere(self, layout: Layout) -> bool:
        """Rank 0's answer on every rank, so that all leave at the same step; collective.

        The supervisor asks every rank, so rank 0 has heard of it, at the latest one step later.
        """
        from nemo_thinkprune.policy.parallel import broadcast_from_main

        return bool(broadcast_from_main(layout, self._stop))

    def stopped(self, step: int) -> None:
        """Note that the rank leaves early with `step` saved; its exit code becomes 75."""
        self.stopped_step = step

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """Tell the supervisor of an exception as it leaves the block, once.

        Around the work inside a session: what the session then does to end may wait for peers that are gone.
        """
        try:
            yield
        except Exception as error:
            if self._reported is not error:
                self._reported = error
                self._report(error)
            raise

    def _report(self, error: Exception) -> None:
        if isinstance(error, UserError):
            self.send("user_error", message=str(error))
            return
        traceback.print_exc()
        self.send("error", type=type(error).__name__, message=str(error)[:_MAX_MESSAGE])

    def request_stop(self) -> None:
        """What SIGTERM and SIGUSR1 do."""
        self._stop = True
        for act in self._when_asked:
            act()

    def send(self, kind: str, **values: Any) -> None:
        """Write one message; ends the process when the supervisor is gone."""
        now = time.monotonic()
        line = json.dumps({"kind": kind, "rank": self.rank, "time": now, **values}).encode() + b"\n"
        with self._lock:
            self._last_sent = now
            try:
                while line:
                    line = line[os.write(self._pipe, line) :]
            except BrokenPipeError:
                os._exit(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one rank and leave with 0, 75 (stopped as asked), 2 (a mistake of the user) or 1."""
    args = _parser().parse_args(arguments)
    context = RankContext(rank=args.rank, world=args.world, rendezvous=args.rendezvous, pipe=args.pipe)
    # Kept open to the end: the handler writes to the descriptor whatever state the interpreter is in.
    stacks = open(args.stacks, "wb", buffering=0)  # noqa: SIM115
    faulthandler.register(signal.SIGUSR2, file=stacks, all_threads=True)
    faulthandler.enable(file=sys.stderr, all_threads=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: context.request_stop())
    context.send("ready")
    try:
        with context.reporting():
            resolve_entry(args.entry)(Job.read(args.job), context)
    except UserError:
        _leave(EXIT_USER_ERROR)
    except Exception:
        _leave(1)
    context.send("finished", stopped_step=context.stopped_step)
    sys.exit(0 if context.stopped_step is None else EXIT_STOPPED)


def resolve_entry(name: str) -> Entry:
    """The function that "package.module:function" names."""
    module, _, function = name.partition(":")
    entry: Entry = getattr(importlib.import_module(module), function)
    return entry


def _leave(code: int) -> None:
    """Exit without exit handlers: those of a communicator wait for peers that may be gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="One rank of a job; started by the supervisor.")
    parser.add_argument("job", type=Path)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--world", type=int, required=True)
    parser.add_argument("--rendezvous", type=Path, required=True)
    parser.add_argument("--pipe", type=int, required=True, help="descriptor for messages")
    parser.add_argument("--stacks", type=Path, required=True, help="file for stacks on SIGUSR2")
    parser.add_argument("--entry", default=DEFAULT_ENTRY)
    return parser


if __name__ == "__main__":
    main()
