"""Defaults that follow from other values: what NeMo-RL's example recipes write as `${...}` references."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

Get = Callable[[str], Any]
Has = Callable[[str], bool]
Rule = Callable[[Get, Has], Any]


def follows(source: str) -> Rule:
    """Return the rule "equal to `source`"."""
    return lambda get, has: get(source)


def twin(other: str, default: Any) -> Rule:
    """Return the rule of a key with a second name: the other's value if it was given, else the default."""
    return lambda get, has: get(other) if has(other) else default


def product(left: str, right: str) -> Rule:
    """Return the rule "`left` times `right`"."""

    def rule(get: Get, has: Has) -> Any:
        values = get(left), get(right)
        if not all(isinstance(value, int) for value in values):
            raise TypeError(f"{left} and {right} must be whole numbers")
        return values[0] * values[1]

    return rule


def room_for(tokens: int, *, multiple: int = 1) -> int:
    """Return the sequence length for prompts and responses of at most `tokens` together: a multiple of 64 above.

    One token more at least: NeMo-RL takes a response that fills the sequence for truncated even if it is finished.
    Also a multiple of `multiple`, to which sequences are padded before they are packed into rows of that length.
    """
    step = math.lcm(64, multiple)
    return (tokens // step + 1) * step


def padding(*, tensor: int, context: int) -> int:
    """Return what the length of a packed sequence must be a multiple of, to be shared by the ranks of a model.

    Tensor parallelism with sequence parallelism splits it into one part a rank, context parallelism into two
    (NeMo-RL v0.7.0, models/megatron/data.py, _get_pack_sequence_parameters_for_megatron).
    """
    return tensor * (2 * context if context > 1 else 1)


def _precision_is(name: str) -> Rule:
    return lambda get, has: get("policy.precision") == name


def _limits(get: Get, has: Has) -> Any:
    only = "policy.generation.max_new_tokens"
    return [get(only)] if has(only) else [4000, 3000, 2000]


def _first_limit(get: Get, has: Has) -> Any:
    return get("thinkprune.limits")[0]


def _total_length(get: Get, has: Has) -> Any:
    longest = max(get("policy.generation.max_new_tokens"), *get("thinkprune.limits"))
    return room_for(get("data.max_input_seq_length") + longest, multiple=max(1, get(_DIVISIBLE)))


def _padding(get: Get, has: Has) -> Any:
    sizes = {
        "tensor": get(f"{_MEGATRON}.tensor_model_parallel_size"),
        "context": get(f"{_MEGATRON}.context_parallel_size"),
    }
    if not all(isinstance(size, int) for size in sizes.values()):
        raise TypeError("parallel sizes must be whole numbers")
    return padding(**sizes)


def _chunked(get: Get, has: Has) -> Any:
    return get("policy.logprob_chunk_size") is not None


_MEGATRON = "policy.megatron_cfg"
_TOTAL = "policy.max_total_sequence_length"
_DIVISIBLE = "policy.make_sequence_length_divisible_by"
_MICRO, _LOGPROB = "policy.train_micro_batch_size", "policy.logprob_batch_size"
_ESTIMATOR = "grpo.adv_estimator"

DERIVED: Mapping[str, Rule] = MappingProxyType(
    {
        "grpo.normalize_rewards": twin(f"{_ESTIMATOR}.normalize_rewards", True),
        "grpo.use_leave_one_out_baseline": twin(f"{_ESTIMATOR}.use_leave_one_out_baseline", False),
        f"{_ESTIMATOR}.normalize_rewards": follows("grpo.normalize_rewards"),
        f"{_ESTIMATOR}.use_leave_one_out_baseline": follows("grpo.use_leave_one_out_baseline"),
        "grpo.reward_shaping.max_response_length": follows(_TOTAL),
        "policy.tokenizer.name": follows("policy.model_name"),
        "policy.train_global_batch_size": product(
            "grpo.num_prompts_per_step", "grpo.num_generations_per_prompt"
        ),
        "policy.pretrained_checkpoint": twin("checkpointing.pretrained_checkpoint", None),
        _LOGPROB: follows(_MICRO),
        _TOTAL: _total_length,
        _DIVISIBLE: _padding,
        "policy.dynamic_batching.train_mb_tokens": product(_TOTAL, _MICRO),
        "policy.dynamic_batching.logprob_mb_tokens": product(_TOTAL, _LOGPROB),
        "policy.sequence_packing.train_mb_tokens": product(_TOTAL, _MICRO),
        "policy.sequence_packing.logprob_mb_tokens": product(_TOTAL, _LOGPROB),
        "thinkprune.limits": _limits,
        "policy.generation.max_new_tokens": _first_limit,
        "policy.generation.vllm_cfg.max_model_len": follows(_TOTAL),
        "policy.generation.vllm_cfg.precision": follows("policy.precision"),
        "policy.generation.mcore_generation_config.max_model_len": follows(_TOTAL),
        f"{_MEGATRON}.pipeline_dtype": follows("policy.precision"),
        f"{_MEGATRON}.defer_fp32_logits": _chunked,
        f"{_MEGATRON}.optimizer.bf16": _precision_is("bfloat16"),
        f"{_MEGATRON}.optimizer.fp16": _precision_is("float16"),
        f"{_MEGATRON}.optimizer.clip_grad": follows("policy.max_grad_norm"),
        f"{_MEGATRON}.scheduler.start_weight_decay": follows(f"{_MEGATRON}.optimizer.weight_decay"),
        f"{_MEGATRON}.scheduler.end_weight_decay": follows(f"{_MEGATRON}.optimizer.weight_decay"),
    }
)
