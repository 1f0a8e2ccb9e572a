"""Measure the policy on a set of problems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nemo_thinkprune.data.prompts import Prompt
from nemo_thinkprune.rollout.types import Sampling
from nemo_thinkprune.training.clock import Clock
from nemo_thinkprune.training.metrics import validation_row
from nemo_thinkprune.training.samples import collect
from nemo_thinkprune.training.session import Session


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
    return validation_row([sample.to_row() for sample in samples], limit=limit, round_limit=session.job.limit)
