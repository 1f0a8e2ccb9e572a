"""The reward by length of a recipe, checked and written as a formula."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.schema import Recipe
from nemo_thinkprune.rewards.length_rewards import LENGTH_REWARDS, length_reward

# One per entry of LENGTH_REWARDS; the tests evaluate them beside the rewards themselves.
FORMULAS: Mapping[str, str] = MappingProxyType(
    {
        "arora_zanette": "correct * finished * (1 - {alpha:g} * sigmoid((L - mean) / (std + 1e-7)))",
        "l1_exact": "correct - {alpha:g} * abs({target:g} - L)",
        "l1_max": "correct * min(1, max(0, {alpha:g} * ({target:g} - L) + {delta:g}))",
        "dapo_overlong": "({correct_reward:g} if correct else {wrong_reward:g}) + "
        "min(-(L - ({max_length:g} - {buffer:g})) / {buffer:g} * {penalty:g}, 0)",
    }
)


def length_reward_formula(recipe: Recipe) -> str | None:
    """Return the formula of `thinkprune.length_reward` with its settings filled in; None for `none`.

    Raises:
        UserError: a setting that the reward does not take, a missing one, or a value out of range.
    """
    chosen = recipe.thinkprune.length_reward
    try:
        length_reward(chosen.name, chosen.params)
    except UserError as error:
        raise UserError(f"thinkprune.length_reward: {error}") from error
    if chosen.name == "none":
        return None
    known = inspect.signature(LENGTH_REWARDS[chosen.name]).parameters
    settings = {key: chosen.params.get(key, known[key].default) for key in known}
    return f"{chosen.name}: {FORMULAS[chosen.name].format(**settings)}"
