"""Megatron checkpoints of any TP x PP without any ranks: shards cut by definition, written with torch's classes.

Shares no code with the converter; tests/checkpoints_tools/test_layout_properties.py compares it with real saves.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from checkpoints_tools.model_config import ModelConfig

EXTRA_STATES = (
    "self_attention.linear_qkv",
    "self_attention.linear_proj",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
)


@dataclass(frozen=True, slots=True)
class Shard:
    """One rank's part of a checkpoint tensor."""

    key: str
    shape: tuple[int, ...]
    start: tuple[int, ...]
    values: Tensor


def emulate_save(
    hf: Mapping[str, Tensor],
    config: ModelConfig,
    folder: Path,
    *,
    tp: int = 1,
    stages: Sequence[int] = (),
    per_layer: bool = False,
    divisible_by: int = 128,
) -> None:
    """Write the Hugging Face tensors as ranks of a TP x PP layout would save them.

    `stages`: decoder layers of each pipeline stage (empty: one stage); `tp` must divide the KV groups and the
    MLP. The vocabulary is padded to a multiple of `divisible_by` x `tp` with rows of 7.
    """
    stages = stages or (config.num_layers,)
    assert sum(stages) == config.num_layers
    folder.mkdir(parents=True, exist_ok=True)
    writer = _Writer(folder)
    for stage, _ in enumerate(stages):
        first = sum(stages[:stage])
        layers = range(first, first + stages[stage])
        for tp_rank in range(tp):
            here = {0: stage == 0, -1: stage == len(stages) - 1}
            ends = _outside_layers(hf, config, tp, tp_rank, divisible_by)
            shards = [shard for on, shard in ends if here[on]]
            for layer in layers:
                for key, axis, values in _layer(hf, config, layer, tp, tp_rank, halves=per_layer):
                    shards.append(_placed(key, values, axis, layer, config, tp, tp_rank, per_layer))
            writer.rank(stage * tp + tp_rank, shards, _extra_keys(layers, config, per_layer, tp_rank))
    writer.finish()


