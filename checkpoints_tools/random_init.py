"""Write a randomly initialised Hugging Face model folder without building the model."""

import json
import os
import zlib
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np

from checkpoints_tools.copying.convert import converter
from checkpoints_tools.copying.files import sync_file
from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.hf_config import config_to_dict
from checkpoints_tools.hf_folder import DEFAULT_SHARD_BYTES, INDEX_FILE, SINGLE_FILE, TensorWriter
from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.safetensors_file import ITEM_BYTES, TensorSpec
from checkpoints_tools.weight_map import weight_map

_SAFETENSORS_DTYPE = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_CHUNK = 1 << 22


def random_hf_init(
    config: ModelConfig,
    folder: Path,
    seed: int,
    *,
    token_ids: dict[str, int | list[int] | None] | None = None,
    randomize_all: bool = False,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Write safetensors and config.json as transformers initialises the architecture.

    Weights are normal with standard deviation `config.initializer_range`, norms 1 and biases 0, in
    `config.dtype`. `randomize_all` draws norms and biases too, so that a test sees one that is misplaced.
    Each tensor depends on `seed` and its own name only. `token_ids`: bos_token_id, eos_token_id,
    pad_token_id for config.json. Raises CheckpointError when the folder already holds weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    present = next((name for name in (SINGLE_FILE, INDEX_FILE) if (folder / name).exists()), None)
    if present:
        raise CheckpointError(f"{folder} already holds {present}; choose a new folder")
    dtype = _SAFETENSORS_DTYPE[config.dtype]
    specs = [TensorSpec(name, dtype, shape) for name, shape in weight_map(config).hf.items()]
    with TensorWriter(folder, specs, max_shard_bytes=max_shard_bytes) as writer:
        for spec in specs:
            writer.write(spec.name, _values(spec, config.initializer_range, seed, randomize_all))
    text = json.dumps(config_to_dict(config, **(token_ids or {})), indent=2) + "\n"
    partial = folder / ".config.json.partial"
    partial.write_text(text, encoding="utf-8")
    sync_file(partial)
    os.replace(partial, folder / "config.json")
    sync_file(folder)


def _values(spec: TensorSpec, scale: float, seed: int, randomize_all: bool) -> Iterator[bytes]:
    generator = np.random.default_rng([seed, zlib.crc32(spec.name.encode())])
    is_norm, is_bias = spec.name.endswith("norm.weight"), spec.name.endswith(".bias")
    base = np.float32(1.0 if is_norm else 0.0)
    fixed = (is_norm or is_bias) and not randomize_all
    left = prod(spec.shape)
    while left > 0:
        count = min(left, _CHUNK)
        noise = np.zeros(count, np.float32) if fixed else generator.standard_normal(count, dtype=np.float32)
        yield _encode(base + np.float32(scale) * noise, spec.dtype)
        left -= count


def _encode(values: np.ndarray, dtype: str) -> bytes:
    data = values.astype("<f4", copy=False).view(np.uint8)
    convert = converter("F32", dtype)
    if convert is None:
        return data.tobytes()
    out = np.empty(len(values) * ITEM_BYTES[dtype], np.uint8)
    convert(data, out)
    return out.tobytes()
