"""A process that outlives a killed supervisor just long enough to kill what the workers had started.

The kernel kills the workers when their parent dies (`process_tree.die_with_parent`), but not their children:
scoring processes, checkpoint writers.  The guardian reads the workers' session ids from its standard input, a
line each.  The line "done" means that nothing is left to do; an end of input without it means that the
supervisor is dead.
"""

from __future__ import annotations

import os
import signal
import sys

from nemo_thinkprune.training.process_tree import kill_sessions

DONE = "done"


def main() -> None:
    """Wait for the supervisor's end, then clean up if it was not an orderly one."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    sessions: set[int] = set()
    for line in sys.stdin:
        word = line.strip()
        if word == DONE:
            return
        sessions.add(int(word))
    kill_sessions(sessions - {os.getpid()})


if __name__ == "__main__":
    main()
