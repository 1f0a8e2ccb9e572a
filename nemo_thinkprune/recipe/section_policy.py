"""Section `policy`: the model, its batch sizes, its training and generation backends."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from nemo_thinkprune.recipe.base import (
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Section,
    Share,
    absent,
)
from nemo_thinkprune.recipe.section_generation import Generation
from nemo_thinkprune.recipe.section_megatron import MegatronCfg, Precision
from nemo_thinkprune.recipe.section_run import PretrainedCheckpoint

PackingAlgorithm = Literal[
    "concatenative", "first_fit_decreasing", "first_fit_shuffle", "modified_first_fit_decreasing"
]


class Tokenizer(Section):
    """Tokenizer and chat template."""

    name: str
    """Folder or hub id.  Follows policy.model_name."""
    chat_template: str | None = absent()
    """Template instead of the tokenizer's own."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Arguments of the template."""
    use_processor: bool | None = absent()
    """Multi-modal models only."""
    audio: dict[str, Any] | None = absent()
    """Multi-modal models only."""
    video: dict[str, Any] | None = absent()
    """Multi-modal models only."""


class DynamicBatching(Section):
    """Micro-batches of similar lengths; needs a single pipeline stage."""

    enabled: bool = False
    """Switch."""
    train_mb_tokens: PositiveInt
    """Tokens of a training micro-batch.  Default: max_total_sequence_length x train_micro_batch_size."""
    logprob_mb_tokens: PositiveInt
    """Tokens of a log-probability micro-batch.  Default: max_total_sequence_length x logprob_batch_size."""
    sequence_length_round: PositiveInt = 64
    """Lengths are rounded up to a multiple of this."""


class SequencePacking(Section):
    """Several sequences in one row without padding; changes speed and memory, not the result."""

    enabled: bool = True
    """Switch."""
    train_mb_tokens: PositiveInt
    """Tokens of a packed training row.  Default: max_total_sequence_length x train_micro_batch_size."""
    logprob_mb_tokens: PositiveInt
    """Tokens of a packed log-probability row.  Default: max_total_sequence_length x logprob_batch_size."""
    algorithm: PackingAlgorithm = "modified_first_fit_decreasing"
    """How sequences are put into rows (NeMo-RL v0.7.0, data/packing/algorithms.py)."""
    sequence_length_round: PositiveInt = 64
    """Lengths are rounded up to a multiple of this."""


class LoraCfg(Section):
    """Adapters of the DTensor backend, which ThinkPrune does not use."""

    enabled: bool = False
    """Switch."""
    target_modules: list[str] = Field(default_factory=list)
    """Modules that get an adapter."""
    exclude_modules: list[str] = Field(default_factory=list)
    """Modules that get none."""
    match_all_linear: bool = True
    """All linear layers."""
    dim: PositiveInt = 8
    """Rank."""
    alpha: PositiveInt = 32
    """Scale."""
    dropout: Share = 0.0
    """Dropout."""
    dropout_position: Literal["pre", "post"] = "post"
    """Where the dropout stands."""
    lora_A_init: str = "xavier"
    """Initialisation of A."""
    use_triton: bool = True
    """Triton kernels."""


class DtensorCfg(Section):
    """The DTensor backend, which ThinkPrune does not use; its keys are known so that stock recipes load."""

    v2: bool | None = Field(default=None, alias="_v2", json_schema_extra={"omit_none": True})
    """Second version of the worker."""
    enabled: bool = False
    """Must stay false: Megatron-Core trains."""
    env_vars: dict[str, str] | None = absent()
    """Environment variables of the workers."""
    tensor_parallel_size: PositiveInt = 1
    """Tensor parallel size."""
    context_parallel_size: PositiveInt = 1
    """Context parallel size."""
    expert_parallel_size: PositiveInt | None = absent()
    """Expert parallel size."""
    dp_replicate_size: PositiveInt | None = absent()
    """Replicas."""
    sequence_parallel: bool = False
    """Sequence parallel."""
    activation_checkpointing: bool = False
    """Recompute activations."""
    cpu_offload: bool = False
    """Keep weights in host memory."""
    custom_parallel_plan: str | None = None
    """Parallel plan."""
    defer_fsdp_grad_sync: bool | None = absent()
    """Reduce gradients late."""
    moe_parallelizer: dict[str, Any] | None = absent()
    """For mixtures of experts."""
    lora_cfg: LoraCfg = Field(default_factory=LoraCfg)
    """Adapters."""
    automodel_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Passed to the model class."""
    clear_cache_every_n_steps: PositiveInt | None = absent()
    """Empty the allocator."""


class Draft(Section):
    """A draft model trained beside the policy; NeMo-RL only."""

    enabled: bool = False
    """Switch."""
    model_name: str | None = None
    """The draft model."""
    loss_weight: NonNegativeFloat = 0.1
    """Weight of its loss."""
    num_layers: PositiveInt | None = None
    """Its layers."""
    aux_layer_indices: list[int] | None = None
    """Layers it reads."""


class Switch(Section):
    """A part with a switch and nothing else."""

    enabled: bool = False
    """Switch."""


class RewardModel(Switch):
    """Training of a reward model, which ThinkPrune does not do."""

    reward_model_type: str
    """Kind of reward model."""


class TorchOptimizer(Section):
    """Optimizer of the DTensor backend, which ThinkPrune does not use."""

    name: str
    """Class."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments."""


