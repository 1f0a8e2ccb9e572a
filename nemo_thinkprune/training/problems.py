"""The prompts of a local run and how many steps they make; what is left out is said in its log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nemo_thinkprune.data import recipe_prompts
from nemo_thinkprune.data.ledger import Ledger
from nemo_thinkprune.data.problems import Problem
from nemo_thinkprune.data.prompts import Prompt
from nemo_thinkprune.recipe.errors import UserError

if TYPE_CHECKING:  # planning needs neither torch nor Megatron
    from nemo_thinkprune.training.session import Session


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will do: its problems, its ledger and its last step."""

    train: list[Prompt]
    validation: list[Prompt]
    ledger: Ledger
    last_step: int


def make_plan(session: Session) -> Plan:
    """Load the data and count the steps: whole epochs, at most `grpo.max_num_steps`.

    Raises:
        UserError: unreadable data, or a step that the data-parallel ranks cannot share.
    """
    grpo = session.recipe.grpo
    train = training_prompts(session)
    ledger = Ledger(len(train), grpo.num_prompts_per_step, grpo.seed)
    last_step = ledger.last_step(epochs=grpo.max_num_epochs, max_steps=grpo.max_num_steps)
    if grpo.num_prompts_per_step % session.layout.dp:
        raise UserError(
            f"grpo.num_prompts_per_step = {grpo.num_prompts_per_step} cannot be shared by "
            f"{session.layout.dp} data-parallel ranks: make it a multiple"
        )
    return Plan(train, validation_prompts(session), ledger, last_step)


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
