"""The problems of a run with their prompts, as the recipe names them: what both engines train and measure on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nemo_thinkprune.data.problems import Problem, load_problems
from nemo_thinkprune.data.prompts import Prompt, encode_prompts
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.schema import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemSet:
    """One data set of a recipe: the rows of `data_path` that are used, see `data.problems.load_problems`."""

    data_path: str
    split: str | None = None
    input_key: str | None = None
    output_key: str | None = None
    sources: Sequence[str] | None = None
    max_samples: int | None = None

    def load(self) -> list[Problem]:
        """Its problems, in the order of the file."""
        problems = load_problems(
            self.data_path,
            split=self.split,
            question_key=self.input_key,
            answer_key=self.output_key,
            sources=self.sources,
        )
        return problems[: self.max_samples]


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts that fit, in the order of their problems; `note` tells of those that do not, if any."""

    prompts: list[Prompt]
    note: str | None = None


def problem_sets(recipe: Recipe, name: Literal["train", "validation"]) -> list[ProblemSet]:
    """The data sets of `data.train` or `data.validation`; what one leaves open is taken from `data.default`.

    Raises:
        UserError: A set names no file.
    """
    data, sets = recipe.data, []
    for number, one in enumerate(getattr(data, name) or []):
        values: dict[str, Any] = {key: getattr(one, key) for key in ProblemSet.__dataclass_fields__}
        for key, value in values.items():
            if value is None and data.default is not None:
                values[key] = getattr(data.default, key)
        if values["data_path"] is None:
            raise UserError(f"data.{name}.{number}: give data_path, a file of problems or a hub id")
        sets.append(ProblemSet(**values))
    return sets


def load_sets(sets: Iterable[ProblemSet]) -> list[Problem]:
    """All problems of these data sets, in order.

    Raises:
        UserError: A set cannot be read, or two problems have the same id.
    """
    problems = [problem for one in sets for problem in one.load()]
    ids = Counter(problem.id for problem in problems)
    repeated = [name for name, count in ids.items() if count > 1]
    if repeated:
        raise UserError(f"problem ids must be unique over all data sets; repeated: {', '.join(repeated[:3])}")
    return problems


def length_hint(recipe: Recipe, limit: int) -> int | None:
    """The limit that the system prompt names, in tokens: that of the round, if the recipe wants one named."""
    return limit if recipe.thinkprune.length_hint else None


def encode(
    tokenizer: Any,
    problems: Sequence[Problem],
    *,
    family: str,
    length_hint: int | None,
    max_input_seq_length: int,
    what: str,
) -> Prompts:
    """Encode the prompts; `what` names the data in the note on those that are too long.

    Raises:
        UserError: as `data.prompts.encode_prompts`.
    """
    encoded = encode_prompts(
        tokenizer,
        problems,
        family=family,
        length_hint=length_hint,
        max_input_seq_length=max_input_seq_length,
    )
    note = None
    if encoded.dropped:
        note = (
            f"{what}: {len(encoded.dropped)} of {len(problems)} prompts are longer than "
            f"data.max_input_seq_length = {max_input_seq_length} and are left out"
        )
    pairs = zip(encoded.problems, encoded.prompt_ids, strict=True)
    return Prompts([Prompt(problem, ids) for problem, ids in pairs], note)


def encode_for(
    recipe: Recipe, tokenizer: Any, problems: Sequence[Problem], *, limit: int, what: str
) -> Prompts:
    """Encode the prompts as the recipe says, for responses of at most `limit` tokens."""
    return encode(
        tokenizer,
        problems,
        family=recipe.thinkprune.prompt_family,
        length_hint=length_hint(recipe, limit),
        max_input_seq_length=recipe.data.max_input_seq_length,
        what=what,
    )


def training_prompts(recipe: Recipe, tokenizer: Any, *, limit: int) -> Prompts:
    """The prompts of `data.train`."""
    problems = load_sets(problem_sets(recipe, "train"))
    return encode_for(recipe, tokenizer, problems, limit=limit, what="data.train")


def validation_prompts(recipe: Recipe, tokenizer: Any, *, limit: int) -> Prompts:
    """The prompts of `data.validation`, at most `grpo.max_val_samples`; none when there is no such set."""
    sets = problem_sets(recipe, "validation")
    if not sets:
        return Prompts([])
    found = encode_for(recipe, tokenizer, load_sets(sets), limit=limit, what="data.validation")
    return Prompts(found.prompts[: recipe.grpo.max_val_samples], found.note)
