"""Section `policy.generation`: how responses are sampled, and the engine that samples them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from nemo_thinkprune.recipe.base import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    Section,
    Share,
    absent,
)


class VllmCfg(Section):
    """Settings of the vLLM engine."""

    async_engine: bool = False
    """Use the asynchronous engine."""
    precision: Literal["bfloat16", "float16", "float32", "half", "float", "auto", "fp8"]
    """Type of the weights: vLLM's names, or NeMo-RL's fp8.  Follows policy.precision."""
    kv_cache_dtype: Literal["auto", "fp8", "fp8_e4m3"] = "auto"
    """Type of the KV cache."""
    tensor_parallel_size: PositiveInt = 1
    """GPUs of one engine."""
    pipeline_parallel_size: PositiveInt = 1
    """Stages of one engine."""
    expert_parallel_size: PositiveInt = 1
    """Expert parallel size."""
    gpu_memory_utilization: PositiveShare = 0.6
    """Share of GPU memory."""
    max_model_len: PositiveInt
    """Prompt and response tokens.  Follows policy.max_total_sequence_length."""
    enforce_eager: bool = False
    """No CUDA graphs."""
    use_tqdm: bool | None = absent()
    """Progress bars."""
    use_deep_gemm: bool = False
    """DeepGEMM kernels."""
    num_last_layers_in_bf16: NonNegativeInt = 0
    """With 8-bit weights: layers kept in bfloat16 at the end."""
    num_first_layers_in_bf16: NonNegativeInt = 0
    """With 8-bit weights: layers kept in bfloat16 at the start."""
    enable_vllm_metrics_logger: bool = False
    """Log the engine's metrics."""
    vllm_metrics_logger_interval: PositiveFloat = 0.5
    """Seconds between them."""
    load_format: str | None = absent()
    """Set by NeMo-RL."""
    skip_tokenizer_init: bool | None = absent()
    """Set by NeMo-RL."""
    enable_return_routed_experts: bool | None = absent()
    """For mixtures of experts."""
    expose_http_server: bool | None = absent()
    """Serve the engine over HTTP."""
    http_server_serving_chat_kwargs: dict[str, Any] | None = absent()
    """Settings of that server."""
    tool_parser_plugin: str | None = absent()
    """Tool parser."""
    reasoning_parser_plugin: str | None = absent()
    """Reasoning parser."""
    env_vars: dict[str, str] | None = absent()
    """Environment variables of the engine."""


class McoreGeneration(Section):
    """Settings of Megatron's own inference engine, used with backend: megatron."""

    async_engine: bool = False
    """Use the asynchronous engine."""
    max_model_len: PositiveInt
    """Prompt and response tokens.  Follows policy.max_total_sequence_length."""
    cuda_graph_impl: str = "local"
    """CUDA graphs."""
    inference_cuda_graph_scope: str = "block"
    """What a graph covers."""
    buffer_size_gb: PositiveFloat = 10.0
    """Size of the KV cache."""
    num_cuda_graphs: int = 4
    """Graphs captured."""
    block_size_tokens: PositiveInt = 256
    """Size of a block of the KV cache."""
    use_cuda_graphs_for_non_decode_steps: bool = True
    """Graphs for prompts too."""
    enable_chunked_prefill: bool = True
    """Split long prompts."""
    enable_prefix_caching: bool = False
    """Reuse blocks of equal prompts."""
    max_tokens: PositiveInt = 16384
    """Tokens in one forward pass."""
    kv_cache_management_mode: str = "persist"
    """What happens to the cache while training."""
    materialize_only_last_token_logits: bool = True
    """Logits of the last token only."""
    num_speculative_tokens: NonNegativeInt = 0
    """Tokens guessed ahead."""
    refit_backend: str = "nvshmem"
    """How weights arrive."""
    parsers: list[str] = Field(default_factory=list)
    """Parsers of the HTTP server."""
    expose_http_server: bool = False
    """Serve the engine over HTTP."""


class ColocatedResources(Section):
    """GPUs set aside for generation."""

    gpus_per_node: PositiveInt | None = None
    """GPUs on a single node."""
    num_nodes: PositiveInt | None = None
    """Nodes of a larger cluster."""


class Colocated(Section):
    """Whether generation shares the GPUs of training."""

    enabled: bool = True
    """True: the same GPUs."""
    resources: ColocatedResources = Field(default_factory=ColocatedResources)
    """Used when false."""


class Generation(Section):
    """Section `policy.generation`."""

    backend: Literal["vllm", "sglang", "megatron"] = "vllm"
    """Rollout engine on a cluster; the local engine generates in process."""
    max_new_tokens: PositiveInt
    """Limit on response tokens in training: ThinkPrune's L.  Default: the first of thinkprune.limits."""
    temperature: NonNegativeFloat = 1.0
    """Sampling temperature in training."""
    top_p: Share = 1.0
    """Nucleus; must stay 1 in training, since log-probabilities of the whole distribution are trained on."""
    top_k: int | None = None
    """Must stay null in training, for the same reason."""
    model_name: str | None = absent()
    """Set by NeMo-RL."""
    stop_token_ids: list[int] | None = None
    """Tokens that end a response; null: the model's end-of-sequence token."""
    stop_strings: list[str] | None = None
    """Strings that end a response."""
    port_range_low: PositiveInt = 11001
    """Ports of the engines, from."""
    port_range_high: PositiveInt = 15000
    """Ports of the engines, to."""
    use_async_rollouts: bool | None = absent()
    """NeMo-RL's asynchronous rollouts."""
    colocated: Colocated = Field(default_factory=Colocated)
    """Sharing of GPUs."""
    vllm_cfg: VllmCfg
    """Settings of vLLM."""
    vllm_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Passed to vLLM as they are."""
    mcore_generation_config: McoreGeneration
    """Settings of Megatron's engine."""
    quant_cfg: str | None = absent()
    """Quantised rollouts."""
    real_quant: bool | None = absent()
    """Quantised kernels."""
    real_quant_ignore: list[str] | None = absent()
    """Modules left as they are."""