def _outside_layers(
    hf: Mapping[str, Tensor], config: ModelConfig, tp: int, tp_rank: int, divisible_by: int
) -> Iterator[tuple[int, Shard]]:
    """(first stage 0 or last stage -1, shard) of the embedding, the last norm and the output layer."""
    unit = divisible_by * tp
    rows = -(-config.vocab_size // unit) * unit
    names = [("model.embed_tokens.weight", "embedding.word_embeddings.weight", 0)]
    if not config.tied:
        names.append(("lm_head.weight", "output_layer.weight", -1))
    for hf_name, key, stage in names:
        whole = torch.full((rows, config.hidden_size), 7.0, dtype=hf[hf_name].dtype)
        whole[: config.vocab_size] = hf[hf_name]
        part = rows // tp
        yield stage, Shard(key, (rows, config.hidden_size), (tp_rank * part, 0), _part(whole, 0, tp, tp_rank))
    if tp_rank == 0:
        norm = hf["model.norm.weight"]
        yield -1, Shard("decoder.final_layernorm.weight", tuple(norm.shape), (0,), norm)


def _layer(
    hf: Mapping[str, Tensor], config: ModelConfig, layer: int, tp: int, tp_rank: int, *, halves: bool
) -> Iterator[tuple[str, int | str | None, Tensor]]:
    """(key in the layer, axis that is split, this rank's values); axis "gate" and "up": halves of axis 0."""
    own = {k.removeprefix(f"model.layers.{layer}."): v for k, v in hf.items() if f".layers.{layer}." in k}
    for kind in ("weight", "bias"):
        if f"self_attn.q_proj.{kind}" in own:
            q, k, v = (own[f"self_attn.{part}_proj.{kind}"] for part in "qkv")
            groups = [
                torch.cat(group)
                for group in zip(*(x.chunk(config.num_kv_heads) for x in (q, k, v)), strict=True)
            ]
            each = len(groups) // tp
            mine = torch.cat(groups[tp_rank * each : (tp_rank + 1) * each])
            yield f"self_attention.linear_qkv.{kind}", 0, mine
    yield "self_attention.linear_proj.weight", 1, _part(own["self_attn.o_proj.weight"], 1, tp, tp_rank)
    yield "mlp.linear_fc2.weight", 1, _part(own["mlp.down_proj.weight"], 1, tp, tp_rank)
    for half, suffix in (("gate", "_w"), ("up", "_v")):
        values = _part(own[f"mlp.{half}_proj.weight"], 0, tp, tp_rank)
        name = "mlp.linear_fc1.weight"
        yield (name + suffix, 0, values) if halves else (name, half, values)
    if tp_rank == 0:
        yield "self_attention.linear_qkv.layer_norm_weight", None, own["input_layernorm.weight"]
        yield "mlp.linear_fc1.layer_norm_weight", None, own["post_attention_layernorm.weight"]
        for short in "qk":
            if f"self_attn.{short}_norm.weight" in own:
                yield (
                    f"self_attention.{short}_layernorm.weight",
                    None,
                    own[f"self_attn.{short}_norm.weight"],
                )


def _placed(
    key: str,
    values: Tensor,
    axis: int | str | None,
    layer: int,
    config: ModelConfig,
    tp: int,
    tp_rank: int,
    per_layer: bool,
) -> Shard:
    shape, start = list(values.shape), [0] * values.dim()
    if isinstance(axis, str):
        shape[0] = 2 * config.ffn
        start[0] = tp_rank * len(values) + (config.ffn if axis == "up" else 0)
    elif axis is not None:
        shape[axis] *= tp
        start[axis] = tp_rank * values.shape[axis]
    if per_layer:
        return Shard(f"decoder.layers.{layer}.{key}", tuple(shape), tuple(start), values)
    stacked = (config.num_layers, *shape)
    return Shard(f"decoder.layers.{key}", stacked, (layer, *start), values[None])


def _extra_keys(layers: range, config: ModelConfig, per_layer: bool, tp_rank: int) -> list[str]:
    if tp_rank:
        return []
    if per_layer:
        return [f"decoder.layers.{n}.{name}._extra_state/shard_0_1" for n in layers for name in EXTRA_STATES]
    count = config.num_layers
    return [f"decoder.layers.{name}._extra_state/shard_{n}_{count}" for n in layers for name in EXTRA_STATES]


def _part(tensor: Tensor, axis: int, parts: int, index: int) -> Tensor:
    return tensor.chunk(parts, dim=axis)[index]


class _Writer:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.described: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
        self.places: dict[MetadataIndex, _StorageInfo] = {}

    def rank(self, rank: int, shards: Sequence[Shard], objects: Sequence[str]) -> None:
        files = [f"__{rank}_{n}.distcp" for n in range(2)]
        streams = [open(self.folder / file, "wb") for file in files]  # noqa: SIM115
        for number, key in enumerate(objects):
            self.described[key] = BytesStorageMetadata()
            self._record(MetadataIndex(key), [None], streams[number % 2], files[number % 2])
        for number, shard in enumerate(shards):
            item = self.described.setdefault(
                shard.key,
                TensorStorageMetadata(
                    TensorProperties.create_from_tensor(shard.values), torch.Size(shard.shape), []
                ),
            )
            assert isinstance(item, TensorStorageMetadata)
            item.chunks.append(ChunkStorageMetadata(torch.Size(shard.start), shard.values.shape))
            index = MetadataIndex(shard.key, torch.Size(shard.start))
            self._record(index, shard.values.clone(), streams[number % 2], files[number % 2])
        for stream in streams:
            stream.close()

    def _record(self, index: MetadataIndex, value: object, stream: io.BufferedWriter, file: str) -> None:
        buffer = io.BytesIO()
        torch.save(value, buffer)
        self.places[index] = _StorageInfo(file, stream.tell(), buffer.tell())
        stream.write(buffer.getvalue())

    def finish(self) -> None:
        metadata = Metadata(self.described, planner_data=None, storage_data=self.places)
        (self.folder / ".metadata").write_bytes(pickle.dumps(metadata))
        torch.save({"iteration": 2, "checkpoint_version": 3.0}, self.folder / "common.pt")
        config = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
        config |= {"common_backend": "torch", "common_backend_version": 1}
        (self.folder / "metadata.json").write_text(json.dumps(config))
