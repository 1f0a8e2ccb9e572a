"""Megatron's contiguous gradient buffer, its buckets, and each data-parallel rank's part of it.

Source: megatron-core 0.16.1, distributed/param_and_grad_buffer.py `_ParamAndGradBuffer.__init__` (order, padding,
buckets), distributed/distributed_data_parallel.py (bucket size) and optimizer/distrib_optimizer.py
`_build_model_gbuf_range` (parts of the ranks). All sizes count elements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.shapes import Index
from checkpoints_tools.weight_map.names import EMBEDDING, OUTPUT
from nemo_thinkprune.costs.shards import Split

PARAMETER_ALIGNMENT = 64  # elements: 128 bytes of a 16-bit type
BUCKET_ALIGNMENT = 128  # elements: 256 bytes of a 16-bit type
LEAST_BUCKET, BUCKET_PER_RANK = 40_000_000, 1_000_000


@dataclass(frozen=True, slots=True)
class Bucket:
    """Parameters that are reduced together: elements [start, end) of the buffer, padding at the end included.

    `spans` are the parameters' own [start, end) in the buffer.
    """

    start: int
    end: int
    spans: tuple[tuple[int, int], ...]

    def owned(self, shards: int) -> list[int]:
        """Parameter elements in the part of the bucket that each data-parallel rank of `shards` updates."""
        part = (self.end - self.start) // shards
        counts = [0] * shards
        for start, end in ((start - self.start, end - self.start) for start, end in self.spans):
            for rank in range(start // part, min(shards, -(-end // part))) if part else ():
                counts[rank] += min(end, (rank + 1) * part) - max(start, rank * part)
        return counts


@dataclass(frozen=True, slots=True)
class Buffer:
    """The gradient buffer of one rank; with the distributed optimizer the weights lie in one of the same form."""

    buckets: tuple[Bucket, ...]

    @property
    def elements(self) -> int:
        """All of it, padding included."""
        return self.buckets[-1].end if self.buckets else 0

    def owned(self, shards: int) -> list[int]:
        """Parameter elements that each data-parallel rank of `shards` updates."""
        of_buckets = (bucket.owned(shards) for bucket in self.buckets)
        return [sum(counts) for counts in zip(*of_buckets, strict=True)] or [0] * shards


@dataclass(frozen=True, slots=True)
class Reduction:
    """How gradients are reduced.

    `distributed`: Megatron's distributed optimizer, which pads. `overlapped`: while the backward pass still runs,
    for which the first stage's buffer is cut into buckets.
    """

    distributed: bool = True
    overlapped: bool = False


def stage_buffer(
    shapes: Mapping[str, Index], model: ModelConfig, split: Split, pp_rank: int, reduction: Reduction
) -> Buffer:
    """The gradient buffer of one rank of a pipeline stage.

    `shapes` are `costs.shards.stage_shapes` or those of a built module, in the module's order: it decides where a
    bucket ends, and nothing else.
    """
    bucketed = reduction.overlapped and pp_rank == 0
    shared = {EMBEDDING, OUTPUT} if model.tied and split.pp > 1 and reduction.distributed else set()
    return gradient_buffer(
        [(math.prod(shape), name in shared) for name, shape in shapes.items()],
        shards=split.shards,
        distributed=reduction.distributed,
        bucket_size=max(LEAST_BUCKET, BUCKET_PER_RANK * split.shards) if bucketed else None,
    )


def gradient_buffer(
    sizes: list[tuple[int, bool]], *, shards: int, distributed: bool, bucket_size: int | None
) -> Buffer:
    """Lay parameters out from the last to the first.

    Args:
        sizes: Elements of each parameter and whether it has a bucket of its own.
        shards: Data-parallel ranks.
        distributed: Parameters start at multiples of 64, buckets end at multiples of 128 and of `shards`.
        bucket_size: Elements from which on a bucket is closed; None: never.
    """
    start_unit = PARAMETER_ALIGNMENT if distributed else 1
    end_unit = math.lcm(shards, BUCKET_ALIGNMENT) if distributed else 1
    buckets: list[Bucket] = []
    first = at = 0
    spans: list[tuple[int, int]] = []

    def close() -> None:
        nonlocal first, at, spans
        at = _up(at, end_unit)
        buckets.append(Bucket(first, at, tuple(spans)))
        first, spans = at, []

    for size, alone in reversed(sizes):
        at = _up(at, start_unit)
        if alone and spans:
            close()
        spans.append((at, at + size))
        at += size
        if alone or (bucket_size is not None and at - first >= bucket_size):
            close()
    if spans:
        close()
    return Buffer(tuple(buckets))


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
