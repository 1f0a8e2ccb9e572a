"""Threads that end together: with the last piece of work, the first error, or an interrupt."""

import contextlib
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

_T = TypeVar("_T")
_LOOK_S = 0.2  # a signal that comes just before a wait begins does not end that wait


class Stopped(Exception):
    """Raised in a thread's work to end it because another one has failed."""


class Crew:
    """Runs work on threads; once `failed`, work should raise Stopped at its next step."""

    def __init__(self) -> None:
        self._errors: list[BaseException] = []
        self._ended = threading.Semaphore(0)

    @property
    def failed(self) -> bool:
        """Whether a thread has failed or the run was interrupted."""
        return bool(self._errors)

    def run(self, work: Callable[[], None], threads: int) -> None:
        """Call `work` on every thread and wait for all; raises the first error."""
        started = [threading.Thread(target=self._guarded, args=(work,)) for _ in range(threads)]
        try:
            with _uninterrupted():
                for thread in started:
                    thread.start()
            for _ in started:
                self._wait_for_one()
        except BaseException as error:  # an interrupt
            self._errors.append(error)
        for thread in started:
            if thread.ident is not None:
                thread.join()
        if self._errors:
            raise self._errors[0]

    def _wait_for_one(self) -> None:
        """Not join: before Python 3.13 an interrupted join takes the thread for ended."""
        while not self._ended.acquire(timeout=_LOOK_S):
            pass

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Stopped:
            pass
        except BaseException as error:
            self._errors.append(error)
        finally:
            self._ended.release()


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold back an interrupt: in the middle of a start, a thread would run that nobody waits for."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def on_threads(function: Callable[[_T], None], items: Iterable[_T], *, threads: int) -> None:
    """Call `function` with every item; raises the first error."""
    queue, crew = deque(items), Crew()

    def work() -> None:
        while not crew.failed and (item := take(queue)) is not None:
            function(item)

    crew.run(work, min(max(threads, 1), len(queue)))


def take(queue: deque[_T]) -> _T | None:
    """The queue's next item, or None when it is empty; safe from several threads."""
    try:
        return queue.popleft()
    except IndexError:
        return None
