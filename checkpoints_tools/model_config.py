"""The shape of a model: what the weight map and the model builder need to know, nothing else."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Llama 3's rotary frequency scaling (`rope_type: llama3` in a Hugging Face config)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A dense decoder-only transformer with grouped-query attention, RMS norms and a SwiGLU MLP.

    `architecture` is the Hugging Face class name. `head_dim` is explicit (Qwen3 does not derive it from
    `hidden_size`). `vocab_size` counts the rows of the Hugging Face embedding, without Megatron's padding.
    `dtype` is config.json's, for example "bfloat16"; the stored tensors may differ.
    """

    architecture: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn: int
    vocab_size: int
    tied: bool
    rope_theta: float
    rope_scaling: RopeScaling | None
    rms_norm_eps: float
    qkv_bias: bool
    qk_norm: bool
    max_position_embeddings: int
    initializer_range: float
    dtype: str
