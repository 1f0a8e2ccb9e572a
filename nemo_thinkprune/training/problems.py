"""The problems of a run with their prompts, as the recipe names them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from nemo_thinkprune.data.problems import Problem, load_problems
from nemo_thinkprune.data.prompts import encode_prompts
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.schema import Recipe
from nemo_thinkprune.recipe.section_run import Dataset
from nemo_thinkprune.training.samples import Prompt
from nemo_thinkprune.training.session import Session


def training_prompts(session: Session) -> list[Prompt]:
    """The prompts of `data.train`; those that are too long are dropped and counted in the log."""
    return encode(session, load_datasets(session.recipe, session.recipe.data.train), what="data.train")


def validation_prompts(session: Session) -> list[Prompt]:
    """The prompts of `data.validation`, at most `grpo.max_val_samples`; none when there is no such set."""
    sets = session.recipe.data.validation
    if not sets:
        return []
    prompts = encode(session, load_datasets(session.recipe, sets), what="data.validation")
    return prompts[: session.recipe.grpo.max_val_samples]


def load_datasets(recipe: Recipe, sets: Sequence[Dataset]) -> list[Problem]:
    """All problems of these data sets, in order.

    Raises:
        UserError: A set cannot be read, or two problems have the same id.
    """
    problems: list[Problem] = []
    for one in sets:
        assert one.data_path is not None  # check_recipe refuses others for this engine
        loaded = load_problems(
            one.data_path,
            split=one.split,
            question_key=one.input_key,
            answer_key=one.output_key,
            sources=one.sources,
        )
        problems += loaded[: one.max_samples]
    ids = Counter(problem.id for problem in problems)
    repeated = [name for name, count in ids.items() if count > 1]
    if repeated:
        raise UserError(f"problem ids must be unique over all data sets; repeated: {', '.join(repeated[:3])}")
    return problems


def encode(session: Session, problems: Sequence[Problem], *, what: str) -> list[Prompt]:
    """Prompts by the one function that training and evaluation share; the length hint names the round's limit."""
    recipe = session.recipe
    encoded = encode_prompts(
        session.tokenizer,
        problems,
        family=recipe.thinkprune.prompt_family,
        length_hint=session.job.limit if recipe.thinkprune.length_hint else None,
        max_input_seq_length=recipe.data.max_input_seq_length,
    )
    if encoded.dropped:
        session.beat(
            "data",
            0,
            note=f"{what}: {len(encoded.dropped)} of {len(problems)} prompts are longer than "
            f"data.max_input_seq_length = {recipe.data.max_input_seq_length} and are left out",
        )
    return [Prompt(p, ids) for p, ids in zip(encoded.problems, encoded.prompt_ids, strict=True)]
