"""Advantages against hand-worked numbers and against a plain second implementation."""

import math

import plain_objective
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_thinkprune.algorithms.advantages import (
    ESTIMATORS,
    AdvantageConfig,
    batch_whitened,
    drgrpo,
    gae,
    group_normalised,
    length_adaptive_lambda,
    response_advantages,
    rloo,
    whiten,
)

reward_rows = st.lists(st.sampled_from([0.0, 0.25, 1.0, -1.0]), min_size=3, max_size=8)


def group(correct, n=16):
    return torch.tensor([[1.0] * correct + [0.0] * (n - correct)])


# k correct of 16: p = k/16, unbiased std = sqrt(16/15 p (1-p)), A+ = (1-p)/std, A- = -p/std.
@pytest.mark.parametrize(
    ("correct", "right", "wrong"),
    [
        (1, 3.750, -0.250),
        (2, 2.562, -0.366),
        (4, 1.677, -0.559),
        (8, 0.968, -0.968),
        (12, 0.559, -1.677),
        (15, 0.250, -3.750),
    ],
)
def test_the_papers_sixteen_responses(correct, right, wrong):
    advantages = group_normalised(group(correct))[0]
    torch.testing.assert_close(advantages[:correct], torch.full((correct,), right), atol=5e-4, rtol=0)
    torch.testing.assert_close(advantages[correct:], torch.full((16 - correct,), wrong), atol=5e-4, rtol=0)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3])
@pytest.mark.parametrize("leave_one_out", [False, True])
def test_equal_rewards_give_exactly_zero(value, leave_one_out):
    # 0.1 in fp32 has a mean that differs from it by rounding; over std + 1e-6 that would be a real advantage.
    rewards = torch.full((2, 7), value)
    assert not group_normalised(rewards, use_leave_one_out_baseline=leave_one_out).any()


def test_a_single_response_has_no_advantage():
    assert not group_normalised(torch.tensor([[1.0], [0.0]])).any()
    assert not rloo(torch.tensor([[1.0], [0.0]])).any()


def test_leave_one_out_by_hand():
    # Rewards 1 1 0 0. For a right one the others are 1 0 0: mean 1/3, std sqrt(1/3); for a wrong one 1 1 0.
    advantages = group_normalised(torch.tensor([[1.0, 1, 0, 0]]), use_leave_one_out_baseline=True)[0]
    expected = (2 / 3) / math.sqrt(1 / 3)
    torch.testing.assert_close(
        advantages, torch.tensor([expected, expected, -expected, -expected]), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        rloo(torch.tensor([[1.0, 1, 0, 0]]))[0], torch.tensor([2 / 3, 2 / 3, -2 / 3, -2 / 3])
    )


def test_leave_one_out_does_not_divide_where_the_others_agree():
    advantages = group_normalised(torch.tensor([[1.0, 0, 0]]), use_leave_one_out_baseline=True)[0]
    # The right one against 0 0: 1 - 0. A wrong one against 1 0: -0.5 / sqrt(1/2).
    torch.testing.assert_close(advantages, torch.tensor([1.0, -0.70711, -0.70711]), atol=1e-4, rtol=0)
    pair = group_normalised(torch.tensor([[1.0, 0.0]]), use_leave_one_out_baseline=True)
    assert pair.tolist() == [[1.0, -1.0]]


def test_drgrpo_by_hand():
    torch.testing.assert_close(
        drgrpo(torch.tensor([[1.0, 0, 0, 0]])), torch.tensor([[0.75, -0.25, -0.25, -0.25]])
    )


def test_batch_whitening_by_hand():
    # Centred: 0.5 -0.5 | 0 0 with 1 3 | 2 2 tokens. Mean (0.5 - 1.5) / 8 = -1/8; shifted 5/8 -3/8 1/8 1/8;
    # variance (25 + 3 * 9 + 4) / 64 / 8 = 56 / 512.
    rewards, lengths = torch.tensor([[1.0, 0], [1, 1]]), torch.tensor([[1, 3], [2, 2]])
    std = math.sqrt(56 / 512)
    expected = torch.tensor([[0.625, -0.375], [0.125, 0.125]]) / std
    torch.testing.assert_close(batch_whitened(rewards, lengths), expected)
    raw = batch_whitened(rewards, lengths, minus_baseline=False)
    # Mean 5/8; deviations 3/8 -5/8 3/8 3/8; variance (5 * 9 + 3 * 25) / 64 / 8 = 120 / 512.
    torch.testing.assert_close(raw, torch.tensor([[0.375, -0.625], [0.375, 0.375]]) / math.sqrt(120 / 512))


def test_batch_whitening_of_nothing_is_zero():
    assert not batch_whitened(torch.ones(2, 3), torch.full((2, 3), 5)).any()


@settings(max_examples=60, deadline=None)
@given(reward_rows, st.booleans(), st.booleans())
def test_groups_agree_with_the_plain_implementation(row, normalize, leave_one_out):
    torch_side = group_normalised(
        torch.tensor([row, row[::-1]], dtype=torch.float64),
        normalize_rewards=normalize,
        use_leave_one_out_baseline=leave_one_out,
    )
    plain = plain_objective.group_advantages(row, normalize=normalize, leave_one_out=leave_one_out)
    torch.testing.assert_close(torch_side[0], torch.tensor(plain, dtype=torch.float64))
    torch.testing.assert_close(torch_side[1], torch.tensor(plain[::-1], dtype=torch.float64))


