"""Boxes of tensors and how tensor parallelism cuts them. Integers only: no tensor library.

A box is (start, shape), one integer an axis. All shapes count elements, not bytes.
"""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from math import prod

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.shapes import Index


@dataclass(frozen=True, slots=True)
class MegatronTensor:
    """A tensor of the whole Megatron model, however it is parallelised.

    `name` is the per-layer checkpoint key (`decoder.layers.3.self_attention.linear_qkv.weight`), `shape` the
    global shape without vocabulary padding. The tensor is split over tensor parallel ranks along `tp_axis`
    (None: every rank holds all of it). With `tp_blocks` = 2 (fc1: gate over up) each half is split by itself
    and a rank holds its part of the first half, then its part of the second. `vocab`: Megatron pads axis 0.
    """

    name: str
    shape: Index
    tp_axis: int | None = None
    tp_blocks: int = 1
    vocab: bool = False


@dataclass(frozen=True, slots=True)
class Copy:
    """Elements of a Hugging Face tensor that are, in the same order, a box of a Megatron tensor."""

    hf_name: str
    hf_start: Index
    megatron_name: str
    megatron_start: Index
    shape: Index


@dataclass(frozen=True, slots=True)
class LocalBox:
    """A box of one rank's shard and where it lies in the global Megatron tensor."""

    local_start: Index
    global_start: Index
    shape: Index


@dataclass(frozen=True, slots=True)
class Read:
    """A box of a Hugging Face tensor and where it goes in one rank's shard of a Megatron tensor."""

    hf_name: str
    hf_start: Index
    local_start: Index
    shape: Index

    @property
    def hf_slice(self) -> tuple[slice, ...]:
        """Index of the box in the Hugging Face tensor."""
        return box_slice(self.hf_start, self.shape)

    @property
    def local_slice(self) -> tuple[slice, ...]:
        """Index of the box in the rank's shard."""
        return box_slice(self.local_start, self.shape)


def box_slice(start: Index, shape: Index) -> tuple[slice, ...]:
    """The box as an index of numpy arrays, torch tensors or safetensors slices."""
    return tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))


def padded_vocab_size(vocab_size: int, tp_size: int, divisible_by: int = 128) -> int:
    """Rows of the padded embedding: `vocab_size` rounded up to a multiple of `divisible_by` x `tp_size`."""
    unit = divisible_by * tp_size
    return -(-vocab_size // unit) * unit


def stored_shape(tensor: MegatronTensor, padded_vocab: int | None = None) -> Index:
    """Global shape with vocabulary padding; `padded_vocab` None means that nothing is padded."""
    if not tensor.vocab or padded_vocab is None:
        return tensor.shape
    if padded_vocab < tensor.shape[0]:
        raise CheckpointError(
            f"{tensor.name}: a padded vocabulary of {padded_vocab} rows cannot hold {tensor.shape[0]}"
        )
    return (padded_vocab, *tensor.shape[1:])


def local_shape(tensor: MegatronTensor, tp_size: int, padded_vocab: int | None = None) -> Index:
    """Shape of a rank's shard. Raises CheckpointError where `tp_size` does not divide the tensor."""
    shape = stored_shape(tensor, padded_vocab)
    if tensor.tp_axis is None:
        return shape
    size = shape[tensor.tp_axis]
    if size % (tensor.tp_blocks * tp_size):
        raise CheckpointError(
            f"{tensor.name}: its {'rows' if tensor.tp_axis == 0 else 'columns'} ({size // tensor.tp_blocks}) "
            f"cannot be split over tensor_model_parallel_size {tp_size}; choose a divisor"
        )
    return tuple(n // tp_size if axis == tensor.tp_axis else n for axis, n in enumerate(shape))


def local_boxes(
    tensor: MegatronTensor, tp_rank: int, tp_size: int, padded_vocab: int | None = None
) -> list[LocalBox]:
    """Boxes of rank `tp_rank`'s shard that hold data; what no box covers is vocabulary padding."""
    shard = local_shape(tensor, tp_size, padded_vocab)
    origin = (0,) * len(shard)
    if tensor.tp_axis is None:
        return [LocalBox(origin, origin, shard)]
    axis = tensor.tp_axis
    part = shard[axis] // tensor.tp_blocks
    boxes = []
    for block in range(tensor.tp_blocks):
        first = (block * tp_size + tp_rank) * part
        size = min(part, tensor.shape[axis] - first)
        if size > 0:
            local, global_ = (_with(origin, axis, at) for at in (block * part, first))
            boxes.append(LocalBox(local, global_, _with(shard, axis, size)))
    return boxes


def _with(index: Index, axis: int, value: int) -> Index:
    return (*index[:axis], value, *index[axis + 1 :])


def intersect(a_start: Index, a_shape: Index, b_start: Index, b_shape: Index) -> tuple[Index, Index] | None:
    """The box that two boxes of one tensor share as (start, shape), or None."""
    start = tuple(max(a, b) for a, b in zip(a_start, b_start, strict=True))
    ends = zip(a_start, a_shape, b_start, b_shape, strict=True)
    shape = tuple(min(a + n, b + m) - s for (a, n, b, m), s in zip(ends, start, strict=True))
    return (start, shape) if all(n > 0 for n in shape) else None


def tiling_fault(shape: Index, boxes: Iterable[tuple[Index, Index]]) -> str | None:
    """Why the boxes do not cover a tensor of this shape, a vector or a matrix, exactly once; None when they do."""
    # The boxes that cross the row reached, as columns [first, end): disjoint, so both lists ascend.
    firsts: list[int] = []
    crossing: list[tuple[int, int, Index]] = []  # first, end, start of the box
    ends: list[tuple[int, int]] = []  # heap of (row after the box's last, its first column)
    covered = 0
    for start, size in sorted(boxes):
        if any(a < 0 or n <= 0 or a + n > end for a, n, end in zip(start, size, shape, strict=True)):
            return f"box at {start} of shape {size} does not lie inside {shape}"
        while ends and ends[0][0] <= start[0]:
            at = bisect_left(firsts, heappop(ends)[1])
            del firsts[at], crossing[at]
        first, end = (start[1], start[1] + size[1]) if len(shape) > 1 else (0, 1)
        at = bisect_left(firsts, first)
        for _, other_end, other in (*crossing[at : at + 1], *crossing[max(at - 1, 0) : at]):
            if other_end > first and (other[1] if len(shape) > 1 else 0) < end:
                return f"boxes at {other} and {start} overlap"
        firsts.insert(at, first)
        crossing.insert(at, (first, end, start))
        heappush(ends, (start[0] + size[0], first))
        covered += prod(size)
    return None if covered == prod(shape) else f"boxes cover {covered} of {prod(shape)} elements"
