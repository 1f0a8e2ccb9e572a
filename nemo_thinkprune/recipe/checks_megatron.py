"""Checks of what Megatron-Core, vLLM and NeMo-RL's set-up of them refuse or mistake once GPU workers have started.

References are to NeMo-RL v0.7.0 and to Megatron-Core's modules of that time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from nemo_thinkprune.recipe.checks_layout import model_config
from nemo_thinkprune.recipe.resources import training_gpus
from nemo_thinkprune.recipe.schema import Recipe
from nemo_thinkprune.recipe.support import Restriction, refused

_WHO = "the nemo-rl engine"
_MEGATRON, _VLLM = "policy.megatron_cfg", "policy.generation.vllm_cfg"
_DENSE = "models here are dense"

GPU_RESTRICTIONS = (
    Restriction(
        f"{_MEGATRON}.use_linear_ce_fusion_loss",
        (None, False),
        "it is for supervised training, the only loss that needs no logits; remove the key",
    ),
    Restriction(
        f"{_MEGATRON}.transformer_impl",
        (None, "transformer_engine"),
        "its training workers need TransformerEngine's layers; remove the key",
    ),
    Restriction(
        f"{_MEGATRON}.expert_model_parallel_size",
        (1,),
        f"{_DENSE}, and Megatron-Core asks for experts; set 1",
    ),
    Restriction(f"{_MEGATRON}.expert_tensor_parallel_size", (1,), f"{_DENSE}; set 1"),
    Restriction(
        f"{_MEGATRON}.mtp_num_layers", (0,), "models here have no such layers to load and to hand on; set 0"
    ),
    Restriction(
        "policy.router_replay.enabled",
        (None, False),
        f"{_DENSE} and have no router; remove policy.router_replay",
    ),
    Restriction(
        f"{_MEGATRON}.peft.enabled",
        (False,),
        "its checkpoints hold the adapters alone, so the next round and `thinkprune eval` would be without the "
        "weights they belong to; set false",
    ),
    Restriction(
        "policy.quant_cfg",
        (None,),
        "the next round and `thinkprune eval` read checkpoints as plain weights; remove the key",
    ),
    Restriction(
        "policy.generation.quant_cfg",
        (None,),
        f"rollouts are of the policy that is trained; remove the key, or for 8-bit rollouts set {_VLLM}.precision=fp8",
    ),
    Restriction(
        f"{_MEGATRON}.distributed_data_parallel_config.use_custom_fsdp",
        (False,),
        "NeMo-RL v0.7.0 does not read it; set false",
    ),
)

# Keyword arguments that vllm_worker.py writes out before **vllm_kwargs, or replaces; and the key that sets them.
VLLM_KEYWORDS: Mapping[str, str | None] = MappingProxyType(
    {
        "model": "policy.model_name",
        "served_model_name": None,
        "load_format": None,
        "skip_tokenizer_init": None,
        "tensor_parallel_size": f"{_VLLM}.tensor_parallel_size",
        "pipeline_parallel_size": f"{_VLLM}.pipeline_parallel_size",
        "enable_expert_parallel": None,
        "gpu_memory_utilization": f"{_VLLM}.gpu_memory_utilization",
        "enable_prefix_caching": None,
        "dtype": f"{_VLLM}.precision",
        "seed": "grpo.seed",
        "enforce_eager": f"{_VLLM}.enforce_eager",
        "max_model_len": f"{_VLLM}.max_model_len",
        "trust_remote_code": None,
        "worker_extension_cls": None,
        "enable_sleep_mode": None,
        "disable_log_stats": None,
        "logprobs_mode": None,
        "distributed_executor_backend": None,
    }
)

_DURATION = re.compile(r"\d{1,6}(:\d{1,6}){3}", re.ASCII)
_LAST_PORT = 65_535


def check_megatron(recipe: Recipe, *, on_cpu: bool = False) -> Iterator[str]:
    """Yield a message for each setting that ends or bends a run once it has started; on a CPU there are fewer."""
    yield from _deadline(recipe)
    yield from _ports(recipe)
    if on_cpu:
        return
    yield from refused(recipe, GPU_RESTRICTIONS, who=_WHO)
    yield from _optimizer(recipe)
    yield from _scheduler(recipe)
    yield from _micro_batches(recipe)
    yield from _segments(recipe)
    yield from _vllm_keywords(recipe)
    yield from _heads(recipe)


def _deadline(recipe: Recipe) -> Iterator[str]:
    """NeMo-RL reads four whole numbers (utils/timer.py, convert_to_seconds), when its trainer starts."""
    given = recipe.checkpointing.checkpoint_must_save_by
    if given is not None and not _DURATION.fullmatch(given):
        yield (
            f"checkpointing.checkpoint_must_save_by = {given!r} is not DD:HH:MM:SS, such as '00:03:45:00' for 3 "
            "hours and 45 minutes"
        )


def _ports(recipe: Recipe) -> Iterator[str]:
    """A port is drawn from low ... high - 1 (distributed/virtual_cluster.py, _bind_socket_in_range)."""
    for path, section, prefix in (
        ("cluster", recipe.cluster, "master_port_range"),
        ("policy.generation", recipe.policy.generation, "port_range"),
    ):
        low, high = getattr(section, f"{prefix}_low"), getattr(section, f"{prefix}_high")
        if not low < high <= _LAST_PORT:
            yield (
                f"{path}.{prefix}_low = {low} and {prefix}_high = {high} hold no ports: the first must be below the "
                f"second, and that at most {_LAST_PORT}"
            )


def _optimizer(recipe: Recipe) -> Iterator[str]:
    """OptimizerConfig.__post_init__ (megatron/core/optimizer/optimizer_config.py)."""
    optimizer, path = recipe.policy.megatron_cfg.optimizer, f"{_MEGATRON}.optimizer"
    if not optimizer.use_precision_aware_optimizer:
        return
    if optimizer.optimizer != "adam":
        yield (
            f"{path}.optimizer = {optimizer.optimizer}: Megatron-Core's precision-aware optimizer is adam; set "
            f"{path}.use_precision_aware_optimizer=false"
        )
    if not optimizer.use_distributed_optimizer:
        yield (
            f"{path}.use_distributed_optimizer is false: Megatron-Core's precision-aware optimizer is distributed; "
            f"set {path}.use_precision_aware_optimizer=false, or remove the key"
        )


def _scheduler(recipe: Recipe) -> Iterator[str]:
    """OptimizerParamScheduler asserts all of this, most without a message (megatron/core).

    A decay without lr_decay_iters, and min_lr above lr where there is a decay, are refused for every engine.
    """
    megatron, path = recipe.policy.megatron_cfg, f"{_MEGATRON}.scheduler"
    optimizer, scheduler = megatron.optimizer, megatron.scheduler
    style, steps = scheduler.lr_decay_style, recipe.grpo.max_num_steps
    if style == "constant" and optimizer.min_lr > optimizer.lr:
        yield (
            f"{_MEGATRON}.optimizer.min_lr = {optimizer.min_lr:g} is above lr = {optimizer.lr:g}, which Megatron-Core "
            "refuses even where the rate is constant; remove the key"
        )
    if style == "WSD":
        yield (
            f"{path}.lr_decay_style = WSD: NeMo-RL has no key for the length of its decay, which Megatron-Core needs; "
            "use constant, linear, cosine or inverse-square-root"
        )
    if scheduler.lr_decay_iters is None and scheduler.lr_warmup_iters >= steps:
        yield (
            f"{path}.lr_warmup_iters = {scheduler.lr_warmup_iters} must be below grpo.max_num_steps = {steps}: "
            "Megatron-Core wants a step after the warm-up"
        )
    start, end = scheduler.start_weight_decay, scheduler.end_weight_decay
    if start > end:
        yield (
            f"{path}.start_weight_decay = {start:g} is above end_weight_decay = {end:g}: in Megatron-Core the weight "
            f"decay can only grow; remove both keys for {_MEGATRON}.optimizer.weight_decay throughout"
        )
    elif start != end and scheduler.weight_decay_incr_style == "constant":
        yield (
            f"{path}.start_weight_decay = {start:g} and end_weight_decay = {end:g} differ, but weight_decay_incr_style "
            "is constant; set linear or cosine, or remove both keys"
        )


def _micro_batches(recipe: Recipe) -> Iterator[str]:
    """The longest sequence, padded, must fit into a micro-batch (distributed/batched_data_dict.py)."""
    policy = recipe.policy
    limits = (policy.generation.max_new_tokens, *recipe.thinkprune.limits)
    longest = recipe.data.max_input_seq_length + max(limits)
    for name, part, key, multiple in (
        ("sequence_packing", policy.sequence_packing, "policy.make_sequence_length_divisible_by",
         policy.make_sequence_length_divisible_by),
        ("dynamic_batching", policy.dynamic_batching, "policy.dynamic_batching.sequence_length_round",
         policy.dynamic_batching.sequence_length_round),
    ):  # fmt: skip
        padded = -(-longest // multiple) * multiple
        for tokens in ("train_mb_tokens", "logprob_mb_tokens"):
            room = getattr(part, tokens)
            if part.enabled and longest <= room < padded:
                yield (
                    f"policy.{name}.{tokens} = {room}: a sequence of {longest} tokens becomes one of {padded} in "
                    f"multiples of {key} = {multiple} and does not fit; set at least {padded}"
                )


def _segments(recipe: Recipe) -> Iterator[str]:
    """Nodes that train are taken in whole segments (distributed/virtual_cluster.py, select_segment_nodes)."""
    segment, nodes = recipe.cluster.segment_size, training_gpus(recipe).nodes
    if segment is not None and nodes % segment:
        yield (
            f"cluster.segment_size = {segment} does not divide the {nodes} nodes that train; make their number a "
            "multiple, or set null"
        )


def _vllm_keywords(recipe: Recipe) -> Iterator[str]:
    """NeMo-RL hands vLLM its own keywords beside vllm_kwargs: Python refuses two of one name (vllm_worker.py)."""
    for name in recipe.policy.generation.vllm_kwargs:
        if name in VLLM_KEYWORDS:
            key = VLLM_KEYWORDS[name]
            instead = f"set {key} instead" if key else "remove it"
            yield f"policy.generation.vllm_kwargs.{name}: NeMo-RL sets {name} of vLLM itself; {instead}"


def _heads(recipe: Recipe) -> Iterator[str]:
    """vLLM shares attention heads evenly, and key-value heads evenly or as equal copies (config/model.py, models)."""
    config = model_config(recipe)
    size = recipe.policy.generation.vllm_cfg.tensor_parallel_size
    if not isinstance(config, Mapping):
        return
    heads = _count(config, "num_attention_heads")
    shared = _count(config, "num_key_value_heads") or heads
    if heads is None or shared is None or _can_share(size, heads, shared):
        return
    fitting = [str(number) for number in range(1, heads + 1) if _can_share(number, heads, shared)]
    yield (
        f"{_VLLM}.tensor_parallel_size = {size}: vLLM cannot share the model's {heads} attention heads and {shared} "
        f"key-value heads by that; use one of {', '.join(fitting[:16])}"
    )


def _can_share(size: int, heads: int, shared: int) -> bool:
    return heads % size == 0 and (shared % size == 0 or size % shared == 0)


def _count(config: Mapping[str, Any], key: str) -> int | None:
    value = config.get(key)
    return value if isinstance(value, int) and value > 0 else None
