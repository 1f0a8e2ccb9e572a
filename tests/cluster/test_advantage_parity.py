"""Our advantages against NeMo-RL's estimators: the same numbers, and what it takes for a group."""

import pytest
import torch
from support.nemo_rl import require_nemo_rl

from nemo_thinkprune.algorithms.advantages import AdvantageConfig, response_advantages

TOLERANCE = 1e-5  # NeMo-RL computes in float32, its std as sqrt(E[r^2] - E[r]^2)
FLAGS = [(normalise, leave_out) for normalise in (True, False) for leave_out in (True, False)]


@pytest.fixture(scope="module")
def estimate():
    """estimate(rewards [G, n], prompts [G * n, L], lengths [G, n], name=..., **flags) -> [G, n] by NeMo-RL."""
    require_nemo_rl()
    from nemo_rl.algorithms import advantage_estimator as module
    from nemo_rl.algorithms.loss import ClippedPGLossConfig

    classes = {
        "grpo": module.GRPOAdvantageEstimator,
        "reinforce_plus_plus": module.ReinforcePlusPlusAdvantageEstimator,
    }

    def run(rewards, prompts=None, lengths=None, *, name="grpo", **flags):
        settings = {"normalize_rewards": True, "use_leave_one_out_baseline": False, "minus_baseline": True}
        settings |= flags | {"name": name}
        if hasattr(module, "AdvEstimatorConfig"):  # after v0.7.0
            settings = module.AdvEstimatorConfig(**settings)
        lengths = torch.full(rewards.shape, 3) if lengths is None else lengths
        mask = (torch.arange(int(lengths.max())) < lengths.flatten()[:, None]).float()
        prompts = different_prompts(rewards) if prompts is None else prompts
        estimator = classes[name](settings, ClippedPGLossConfig())
        rows = estimator.compute_advantage(prompt_ids=prompts, rewards=rewards.flatten().float(), mask=mask)
        assert rows.shape == mask.shape and (rows == rows[:, :1]).all()  # one advantage for all its tokens
        return rows[:, 0].view(rewards.shape)

    return run


def different_prompts(rewards):
    """Token ids [G * n, 3] of G prompts that share a prefix."""
    groups = torch.arange(len(rewards)).repeat_interleave(rewards.shape[1])
    return torch.stack([torch.ones_like(groups), groups, groups % 2], 1)


def mine(rewards, lengths=None, **settings):
    lengths = torch.full(rewards.shape, 3) if lengths is None else lengths
    return response_advantages(rewards.double(), lengths, AdvantageConfig(**settings))


def difference(one, other):
    return (one.double() - other.double()).abs().max().item()


def zero_or_one(seed, groups=12, n=16):
    g = torch.Generator().manual_seed(seed)
    return (torch.rand(groups, n, generator=g) < torch.rand(groups, 1, generator=g)).float()


@pytest.mark.parametrize(("normalise", "leave_out"), FLAGS)
@pytest.mark.parametrize("n", [2, 3, 5, 16])
def test_group_advantages_are_nemo_rls(estimate, normalise, leave_out, n):
    flags = {"normalize_rewards": normalise, "use_leave_one_out_baseline": leave_out}
    for seed in range(5):
        rewards = zero_or_one(seed, n=n)
        assert difference(estimate(rewards, **flags), mine(rewards, **flags)) < TOLERANCE


@pytest.mark.parametrize("n", range(2, 17))
def test_every_share_of_correct_responses(estimate, n):
    # 0 .. n correct of n: the default estimator on all that ThinkPrune's reward can give.
    rewards = (torch.arange(n) < torch.arange(n + 1)[:, None]).float()
    theirs = estimate(rewards)
    assert difference(theirs, mine(rewards)) < TOLERANCE
    assert not theirs[0].any() and not theirs[-1].any()  # std 0: exactly 0, not divided


def test_shaped_rewards(estimate):
    g = torch.Generator().manual_seed(0)
    rewards = torch.rand(12, 16, generator=g, dtype=torch.float64).float()
    for normalise, leave_out in FLAGS:
        flags = {"normalize_rewards": normalise, "use_leave_one_out_baseline": leave_out}
        assert difference(estimate(rewards, **flags), mine(rewards, **flags)) < 1e-4


def test_a_standard_deviation_of_zero(estimate):
    # One right among wrong ones, left out of its own baseline: the others' std is 0, nothing is divided.
    rewards = torch.tensor([[1.0, 0, 0, 0]])
    expected = torch.tensor([[1.0, -1 / 3 / (3**-0.5 + 1e-6), -0.57735, -0.57735]])
    for advantages in (
        estimate(rewards, use_leave_one_out_baseline=True),
        mine(rewards, use_leave_one_out_baseline=True),
    ):
        torch.testing.assert_close(advantages.float(), expected, atol=1e-5, rtol=0)
    # Left out of two, the std of a single reward is not a number: not divided either.
    pair = torch.tensor([[1.0, 0.0]])
    for advantages in (
        estimate(pair, use_leave_one_out_baseline=True),
        mine(pair, use_leave_one_out_baseline=True),
    ):
        assert advantages.tolist() == [[1, -1]]


def test_equal_rewards_that_are_not_whole_numbers(estimate):
    # Ours are exactly 0. NeMo-RL divides a rounding error by a rounding error: harmless, yet not 0.
    rewards = torch.stack([torch.full((16,), value) for value in (0.1, 0.3, 0.7, 1 / 3, 0.9)])
    assert not mine(rewards).any()
    assert estimate(rewards).abs().max() < 5e-3


def test_leave_one_out_on_shaped_rewards_blows_up_in_nemo_rl(estimate):
    # The others earn 0.01 .. 0.99 alike: the std of float32 rounding divides a real difference.
    rewards = torch.linspace(0.01, 0.99, 99)[:, None].expand(-1, 8).clone()
    rewards[:, 0] = 1.0
    assert mine(rewards, use_leave_one_out_baseline=True)[:, 0].abs().max() < 1
    assert estimate(rewards, use_leave_one_out_baseline=True)[:, 0].abs().max() > 1000


def test_a_prompt_that_comes_twice_is_one_group_in_nemo_rl(estimate):
    rewards = torch.tensor([[1.0, 1, 1, 0], [0.0, 0, 0, 1], [1.0, 0, 0, 1]])
    prompts = different_prompts(rewards)
    prompts[4:8] = prompts[:4]
    theirs = estimate(rewards, prompts)
    pooled = torch.cat([mine(rewards[:2].view(1, 8)).view(2, 4), mine(rewards[2:])])
    assert difference(theirs, pooled) < TOLERANCE
    assert difference(theirs, mine(rewards)) > 0.3


@pytest.mark.parametrize("minus_baseline", [True, False])
def test_whitening_over_the_batch_is_nemo_rls(estimate, minus_baseline):
    flags = {"name": "reinforce_plus_plus", "minus_baseline": minus_baseline}
    for seed in range(5):
        rewards = zero_or_one(seed)
        lengths = torch.randint(1, 40, rewards.shape, generator=torch.Generator().manual_seed(seed))
        theirs = estimate(rewards, lengths=lengths, **flags)
        assert difference(theirs, mine(rewards, lengths, **flags)) < TOLERANCE
