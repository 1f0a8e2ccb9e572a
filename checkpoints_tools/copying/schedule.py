"""Which thread copies what next."""

import threading
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from pathlib import Path

from checkpoints_tools.copying.bands import Part
from checkpoints_tools.copying.jobs import Job


class Schedule:
    """Parts waiting to be copied, one queue for each file that is written.

    The kernel lets one thread at a time write to a file: threads keep to different files while there are enough,
    and go through each in its order. Hashing alone goes largest first: it waits for no file, and a large
    tensor begun last would keep one thread busy when the others are done.
    """

    def __init__(self, jobs: Sequence[Job], parts: Iterable[Part]) -> None:
        self._lock = threading.Lock()
        self._busy: Counter[Path | None] = Counter()
        self._left: Counter[Path | None] = Counter()
        placed: dict[Path | None, list[tuple[int, Part]]] = {}
        for part in parts:
            file, order = _place(jobs[part.job], part)
            placed.setdefault(file, []).append((order, part))
            self._left[file] += part.nbytes
        self._queues = {
            file: deque(part for _, part in sorted(queue, key=lambda placed: placed[0]))
            for file, queue in placed.items()
        }

    def take(self) -> tuple[Path | None, Part] | None:
        """The next part and the queue to give back when it is done, or None when nothing is left."""
        with self._lock:
            if not self._queues:
                return None
            file = min(self._queues, key=lambda f: (self._busy[f], -self._left[f]))
            part = self._queues[file].popleft()
            if not self._queues[file]:
                del self._queues[file]
            self._busy[file] += 1
            return file, part

    def give_back(self, file: Path | None, part: Part) -> None:
        """Say that a part taken from the queue `file` is copied."""
        with self._lock:
            self._busy[file] -= 1
            self._left[file] -= part.nbytes


def _place(job: Job, part: Part) -> tuple[Path | None, int]:
    """The file a part begins to write, and its rank there: ascending, so largest first where nothing is written."""
    if part.bands:
        band = part.bands[0]
        destination = job.pairs[band.pair].destination
        for extent in destination.extents if destination else ():
            if extent.row <= band.row < extent.row + extent.rows:
                return extent.file, extent.offset + (band.row - extent.row)
    return None, -part.nbytes
