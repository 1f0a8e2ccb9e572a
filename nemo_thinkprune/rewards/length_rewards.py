r"""Rewards that depend on length besides correctness, by name. ThinkPrune itself is `none`.

A length reward is a function `(correct, length, finished, group) -> reward` of one response: whether its
answer is right, its tokens, whether it ended before the limit, and the responses to the same prompt. To add
one, write a factory whose keyword parameters are its settings and enter it in `LENGTH_REWARDS`.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from nemo_thinkprune.recipe.errors import UserError


@dataclass(frozen=True, slots=True)
class Group:
    """All responses to one prompt, in order: whether each is correct, and its length in tokens."""

    correct: tuple[bool, ...]
    lengths: tuple[int, ...]


LengthReward = Callable[[bool, int, bool, Group], float]


def length_reward(name: str, params: Mapping[str, Any] | None = None) -> LengthReward:
    """The length reward of a recipe's `thinkprune.length_reward: {name, params}`.

    Raises UserError for an unknown name, an unknown or missing parameter, or a value out of range.
    """
    factory = LENGTH_REWARDS.get(name)
    if factory is None:
        near = get_close_matches(name, LENGTH_REWARDS, n=1) or sorted(LENGTH_REWARDS)
        raise UserError(f"there is no length reward {name!r}; did you mean {' or '.join(near)}?")
    known = inspect.signature(factory).parameters
    given = dict(params or {})
    unknown = [key for key in given if key not in known]
    missing = [key for key, spec in known.items() if spec.default is spec.empty and key not in given]
    if unknown or missing:
        wrong = [f"unknown {key!r}" for key in unknown] + [f"missing {key!r}" for key in missing]
        raise UserError(
            f"length reward {name}: {', '.join(wrong)}; it takes {', '.join(known) or 'no parameters'}"
        )
    for key, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"length reward {name}: {key} must be a number, not {value!r}")
    return factory(**given)


def group_rewards(
    reward: LengthReward, *, correct: Sequence[bool], lengths: Sequence[int], finished: Sequence[bool]
) -> list[float]:
    """The rewards of all responses to one prompt (three sequences of the same length, in tokens)."""
    group = Group(tuple(correct), tuple(lengths))
    return [reward(*response, group) for response in zip(correct, lengths, finished, strict=True)]


def none() -> LengthReward:
    """1 for a correct response, 0 else: ThinkPrune (arXiv 2504.01296), whose only length term is the cut."""
    return lambda correct, length, finished, group: float(correct)


def arora_zanette(alpha: float = 0.1) -> LengthReward:
    r"""Training Language Models to Reason Efficiently (arXiv 2502.04463), equation for `f(L)`.

    `correct * (1 - alpha * sigmoid((L - mean) / (std + 1e-7)))` with the mean and the population standard
    deviation of the lengths of the group's correct responses; 0 without an end of text. `alpha` in [0, 1).
    """
    _require(0 <= alpha < 1, "arora_zanette: alpha must be in [0, 1)")

    def reward(correct: bool, length: int, finished: bool, group: Group) -> float:
        if not (correct and finished):
            return 0.0
        right = [size for size, hit in zip(group.lengths, group.correct, strict=True) if hit]
        mean = sum(right) / len(right)
        std = math.sqrt(sum((size - mean) ** 2 for size in right) / len(right))
        return 1.0 - alpha * _sigmoid((length - mean) / (std + 1e-7))

    return reward


def l1_exact(target: int, alpha: float = 3e-4) -> LengthReward:
    """L1-Exact (arXiv 2503.04697): `correct - alpha * |target - L|`, wrong responses included."""
    _require(target > 0 and alpha >= 0, "l1_exact: target must be positive and alpha not negative")
    return lambda correct, length, finished, group: correct - alpha * abs(target - length)


def l1_max(target: int, alpha: float = 3e-4, delta: float = 0.5) -> LengthReward:
    """L1-Max (arXiv 2503.04697): `correct * clip(alpha * (target - L) + delta, 0, 1)`."""
    _require(target > 0 and alpha >= 0, "l1_max: target must be positive and alpha not negative")
    return lambda correct, length, finished, group: (
        correct * min(1.0, max(0.0, alpha * (target - length) + delta))
    )


def dapo_overlong(
    max_length: int,
    buffer: int,
    penalty: float = 1.0,
    correct_reward: float = 1.0,
    wrong_reward: float = -1.0,
) -> LengthReward:
    """DAPO's soft overlong punishment (arXiv 2503.14476, equation 13) added to its +1 / -1.

    `min(-(L - (max_length - buffer)) / buffer * penalty, 0)`: none up to `max_length - buffer` tokens,
    falling to `-penalty` at `max_length`, and further beyond, as in verl's implementation.
    """
    _require(
        0 < buffer <= max_length and penalty >= 0, "dapo_overlong: 0 < buffer <= max_length, penalty >= 0"
    )

    def reward(correct: bool, length: int, finished: bool, group: Group) -> float:
        excess = length - (max_length - buffer)
        return (correct_reward if correct else wrong_reward) + min(-excess / buffer * penalty, 0.0)

    return reward


LENGTH_REWARDS: Mapping[str, Callable[..., LengthReward]] = MappingProxyType(
    {
        "none": none,
        "arora_zanette": arora_zanette,
        "l1_exact": l1_exact,
        "l1_max": l1_max,
        "dapo_overlong": dapo_overlong,
    }
)

NEED_GROUP = frozenset({"arora_zanette"})
"""Length rewards that look at the other responses to the prompt."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


def _sigmoid(value: float) -> float:
    # Two forms, so that exp never overflows.
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))
