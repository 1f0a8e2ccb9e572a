"""How a job is cut: bands of rows in the order of the destination, parts for threads, tiles for the buffer."""

import heapq
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from checkpoints_tools.copying.jobs import Job, Pair
from checkpoints_tools.layout import Extent
from checkpoints_tools.safetensors_file import ITEM_BYTES


@dataclass(frozen=True, slots=True)
class Band:
    """Rows [row, row + rows) of pair number `pair` of a job."""

    pair: int
    row: int
    rows: int


@dataclass(frozen=True, slots=True)
class Part:
    """What one thread copies at a time: bands of one job (its number in the run), and their bytes."""

    job: int
    bands: tuple[Band, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Tile:
    """A box of a matrix that fits the buffer: whole rows, or a piece of one row."""

    row: int
    column: int
    rows: int
    columns: int


class Extents:
    """A tensor's extents, found by row."""

    def __init__(self, extents: Sequence[Extent]) -> None:
        self._sorted = sorted(extents, key=lambda e: (e.row, e.column))
        self._starts = [e.row for e in self._sorted]
        # The last row seen so far: ascending, unlike the extents' own ends.
        self._ends = list(accumulate((e.row + e.rows for e in self._sorted), max))

    def crossing(self, row: int, rows: int) -> list[Extent]:
        """The extents that hold some of rows [row, row + rows), by row and column."""
        first, last = bisect_right(self._ends, row), bisect_left(self._starts, row + rows)
        return [e for e in self._sorted[first:last] if e.row + e.rows > row and e.columns]


def ordered_bands(job: Job) -> list[Band]:
    """A job's bands so that the destination is written ascending as far as possible.

    Between two bands of a pair lies an edge of a destination extent. The bands of one pair always ascend, for
    a digest is taken row by row; bands of different pairs (query, key, value of a group) alternate as the
    destination has them.
    """
    queues = [_pair_bands(number, pair) for number, pair in enumerate(job.pairs)]
    return [band for _, band in heapq.merge(*queues, key=lambda keyed: keyed[0])]


def _pair_bands(number: int, pair: Pair) -> list[tuple[tuple[str, int, int], Band]]:
    layout = pair.destination or pair.source
    rows, columns = layout.matrix
    if not rows or not columns:
        return []
    if pair.destination is None:
        return [(("", 0, number), Band(number, 0, rows))]
    firsts: dict[int, Extent] = {}
    edges = {0, rows}
    for extent in layout.extents:
        edges.update((extent.row, extent.row + extent.rows))
        if extent.column == 0:
            firsts[extent.row] = extent
    bands = []
    place = ("", 0)
    for row, end in pairwise(sorted(edges)):
        if first := firsts.get(row):
            place = (str(first.file), first.offset)
        bands.append(((*place, number), Band(number, row, end - row)))
    return bands


def cut_parts(number: int, job: Job, *, most: int | None) -> list[Part]:
    """Job `number` of a run as parts of at most `most` bytes (a row stays whole); None: one part."""
    parts: list[Part] = []
    bands: list[Band] = []
    room = limit = most if most is not None else max(job.nbytes, 1)
    for band in ordered_bands(job):
        pair = job.pairs[band.pair]
        row_bytes = pair.nbytes // (pair.destination or pair.source).matrix[0]
        row, end = band.row, band.row + band.rows
        while row < end:
            if room < row_bytes and bands:
                parts.append(Part(number, tuple(bands), limit - room))
                bands, room = [], limit
            rows = min(end - row, max(room // row_bytes, 1))
            bands.append(Band(band.pair, row, rows))
            room -= rows * row_bytes
            row += rows
    if bands or not parts:
        parts.append(Part(number, tuple(bands), limit - room))
    return parts


def cut_tiles(pair: Pair, band: Band, block: int) -> Iterator[Tile]:
    """The band as tiles of at most `block` bytes in the wider of the two dtypes, ascending."""
    layouts = (pair.source, pair.destination or pair.source)
    item = max(ITEM_BYTES[layout.dtype] for layout in layouts)
    columns = pair.source.matrix[1]
    if columns * item <= block:
        step = block // (columns * item)
        for row in range(band.row, band.row + band.rows, step):
            yield Tile(row, 0, min(step, band.row + band.rows - row), columns)
        return
    step = block // item
    for row in range(band.row, band.row + band.rows):
        for column in range(0, columns, step):
            yield Tile(row, column, 1, min(step, columns - column))
