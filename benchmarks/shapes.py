"""The models of the conversion benchmark, made where they are not there yet."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from math import prod
from pathlib import Path

from checkpoints_tools.hf_config import config_to_dict
from checkpoints_tools.hf_folder import DEFAULT_SHARD_BYTES, INDEX_FILE, index_json
from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.safetensors_file import TensorSpec, plan_shards
from checkpoints_tools.weight_map import weight_map

_QWEN2 = {
    "architecture": "Qwen2ForCausalLM",
    "head_dim": 128,
    "rope_theta": 1e6,
    "rope_scaling": None,
    "qkv_bias": True,
    "qk_norm": False,
    "initializer_range": 0.02,
    "dtype": "bfloat16",
}


def _qwen2(**values: object) -> ModelConfig:
    return ModelConfig(**{**_QWEN2, **values})  # type: ignore[arg-type]


QWQ = {
    "hidden_size": 5120,
    "num_heads": 40,
    "num_kv_heads": 8,
    "ffn": 27648,
    "vocab_size": 152064,
    "tied": False,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 40960,
}

SHAPES = {
    "1.5b": _qwen2(
        hidden_size=1536,
        num_layers=28,
        num_heads=12,
        num_kv_heads=2,
        ffn=8960,
        vocab_size=151936,
        tied=True,
        rms_norm_eps=1e-6,
        max_position_embeddings=131072,
    ),
    "qwq16": _qwen2(num_layers=16, **QWQ),
    "qwq": _qwen2(num_layers=64, **QWQ),
    "tiny": _qwen2(
        hidden_size=64,
        num_layers=4,
        num_heads=8,
        num_kv_heads=4,
        head_dim=8,
        ffn=96,
        vocab_size=1000,
        tied=True,
        rms_norm_eps=1e-6,
        max_position_embeddings=512,
        initializer_range=0.2,
    ),
}
SPARSE = ("qwq16", "qwq")


def model_bytes(config: ModelConfig) -> int:
    """Bytes of the tensors in config's two-byte dtype."""
    return 2 * sum(prod(shape) for shape in weight_map(config).hf.values())


def make_model(name: str, folder: Path) -> None:
    """Write the model as a Hugging Face folder; the large ones as sparse files, all zeros, without disk blocks."""
    config = SHAPES[name]
    if name in SPARSE:
        write_sparse(config, folder)
        return
    # In a process of its own: the benchmark stays small, so that a child's ru_maxrss is the child's.
    code = (
        "import json, sys; from pathlib import Path; from checkpoints_tools.model_config import ModelConfig;"
        "from checkpoints_tools.random_init import random_hf_init;"
        "random_hf_init(ModelConfig(**json.loads(sys.argv[1])), Path(sys.argv[2]), 0, randomize_all=True)"
    )
    subprocess.run([sys.executable, "-c", code, json.dumps(asdict(config)), str(folder)], check=True)


def write_sparse(config: ModelConfig, folder: Path) -> None:
    """Write a Hugging Face folder of bfloat16 zeros as files with a valid header and a hole for the data."""
    folder.mkdir(parents=True)
    specs = [TensorSpec(name, "BF16", shape) for name, shape in weight_map(config).hf.items()]
    shards = plan_shards(specs, DEFAULT_SHARD_BYTES)
    for shard in shards:
        with open(folder / shard.file_name, "wb") as stream:
            stream.write(shard.header)
            stream.truncate(shard.nbytes)
    places = {name: shard.file_name for shard in shards for name in shard.starts}
    if len(shards) > 1:
        (folder / INDEX_FILE).write_bytes(index_json(places, sum(spec.nbytes for spec in specs)))
    (folder / "config.json").write_text(json.dumps(config_to_dict(config), indent=2))