class Policy(Section):
    """Section `policy`."""

    model_name: str
    """Folder or hub id with config.json, tokenizer and safetensors.  Required."""
    tokenizer: Tokenizer
    """Tokenizer."""
    train_global_batch_size: PositiveInt
    """Responses in one optimizer update.  Default: prompts x generations, one update per rollout batch."""
    train_micro_batch_size: PositiveInt = 1
    """Responses in one forward and backward pass of a data-parallel rank."""
    logprob_batch_size: PositiveInt
    """Responses in one log-probability pass.  Follows train_micro_batch_size."""
    generation_batch_size: PositiveInt = 64
    """Responses generated together by an in-process engine."""
    max_total_sequence_length: PositiveInt
    """Prompt and response tokens in training.

    Default: the next multiple of 64, and of make_sequence_length_divisible_by, above data.max_input_seq_length
    + the largest limit.
    """
    precision: Precision = "bfloat16"
    """Type of weights and activations."""
    logprob_chunk_size: PositiveInt | None = None
    """Tokens whose logits exist in float32 at once; null: the engine chooses."""
    offload_optimizer_for_logprob: bool = False
    """Move the optimizer to host memory during log-probability passes."""
    hf_config_overrides: dict[str, Any] = Field(default_factory=dict)
    """Values that replace those in the model's config.json."""
    refit_buffer_size_gb: PositiveFloat | None = absent()
    """Buffer for handing weights to the rollout engine."""
    make_sequence_length_divisible_by: PositiveInt
    """Sequences are padded to a multiple of this.

    Default: the tensor parallel size, with context parallelism x 2 x its size.
    """
    max_grad_norm: NonNegativeFloat = 1.0
    """Largest gradient norm; megatron_cfg.optimizer.clip_grad follows."""
    dynamic_batching: DynamicBatching
    """Micro-batches of similar lengths."""
    sequence_packing: SequencePacking
    """Packed sequences."""
    megatron_cfg: MegatronCfg
    """Training backend."""
    dtensor_cfg: DtensorCfg = Field(default_factory=DtensorCfg)
    """The other training backend."""
    generation: Generation
    """Sampling."""
    draft: Draft = Field(default_factory=Draft)
    """Draft model."""
    optimizer: TorchOptimizer | None = None
    """Optimizer of the DTensor backend; Megatron's is megatron_cfg.optimizer."""
    scheduler: list[dict[str, Any]] | dict[str, Any] | None = None
    """Scheduler of the DTensor backend; Megatron's is megatron_cfg.scheduler."""
    pretrained_checkpoint: PretrainedCheckpoint | None = absent()
    """Weights to start from."""
    router_replay: Switch | None = absent()
    """For mixtures of experts."""
    reward_model_cfg: RewardModel | None = absent()
    """Reward models."""
    quant_cfg: str | None = absent()
    """Quantised training."""
    quant_calib_data: str | None = absent()
    """Calibration data of quantised training."""
    quant_calib_size: PositiveInt | None = absent()
    """Calibration samples of quantised training."""
    quant_batch_size: PositiveInt | None = absent()
    """Calibration batch of quantised training."""
    quant_sequence_length: PositiveInt | None = absent()
    """Calibration length of quantised training."""
    disable_modelopt_layer_spec: bool | None = absent()
    """Layer spec of quantised training."""
