"""The prompts of a local run; what is left out is said in its log."""

from __future__ import annotations

from collections.abc import Sequence

from nemo_thinkprune.data import recipe_prompts
from nemo_thinkprune.data.problems import Problem
from nemo_thinkprune.data.prompts import Prompt
from nemo_thinkprune.training.session import Session


def training_prompts(session: Session) -> list[Prompt]:
    """The prompts of `data.train`."""
    job = session.job
    return _noted(
        session, recipe_prompts.training_prompts(session.recipe, session.tokenizer, limit=job.limit)
    )


def validation_prompts(session: Session) -> list[Prompt]:
    """The prompts of `data.validation`, at most `grpo.max_val_samples`; none when there is no such set."""
    job = session.job
    return _noted(
        session, recipe_prompts.validation_prompts(session.recipe, session.tokenizer, limit=job.limit)
    )


def encode(session: Session, problems: Sequence[Problem], *, what: str) -> list[Prompt]:
    """The prompts of other problems, as the recipe says."""
    return _noted(
        session,
        recipe_prompts.encode_for(
            session.recipe, session.tokenizer, problems, limit=session.job.limit, what=what
        ),
    )


def _noted(session: Session, found: recipe_prompts.Prompts) -> list[Prompt]:
    if found.note is not None:
        session.beat("data", 0, note=found.note)
    return found.prompts
