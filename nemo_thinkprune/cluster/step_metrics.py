"""What NeMo-RL's trainers tell of a step, under the names of our metrics.jsonl, and ours under theirs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# Where a step has no scored responses of its own (a replay buffer was read back), NeMo-RL's means stand in.
_BATCH_MEANS = {
    "reward_mean": "reward",
    "response_tokens_mean": "mean_gen_tokens_per_sample",
    "truncated_share": "truncation_rate",
}
_TRAINING = {"kl": "kl_penalty", "loss": "loss", "grad_norm": "grad_norm", "lr": "lr"}
# Means over tokens of NeMo-RL's own estimates; they have no counterpart of exactly this meaning on the local engine.
_OWN_NAMES = (
    "gen_kl_error",
    "token_mult_prob_error",
    "policy_kl_error",
    "approx_entropy",
    "avg_trajectory_age",
)
# Scoring happens inside generation and has no timer; the asynchronous trainer waits for responses and weights.
_TIMERS = {
    "generate_s": "generation",
    "wait_s": "exposed_generation",
    "refit_s": "prepare_for_generation/total",
    "sync_s": "weight_sync",
    "logprobs_s": "policy_and_reference_logprobs",
    "update_s": "policy_training",
    "save_s": "checkpointing",
}


def metrics_row(
    step: int, *, limit: int, responses: Mapping[str, Any], told: Mapping[str, Any], updates: int
) -> dict[str, Any]:
    """A step's row without its timing.

    Args:
        step: from 1.
        limit: longest response in tokens.
        responses: of `training.metrics.response_metrics`; empty when none was scored.
        told: NeMo-RL's metrics of prefix "train".
        updates: optimizer updates in the step.
    """
    row = {
        "step": step,
        "limit": limit,
        **(responses or _picked(told, _BATCH_MEANS)),
        **_picked(told, _TRAINING),
    }
    row |= _picked(told, {name: name for name in _OWN_NAMES})
    row["updates"] = updates
    tokens = _number(told.get("global_valid_toks"))  # of one update
    if tokens is not None:
        row["trained_tokens"] = round(tokens * updates)
    return row


def timing(timers: Mapping[str, Any], *, validate_s: float | None, tokens: float | None) -> dict[str, float]:
    """Seconds per phase, and response tokens (`tokens`) per second of the step.

    NeMo-RL counts validation and saving as part of a step; `step_s` is without them, as on the local engine.
    """
    found = _picked(timers, _TIMERS)
    if validate_s is not None:
        found["validate_s"] = validate_s
    total = _number(timers.get("total_step_time"))
    if total is not None:
        found["step_s"] = max(total - found.get("save_s", 0.0) - found.get("validate_s", 0.0), 0.0)
        if tokens is not None and found["step_s"] > 0:
            found["tokens_per_s"] = tokens / found["step_s"]
    return found


def tracked(responses: Mapping[str, Any]) -> dict[str, float]:
    """What NeMo-RL's backends get beside its own metrics: shares of reasons, percentiles of length."""
    reasons: Mapping[str, int] = responses.get("reasons", {})
    total = sum(reasons.values())
    own = {key: value for key, value in responses.items() if key.startswith(("response_tokens_p", "mixed_"))}
    return {**{f"reward/{reason}": count / total for reason, count in reasons.items()}, **own}


def _picked(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The numbers there are, under our names; one that is not finite becomes None, so that it is seen."""
    return {ours: _number(values[theirs]) for ours, theirs in names.items() if theirs in values}


def _number(value: Any) -> float | None:
    """A Python number from NeMo-RL's, which may be numpy's."""
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else None
