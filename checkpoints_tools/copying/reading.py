"""The elements of a tensor, band by band, for whoever wants to look at them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from checkpoints_tools.copying.bands import Tile
from checkpoints_tools.copying.convert import Bits
from checkpoints_tools.copying.files import Files
from checkpoints_tools.copying.jobs import Pair
from checkpoints_tools.copying.move import Mover, Way
from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.layout import TensorLayout
from checkpoints_tools.safetensors_file import ITEM_BYTES

_BAND_BYTES = 1 << 20
_LARGEST_ROW = 16 << 20


def read_rows(tensor: TensorLayout, dtype: str | None = None) -> Iterator[Bits]:
    """Rows of the tensor as a matrix, from first to last, in bands of about a megabyte.

    Elements are the bits (unsigned integers) of `dtype`, by default the stored one. A band is valid until the
    next one is taken. Its number of rows depends on the tensor's shape alone: two tensors of one shape can be
    read side by side.

    Raises:
        CheckpointError: A file is truncated or cannot be read, or a row has more than 16 MiB.
    """
    rows, columns = tensor.matrix
    target = dtype or tensor.dtype
    widest = columns * max(ITEM_BYTES.values())
    if widest > _LARGEST_ROW:
        raise CheckpointError(f"{tensor.name}: its rows of {columns} elements are too long to be looked at")
    step = max(1, _BAND_BYTES // max(1, widest))
    way = Way(Pair(tensor, None if target == tensor.dtype else replace(tensor, dtype=target, extents=())))
    with Files() as files:
        mover = Mover(files, lambda _: None, digests=False, block=step * widest)
        for row in range(0, rows, step):
            tile = Tile(row, 0, min(step, rows - row), columns)
            yield mover.fill(way, tile).view(f"<u{ITEM_BYTES[target]}").reshape(tile.rows, columns)
