"""What the local engine cannot do: settings that would change the result if they were ignored, and why.

A setting missing here is either honoured or changes speed and memory only.
"""

from __future__ import annotations

from collections.abc import Iterator

from nemo_thinkprune.recipe.schema import Recipe
from nemo_thinkprune.recipe.support import RECORDED, Restriction, refused, refused_in_data, value_at

_WHO = "the local engine"
_OTHER_ENGINE = "only NeMo-RL on a cluster can do this; remove the key or train there"
_QUANTISED = "the local engine samples and trains in policy.precision; remove the key"
_SPARSE = "the local engine trains dense models; set 1"

RESTRICTIONS = (
    Restriction("grpo.max_rollout_turns", (1,), "a problem is answered in one turn; set 1"),
    Restriction("grpo.async_grpo.enabled", (False,), _OTHER_ENGINE),
    Restriction("grpo.use_dynamic_sampling", (False,), f"{RECORDED}; set false"),
    Restriction(
        "grpo.reward_shaping.enabled", (False,), "use thinkprune.truncation and thinkprune.length_reward"
    ),
    Restriction("grpo.reward_scaling.enabled", (False,), "rewards are 0 and 1; set false"),
    Restriction(
        "grpo.seq_logprob_error_threshold", (None,), "sampler and trainer are the same model; set null"
    ),
    Restriction("grpo.invalid_tool_call_advantage", (None,), "there are no tools; set null"),
    Restriction("grpo.malformed_thinking_advantage", (None,), "rewards are by the answer; set null"),
    Restriction(
        "grpo.adv_estimator.name", ("grpo", "reinforce_plus_plus"), "gdpo needs several rewards; set grpo"
    ),
    Restriction("loss_fn.use_kl_in_reward", (False,), "the KL term stands in the loss; set false"),
    Restriction("policy.precision", ("bfloat16", "float32"), "use bfloat16 or float32"),
    Restriction(
        "policy.tokenizer.chat_template", (None,), "put the template into the model's tokenizer files"
    ),
    Restriction(
        "policy.tokenizer.chat_template_kwargs", (None, {}), "put the setting into the chat template"
    ),
    Restriction("policy.hf_config_overrides", ({},), "edit config.json in a copy of the model folder"),
    Restriction("policy.draft.enabled", (False,), _OTHER_ENGINE),
    Restriction("policy.quant_cfg", (None,), _QUANTISED),
    Restriction("policy.router_replay.enabled", (None, False), _SPARSE),
    Restriction(
        "policy.pretrained_checkpoint.format", (None, "megatron_bridge"), "convert the checkpoint first"
    ),
    Restriction(
        "policy.megatron_cfg.context_parallel_size", (1,), "use tensor and pipeline parallelism; set 1"
    ),
    Restriction("policy.megatron_cfg.expert_model_parallel_size", (1,), _SPARSE),
    Restriction("policy.megatron_cfg.expert_tensor_parallel_size", (1,), _SPARSE),
    Restriction("policy.megatron_cfg.mtp_num_layers", (0,), "models here have no such layers; set 0"),
    Restriction(
        "policy.megatron_cfg.peft.enabled", (False,), "the local engine trains all weights; set false"
    ),
    Restriction("policy.megatron_cfg.fp8_cfg.enabled", (False,), _QUANTISED),
    Restriction(
        "policy.megatron_cfg.env_vars", (None, {}), "set the variables in the shell that starts the run"
    ),
    Restriction("policy.megatron_cfg.optimizer.optimizer", ("adam",), "use adam, which is AdamW"),
    Restriction("policy.megatron_cfg.optimizer.params_dtype", ("float32",), "master weights are float32"),
    Restriction("policy.megatron_cfg.scheduler.weight_decay_incr_style", ("constant",), "use constant"),
    Restriction(
        "policy.megatron_cfg.scheduler.lr_decay_style", ("constant", "linear", "cosine"), "use one of these"
    ),
    Restriction(
        "policy.megatron_cfg.distributed_data_parallel_config.use_custom_fsdp",
        (False,),
        "gradients are reduced without it; set false",
    ),
    Restriction("policy.generation.stop_strings", (None, []), "use policy.generation.stop_token_ids"),
    Restriction(
        "policy.generation.colocated.enabled", (True,), "generation runs on the training ranks; set true"
    ),
    Restriction("policy.generation.vllm_cfg.kv_cache_dtype", ("auto",), _QUANTISED),
    Restriction("policy.generation.quant_cfg", (None,), _QUANTISED),
    Restriction("data.shuffle", (True,), "every epoch is a seeded permutation; set true"),
    Restriction("data.use_multiple_dataloader", (False,), "data sets are joined; set false"),
    Restriction("data.custom_dataloader", (None,), f"{RECORDED}; remove the key"),
    Restriction(
        "checkpointing.checkpoint_must_save_by", (None,), "send SIGTERM or SIGUSR1: the run saves and ends"
    ),
    Restriction("logger.log_dir", ("logs",), "logs are in the run folder; use --run-dir"),
    Restriction("logger.swanlab_enabled", (False,), _OTHER_ENGINE),
    Restriction("logger.mlflow_enabled", (False,), _OTHER_ENGINE),
)

