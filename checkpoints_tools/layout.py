"""Where a model's tensors lie on disk, whatever format holds them: the one view every command works on.

A tensor is a matrix (a vector of n counts as n rows of one column) cut into extents: boxes whose elements lie,
row by row, in one contiguous byte range of a file. A Hugging Face tensor is one extent; in a Megatron
checkpoint it is many. Converting is copying extents to extents; verifying is hashing rows in order.
"""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.safetensors_file import ITEM_BYTES, StoredTensor
from checkpoints_tools.shapes import Index


@dataclass(frozen=True, slots=True)
class Extent:
    """The box [row, row + rows) x [column, column + columns) of a matrix, at byte `offset` of `file`.

    Counts elements; its elements are row-major and contiguous: rows * columns * itemsize bytes.
    """

    file: Path
    offset: int
    row: int
    column: int
    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """One Hugging Face tensor (name, safetensors dtype, shape) and the extents that tile it exactly."""

    name: str
    dtype: str
    shape: Index
    extents: tuple[Extent, ...]

    @property
    def matrix(self) -> tuple[int, int]:
        """(rows, columns) of the tensor as a matrix."""
        return (self.shape[0] if self.shape else 1), prod(self.shape[1:])

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's elements."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model on disk. `tensors` is keyed by Hugging Face name, in the model's order.

    `carried` are the files beside the weights that go with the model unchanged (configuration, tokenizer, ...).
    """

    path: Path
    format: Literal["huggingface", "torch_dist"]
    config: ModelConfig
    tensors: dict[str, TensorLayout]
    carried: tuple[Path, ...]


def whole_extent(stored: StoredTensor) -> Extent:
    """A tensor of a safetensors file as one extent."""
    rows = stored.shape[0] if stored.shape else 1
    return Extent(stored.file, stored.start, 0, 0, rows, prod(stored.shape[1:]))
