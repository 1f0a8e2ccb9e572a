"""Killable worker processes that judge what needs a computer algebra system.

Each worker has one pair at a time, a deadline for it and a memory limit. A worker that misses its deadline
is killed; the next pair gets a fresh one. A pair that missed it while the machine was busy with something else
is judged once more at the end of the batch, while no other worker computes; one whose worker computed for half
its deadline or more is not. Workers start when the
first pair comes and are used again until `close`. They end with their parent, however it ends. Pairs travel as
JSON through pipes: no shell, no pickle.
"""

import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

import psutil

ENDLESS_SHARE = 0.5  # of the deadline spent computing: not a machine too busy to judge the pair
STARTUP_S = 120.0  # importing sympy on a loaded machine; a pair's deadline counts from a ready worker only


class Outcome(StrEnum):
    """What became of a pair."""

    EQUAL = "equal"
    DIFFERENT = "different"
    TIMEOUT = "timeout"
    TOO_LARGE = "too_large"


class WorkerStartError(RuntimeError):
    """A worker process could not be started; the message ends with what it wrote to stderr."""


class Pool:
    """`workers` processes with `deadline_s` seconds and `memory_mb` MiB of address space for each pair.

    A context manager; `close` kills what is left and can be called twice. Not for use from two threads.
    """

    def __init__(self, *, workers: int, deadline_s: float, memory_mb: int):
        self._size = workers
        self._deadline_s = deadline_s
        self._memory_mb = memory_mb
        self._workers: list[_Worker] = []
        # Kills workers of a pool that is dropped without close, and at interpreter exit.
        self._finalizer = weakref.finalize(self, _kill_all, self._workers)

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def processes(self) -> list[int]:
        """Process ids of the living workers."""
        return [worker.process.pid for worker in self._workers]

    def close(self) -> None:
        """Kills every worker and waits for its end."""
        _kill_all(self._workers)

    def run(
        self, pairs: Sequence[tuple[str, str]], on_outcome: Callable[[], None] | None = None
    ) -> list[Outcome]:
        """The outcome of every (answer, gold), in order; `on_outcome` is called after each.

        Raises WorkerStartError when no worker can be started. Any exception kills all workers first, since
        an answer they still owe would be taken for that of the next pair.
        """
        try:
            return self._run(pairs, on_outcome)
        except BaseException:
            self.close()
            raise

    def _run(self, pairs: Sequence[tuple[str, str]], on_outcome: Callable[[], None] | None) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        self._judge(pairs, deque(range(len(pairs))), outcomes, on_outcome)
        late = [index for index in range(len(pairs)) if index not in outcomes]
        for index in late:
            self._judge(pairs, deque([index]), outcomes, on_outcome, last=True)
        return [outcomes[index] for index in range(len(pairs))]

    def _judge(
        self,
        pairs: Sequence[tuple[str, str]],
        waiting: deque[int],
        outcomes: dict[int, Outcome],
        on_outcome: Callable[[], None] | None,
        *,
        last: bool = False,
    ) -> None:
        """Judges the `waiting` pairs.

        One that misses its deadline without having had the processor gets no outcome unless this is its `last` try.
        """
        while waiting or any(worker.task is not None for worker in self._workers):
            busy = sum(worker.task is not None for worker in self._workers)
            while len(self._workers) < min(self._size, len(waiting) + busy):
                self._workers.append(_Worker(self._memory_mb))
            for worker in self._workers:
                if worker.ready and worker.task is None and waiting:
                    index = waiting.popleft()
                    worker.send(index, *pairs[index], deadline=time.monotonic() + self._deadline_s)
            for worker in self._wait():
                known = len(outcomes)
                self._collect(worker, outcomes, waiting, last=last)
                if on_outcome and len(outcomes) > known:
                    on_outcome()

    def _wait(self) -> "list[_Worker]":
        """Workers that wrote, ended or overran, after at most the time to the next deadline."""
        busy = [worker for worker in self._workers if worker.task is not None or not worker.ready]
        with selectors.DefaultSelector() as selector:
            for worker in busy:
                selector.register(worker.output, selectors.EVENT_READ, worker)
            next_deadline = min(worker.deadline for worker in busy)
            events = selector.select(max(0.0, next_deadline - time.monotonic()))
        changed = [key.data for key, _ in events]
        now = time.monotonic()
        return changed + [worker for worker in busy if worker.deadline <= now and worker not in changed]

    def _collect(
        self, worker: "_Worker", outcomes: dict[int, Outcome], waiting: deque[int], *, last: bool
    ) -> None:
        reply = worker.receive() if worker.readable() else None
        if reply is None and not worker.ended and worker.deadline > time.monotonic():
            return  # part of a line
        task, used = worker.task, worker.judged > 0
        if reply is None or "error" in reply:
            overran = reply is None and not worker.ended
            endless = overran and worker.cpu_seconds() >= ENDLESS_SHARE * self._deadline_s
            started = worker.ready
            self._workers.remove(worker)
            worker.kill()
            if not started:
                raise WorkerStartError(
                    f"the scoring worker did not start: {worker.complaint or worker.process.returncode}"
                )
            if task is None:
                return
            if not overran and used:
                waiting.appendleft(task)  # memory may have been filled by earlier pairs: once more, alone
            elif not overran:
                outcomes[task] = Outcome.TOO_LARGE
            elif last or endless:
                outcomes[task] = Outcome.TIMEOUT
        elif "ready" in reply:
            worker.ready, worker.deadline = True, float("inf")
        elif task is not None and reply.get("id") == task:
            outcomes[task] = Outcome.EQUAL if reply["equal"] else Outcome.DIFFERENT
            worker.task, worker.deadline, worker.judged = None, float("inf"), worker.judged + 1


