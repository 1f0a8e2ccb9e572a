"""Which Hugging Face tensor is made of which slices of which Megatron tensor: the one table.

table = weight_map(config)
table.hf_reads("decoder.layers.0.mlp.linear_fc1.weight", tp_rank=1, tp_size=4)
"""

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.weight_map.geometry import (
    Copy,
    LocalBox,
    MegatronTensor,
    Read,
    box_slice,
    intersect,
    local_boxes,
    local_shape,
    padded_vocab_size,
    stored_shape,
)
from checkpoints_tools.weight_map.llama import LLAMA
from checkpoints_tools.weight_map.names import (
    StoredKey,
    canonical_name,
    extra_state_key,
    parse_key,
    stored_key,
)
from checkpoints_tools.weight_map.pieces import Architecture, decoder_only
from checkpoints_tools.weight_map.qwen2 import QWEN2
from checkpoints_tools.weight_map.qwen3 import QWEN3
from checkpoints_tools.weight_map.table import WeightMap

ARCHITECTURES: dict[str, Architecture] = {a.name: a for a in (QWEN2, QWEN3, LLAMA)}


def supported() -> str:
    """The supported architectures, for messages."""
    return ", ".join(sorted(ARCHITECTURES))


def weight_map(config: ModelConfig) -> WeightMap:
    """The table of a model, checked: its boxes cover every tensor of both sides exactly once.

    Raises CheckpointError for an architecture that has no description.
    """
    architecture = ARCHITECTURES.get(config.architecture)
    if architecture is None:
        raise CheckpointError(f"architecture {config.architecture} is not supported; there is {supported()}")
    return WeightMap.of(decoder_only(config, architecture.layer(config)))


__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Copy",
    "LocalBox",
    "MegatronTensor",
    "Read",
    "StoredKey",
    "WeightMap",
    "box_slice",
    "canonical_name",
    "extra_state_key",
    "intersect",
    "local_boxes",
    "local_shape",
    "padded_vocab_size",
    "parse_key",
    "stored_key",
    "stored_shape",
    "supported",
    "weight_map",
]
