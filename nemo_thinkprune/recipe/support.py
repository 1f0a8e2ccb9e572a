"""What one engine takes and another does not: the tables' shape and how they are applied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from nemo_thinkprune.recipe.schema import Recipe
from nemo_thinkprune.recipe.section_run import Dataset


@dataclass(frozen=True, slots=True)
class Restriction:
    """The values of one key that an engine takes, and what to do about others."""

    path: str
    allowed: tuple[Any, ...]
    advice: str


RECORDED = "the problems of every step are fixed and recorded in advance (ledger.jsonl)"
"""Why neither engine chooses problems by itself."""
_PROMPTS = "prompts are built by thinkprune.prompt_family; set null"
_DATA = "it reads data_path, split, input_key, output_key, sources and max_samples; remove the key"
_SCORED = "responses are scored by this program's own verifier; remove the key"

# Keys of a data set; both engines read data through data/problems.py.
DATASET_RESTRICTIONS = (
    Restriction("prompt_file", (None,), _PROMPTS),
    Restriction("system_prompt_file", (None,), _PROMPTS),
    Restriction("dataset_name", (None,), _DATA),
    Restriction("data_files", (None,), _DATA),
    Restriction("subset", (None,), _DATA),
    Restriction("split_validation_size", (None, 0, 0.0), _DATA),
    Restriction("repeat", (None, 1), _DATA),
    Restriction("variant", (None,), _DATA),
    Restriction("extract_answer", (None,), _DATA),
    Restriction("env_name", (None, "thinkprune"), _SCORED),
)
_ENVIRONMENT_KEYS = ("math_verify_impl", "verifier_type", "stop_strings")


def value_at(section: Any, path: str) -> Any:
    """Return the value at a dotted path; None where a section on the way is null."""
    value = section
    for part in path.split("."):
        value = getattr(value, part, None) if value is not None else None
    return value


def refused(section: Any, rules: Iterable[Restriction], *, who: str, prefix: str = "") -> Iterator[str]:
    """Yield a message for each rule that `section`, whose path is `prefix`, breaks; `who` cannot honour it."""
    for rule in rules:
        value = value_at(section, rule.path)
        if value not in rule.allowed:
            yield f"{prefix}{rule.path} = {value!r}: {who} cannot honour this; {rule.advice}"


def refused_in_data(recipe: Recipe, *, who: str, more: Iterable[Restriction] = ()) -> Iterator[str]:
    """Yield a message for each setting of a data set or an environment that only NeMo-RL's own classes read."""
    rules = (*DATASET_RESTRICTIONS, *more)
    for path, dataset in datasets(recipe):
        yield from refused(dataset, rules, who=who, prefix=f"{path}.")
        if dataset.data_path is None and not path.endswith("default"):
            yield f"{path}: {who} needs data_path, a file or a hub id"
    for name, environment in recipe.env.items():
        for key in _ENVIRONMENT_KEYS:
            if getattr(environment, key) is not None:
                yield f"env.{name}.{key}: {who} scores with this program's own verifier; remove the key"


def datasets(recipe: Recipe) -> Iterator[tuple[str, Dataset]]:
    """Yield every data set of section `data` with its path."""
    for name in ("train", "validation"):
        for number, dataset in enumerate(getattr(recipe.data, name) or []):
            yield f"data.{name}.{number}", dataset
    if recipe.data.default is not None:
        yield "data.default", recipe.data.default
