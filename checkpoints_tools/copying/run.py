"""Run copy jobs on threads. Reading, writing, checksums and digests all release Python's lock."""

import contextlib
import threading
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from checkpoints_tools.copying.bands import Part, cut_parts
from checkpoints_tools.copying.crew import Crew, Stopped, on_threads
from checkpoints_tools.copying.files import Files, sync_file
from checkpoints_tools.copying.jobs import Done, Job, Range, check_job
from checkpoints_tools.copying.move import BLOCK_BYTES, Mover, join_ranges
from checkpoints_tools.copying.schedule import Schedule
from checkpoints_tools.errors import CheckpointError

_PART_BYTES = 64 << 20


def run_jobs(
    jobs: Sequence[Job],
    *,
    threads: int,
    digests: bool,
    on_bytes: Callable[[int], None] | None = None,
    on_done: Callable[[Done], None] | None = None,
    block: int = BLOCK_BYTES,
) -> list[Done]:
    """Copy every job and sync the files written; the result is in the order of `jobs`.

    Memory is at most 3 * `block` bytes a thread. `on_bytes` hears the bytes of each step (they add up to the
    jobs' nbytes), `on_done` each finished job, both on the threads, one call at a time; what they raise ends
    the run. Files are made where they are missing, their folders are not.
    Raises CheckpointError: a source is truncated or cannot be read, a destination cannot be written, layouts
    do not fit together. The first error stops all threads.
    """
    for job in jobs:
        check_job(job)
    run = _Run(jobs, digests=digests, on_bytes=on_bytes, on_done=on_done, block=block)
    run.go(max(1, threads))
    return [run.done[number] for number in range(len(jobs))]


class _Run:
    """What the threads of one run share."""

    def __init__(
        self,
        jobs: Sequence[Job],
        *,
        digests: bool,
        on_bytes: Callable[[int], None] | None,
        on_done: Callable[[Done], None] | None,
        block: int,
    ) -> None:
        self.jobs, self.digests, self.block = jobs, digests, block
        self.on_bytes, self.on_done = on_bytes, on_done
        self.done: dict[int, Done] = {}
        self._lock = threading.Lock()
        self._destinations = _destinations(jobs)
        self._write_locks = {file: threading.Lock() for file in self._destinations}
        self._crew = Crew()
        # A digest runs through a tensor from start to end; without one, a large job is shared by the threads.
        cut = [cut_parts(n, job, most=None if digests else _PART_BYTES) for n, job in enumerate(jobs)]
        self._open = [len(parts) for parts in cut]
        self._ranges: list[list[Range]] = [[] for _ in jobs]
        self._schedule = Schedule(jobs, (part for parts in cut for part in parts))
        self._parts = sum(self._open)

    def go(self, threads: int) -> None:
        """Copy, then sync, on `threads` threads; raises the first error."""
        self._crew.run(self._copy, min(threads, self._parts))
        on_threads(sync_file, self._destinations, threads=threads)

    def _copy(self) -> None:
        with Files(self._write_locks) as files:
            mover = Mover(files, self._count, digests=self.digests, block=self.block)
            while (taken := self._schedule.take()) is not None:
                queue, part = taken
                self._finish(part, *mover.copy(self.jobs[part.job], part))
                self._schedule.give_back(queue, part)

    def _count(self, nbytes: int) -> None:
        if self._crew.failed:
            raise Stopped
        if self.on_bytes is not None:
            with self._lock:
                self.on_bytes(nbytes)

    def _finish(self, part: Part, ranges: list[Range], digests: dict[str, str]) -> None:
        with self._lock:
            number = part.job
            self._ranges[number] += ranges
            self._open[number] -= 1
            if self._open[number] == 0:
                done = Done(self.jobs[number].name, join_ranges(self._ranges[number]), digests)
                self.done[number] = done
                if self.on_done is not None:
                    self.on_done(done)


def _destinations(jobs: Sequence[Job]) -> list[Path]:
    layouts = [pair.destination for job in jobs for pair in job.pairs if pair.destination is not None]
    return list(dict.fromkeys(extent.file for layout in layouts for extent in layout.extents))


def intact_ranges(ranges: Sequence[Range], *, threads: int) -> set[Range]:
    """Those ranges whose bytes still have their CRC-32. A file that is missing or too short is not intact."""
    intact: set[Range] = set()

    def check(expected: Range) -> None:
        with Files() as files, contextlib.suppress(CheckpointError):
            view, crc = memoryview(bytearray(BLOCK_BYTES)), 0
            for start in range(0, expected.nbytes, BLOCK_BYTES):
                piece = view[: min(BLOCK_BYTES, expected.nbytes - start)]
                files.read(expected.file, piece, expected.offset + start)
                crc = zlib.crc32(piece, crc)
            if crc == expected.crc32:
                intact.add(expected)

    on_threads(check, ranges, threads=threads)
    return intact
