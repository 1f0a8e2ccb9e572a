"""Qwen2 (Qwen2.5, QwQ-32B, DeepSeek-R1-Distill-Qwen): biases on q, k and v."""

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
        qkv(config, "bias"),
        attention_output(config),
        before_mlp,
        *swiglu(config),
    )


QWEN2 = Architecture(
    name="Qwen2ForCausalLM",
    model_type="qwen2",
    qkv_bias=True,
    qk_norm=False,
    layer=_layer,
    bridge={"autocast_dtype": "torch.bfloat16"},
)