def test_the_registry_gives_each_estimator_and_clips():
    rewards, lengths = (
        torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0]]),
        torch.tensor([[4, 3, 2, 1], [1, 1, 1, 1]]),
    )
    expected = {
        "grpo": group_normalised(rewards),
        "drgrpo": drgrpo(rewards),
        "rloo": rloo(rewards),
        "reinforce_plus_plus": batch_whitened(rewards, lengths),
    }
    assert set(expected) == set(ESTIMATORS)
    for name, advantages in expected.items():
        assert torch.equal(response_advantages(rewards, lengths, AdvantageConfig(name=name)), advantages)
    clipped = response_advantages(
        rewards, lengths, AdvantageConfig("rloo", advantage_clip_low=-0.2, advantage_clip_high=0.5)
    )
    torch.testing.assert_close(clipped[0], torch.tensor([0.5, -0.2, -0.2, -0.2]))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [("ppo", (2, 2), "unknown advantage estimator"), ("grpo", (2, 3), r"\[G, n\]")],
)
def test_wrong_calls_are_named(name, shape, message):
    with pytest.raises(ValueError, match=message):
        response_advantages(torch.ones(2, 2), torch.ones(shape), AdvantageConfig(name))


def test_gae_by_hand():
    # gamma 0.9, lambda 0.5, V = 1 2 3, reward 1 at the end. Deltas: .8, .7, -2. A3 = -2; A2 = .7 - .9 = -.2;
    # A1 = .8 - .09 = .71.
    advantages, returns = gae(
        torch.tensor([0.0, 0, 1]), torch.tensor([1.0, 2, 3]), torch.tensor([3]), lam=0.5, gamma=0.9
    )
    torch.testing.assert_close(advantages, torch.tensor([0.71, -0.2, -2.0]))
    torch.testing.assert_close(returns, torch.tensor([1.71, 1.8, 1.0]))


def test_an_unfinished_window_bootstraps_from_its_last_value():
    values, rewards = torch.tensor([1.0, 2, 3]), torch.zeros(3)
    advantages, _ = gae(rewards, values, torch.tensor([3]), lam=1.0, finished=torch.tensor([False]))
    # gamma 1: deltas 1, 1, 0.
    torch.testing.assert_close(advantages, torch.tensor([2.0, 1.0, 0.0]))
    discounted, _ = gae(
        rewards, values, torch.tensor([3]), lam=1.0, gamma=0.9, finished=torch.tensor([False])
    )
    torch.testing.assert_close(discounted[2], torch.tensor(-0.3))  # (gamma - 1) V


def test_lambda_one_returns_are_the_rewards_to_come():
    rewards = torch.tensor([0.0, 1, 0, 2])
    _, returns = gae(rewards, torch.randn(4), torch.tensor([4]), lam=1.0)
    torch.testing.assert_close(returns, torch.tensor([3.0, 3, 2, 2]))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 2**31), st.floats(0.8, 1.0))
def test_packed_gae_agrees_with_each_response_alone(lengths, seed, gamma):
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    rewards, values = (torch.randn(total, dtype=torch.float64, generator=generator) for _ in range(2))
    lam = torch.rand(len(lengths), dtype=torch.float64, generator=generator)
    finished = torch.rand(len(lengths), generator=generator) < 0.5
    packed, _ = gae(rewards, values, torch.tensor(lengths), lam=lam, gamma=gamma, finished=finished)
    plain = [
        advantage
        for r, v, single, done in zip(
            rewards.split(lengths), values.split(lengths), lam, finished, strict=True
        )
        for advantage in plain_objective.gae(
            r.tolist(), v.tolist(), gamma=gamma, lam=single.item(), finished=bool(done)
        )
    ]
    torch.testing.assert_close(packed, torch.tensor(plain, dtype=torch.float64))


def test_gae_of_nothing_and_of_wrong_lengths():
    empty = torch.zeros(0)
    assert gae(empty, empty, torch.zeros(0, dtype=torch.int64), lam=1.0)[0].shape == (0,)
    with pytest.raises(ValueError, match="sum to 3"):
        gae(torch.zeros(2), torch.zeros(2), torch.tensor([3]), lam=1.0)


def test_length_adaptive_lambda_by_hand():
    # alpha 0.05: l = 10 gives 1 - 2 -> 0; 40 gives 0.5; 2000 gives 0.99; a billion is clamped.
    lam = length_adaptive_lambda(torch.tensor([10, 40, 2000, 10**9]))
    torch.testing.assert_close(lam, torch.tensor([0.0, 0.5, 0.99, 0.9999]))
    assert length_adaptive_lambda(torch.tensor([10]), minimum=0.95).item() == pytest.approx(0.95)
    assert length_adaptive_lambda(torch.tensor([0])).item() == 0.0


def test_whiten_by_hand():
    values, mask = torch.tensor([1.0, 3, 100]), torch.tensor([1.0, 1, 0])
    torch.testing.assert_close(whiten(values, mask), torch.tensor([-1.0, 1, 0]))
    torch.testing.assert_close(whiten(values, mask, limit=0.5), torch.tensor([-0.5, 0.5, 0]))
