"""Process groups: one gloo or NCCL world cut into tensor, pipeline and data parallel groups by Megatron-Core."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from nemo_thinkprune.policy.device import collective_backend


@dataclass(frozen=True, slots=True)
class Layout:
    """Where this rank stands; groups are looked up in Megatron's `parallel_state`."""

    rank: int
    world: int
    tp: int
    pp: int
    dp: int
    tp_rank: int
    pp_rank: int
    dp_rank: int

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank embeds the tokens."""
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank holds the output layer."""
        return self.pp_rank == self.pp - 1

    @property
    def is_main(self) -> bool:
        """Whether this rank scores, logs and writes."""
        return self.rank == 0


@contextmanager
def model_parallel(
    *,
    rank: int,
    world: int,
    rendezvous: Path | str,
    tp: int,
    pp: int,
    device: torch.device,
    timeout_s: float = 600.0,
    seed: int = 0,
) -> Iterator[Layout]:
    """Join the world and set up Megatron's groups; torn down at the end of the block.

    `rendezvous` is a file that all ranks see, or an address as torch.distributed takes it (tcp://HOST:PORT).

    After an exception nothing is torn down: peers inside a collective would block it, and the process is to end.
    """
    dist.init_process_group(
        collective_backend(device),
        init_method=rendezvous if isinstance(rendezvous, str) else f"file://{rendezvous}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=timeout_s),
    )
    mpu.initialize_model_parallel(tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp)
    if device.type == "cuda":  # Megatron forks this generator around sequence-parallel regions
        model_parallel_cuda_manual_seed(seed)
    yield Layout(
        rank=rank,
        world=world,
        tp=tp,
        pp=pp,
        dp=world // (tp * pp),
        tp_rank=mpu.get_tensor_model_parallel_rank(),
        pp_rank=mpu.get_pipeline_model_parallel_rank(),
        dp_rank=mpu.get_data_parallel_rank(),
    )
    mpu.destroy_model_parallel()
    dist.destroy_process_group()


def gather_over_data_parallel(layout: Layout, value: Any) -> list[Any]:
    """One picklable value per data-parallel rank, in rank order, on every rank (trusted: our own ranks)."""
    if layout.dp == 1:
        return [value]
    out: list[Any] = [None] * layout.dp
    dist.all_gather_object(out, value, group=mpu.get_data_parallel_group_gloo())
    return out


def broadcast_from_main(layout: Layout, value: Any) -> Any:
    """Rank 0's picklable value on every rank."""
    if layout.world == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def broadcast_from_last_stage(layout: Layout, value: Any) -> Any:
    """The last pipeline stage's picklable value on every stage of this pipeline."""
    if layout.pp == 1:
        return value
    box = [value]
    group = mpu.get_pipeline_model_parallel_group()
    dist.broadcast_object_list(box, src=mpu.get_pipeline_model_parallel_last_rank(), group=group)
    return box[0]
