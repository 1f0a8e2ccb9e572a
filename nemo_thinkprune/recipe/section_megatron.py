"""Section `policy.megatron_cfg`: parallelism, recomputation, optimizer, scheduler."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nemo_thinkprune.recipe.base import (
    FiniteFloat,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    Share,
    absent,
)

Precision = Literal["bfloat16", "float16", "float32"]


class MegatronPeft(Section):
    """Low-rank adapters, which ThinkPrune does not train; known so that stock recipes load."""

    enabled: bool = False
    """Switch."""
    target_modules: list[str] = Field(default_factory=list)
    """Modules that get an adapter."""
    exclude_modules: list[str] = Field(default_factory=list)
    """Modules that get none."""
    dim: PositiveInt = 8
    """Rank."""
    alpha: PositiveInt = 32
    """Scale."""
    dropout: Share = 0.0
    """Dropout on the adapter."""
    dropout_position: Literal["pre", "post"] = "post"
    """Where the dropout stands."""
    lora_A_init_method: str = "xavier"
    """Initialisation of A."""
    lora_B_init_method: str = "zero"
    """Initialisation of B."""
    a2a_experimental: bool = False
    """All-to-all instead of gather."""
    lora_dtype: str | None = None
    """Type of the adapter; null: the model's."""


class MegatronOptimizer(Section):
    """Megatron's optimizer.  AdamW at 1e-6, as ThinkPrune."""

    optimizer: Literal["adam", "sgd"] = "adam"
    """adam is AdamW (decoupled weight decay)."""
    lr: NonNegativeFloat = 1e-6
    """Peak learning rate."""
    min_lr: NonNegativeFloat = 0.0
    """Learning rate after the decay; without effect at lr_decay_style constant."""
    weight_decay: NonNegativeFloat = 0.01
    """Weight decay."""
    bf16: bool
    """Whether weights are bfloat16.  Follows policy.precision."""
    fp16: bool
    """Whether weights are float16.  Follows policy.precision."""
    params_dtype: Precision = "float32"
    """Type of the optimizer's own copy of the weights."""
    adam_beta1: Share = 0.9
    """Decay of the first moment."""
    adam_beta2: Share = 0.999
    """Decay of the second moment."""
    adam_eps: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    sgd_momentum: Share = 0.9
    """Momentum of sgd."""
    use_distributed_optimizer: bool = True
    """Shard the optimizer state over the data-parallel ranks."""
    use_precision_aware_optimizer: bool = True
    """TransformerEngine's fused optimizer, where present."""
    clip_grad: NonNegativeFloat
    """Largest global gradient norm; 0: no clipping.  Follows policy.max_grad_norm."""
    optimizer_cpu_offload: bool = False
    """Keep the optimizer state in host memory."""
    optimizer_offload_fraction: Share = 0.0
    """How much of it."""


class MegatronScheduler(Section):
    """Learning rate and weight decay over the steps."""

    start_weight_decay: NonNegativeFloat
    """Weight decay at the start.  Follows optimizer.weight_decay."""
    end_weight_decay: NonNegativeFloat
    """Weight decay at the end.  Follows optimizer.weight_decay."""
    weight_decay_incr_style: Literal["constant", "linear", "cosine"] = "constant"
    """How the weight decay goes from start to end."""
    lr_decay_style: Literal["constant", "linear", "cosine", "inverse-square-root", "WSD"] = "constant"
    """How the learning rate falls after the warm-up."""
    lr_decay_iters: PositiveInt | None = None
    """Updates until min_lr; null: the updates of the run."""
    lr_warmup_iters: NonNegativeInt = 0
    """Updates in which the learning rate rises; ThinkPrune has none (NeMo-RL's own example has 13)."""
    lr_warmup_init: NonNegativeFloat = 0.0
    """Learning rate at the first update of a warm-up."""


class MegatronDdp(Section):
    """How gradients are reduced over the data-parallel ranks."""

    grad_reduce_in_fp32: bool = False
    """Reduce in float32 even if the weights are bfloat16."""
    overlap_grad_reduce: bool = True
    """Reduce while the backward pass still runs."""
    overlap_param_gather: bool = True
    """Gather weights while the forward pass already runs."""
    use_custom_fsdp: bool = False
    """Megatron's FSDP; NeMo-RL only."""
    data_parallel_sharding_strategy: str = "optim_grads_params"
    """What FSDP shards."""


class Fp8(Section):
    """Training in 8-bit floating point; NeMo-RL only."""

    enabled: bool = False
    """Switch."""
    fp8: Literal["e4m3", "hybrid"] = "e4m3"
    """Format, as in Megatron-Core's TransformerConfig."""
    fp8_recipe: Literal["tensorwise", "delayed", "mxfp8", "blockwise"] = "blockwise"
    """Scaling, likewise; its custom one needs code that no key names."""
    fp8_param: bool = False
    """Keep the weights in 8 bits too."""
    force_clear_fp8_caches: bool | None = absent()
    """Free scratch memory before generation."""


