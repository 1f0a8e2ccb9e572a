"""Length rewards against numbers worked out by hand."""

import math

import pytest

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.rewards.length_rewards import LENGTH_REWARDS, group_rewards, length_reward

CORRECT = [True, True, False, True]
LENGTHS = [100, 300, 900, 200]
FINISHED = [True, True, True, True]


def rewards(name, params, *, correct=CORRECT, lengths=LENGTHS, finished=FINISHED):
    return group_rewards(length_reward(name, params), correct=correct, lengths=lengths, finished=finished)


def test_none_is_correctness():
    assert rewards("none", {}) == [1.0, 1.0, 0.0, 1.0]


def test_arora_zanette():
    # Correct lengths 100, 300, 200: mean 200, population standard deviation sqrt(20000 / 3) = 81.6497, so that
    # z = -1.224745, +1.224745, 0 and sigmoid(1.224745) = 0.772898.
    expected = [1 - 0.4 * 0.227102, 1 - 0.4 * 0.772898, 0.0, 1 - 0.4 * 0.5]
    assert rewards("arora_zanette", {"alpha": 0.4}) == pytest.approx(expected, abs=1e-6)


def test_arora_zanette_of_one_correct_response_is_half_the_penalty():
    assert rewards("arora_zanette", {"alpha": 0.2}, correct=[False, True, False, False]) == [
        0.0,
        0.9,
        0.0,
        0.0,
    ]


def test_arora_zanette_of_an_unfinished_response_is_zero():
    assert rewards("arora_zanette", {}, finished=[False, True, True, True])[0] == 0.0


def test_arora_zanette_of_equal_and_of_far_lengths_stays_finite():
    assert rewards("arora_zanette", {"alpha": 0.5}, lengths=[7] * 4)[0] == 0.75
    far = rewards(
        "arora_zanette", {"alpha": 0.5}, correct=[True] * 2, lengths=[1, 10**9], finished=[True] * 2
    )
    assert all(math.isfinite(value) for value in far)
    assert far[0] > far[1]


def test_l1_exact():
    # 1 - 0.0003 * |200 - 100| = 0.97; the wrong one, 700 too long, is at -0.21.
    assert rewards("l1_exact", {"target": 200}) == pytest.approx([0.97, 0.97, -0.21, 1.0])


def test_l1_max():
    # 0.0003 * (200 - L) + 0.5: 0.53 at 100 tokens, 0.47 at 300, 0.5 at 200; clipped at 0 and 1.
    assert rewards("l1_max", {"target": 200}) == pytest.approx([0.53, 0.47, 0.0, 0.5])
    assert rewards("l1_max", {"target": 200, "alpha": 0.1}) == pytest.approx([1.0, 0.0, 0.0, 0.5])


def test_dapo_overlong():
    # max 1000, buffer 200: nothing up to 800, -0.5 at 900, -1 at 1000.
    params = {"max_length": 1000, "buffer": 200}
    assert rewards("dapo_overlong", params) == pytest.approx([1.0, 1.0, -1.5, 1.0])
    assert rewards("dapo_overlong", params, lengths=[800, 801, 1000, 900]) == pytest.approx(
        [1.0, 0.995, -2.0, 0.5]
    )


def test_dapo_overlong_on_zero_one_rewards():
    params = {"max_length": 1000, "buffer": 500, "penalty": 2.0, "wrong_reward": 0.0}
    assert rewards("dapo_overlong", params, lengths=[750, 0, 1000, 500]) == pytest.approx(
        [0.0, 1.0, -2.0, 1.0]
    )


def test_every_registered_reward_takes_its_defaults():
    needed = {
        "l1_exact": {"target": 100},
        "l1_max": {"target": 100},
        "dapo_overlong": {"max_length": 9, "buffer": 3},
    }
    for name in LENGTH_REWARDS:
        assert len(rewards(name, needed.get(name, {}))) == 4


@pytest.mark.parametrize(
    ("name", "params", "says"),
    [
        ("arora", {}, "arora_zanette"),
        ("l1_max", {}, "missing 'target'"),
        ("l1_max", {"target": 5, "alhpa": 1}, "unknown 'alhpa'"),
        ("l1_max", {"target": "5"}, "must be a number"),
        ("none", {"alpha": 1}, "no parameters"),
        ("arora_zanette", {"alpha": 1.5}, r"\[0, 1\)"),
        ("dapo_overlong", {"max_length": 5, "buffer": 6}, "buffer <= max_length"),
    ],
)
def test_mistakes_are_named(name, params, says):
    with pytest.raises(UserError, match=says):
        length_reward(name, params)
