"""A step in numbers. Everything outside `timing` is a function of recipe and seed, byte for byte."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from nemo_thinkprune.evaluation.stats import percentile
from nemo_thinkprune.policy.policy import UpdateResult
from nemo_thinkprune.training.samples import Sample


def step_row(
    step: int,
    samples: Sequence[Sample],
    *,
    group_size: int,
    limit: int,
    updates: Sequence[UpdateResult],
    lr: float,
) -> dict[str, Any]:
    """The metrics of one step without its timing.

    Means over updates are plain means; KL, entropy and clip share are means over trained tokens.
    """
    lengths = [len(s.rollout.response_ids) for s in samples]
    rewards = [s.verdict.reward for s in samples]
    groups = [rewards[i : i + group_size] for i in range(0, len(rewards), group_size)]
    sums: Counter[str] = Counter()
    for update in updates:  # Counter's + would drop negative sums
        sums.update(update.sums)
    tokens = sums["tokens"] or 1.0
    reasons = Counter(str(s.verdict.reason) for s in samples)
    return {
        "step": step,
        "limit": limit,
        "reward_mean": _mean(rewards),
        "accuracy": reasons["correct"] / len(samples),
        "response_tokens_mean": _mean(lengths),
        **{f"response_tokens_p{q}": percentile(lengths, q) for q in (50, 90, 99)},
        "truncated_share": sum(not s.rollout.finished for s in samples) / len(samples),
        "mixed_group_share": sum(len(set(group)) > 1 for group in groups) / len(groups),
        "reasons": dict(sorted(reasons.items())),
        "kl": sums["kl"] / tokens,
        "loss": _mean([u.loss for u in updates]),
        "grad_norm": _mean([u.grad_norm for u in updates]),
        "entropy": sums["entropy"] / tokens,
        "clip_share": sums["clipped"] / tokens,
        "sampler_gap": sums["sampler_gap"] / tokens,
        "lr": lr,
        "updates": len(updates),
        "trained_tokens": int(sums["tokens"]),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
