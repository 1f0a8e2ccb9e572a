"""What `thinkprune plan` does."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from nemo_thinkprune.costs.known_models import architecture_of
from nemo_thinkprune.plan import plan_json, table
from nemo_thinkprune.plan.advice import advise
from nemo_thinkprune.plan.plan import Plan, engine_for, make_plan
from nemo_thinkprune.recipe.checks import check_recipe
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.load import load_recipe

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
    """Plan a recipe and tell what it needs; exit code 0 when it fits, 1 when it does not.

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
    given = load_recipe(recipe, overrides)
    check_recipe(given, engine=engine_for(given))
    found = architecture_of(given.policy.model_name, folder=model, environment=os.environ)
    if found is None:
        raise UserError(
            f"nothing here tells the architecture of {given.policy.model_name}: pass --model FOLDER, a folder with "
            "its config.json"
        )

    def replan(more: Sequence[str]) -> Plan:
        return make_plan(load_recipe(recipe, [*overrides, *more]), found.config, gpu=gpu)

    made = make_plan(given, found.config, gpu=gpu)
    advice = advise(made, replan)
    if as_json:
        values = plan_json.plan_values(made, name=recipe, source=found.source, advice=advice)
        say(json.dumps(values, indent=2))
    else:
        for line in table.lines(made, source=found.source, advice=advice):
            say(line)
    return FITS if made.fits else DOES_NOT_FIT
