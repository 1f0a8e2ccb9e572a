"""Llama 2, 3 and 3.1 (DeepSeek-R1-Distill-Llama): no biases, no query and key norms."""

from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.weight_map.pieces import (
    Architecture,
    Piece,
    attention_output,
    layer_norms,
    qkv,
    swiglu,
)


def _layer(config: ModelConfig) -> tuple[Piece, ...]:
    before_attention, before_mlp = layer_norms(config)
    return (
        before_attention,
        qkv(config, "weight"),
        attention_output(config),
        before_mlp,
        *swiglu(config),
    )


_FUSIONS = ("apply_rope_fusion", "bias_activation_fusion", "bias_dropout_fusion", "persist_layer_norm")

LLAMA = Architecture(
    name="LlamaForCausalLM",
    model_type="llama",
    qkv_bias=False,
    qk_norm=False,
    layer=_layer,
    bridge=dict.fromkeys(_FUSIONS, True),
)
