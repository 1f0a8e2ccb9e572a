"""What `thinkprune plan` does."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints_tools.hf_config import config_from_dict
from checkpoints_tools.model_config import ModelConfig
from nemo_thinkprune.costs.known_models import Architecture, architecture_of
from nemo_thinkprune.data.tiny_model import model_config
from nemo_thinkprune.plan import plan_json, table
from nemo_thinkprune.plan.advice import Advice, advise
from nemo_thinkprune.plan.build import BuildMismatch, build_and_compare, stage_values
from nemo_thinkprune.plan.build import table as built_table
from nemo_thinkprune.plan.plan import Plan, engine_for, make_plan
from nemo_thinkprune.plan.time_table import TimePlan, time_rows, time_values
from nemo_thinkprune.recipe.checks import check_recipe
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.load import recipe_loader
from nemo_thinkprune.recipe.schema import Recipe

FITS, DOES_NOT_FIT = 0, 1


def plan(
    recipe: str,
    overrides: Sequence[str],
    *,
    gpu: str,
    as_json: bool,
    build: bool,
    model: Path | None,
    say: Callable[[str], None],
) -> int:
    """Plan a recipe and tell what it needs; exit code 0 when it fits, 1 when it does not or a count was wrong.

    Args:
        recipe: File or name of a recipe.
        overrides: "a.b=c" settings.
        gpu: Name of the GPU.
        as_json: One JSON object instead of text.
        build: Build every rank's module too and compare the counts.
        model: Folder whose config.json to read instead of the recipe's model.
        say: Takes the lines of the answer.

    Raises:
        UserError: The recipe cannot run, or nothing tells the model's architecture.
    """
    load = recipe_loader(recipe)
    given = load(overrides)
    check_recipe(given, engine=engine_for(given))
    found = _architecture(given, model)

    def replan(more: Sequence[str]) -> Plan:
        return make_plan(load([*overrides, *more]), found.config, gpu=gpu)

    made = make_plan(given, found.config, gpu=gpu)
    time = None if made.gpu is None else time_rows(given, found.config, made.gpu)
    built = _built(made, given, found.config, say=_silent if as_json else say) if build else None
    answer = _Answer(made, advise(made, replan), time, built, found.source)
    texts = [json.dumps(_values(answer, name=recipe), indent=2)] if as_json else _lines(answer)
    for text in texts:
        say(text)
    return FITS if made.fits and (built is None or built.equal) else DOES_NOT_FIT


def _architecture(recipe: Recipe, folder: Path | None) -> Architecture:
    """The model's architecture: its config.json, a built-in one, or the tiny model that a recipe's warm-up makes."""
    name = recipe.policy.model_name
    found = architecture_of(name, folder=folder, environment=os.environ)
    if found is not None:
        return found
    if recipe.thinkprune.warmup is not None:
        return Architecture(config_from_dict(model_config()), "the tiny model that the quickstart makes")
    raise UserError(
        f"nothing here tells the architecture of {name}: pass --model FOLDER, a folder with its config.json"
    )


@dataclass(frozen=True, slots=True)
class _Built:
    equal: bool
    text: str
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Answer:
    plan: Plan
    advice: Advice | None
    time: TimePlan | None
    built: _Built | None
    source: str


def _values(answer: _Answer, *, name: str) -> dict[str, Any]:
    values = plan_json.plan_values(answer.plan, name=name, source=answer.source, advice=answer.advice)
    values["step_time"] = None if answer.time is None else time_values(answer.time)
    return values if answer.built is None else {**values, "built": answer.built.values}


def _lines(answer: _Answer) -> list[str]:
    lines = table.lines(answer.plan, source=answer.source, time=answer.time, advice=answer.advice)
    return lines if answer.built is None else [*lines, f"\n{answer.built.text}"]


def _built(made: Plan, recipe: Recipe, model: ModelConfig, *, say: Callable[[str], None]) -> _Built:
    """Every rank's module beside the closed form, as text and as JSON values."""
    try:
        stages = build_and_compare(recipe, model, engine=made.engine, say=say)
    except BuildMismatch as error:
        return _Built(
            False, f"error: what was built is not what the plan counts with: {error}", {"fault": str(error)}
        )
    return _Built(True, built_table(stages), {"fault": None, "stages": stage_values(stages)})


def _silent(_: str) -> None:
    """Progress must not stand among JSON."""
