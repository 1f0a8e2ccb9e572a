"""A whole torch_dist checkpoint of a small model with the converter's writer, payloads filled by torch."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.torch_dist.index import DistIndex
from checkpoints_tools.torch_dist.plan_chunks import file_sizes, plan_chunks
from checkpoints_tools.torch_dist.write import (
    COMMON_FILE,
    CONFIG_FILE,
    METADATA_FILE,
    common_pt,
    finish_records,
    metadata_json,
    write_metadata,
)
from checkpoints_tools.weight_map import box_slice, weight_map
from checkpoints_tools.weight_map.names import stored_key

SAFETENSORS_NAME = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def write_model(hf: Mapping[str, Tensor], config: ModelConfig, folder: Path, **options: Any) -> DistIndex:
    """Write the Hugging Face tensors as a checkpoint; `options` are `plan_chunks`'s."""
    folder.mkdir(parents=True, exist_ok=True)
    index = plan_chunks(config, {n: SAFETENSORS_NAME[t.dtype] for n, t in hf.items()}, folder, **options)
    write_files(index, megatron_tensors(hf, config))
    (folder / COMMON_FILE).write_bytes(common_pt(iteration=7))
    (folder / CONFIG_FILE).write_bytes(metadata_json())
    return index


def write_files(index: DistIndex, tensors: Mapping[str, Tensor]) -> None:
    """Write `.metadata` and every record of the index, with the elements of `tensors` (by key)."""
    checksums = {}
    for file, nbytes in file_sizes(index).items():
        with open(index.folder / file, "wb") as stream:
            stream.truncate(nbytes)
    for key, tensor in index.tensors.items():
        for chunk in tensor.chunks:
            content = raw_bytes(tensors[key][box_slice(chunk.start, chunk.shape)])
            with open(index.folder / chunk.file, "r+b") as stream:
                stream.seek(chunk.payload)
                stream.write(content)
            checksums[chunk.file, chunk.payload] = zlib.crc32(content)
    finish_records(index, checksums, index.folder)
    (index.folder / METADATA_FILE).write_bytes(write_metadata(index))


def raw_bytes(tensor: Tensor) -> bytes:
    """The elements in row-major order."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def megatron_tensors(hf: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Checkpoint key to tensor, layers stacked."""
    table, layers = weight_map(config), {}
    for name, tensor in table.megatron.items():
        full = torch.empty(tensor.shape, dtype=hf[table.hf_names(name)[0]].dtype)
        for copy in table.copies[name]:
            source = hf[copy.hf_name][box_slice(copy.hf_start, copy.shape)]
            full[box_slice(copy.megatron_start, copy.shape)] = source
        layers.setdefault(stored_key(name), full)
    keys = dict.fromkeys(key for key, _ in layers)
    return {
        key: layers[key, None]
        if (key, None) in layers
        else torch.stack([layers[key, layer] for layer in range(config.num_layers)])
        for key in keys
    }
