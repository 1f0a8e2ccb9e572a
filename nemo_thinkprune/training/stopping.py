"""Listen for the wish to stop (SIGTERM, SIGUSR1) without being ended by it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class _Listener:
    """A handler that remembers, and tells the one it stands in for."""

    def __init__(self, outer: _Listener | None) -> None:
        self.event = threading.Event()
        self.outer = outer
        if outer is not None and outer.event.is_set():
            self.event.set()

    def __call__(self, *_: object) -> None:
        self.event.set()
        if self.outer is not None:
            self.outer()


@contextlib.contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that is set once SIGTERM or SIGUSR1 has come, in this block or in one of these around it.

    Nested blocks hear of a signal all together, so that whoever holds one for the length of a command knows
    between two jobs what came during the first.  Only a main thread can listen; elsewhere the event stays unset.
    """
    if threading.current_thread() is not threading.main_thread():
        yield threading.Event()
        return
    present = signal.getsignal(signal.SIGTERM)
    listener = _Listener(present if isinstance(present, _Listener) else None)
    before = {number: signal.signal(number, listener) for number in STOP_SIGNALS}
    try:
        yield listener.event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
