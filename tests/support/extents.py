"""Tensors put together from the extents of a layout, by numpy and torch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from checkpoints_tools.layout import TensorLayout

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def assemble(layouts: Mapping[str, TensorLayout]) -> dict[str, Tensor]:
    """The tensors that the layouts describe; fails where extents overlap or leave elements out."""
    return {name: _tensor(layout) for name, layout in layouts.items()}


def _tensor(layout: TensorLayout) -> Tensor:
    dtype = DTYPES[layout.dtype]
    rows, columns = layout.matrix
    out = np.zeros((rows, columns, dtype.itemsize), np.uint8)
    seen = np.zeros((rows, columns), np.int64)
    for e in layout.extents:
        box = slice(e.row, e.row + e.rows), slice(e.column, e.column + e.columns)
        count = e.rows * e.columns * dtype.itemsize
        data = np.fromfile(e.file, np.uint8, count, offset=e.offset)
        out[box] = data.reshape(e.rows, e.columns, dtype.itemsize)
        seen[box] += 1
    assert (seen == 1).all(), layout.name
    return torch.from_numpy(out.reshape(-1)).view(dtype).reshape(layout.shape)
