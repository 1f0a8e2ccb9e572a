"""One rank's real Megatron-Core module, gradient buffer and optimizer, built without memory.

Process groups are torch's fake ones, tensors are on the meta device: every shape is there, no data.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from torch.testing._internal.distributed.fake_pg import FakeStore

from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.shapes import Index
from checkpoints_tools.weight_map import canonical_name
from nemo_thinkprune.costs.buffers import Reduction
from nemo_thinkprune.costs.shards import Split
from nemo_thinkprune.policy.device import megatron_device
from nemo_thinkprune.policy.model import ModelOptions, PolicyModel, build_model
from nemo_thinkprune.policy.parallel import Layout


@dataclass(frozen=True, slots=True)
class BuiltRank:
    """What Megatron-Core built on one rank.

    `dp_rank` counts over data and context parallelism together. `layers` are numbered over the whole model.
    `shapes` are by the weight map's names, in the module's order; `vocabulary` are the rows of the embedding that
    the rank holds, None where it has no embedding. Bytes are those of the tensors' own types. `optimizer_elements`
    are the elements of all tensors that the optimizer updates.
    """

    rank: int
    tp_rank: int
    pp_rank: int
    dp_rank: int
    layers: tuple[int, ...]
    shapes: dict[str, Index]
    vocabulary: range | None
    parameters: int
    weight_bytes: int
    gradient_elements: int
    gradient_bytes: int
    optimizer_elements: int

    def __str__(self) -> str:
        return (
            f"rank {self.rank} (stage {self.pp_rank}, tensor rank {self.tp_rank}, data rank {self.dp_rank})"
        )


@contextmanager
def meta_device() -> Iterator[torch.device]:
    """Run Megatron-Core in the block on the meta device."""
    meta = torch.device("meta")
    with (
        megatron_device(torch.device("cpu")),
        patch.object(torch.cuda, "current_device", lambda: "meta"),
        meta,
    ):
        yield meta


@contextmanager
def fake_rank(split: Split, rank: int) -> Iterator[Layout]:
    """Be `rank` of a world that is not there; torn down at the end of the block, also after an exception."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=split.world)
    try:
        mpu.initialize_model_parallel(
            tensor_model_parallel_size=split.tp,
            pipeline_model_parallel_size=split.pp,
            context_parallel_size=split.cp,
            create_gloo_process_groups=False,
        )
        yield Layout(
            rank=rank,
            world=split.world,
            tp=split.tp,
            pp=split.pp,
            dp=split.dp,
            tp_rank=mpu.get_tensor_model_parallel_rank(),
            pp_rank=mpu.get_pipeline_model_parallel_rank(),
            dp_rank=mpu.get_data_parallel_rank(with_context_parallel=True),
        )
    finally:
        mpu.destroy_model_parallel()
        dist.destroy_process_group()


def built_rank(
    model: ModelConfig,
    split: Split,
    rank: int,
    *,
    options: ModelOptions,
    reduction: Reduction,
    device: torch.device,
) -> BuiltRank:
    """Build a rank's module, wrap it for data parallelism, give it an optimizer, and read off what is there.

    Call it in `meta_device`.
    """
    with fake_rank(split, rank) as layout:
        network = build_model(model, options, layout=layout, device=device)
        wrapped = _wrapped(network, options, reduction)
        layers = tuple(layer.layer_number - 1 for layer in network.decoder.layers)
        named = list(network.named_parameters())
        offset = layers[0] if layers else 0
        gradients = [buffer.grad_data for buffer in wrapped.buffers]
        return BuiltRank(
            rank=rank,
            tp_rank=layout.tp_rank,
            pp_rank=layout.pp_rank,
            dp_rank=layout.dp_rank,
            layers=layers,
            shapes={canonical_name(name, layer_offset=offset): tuple(p.shape) for name, p in named},
            vocabulary=_vocabulary(network),
            parameters=sum(p.numel() for _, p in named),
            weight_bytes=sum(p.numel() * p.element_size() for _, p in named),
            gradient_elements=sum(g.numel() for g in gradients),
            gradient_bytes=sum(g.numel() * g.element_size() for g in gradients),
            optimizer_elements=_optimizer_elements(wrapped, options, reduction),
        )


def _wrapped(network: PolicyModel, options: ModelOptions, reduction: Reduction) -> DistributedDataParallel:
    config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=options.grad_reduce_in_fp32,
        use_distributed_optimizer=reduction.distributed,
        overlap_grad_reduce=reduction.overlapped,
    )
    return DistributedDataParallel(config=network.config, ddp_config=config, module=network)


def _optimizer_elements(wrapped: DistributedDataParallel, options: ModelOptions, reduction: Reduction) -> int:
    config = OptimizerConfig(
        optimizer="adam",
        lr=1e-6,
        bf16=options.dtype == torch.bfloat16,
        fp16=options.dtype == torch.float16,
        params_dtype=options.dtype,
        use_distributed_optimizer=reduction.distributed,
    )
    optimizer: Any = get_megatron_optimizer(config, [wrapped], use_gloo_process_groups=False)
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    return sum(p.numel() for part in parts for group in part.optimizer.param_groups for p in group["params"])


def _vocabulary(network: PolicyModel) -> range | None:
    if not network.pre_process:
        return None
    embedding = network.embedding.word_embeddings
    return range(embedding.vocab_start_index, embedding.vocab_end_index)
