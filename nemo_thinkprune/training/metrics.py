"""A step, or a validation, in numbers.  Everything outside `timing` is a function of recipe and seed, byte for byte.

A row is a response as `samples.Sample.to_row` makes it.  Needs no torch: both engines count with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nemo_thinkprune.evaluation.stats import accuracy, is_correct, is_cut, mean_tokens, percentile

if TYPE_CHECKING:
    from nemo_thinkprune.policy.policy import UpdateResult

Row = Mapping[str, Any]


def step_row(
    step: int,
    rows: Sequence[Row],
    *,
    group_size: int,
    limit: int,
    updates: Sequence[UpdateResult],
    lr: float,
) -> dict[str, Any]:
    """The metrics of one step without its timing.

    Means over updates are plain means; KL, entropy and clip share are means over trained tokens.
    """
    sums: Counter[str] = Counter()
    for update in updates:  # Counter's + would drop negative sums
        sums.update(update.sums)
    tokens = sums["tokens"] or 1.0
    return {
        "step": step,
        "limit": limit,
        **response_metrics(rows, group_size=group_size),
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


def response_metrics(rows: Sequence[Row], *, group_size: int) -> dict[str, Any]:
    """What the responses of a step say; `group_size` successive rows answer one prompt."""
    lengths = [row["response_tokens"] for row in rows]
    rewards = [row["reward"] for row in rows]
    groups = [rewards[i : i + group_size] for i in range(0, len(rewards), group_size)]
    return {
        "reward_mean": _mean(rewards),
        "accuracy": sum(map(is_correct, rows)) / len(rows),
        "response_tokens_mean": _mean(lengths),
        **{f"response_tokens_p{q}": percentile(lengths, q) for q in (50, 90, 99)},
        "truncated_share": sum(map(is_cut, rows)) / len(rows),
        "mixed_group_share": sum(len(set(group)) > 1 for group in groups) / len(groups),
        "reasons": dict(sorted(Counter(row["reason"] for row in rows).items())),
    }


def validation_row(rows: Sequence[Row], *, limit: int, round_limit: int) -> dict[str, Any]:
    """The numbers the selection rule reads, and accuracy as if responses were cut at the round's limit."""
    overall, tokens, within = accuracy(rows), mean_tokens(rows), accuracy(rows, within=round_limit)
    return {
        "limit": limit,
        "problems": len({row["problem_id"] for row in rows}),
        "accuracy": overall.mean,
        "accuracy_se": overall.se,
        "mean_tokens": tokens.mean,
        "mean_tokens_se": tokens.se,
        "share_cut": sum(map(is_cut, rows)) / len(rows),
        "accuracy_at_limit": within.mean,
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
