"""One thread's buffers, and how a part's tiles pass through them."""

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints_tools.copying.bands import Extents, Part, Tile, cut_tiles
from checkpoints_tools.copying.convert import Bits, converter
from checkpoints_tools.copying.crc import combine_crc32
from checkpoints_tools.copying.files import Files
from checkpoints_tools.copying.jobs import Job, Pair, Range
from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.layout import Extent
from checkpoints_tools.safetensors_file import ITEM_BYTES

BLOCK_BYTES = 1 << 19  # of one buffer; a thread has three, and together they fit a core's cache
_WRITE_BACK_BYTES = 16 << 20


@dataclass(slots=True)
class _Run:
    """Bytes written without a gap, with their CRC-32 so far; the first `started` are on their way to disk."""

    file: Path
    offset: int
    nbytes: int = 0
    crc32: int = 0
    started: int = 0


@dataclass(frozen=True, slots=True)
class _Crossing:
    """What an extent and a tile share: rows and columns counted in the tile, and its bytes in the file."""

    rows: slice
    columns: slice
    offset: int
    nbytes: int
    start: int | None  # byte of the tile's buffer where it lies in one piece; None: a box within rows


class Mover:
    """Copies parts of jobs for one thread. `on_bytes` hears the bytes of each finished tile and may raise."""

    def __init__(self, files: Files, on_bytes: Callable[[int], None], *, digests: bool, block: int) -> None:
        self._files = files
        self._on_bytes = on_bytes
        self._digests = digests
        self._block = block
        self._source, self._result, self._box = (np.empty(block, np.uint8) for _ in range(3))
        self._runs: dict[tuple[Path, int], _Run] = {}  # by the place where the next byte belongs

    def copy(self, job: Job, part: Part) -> tuple[list[Range], dict[str, str]]:
        """Copy a part; its ranges, in any order, and where asked for the digests (the part is a whole job)."""
        self._runs = {}
        ways = [Way(pair) for pair in job.pairs]
        for band in part.bands:
            way = ways[band.pair]
            for tile in cut_tiles(way.pair, band, self._block):
                data = self.fill(way, tile)
                if self._digests:
                    way.digest.update(data.data)
                if way.destination is not None:
                    self._drain(way, way.destination, tile, data)
                self._on_bytes(len(data))
        for run in self._runs.values():
            self._start_writing(run)
        ranges = [Range(run.file, run.offset, run.nbytes, run.crc32) for run in self._runs.values()]
        named = {way.pair.source.name: way.digest.hexdigest() for way in ways} if self._digests else {}
        return ranges, named

    def fill(self, way: "Way", tile: Tile) -> Bits:
        """The tile's bytes in the destination's dtype; valid until the next call."""
        item = way.source_item
        data = self._source[: tile.rows * tile.columns * item]
        filled = 0
        for extent in way.source.crossing(tile.row, tile.rows):
            if (shared := _crossing(extent, tile, item)) is None:
                continue
            filled += shared.nbytes
            if shared.start is not None:
                piece = data[shared.start : shared.start + shared.nbytes]
                self._read(way, extent, piece, shared)
            else:
                box = self._box[: shared.nbytes]
                self._read(way, extent, box, shared)
                target = _matrix(data, tile, item)[shared.rows, shared.columns]
                target[...] = box.view(target.dtype).reshape(target.shape)
        if filled != len(data):
            raise CheckpointError(f"{way.pair.source.name}: the stored pieces leave a hole or overlap")
        if way.convert is None:
            return data
        result = self._result[: tile.rows * tile.columns * way.item]
        way.convert(data, result)
        return result

    def _read(self, way: "Way", extent: Extent, view: Bits, shared: _Crossing) -> None:
        try:
            self._files.read(extent.file, view, shared.offset)
        except CheckpointError as error:
            raise CheckpointError(f"{way.pair.source.name}: {error}") from error

    def _drain(self, way: "Way", destination: Extents, tile: Tile, data: Bits) -> None:
        for extent in destination.crossing(tile.row, tile.rows):
            if (shared := _crossing(extent, tile, way.item)) is None:
                continue
            if shared.start is not None:
                piece = data[shared.start : shared.start + shared.nbytes]
            else:
                piece = self._box[: shared.nbytes]
                box = _matrix(data, tile, way.item)[shared.rows, shared.columns]
                piece.view(box.dtype).reshape(box.shape)[...] = box
            self._write(extent.file, piece, shared.offset)

    def _write(self, file: Path, piece: Bits, offset: int) -> None:
        run = self._runs.pop((file, offset), None) or _Run(file, offset)
        self._files.write(file, piece, offset)
        run.crc32 = zlib.crc32(piece.data, run.crc32)
        run.nbytes += len(piece)
        self._runs[file, run.offset + run.nbytes] = run
        if run.nbytes - run.started >= _WRITE_BACK_BYTES:
            self._start_writing(run)

    def _start_writing(self, run: _Run) -> None:
        self._files.start_writing(run.file, run.offset + run.started, run.nbytes - run.started)
        run.started = run.nbytes


class Way:
    """What copying one pair needs at every tile."""

    def __init__(self, pair: Pair) -> None:
        target = pair.destination or pair.source
        self.pair = pair
        self.source = Extents(pair.source.extents)
        self.destination = Extents(pair.destination.extents) if pair.destination else None
        self.source_item, self.item = ITEM_BYTES[pair.source.dtype], ITEM_BYTES[target.dtype]
        self.convert = converter(pair.source.dtype, target.dtype)
        self.digest = hashlib.sha256()


def _crossing(extent: Extent, tile: Tile, item: int) -> _Crossing | None:
    row, end = max(extent.row, tile.row), min(extent.row + extent.rows, tile.row + tile.rows)
    column = max(extent.column, tile.column)
    columns = min(extent.column + extent.columns, tile.column + tile.columns) - column
    if columns <= 0:
        return None
    # A tile has whole rows or a piece of one, so what it shares with an extent is one piece of the file.
    offset = extent.offset + ((row - extent.row) * extent.columns + column - extent.column) * item
    row, end, column = row - tile.row, end - tile.row, column - tile.column
    whole = columns == tile.columns or end - row == 1
    start = (row * tile.columns + column) * item if whole else None
    return _Crossing(
        slice(row, end), slice(column, column + columns), offset, (end - row) * columns * item, start
    )


def _matrix(data: Bits, tile: Tile, item: int) -> Any:
    return data.view(f"<u{item}").reshape(tile.rows, tile.columns)


def join_ranges(ranges: list[Range]) -> tuple[Range, ...]:
    """Ranges ascending by file and offset, those that touch as one."""
    joined: list[Range] = []
    for r in sorted(ranges, key=lambda r: (str(r.file), r.offset)):
        last = joined[-1] if joined else None
        if last is not None and last.file == r.file and last.offset + last.nbytes == r.offset:
            crc = combine_crc32(last.crc32, r.crc32, r.nbytes)
            joined[-1] = Range(r.file, last.offset, last.nbytes + r.nbytes, crc)
        else:
            joined.append(r)
    return tuple(joined)
