"""Advantages: what a response earned, compared with the others to its prompt or with a value function.

Response-level estimators take rewards [G, n] (G prompts, n responses each) and give one advantage per
response, which all its tokens share.  They are listed in `ESTIMATORS` by name; a new algorithm adds a
function there. Token-level estimation with a value function is `gae`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

EPSILON = 1e-6


@dataclass(frozen=True, slots=True)
class AdvantageConfig:
    """Which estimator and how, under NeMo-RL's key names (grpo.adv_estimator, grpo.advantage_clip_*)."""

    name: str = "grpo"
    normalize_rewards: bool = True
    use_leave_one_out_baseline: bool = False
    minus_baseline: bool = True
    advantage_clip_low: float | None = None
    advantage_clip_high: float | None = None


def response_advantages(rewards: Tensor, lengths: Tensor, config: AdvantageConfig) -> Tensor:
    """Return the advantage of each response by the configured estimator, clipped as configured.

    Args:
        rewards: [G, n] float, a row per prompt.
        lengths: [G, n] tokens of each response; only batch-whitening reads it.
        config: the estimator's name in `ESTIMATORS` and its settings.

    Returns:
        [G, n] in the dtype of `rewards`.

    Raises:
        ValueError: unknown estimator, or shapes that are not [G, n].
    """
    if rewards.dim() != 2 or rewards.shape != lengths.shape:
        raise ValueError(
            f"rewards and lengths must both be [G, n], got {list(rewards.shape)}, {list(lengths.shape)}"
        )
    if config.name not in ESTIMATORS:
        raise ValueError(f"unknown advantage estimator {config.name!r}: use one of {', '.join(ESTIMATORS)}")
    advantages = ESTIMATORS[config.name](rewards, lengths, config)
    if config.advantage_clip_low is None and config.advantage_clip_high is None:
        return advantages
    return advantages.clamp(config.advantage_clip_low, config.advantage_clip_high)


def group_normalised(
    rewards: Tensor, *, normalize_rewards: bool = True, use_leave_one_out_baseline: bool = False
) -> Tensor:
    """GRPO (arXiv 2402.03300): A = (r - mean) / (std + 1e-6), mean and unbiased std over the group.

    A group of equal rewards, or of one response, gets exactly 0.  With the leave-one-out baseline the mean
    and the std of a response are those of the other n - 1, as in NeMo-RL; where these are all equal the
    difference is not divided (one right among wrong ones gets A = 1), and a group of two is never divided.

    Args:
        rewards: [G, n] float.
        normalize_rewards: divide by the std; False gives Dr.GRPO.
        use_leave_one_out_baseline: leave each response out of its own baseline; undivided this is RLOO.

    Returns:
        [G, n].
    """
    n = rewards.shape[-1]
    constant = rewards.amax(-1, keepdim=True) == rewards.amin(-1, keepdim=True)
    if use_leave_one_out_baseline:
        baseline, std = _others(rewards)
    else:
        baseline = rewards.mean(-1, keepdim=True)
        std = rewards.std(-1, keepdim=True, unbiased=True) if n > 1 else torch.zeros_like(baseline)
    advantages = rewards - baseline
    if normalize_rewards:
        advantages = torch.where(std > 0, advantages / (std + EPSILON), advantages)
    # Rounding would leave a tiny mean difference, which the tiny std would then blow up.
    return advantages.masked_fill(constant, 0.0)


def drgrpo(rewards: Tensor) -> Tensor:
    """Dr.GRPO (arXiv 2503.20783): A = r - mean of the group, no division.  [G, n] -> [G, n]."""
    return group_normalised(rewards, normalize_rewards=False)


def rloo(rewards: Tensor) -> Tensor:
    """RLOO (arXiv 2402.14740): A = r - mean of the other responses.  [G, n] -> [G, n]."""
    return group_normalised(rewards, normalize_rewards=False, use_leave_one_out_baseline=True)


def batch_whitened(rewards: Tensor, lengths: Tensor, *, minus_baseline: bool = True) -> Tensor:
    """REINFORCE++ with baseline, as in DLER (arXiv 2510.15110): r - mean of the group, then whitened.

    Mean and (biased) variance are taken over all response tokens of the batch, so long responses weigh more.

    Args:
        rewards: [G, n] float.
        lengths: [G, n] tokens of each response.
        minus_baseline: subtract the mean of the group first.

    Returns:
        [G, n]; 0 everywhere when nothing varies.
    """
    centred = drgrpo(rewards) if minus_baseline else rewards
    weights = lengths.to(rewards.dtype)
    total = weights.sum().clamp_min(1)
    centred = centred - (centred * weights).sum() / total
    variance = (centred.square() * weights).sum() / total
    return centred * variance.clamp_min(1e-8).rsqrt()


