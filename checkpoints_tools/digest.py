"""sha256 of every tensor of a model, whatever format holds it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod

import numpy as np

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.layout import Extent, StoredModel, TensorLayout
from checkpoints_tools.safetensors_file import ITEM_BYTES
from checkpoints_tools.weight_map import Index

_BAND_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class TensorDigest:
    """Safetensors dtype, shape, and sha256 (64 hexadecimal digits) of the row-major little-endian bytes."""

    dtype: str
    shape: Index
    sha256: str

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]


def digest_model(
    model: StoredModel,
    *,
    threads: int = 4,
    on_bytes: Callable[[int], None] | None = None,
    as_dtype: str | None = None,
) -> dict[str, TensorDigest]:
    """Hash all tensors, in the model's order; memory is bounded whatever the model's size.

    `on_bytes` is told from any thread how many stored bytes were read.

    Raises:
        CheckpointError: A file is truncated or cannot be read.
    """

    def one(tensor: TensorLayout) -> TensorDigest:
        digest = hashlib.sha256()
        for band in _bands(tensor):
            digest.update(memoryview(band))
            if on_bytes is not None:
                on_bytes(band.nbytes)
        return TensorDigest(tensor.dtype, tensor.shape, digest.hexdigest())

    with ThreadPoolExecutor(threads) as pool:
        return dict(zip(model.tensors, pool.map(one, model.tensors.values()), strict=True))


def _bands(tensor: TensorLayout) -> Iterator[np.ndarray]:
    rows, columns = tensor.matrix
    item = ITEM_BYTES[tensor.dtype]
    step = max(1, _BAND_BYTES // max(1, columns * item))
    for first in range(0, rows, step):
        band = np.empty((min(step, rows - first), columns * item), np.uint8)
        for extent in tensor.extents:
            top, end = max(first, extent.row), min(first + len(band), extent.row + extent.rows)
            if top < end:
                width = extent.columns * item
                at = extent.offset + (top - extent.row) * width
                left = extent.column * item
                part = _read(tensor, extent, at, (end - top) * width).reshape(end - top, width)
                band[top - first : end - first, left : left + width] = part
        yield band


def _read(tensor: TensorLayout, extent: Extent, at: int, nbytes: int) -> np.ndarray:
    with open(extent.file, "rb") as stream:
        data = os.pread(stream.fileno(), nbytes, at)
    if len(data) != nbytes:
        raise CheckpointError(f"{extent.file} ends within {tensor.name}; it is truncated")
    return np.frombuffer(data, np.uint8)