class MegatronMoe(Section):
    """Keys for mixtures of experts; the dense models that ThinkPrune trains ignore them."""

    expert_tensor_parallel_size: PositiveInt = 1
    """Tensor parallel size of the experts."""
    expert_model_parallel_size: PositiveInt = 1
    """Expert parallel size."""
    freeze_moe_router: bool = True
    """Do not train the router."""
    moe_router_dtype: str | None = "fp64"
    """Type of the router."""
    moe_router_load_balancing_type: str = "none"
    """Load balancing loss."""
    moe_router_bias_update_rate: NonNegativeFloat = 0.0
    """Speed of the router's bias."""
    moe_router_num_groups: PositiveInt | None = absent()
    """Groups of experts."""
    moe_router_group_topk: PositiveInt | None = absent()
    """Groups chosen for a token."""
    moe_permute_fusion: bool = True
    """Fused permutation."""
    moe_per_layer_logging: bool = False
    """Log each layer."""
    moe_enable_deepep: bool = False
    """DeepEP."""
    moe_token_dispatcher_type: str = "alltoall"
    """Dispatcher."""
    moe_shared_expert_overlap: bool = False
    """Overlap shared experts."""
    moe_grouped_gemm: bool | None = absent()
    """Grouped matrix products."""
    moe_flex_dispatcher_backend: str | None = absent()
    """Backend of the flex dispatcher."""
    moe_hybridep_num_sms: PositiveInt | None = absent()
    """Multiprocessors for HybridEP."""
    moe_pad_experts_for_cuda_graph_inference: bool | None = absent()
    """Pad experts for CUDA graphs."""
    hybridep_num_ranks_per_nvlink_domain: PositiveInt | None = absent()
    """Ranks in an NVLink domain."""
    hybridep_use_mnnvl: bool | None = absent()
    """Multi-node NVLink."""
    inference_moe_token_dispatcher_type: str | None = absent()
    """Dispatcher of inference."""
    inference_grouped_gemm_backend: str | None = absent()
    """Grouped matrix products of inference."""


class MegatronCfg(MegatronMoe):
    """Section `policy.megatron_cfg`."""

    enabled: bool = True
    """Megatron-Core is the only training backend of ThinkPrune recipes."""
    env_vars: dict[str, str] | None = None
    """Environment variables of NeMo-RL's workers."""
    force_reconvert_from_hf: bool = False
    """NeMo-RL: convert the Hugging Face weights again."""
    empty_unused_memory_level: NonNegativeInt = 1
    """NeMo-RL: how eagerly unused GPU memory is freed."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time, same result."""
    recompute_granularity: Literal["full", "selective"] = "full"
    """What is recomputed."""
    recompute_modules: list[Literal["core_attn", "layernorm", "mlp"]] | None = None
    """Modules of selective recomputation; null: core attention.

    Those that a dense model has, of Megatron-Core's TransformerConfig.
    """
    tensor_model_parallel_size: PositiveInt = 1
    """Ranks that share each layer (TP)."""
    pipeline_model_parallel_size: PositiveInt = 1
    """Stages that share the layers (PP)."""
    num_layers_in_first_pipeline_stage: PositiveInt | None = None
    """Layers of the first stage; null: equal shares."""
    num_layers_in_last_pipeline_stage: PositiveInt | None = None
    """Layers of the last stage; null: equal shares."""
    context_parallel_size: PositiveInt = 1
    """Ranks that share each sequence (CP)."""
    pipeline_dtype: Precision
    """Type of the activations sent between stages.  Follows policy.precision."""
    sequence_parallel: bool = False
    """Shard activations between tensor-parallel regions along the sequence."""
    defer_fp32_logits: bool
    """Cast logits to float32 chunk by chunk.  Default: true when policy.logprob_chunk_size is set."""
    apply_rope_fusion: bool = True
    """Fused rotary embedding, where present."""
    bias_activation_fusion: bool = True
    """Fused bias and activation, where present."""
    gradient_accumulation_fusion: bool = False
    """Fused gradient accumulation, where present."""
    use_fused_weighted_squared_relu: bool = False
    """Fused squared ReLU, where present."""
    use_linear_ce_fusion_loss: bool | None = absent()
    """Only for supervised training in NeMo-RL."""
    linear_ce_fusion_chunk_size: PositiveInt | None = absent()
    """Only for supervised training in NeMo-RL."""
    attention_backend: Literal["flash", "fused", "unfused", "local", "auto"] | None = absent()
    """Attention, as in Megatron-Core's AttnBackend."""
    transformer_impl: Literal["transformer_engine", "inference_optimized"] | None = absent()
    """Implementation on generation workers."""
    cuda_graph_impl: Literal["none", "local", "transformer_engine", "full_iteration"] | None = absent()
    """CUDA graphs, as in NeMo-RL v0.7.0's models/policy/__init__.py."""
    clear_memory_caches_before_refit: bool | None = absent()
    """Free caches before weights are handed to the rollout engine."""
    mtp_num_layers: NonNegativeInt = 0
    """Multi-token prediction layers; 0: none."""
    mtp_loss_scaling_factor: FiniteFloat = 0.0
    """Weight of their loss."""
    mtp_use_repeated_layer: bool = False
    """One layer used repeatedly."""
    mtp_detach_heads: bool = False
    """Keep their gradients from the model."""
    peft: MegatronPeft = Field(default_factory=MegatronPeft)
    """Adapters."""
    optimizer: MegatronOptimizer
    """Optimizer."""
    scheduler: MegatronScheduler
    """Scheduler."""
    distributed_data_parallel_config: MegatronDdp = Field(default_factory=MegatronDdp)
    """Gradient reduction."""
    fp8_cfg: Fp8 = Field(default_factory=Fp8)
    """8-bit training."""