ESTIMATORS: Mapping[str, Callable[[Tensor, Tensor, AdvantageConfig], Tensor]] = MappingProxyType(
    {
        "grpo": lambda rewards, lengths, config: group_normalised(
            rewards,
            normalize_rewards=config.normalize_rewards,
            use_leave_one_out_baseline=config.use_leave_one_out_baseline,
        ),
        "drgrpo": lambda rewards, lengths, config: drgrpo(rewards),
        "rloo": lambda rewards, lengths, config: rloo(rewards),
        "reinforce_plus_plus": lambda rewards, lengths, config: batch_whitened(
            rewards, lengths, minus_baseline=config.minus_baseline
        ),
    }
)


def gae(
    rewards: Tensor,
    values: Tensor,
    lengths: Tensor,
    *,
    lam: float | Tensor,
    gamma: float = 1.0,
    finished: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (arXiv 1506.02438) over packed responses.

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lam A_{t+1}, each response for itself. After
    the last token of a finished response V is 0. For an unfinished one it is V at the last token, whose delta
    thus is r + (gamma - 1) V: a window of a response can be trained (EGAE of T-PPO, arXiv 2506.15050).

    Args:
        rewards: [T] float, the reward of each token, responses end to end.
        values: [T] float, V before each token, without gradient.
        lengths: [S] int64, tokens of each response; they must sum to T (ValueError).
        lam: one lambda, or [S] one for each response (see `length_adaptive_lambda`).
        gamma: discount.
        finished: [S] bool; None: all are.

    Returns:
        Advantages [T] and returns [T] = advantages + values, the targets of a value function.
    """
    total = int(lengths.sum())
    if total != len(rewards) or rewards.shape != values.shape:
        raise ValueError(f"lengths sum to {total}; rewards are {len(rewards)}, values {len(values)} tokens")
    if not len(rewards):
        return torch.zeros_like(rewards), torch.zeros_like(rewards)
    present = torch.arange(int(lengths.max()), device=rewards.device) < lengths[:, None]
    padded_rewards = rewards.new_zeros(present.shape).masked_scatter(present, rewards)
    padded_values = rewards.new_zeros(present.shape).masked_scatter(present, values)
    last = padded_values.gather(1, (lengths - 1).clamp_min(0)[:, None]).squeeze(1)
    after_last = torch.zeros_like(last) if finished is None else last.masked_fill(finished, 0.0)
    decay = gamma * torch.as_tensor(lam, dtype=rewards.dtype, device=rewards.device).expand(len(lengths))
    padded = _gae_backwards(padded_rewards, padded_values, present, after_last, decay=decay, gamma=gamma)
    advantages = padded[present]
    return advantages, advantages + values


def _gae_backwards(
    rewards: Tensor, values: Tensor, present: Tensor, after_last: Tensor, *, decay: Tensor, gamma: float
) -> Tensor:
    """Advantages [S, L] of padded responses; `present` [S, L] tells tokens from padding, the rest is [S]."""
    advantages = torch.zeros_like(rewards)
    next_advantage, next_value = torch.zeros_like(after_last), after_last
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantages[:, t] = delta + decay * next_advantage
        # Before a response's end is reached, the state that follows its last token is carried along.
        next_advantage = torch.where(present[:, t], advantages[:, t], next_advantage)
        next_value = torch.where(present[:, t], values[:, t], next_value)
    return advantages


def length_adaptive_lambda(
    lengths: Tensor, *, alpha: float = 0.05, minimum: float = 0.0, maximum: float = 0.9999
) -> Tensor:
    """VAPO (arXiv 2504.05118): lambda = 1 - 1 / (alpha l), clamped, since it is below 0 for alpha l < 1.

    Args:
        lengths: [S] tokens of each response (T-PPO adds half a window to unfinished ones).
        alpha: 0.05 in VAPO.
        minimum: lower clamp; T-PPO's code takes 0.95.
        maximum: upper clamp.

    Returns:
        [S] float32, or float64 for float64 lengths.
    """
    floating = lengths if lengths.is_floating_point() else lengths.float()
    return (1 - 1 / (alpha * floating).clamp_min(EPSILON)).clamp(minimum, maximum)


def whiten(advantages: Tensor, mask: Tensor, *, limit: float | None = None) -> Tensor:
    """Shift and scale advantages [T] to mean 0 and variance 1 over `mask` [T], 0 or 1; clamp to +-limit.

    Tokens outside the mask get 0.
    """
    total = mask.sum().clamp_min(1)
    centred = (advantages - (advantages * mask).sum() / total) * mask
    scaled = centred * (centred.square().sum() / total).clamp_min(1e-8).rsqrt()
    return scaled if limit is None else scaled.clamp(-limit, limit)


def _others(rewards: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased std of the other n - 1 rewards; std 0 where they are equal or fewer than two."""
    n = rewards.shape[-1]
    if n == 1:
        return rewards, torch.zeros_like(rewards)
    repeated = rewards.unsqueeze(-2).expand(*rewards.shape, n)
    keep = ~torch.eye(n, dtype=torch.bool, device=rewards.device)
    others = repeated[:, keep].view(-1, n, n - 1)
    mean = others.mean(-1)
    if n == 2:
        return mean, torch.zeros_like(mean)
    equal = others.amax(-1) == others.amin(-1)
    return mean, others.std(-1, unbiased=True).masked_fill(equal, 0.0)
