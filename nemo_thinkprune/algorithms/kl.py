"""Per-token estimates of the divergence between the policy and the reference, as terms of a loss to minimise.

With x sampled from the policy p, reference q, and d = log q(x) - log p(x) (J. Schulman, "Approximating KL
divergence", 2020):

    k1 = -d                 unbiased for KL(p || q), may be negative
    k2 = d^2 / 2            biased, never negative
    k3 = exp(d) - 1 - d     unbiased, never negative (verl's low_var_kl)

All three are signed so that `loss + coefficient * estimate` with a positive coefficient pulls the policy
towards the reference.  What they do as a loss depends on the gradient, not on the value.  With s the gradient
of log p(x), plain differentiation gives

    k1:  s                  zero in expectation: noise, no pull at all
    k2: -d s                the gradient of KL(p || q), in expectation
    k3: (1 - exp(d)) s      the gradient of the other divergence KL(q || p), in expectation

because the dependence of the sampling on the policy is not differentiated.  With the score-function factor
exp(log p - stop_gradient(log p)), whose value is 1 and whose gradient is s, each gains its value times s:

    k1: (1 - d) s           the gradient of KL(p || q) plus noise
    k2: (d^2 / 2 - d) s     biased by the half square
    k3: -d s                the gradient of KL(p || q)

NeMo-RL multiplies this factor in (loss_functions.py, ClippedPGLossFn); verl and the paper's code do not.  With
use_on_policy_kl_approximation its factor is p / p_sampling, the importance weight of the sampled token.
Source of the argument: Tang and Munos, arXiv 2506.09477.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

KLType = Literal["k1", "k2", "k3"]

_ESTIMATES: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "k1": torch.neg,
        "k2": lambda d: d.square() / 2,
        # expm1 keeps the digits that exp(d) - 1 loses when policy and reference are close.
        "k3": lambda d: torch.expm1(d) - d,
    }
)


def kl_estimate(
    logprobs: Tensor,
    reference_logprobs: Tensor,
    *,
    kind: KLType = "k3",
    input_clamp: float | None = 20.0,
    output_clamp: float | None = 10.0,
    score_function: bool = False,
    sampling_logprobs: Tensor | None = None,
) -> Tensor:
    """Return the estimate for each token.

    Args:
        logprobs: log-probs of the sampled tokens under the policy, any shape, with gradient.
        reference_logprobs: those under the reference, same shape, without gradient.
        kind: k1, k2 or k3.
        input_clamp: bound on |d|, NeMo-RL's kl_input_clamp_value; None: none.
        output_clamp: bound on |estimate| (times the factor), NeMo-RL's kl_output_clamp_value; None: none.
            A token on which a clamp acts has no gradient, not even that of the factor.
        score_function: multiply by the factor exp(log p - stop_gradient(log p)).
        sampling_logprobs: multiply by the factor exp(log p - this) instead, 0 where it is not finite; those
            under the policy that sampled, same shape, without gradient.

    Returns:
        A tensor of the shape of `logprobs`.

    Raises:
        ValueError: unknown kind.
    """
    if kind not in _ESTIMATES:
        raise ValueError(f"unknown KL estimator {kind!r}: use {', '.join(_ESTIMATES)}")
    d = reference_logprobs - logprobs
    factor = _factor(logprobs, score_function, sampling_logprobs)
    if input_clamp is not None:
        bounded = d.clamp(-input_clamp, input_clamp)
        if factor is not None:
            factor = torch.where(d == bounded, factor, factor.detach())
        d = bounded
    estimate = _ESTIMATES[kind](d)
    if factor is not None:
        estimate = estimate * factor
    if output_clamp is not None:
        estimate = estimate.clamp(-output_clamp, output_clamp)
    return estimate


def _factor(logprobs: Tensor, score_function: bool, sampling_logprobs: Tensor | None) -> Tensor | None:
    """What the estimate is multiplied by; None: nothing."""
    if sampling_logprobs is not None:
        exponent = logprobs - sampling_logprobs
        finite = torch.exp(exponent.detach()).isfinite()
        # Inside and outside: the gradient of exp at an infinite weight would be NaN even where it is not taken.
        return torch.where(finite, torch.exp(torch.where(finite, exponent, 0.0)), 0.0)
    return torch.exp(logprobs - logprobs.detach()) if score_function else None