# Those of the policy itself, which is also NeMo-RL's CPU worker; the rest are about data and the loop around it.
_AROUND_POLICY = (
    "policy.tokenizer.chat_template",
    "policy.tokenizer.chat_template_kwargs",
    "policy.megatron_cfg.env_vars",
    "policy.generation.stop_strings",
)
POLICY_RESTRICTIONS = tuple(
    rule for rule in RESTRICTIONS if rule.path.startswith("policy.") and rule.path not in _AROUND_POLICY
)

# The restrictions that matter when a model is only measured.
MODEL_KEYS = (
    "policy.precision",
    "policy.tokenizer.chat_template",
    "policy.tokenizer.chat_template_kwargs",
    "policy.hf_config_overrides",
    "policy.megatron_cfg.context_parallel_size",
    "policy.megatron_cfg.expert_model_parallel_size",
    "policy.megatron_cfg.expert_tensor_parallel_size",
    "policy.megatron_cfg.peft.enabled",
    "policy.generation.stop_strings",
)

# Settings of other engines that change speed or memory only: ignored, and said so when they are switched on.
TUNING = (
    "policy.dynamic_batching.enabled",
    "policy.offload_optimizer_for_logprob",
    "policy.megatron_cfg.optimizer.optimizer_cpu_offload",
    "policy.generation.vllm_kwargs",
    "policy.generation.use_async_rollouts",
    "data_plane.enabled",
    "logger.monitor_gpus",
    "logger.num_val_samples_to_print",
)


def unsupported(recipe: Recipe) -> Iterator[str]:
    """Yield a message for each setting that the local engine cannot honour."""
    yield from refused(recipe, RESTRICTIONS, who=_WHO)
    yield from refused_in_data(recipe, who=_WHO)
    yield from _loop_followers(recipe)
    yield from unsupported_followers(recipe)


def unsupported_in_model(recipe: Recipe) -> Iterator[str]:
    """Yield a message for each setting of the model itself that the local engine cannot honour."""
    yield from refused(recipe, [rule for rule in RESTRICTIONS if rule.path in MODEL_KEYS], who=_WHO)


def _loop_followers(recipe: Recipe) -> Iterator[str]:
    """Yield messages on keys around the policy that must equal another here but need not in NeMo-RL."""
    if recipe.policy.tokenizer.name != recipe.policy.model_name:
        yield "policy.tokenizer.name: the tokenizer is that of policy.model_name here; remove the key"
    checkpointing = recipe.checkpointing
    if checkpointing.keep_top_k is not None and (checkpointing.metric_name or "").startswith("train:"):
        yield (
            f"checkpointing.metric_name = {checkpointing.metric_name}: checkpoints of the local engine record "
            "val:accuracy and val:mean_tokens only, so keep_top_k could not rank them; use one of these or null"
        )


def unsupported_followers(recipe: Recipe) -> Iterator[str]:
    """Yield messages on keys of the policy that must equal another here but need not in NeMo-RL's GPU workers."""
    policy = recipe.policy
    if policy.generation.vllm_cfg.precision != policy.precision:
        yield f"policy.generation.vllm_cfg.precision: {_QUANTISED}"
    optimizer, scheduler = policy.megatron_cfg.optimizer, policy.megatron_cfg.scheduler
    if {scheduler.start_weight_decay, scheduler.end_weight_decay} != {optimizer.weight_decay}:
        yield (
            "policy.megatron_cfg.scheduler: weight decay is constant on the local engine; remove "
            "start_weight_decay and end_weight_decay"
        )


def ignored(recipe: Recipe) -> Iterator[str]:
    """Yield a note for each tuning setting that is switched on and does nothing here."""
    for path in TUNING:
        if value_at(recipe, path):
            yield f"{path}: changes speed or memory in NeMo-RL only; the local engine ignores it"
