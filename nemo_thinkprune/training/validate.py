"""Measure the policy on a set of problems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nemo_thinkprune.evaluation.stats import accuracy, is_cut, mean_tokens
from nemo_thinkprune.rollout.types import Sampling
from nemo_thinkprune.training.samples import Prompt, Sample, collect
from nemo_thinkprune.training.session import Clock, Session


def validate(session: Session, prompts: Sequence[Prompt], *, step: int, clock: Clock) -> dict[str, Any]:
    """Accuracy and length on the selection set, generated to the long limit.

    The same random streams serve every checkpoint, so that differences between checkpoints are less noisy.
    """
    settings = session.recipe.thinkprune.validation
    limit = session.recipe.thinkprune.long_limit or session.job.limit
    samples = collect(
        session,
        prompts,
        samples=settings.samples,
        limit=limit,
        sampling=Sampling(
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            seed=session.recipe.grpo.seed,
        ),
        stream="validation",
        step=step,
        clock=clock,
    )
    return validation_row(samples, limit=limit, round_limit=session.job.limit)


def validation_row(samples: Sequence[Sample], *, limit: int, round_limit: int) -> dict[str, Any]:
    """The numbers the selection rule reads, and accuracy as if responses were cut at the round's limit."""
    rows = [sample.to_row() for sample in samples]
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
