"""Qwen3, dense: a norm on each query and key head, head_dim stated apart from the hidden size, no biases."""

from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.weight_map.pieces import (
    Architecture,
    Piece,
    attention_output,
    layer_norms,
    qk_norms,
    qkv,
    swiglu,
)


def _layer(config: ModelConfig) -> tuple[Piece, ...]:
    before_attention, before_mlp = layer_norms(config)
    return (
        before_attention,
        qkv(config, "weight"),
        *qk_norms(config),
        attention_output(config),
        before_mlp,
        *swiglu(config),
    )


QWEN3 = Architecture(
    name="Qwen3ForCausalLM",
    model_type="qwen3",
    qkv_bias=False,
    qk_norm=True,
    layer=_layer,
    default_head_dim=128,
    bridge={"autocast_dtype": "torch.bfloat16"},
)