class _Worker:
    """One process, its pipes, and the pair it is busy with."""

    def __init__(self, memory_mb: int):
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by kill
        self.complaint = ""
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "nemo_thinkprune.rewards.worker", str(memory_mb), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            bufsize=0,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self._input, self.output = self.process.stdin, self.process.stdout
        os.set_blocking(self.output.fileno(), False)
        self._buffer = b""
        self.ready = False
        self.ended = False
        self.task: int | None = None
        self.judged = 0
        self._cpu_before = 0.0
        self.deadline = time.monotonic() + STARTUP_S

    def send(self, task: int, answer: str, gold: str, *, deadline: float) -> None:
        """Hands over a pair. A line is below the pipe's capacity, so this never blocks."""
        self.task, self.deadline = task, deadline
        self._cpu_before = _cpu_seconds(self.process.pid)
        line = json.dumps({"id": task, "answer": answer, "gold": gold}) + "\n"
        try:
            self._input.write(line.encode())
        except BrokenPipeError:
            self.ended = True
            self.deadline = time.monotonic()

    def cpu_seconds(self) -> float:
        """Processor time spent on the present pair."""
        return _cpu_seconds(self.process.pid) - self._cpu_before

    def readable(self) -> bool:
        """Reads what has arrived; whether a whole line is there."""
        while not self.ended and b"\n" not in self._buffer:
            chunk = self.output.read(65536)
            if chunk is None:
                break
            self.ended = chunk == b""
            self._buffer += chunk
        return b"\n" in self._buffer

    def receive(self) -> dict[str, Any]:
        """The next reply; call only when `readable`."""
        line, _, self._buffer = self._buffer.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def kill(self) -> None:
        """Ends the process, waits for it and keeps the end of its stderr; harmless when it has ended."""
        self.process.kill()
        self.process.wait()
        self._input.close()
        self.output.close()
        if not self._stderr.closed:
            with self._stderr:
                self._stderr.seek(0)
                self.complaint = self._stderr.read()[-2000:].decode(errors="replace").strip()


def _cpu_seconds(pid: int) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return times.user + times.system


def _kill_all(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().kill()
