"""Architectures of well-known hub models, for a plan on a machine that has neither their files nor a network.

Sources: the config.json of each model's repository on the hub. The numbers of parameters in the tests are those
that the hub shows for their safetensors. A config.json that is at hand is always preferred.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.hf_config import read_hf_config
from checkpoints_tools.model_config import ModelConfig
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.model_source import locate

BUILT_IN = "built in; pass --model FOLDER to read config.json"


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model's architecture and where it is from."""

    config: ModelConfig
    source: str


def architecture_of(
    model: str, *, folder: Path | None = None, environment: Mapping[str, str]
) -> Architecture | None:
    """The architecture of a model named in a recipe; None where nothing at hand tells.

    Args:
        model: A folder, a checkpoint of a run or a hub id.
        folder: Where to read config.json instead.
        environment: HF_HOME and HF_HUB_CACHE tell where the hub's cache is.

    Raises:
        UserError: `folder` or the model's folder has a config.json that is damaged or not supported, or `folder`
            has none.
    """
    if folder is not None:
        return _read(folder)
    for candidate in config_folders(model, environment):
        if (candidate / "config.json").is_file():
            return _read(candidate)
    config = known_models().get(model)
    return None if config is None else Architecture(config, BUILT_IN)


def config_folders(model: str, environment: Mapping[str, str]) -> Iterator[Path]:
    """Where a model's config.json may lie: its own folder, then each snapshot in the hub's cache."""
    try:
        source = locate(model)
    except UserError:
        return
    yield Path(source.folder)
    home = environment.get("HF_HOME") or os.path.join(os.path.expanduser("~"), ".cache", "huggingface")
    cache = Path(environment.get("HF_HUB_CACHE") or os.path.join(home, "hub"))
    yield from sorted((cache / f"models--{source.folder.replace('/', '--')}" / "snapshots").glob("*"))


def known_models() -> dict[str, ModelConfig]:
    """The built-in architectures by hub id."""
    small, seven, fourteen = _qwen2_1_5b(), _qwen2_7b(), _qwen2_14b()
    large = replace(fourteen, num_layers=64, ffn=27648)
    distilled = replace(small, rope_theta=10000.0, tied=False)
    return {
        "Qwen/QwQ-32B": replace(large, max_position_embeddings=40960),
        "Qwen/Qwen3-32B": _qwen3_32b(),
        "Qwen/Qwen2.5-1.5B": small,
        "Qwen/Qwen2.5-7B": seven,
        "Qwen/Qwen2.5-14B": fourteen,
        "Qwen/Qwen2.5-32B": large,
        "Qwen/Qwen2.5-1.5B-Instruct": replace(small, max_position_embeddings=32768),
        "Qwen/Qwen2.5-7B-Instruct": replace(seven, max_position_embeddings=32768),
        "Qwen/Qwen2.5-14B-Instruct": replace(fourteen, max_position_embeddings=32768, rms_norm_eps=1e-6),
        "Qwen/Qwen2.5-32B-Instruct": replace(large, max_position_embeddings=32768, rms_norm_eps=1e-6),
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": distilled,
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": replace(seven, rope_theta=10000.0),
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": fourteen,
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B": large,
        "agentica-org/DeepScaleR-1.5B-Preview": replace(distilled, dtype="float32"),
    }


def _read(folder: Path) -> Architecture:
    try:
        return Architecture(read_hf_config(folder), f"{folder}/config.json")
    except CheckpointError as error:
        raise UserError(str(error)) from None


def _qwen2_7b() -> ModelConfig:
    return ModelConfig(
        architecture="Qwen2ForCausalLM",
        hidden_size=3584,
        num_layers=28,
        num_heads=28,
        num_kv_heads=4,
        head_dim=128,
        ffn=18944,
        vocab_size=152064,
        tied=False,
        rope_theta=1000000.0,
        rope_scaling=None,
        rms_norm_eps=1e-6,
        qkv_bias=True,
        qk_norm=False,
        max_position_embeddings=131072,
        initializer_range=0.02,
        dtype="bfloat16",
    )


def _qwen2_1_5b() -> ModelConfig:
    return replace(
        _qwen2_7b(), hidden_size=1536, num_heads=12, num_kv_heads=2, ffn=8960, vocab_size=151936, tied=True
    )


def _qwen2_14b() -> ModelConfig:
    return replace(
        _qwen2_7b(),
        hidden_size=5120,
        num_layers=48,
        num_heads=40,
        num_kv_heads=8,
        ffn=13824,
        rms_norm_eps=1e-5,
    )


def _qwen3_32b() -> ModelConfig:
    return replace(
        _qwen2_14b(),
        architecture="Qwen3ForCausalLM",
        num_layers=64,
        num_heads=64,
        ffn=25600,
        vocab_size=151936,
        rms_norm_eps=1e-6,
        qkv_bias=False,
        qk_norm=True,
        max_position_embeddings=40960,
    )
