"""Shapes of small models of each architecture, for tests."""

from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.weight_map import ARCHITECTURES


def small_config(architecture, *, vocab_size=300, tied=False, dtype="float32", head_dim=8):
    """Two layers, four heads in two groups: enough for TP 2 and PP 2."""
    description = ARCHITECTURES[architecture]
    return ModelConfig(
        architecture=architecture,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=head_dim,
        ffn=48,
        vocab_size=vocab_size,
        tied=tied,
        rope_theta=1e4,
        rope_scaling=None,
        rms_norm_eps=1e-6,
        qkv_bias=description.qkv_bias,
        qk_norm=description.qk_norm,
        max_position_embeddings=128,
        initializer_range=0.1,
        dtype=dtype,
    )


MODELS = {
    "qwen2": small_config("Qwen2ForCausalLM", dtype="bfloat16"),
    "qwen3": small_config("Qwen3ForCausalLM", head_dim=16),
    "llama": small_config("LlamaForCausalLM", vocab_size=70, tied=True),
}
