"""Tells the supervisor that the driver lives, for as long as NeMo-RL shows that it gets on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

PULSE_S = 1.0
PATIENCE_S = 7200.0
"""What a first start may take: a 32B model's conversion and the engines' compilation are well within."""
SLOWER = 5.0
"""How much longer than anything before a step may take."""


class Pulsed(Protocol):
    """What is told that the process lives."""

    def pulse(self) -> None:
        """Still alive."""


class Liveness:
    """Pulses from a thread of its own until NeMo-RL has shown nothing for too long.

    The main thread is inside NeMo-RL for minutes at a time, so it cannot pulse; but a trainer that waits for
    responses that never come waits for ever (the asynchronous one keeps what went wrong in its collector to
    itself). Too long is PATIENCE_S, or SLOWER times the longest time between two signs so far if that is more.
    Without pulses the supervisor ends the run after thinkprune.runtime.stall_timeout_s, with the stacks.
    """

    def __init__(self, context: Pulsed, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._context, self._clock = context, clock
        self._last, self._longest = clock(), 0.0

    def sign(self) -> None:
        """NeMo-RL got on."""
        now = self._clock()
        self._longest = max(self._longest, now - self._last)
        self._last = now

    def beat(self) -> None:
        """Pulse, unless the last sign is too long ago."""
        if self._clock() - self._last <= max(PATIENCE_S, SLOWER * self._longest):
            self._context.pulse()

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Call `beat` every PULSE_S seconds during the block."""
        ended = threading.Event()

        def run() -> None:
            while not ended.wait(PULSE_S):
                self.beat()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
