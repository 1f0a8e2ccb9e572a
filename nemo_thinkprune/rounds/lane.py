"""A second lane: work in a process of its own, beside the rounds."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.training.process_tree import die_with_parent
from nemo_thinkprune.training.stopping import stop_signals
from nemo_thinkprune.training.supervisor import JobStopped
from nemo_thinkprune.training.watch import EXIT_STOPPED, EXIT_USER_ERROR

_POLL_S = 0.2
STOP_GRACE_S = 300.0


class LaneStopped(RuntimeError):
    """SIGTERM or SIGUSR1 ended the second lane, or the wait for it; the lane has saved and left."""


class LaneFailed(RuntimeError):
    """A job of the second lane failed; the message names the log that says why."""


class Lane:
    """Runs ``work`` in a spawned process, its output in ``log``.

    The work is pickled: a module-level function or a partial of one. The process does not outlive its parent;
    :meth:`stop` sends it SIGTERM, which a supervisor turns into a checkpoint.
    """

    def __init__(self, work: Callable[[], None], *, log: Path) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        context = multiprocessing.get_context("spawn")
        # not a daemon: a job may have processes of its own
        self._process = context.Process(target=_main, args=(work, log, os.getpid()))
        self._process.start()

    def check(self) -> None:
        """Raise when the lane has ended badly; return at once otherwise.

        Raises:
            UserError: its job said what the user must do.
            LaneStopped: it was asked to stop.
            LaneFailed: its job failed otherwise.
        """
        code = self._process.exitcode
        if code == EXIT_USER_ERROR:
            raise UserError(self._last_line())
        if code == EXIT_STOPPED:
            raise LaneStopped("the job beside the rounds was asked to stop")
        if code:
            raise LaneFailed(
                f"the job beside the rounds failed (exit code {code}): {self._last_line()} (log: {self.log})"
            )

    def join(self) -> None:
        """Wait until the work is done.

        Raises:
            LaneStopped: this process was asked to stop (SIGTERM or SIGUSR1), and the lane was stopped.
            UserError, LaneFailed: as :meth:`check`.
        """
        with stop_signals() as stop:
            while self._process.is_alive():
                self._process.join(_POLL_S)
                if stop.is_set():
                    self.stop()
                    raise LaneStopped("stopped while the job beside the rounds was running")
        self.check()

    def stop(self) -> None:
        """Ask the lane to save and end; it is killed when it has not ended after STOP_GRACE_S seconds."""
        if self._process.is_alive():
            self._process.terminate()
            self._process.join(STOP_GRACE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _last_line(self) -> str:
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            lines = []
        return next((line for line in reversed(lines) if line.strip()), "it wrote nothing")


def _main(work: Callable[[], None], log: Path, parent: int) -> None:
    die_with_parent(parent)()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    with log.open("a", encoding="utf-8", buffering=1) as stream, stop_signals():
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        try:
            work()
        except UserError as error:
            stream.write(f"{str(error).replace(chr(10), ' ')}\n")
            sys.exit(EXIT_USER_ERROR)
        except JobStopped as stopped:
            stream.write(f"{stopped}\n")
            sys.exit(EXIT_STOPPED)
        except Exception:
            stream.write(traceback.format_exc())
            sys.exit(1)
