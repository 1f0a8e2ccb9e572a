"""The parameters of a parallel Megatron-Core model under the weight map's names, and how to collect them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from torch import Tensor, nn

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.weight_map import WeightMap, canonical_name, local_shape, weight_map
from nemo_thinkprune.recipe.errors import UserError

ModelChunks = nn.Module | Sequence[nn.Module]


@dataclass(frozen=True, slots=True)
class Held:
    """Where a Megatron tensor is: the first pipeline stage that has it, and each of its shards' form."""

    stage: int
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ParallelWeights:
    """A model's weight map, this rank's parameters by name, and where every tensor of the model is held.

    A name occurs twice in `local` only where tied embeddings are held twice.
    """

    table: WeightMap
    local: tuple[tuple[str, nn.Parameter], ...]
    held: dict[str, Held]


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn a CheckpointError of the torch-free floor into the UserError that the command line prints."""
    try:
        yield
    except CheckpointError as error:
        raise UserError(str(error)) from error


def parallel_weights(model_chunks: ModelChunks, config: ModelConfig) -> ParallelWeights:
    """Name the parameters of this rank's model chunks and find out who holds what.

    Collective over the pipeline group. Raises UserError on all its ranks when the model does not have just
    the parameters that `config` describes.
    """
    with user_errors():
        table = weight_map(config)
    local = named_parameters(model_chunks, config)
    faults, mine = _local_fault(table, local), {n: (p.dtype, tuple(p.shape)) for n, p in local}
    stages: list[tuple[str | None, dict[str, tuple[torch.dtype, tuple[int, ...]]]]] = [(faults, mine)]
    if mpu.get_pipeline_model_parallel_world_size() > 1:
        stages *= mpu.get_pipeline_model_parallel_world_size()
        dist.all_gather_object(stages, (faults, mine), group=mpu.get_pipeline_model_parallel_group())
    fault = next((fault for fault, _ in stages if fault), None)
    held = {
        name: Held(stage, *form)
        for stage in reversed(range(len(stages)))
        for name, form in stages[stage][1].items()
    }
    missing = [name for name in table.megatron if name not in held]
    if fault or missing:
        raise UserError(fault or f"the model does not match its config: it lacks {_some(missing)}")
    return ParallelWeights(table, local, held)


def iter_hf_tensors(weights: ParallelWeights) -> Iterator[tuple[str, Tensor | None]]:
    """All Hugging Face tensors of the model in its order, gathered over TP and PP one at a time.

    Collective within each model replica: all its ranks must run it to the end. TP rank 0 of the first
    pipeline stage gets each tensor (on the model's device, in the parameter's dtype, memory of its own), the
    other ranks None.
    """
    local = dict(weights.local)
    for name in weights.table.megatron:
        here = _to_first_stage(weights, name, local.get(name))
        for hf_name in weights.table.hf_names(name):
            yield hf_name, None if here is None else here.pop(hf_name)


def named_parameters(model_chunks: ModelChunks, config: ModelConfig) -> tuple[tuple[str, nn.Parameter], ...]:
    """This rank's parameters under the weight map's names; wrappers (DDP, precision) are looked through."""
    named = []
    for chunk in [model_chunks] if isinstance(model_chunks, nn.Module) else model_chunks:
        while isinstance(inner := getattr(chunk, "module", None), nn.Module):
            chunk = inner
        layers: Any = chunk.get_submodule("decoder.layers")
        offset = layers[0].layer_number - 1 if len(layers) else 0
        for name, parameter in chunk.named_parameters():
            named.append((canonical_name(name, layer_offset=offset, tied=config.tied), parameter))
    return tuple(named)


def _local_fault(table: WeightMap, local: Sequence[tuple[str, nn.Parameter]]) -> str | None:
    unknown = [name for name, _ in local if name not in table.megatron]
    if unknown:
        return f"the model does not match its config: it has unknown parameters {_some(unknown)}"
    tp = mpu.get_tensor_model_parallel_world_size()
    for name, parameter in local:
        try:
            expected = local_shape(
                table.megatron[name], tp, padded_vocab(table, name, tuple(parameter.shape))
            )
        except CheckpointError as error:
            return str(error)
        if tuple(parameter.shape) != expected:
            shape = tuple(parameter.shape)
            return f"the model does not match its config: {name} has shape {shape}, not {expected}"
    return None


def padded_vocab(table: WeightMap, name: str, shape: tuple[int, ...]) -> int | None:
    """Rows of the padded vocabulary, told from a shard's shape; None for tensors without vocabulary axis."""
    tp = mpu.get_tensor_model_parallel_world_size()
    return shape[0] * tp if table.megatron[name].vocab else None


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


@torch.no_grad()
def _to_first_stage(
    weights: ParallelWeights, name: str, parameter: nn.Parameter | None
) -> dict[str, Tensor] | None:
    held, stage = weights.held[name], mpu.get_pipeline_model_parallel_rank()
    tensors: dict[str, Tensor] | None = None
    if stage == held.stage:
        assert parameter is not None
        shards = _gather_shards(parameter, split=weights.table.megatron[name].tp_axis is not None)
        tensors = None if shards is None else _assemble(weights.table, name, shards)
    if held.stage == 0 or mpu.get_tensor_model_parallel_rank() != 0 or stage not in (0, held.stage):
        return tensors if stage == 0 else None
    group = mpu.get_pipeline_model_parallel_group()
    if tensors is not None:
        for tensor in tensors.values():
            dist.send(_as_bytes(tensor), dst=dist.get_global_rank(group, 0), group=group)
        return None
    received = {}
    for hf_name in weights.table.hf_names(name):
        device = weights.local[0][1].device
        tensor = torch.empty(weights.table.hf[hf_name], dtype=held.dtype, device=device)
        dist.recv(_as_bytes(tensor), src=dist.get_global_rank(group, held.stage), group=group)
        received[hf_name] = tensor
    return received


def _gather_shards(parameter: nn.Parameter, *, split: bool) -> list[Tensor] | None:
    """All TP shards on TP rank 0, None on the others; one shard where every rank holds the whole tensor."""
    local, group = parameter.detach().contiguous(), mpu.get_tensor_model_parallel_group()
    is_root = mpu.get_tensor_model_parallel_rank() == 0
    if not split or group.size() == 1:
        return [local] if is_root else None
    shards = [torch.empty_like(local) for _ in range(group.size())] if is_root else None
    buffers = None if shards is None else [_as_bytes(shard) for shard in shards]
    dist.gather(_as_bytes(local), buffers, dst=dist.get_global_rank(group, 0), group=group)
    return shards


def _as_bytes(tensor: Tensor) -> Tensor:
    # Bytes travel the same with every backend, whatever types its reductions know.
    return tensor.view(-1).view(torch.uint8)


def _assemble(table: WeightMap, name: str, shards: Sequence[Tensor]) -> dict[str, Tensor]:
    """The Hugging Face tensors that lie in the Megatron tensor of these shards."""
    out = {hf_name: shards[0].new_empty(table.hf[hf_name]) for hf_name in table.hf_names(name)}
    padded = padded_vocab(table, name, tuple(shards[0].shape))
    tp = len(shards) if table.megatron[name].tp_axis is not None else 1
    for rank, shard in enumerate(shards):
        for read in table.hf_reads(name, rank, tp, padded):
            out[read.hf_name][read.hf_slice] = shard[read.local_slice]
    return out
