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

NeMo-RL multiplies this factor in (loss_functions.py, ClippedPGLossFn); verl and the paper's code do not.
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
) -> Tensor:
    """Return the estimate for each token.

    Args:
        logprobs: log-probs of the sampled tokens under the policy, any shape, with gradient.
        reference_logprobs: those under the reference, same shape, without gradient.
        kind: k1, k2 or k3.
        input_clamp: bound on |d|, NeMo-RL's kl_input_clamp_value; None: none. A clamped token has no
            gradient but that of the score-function factor.
        output_clamp: bound on |estimate|, NeMo-RL's kl_output_clamp_value; None: none.
        score_function: multiply by exp(log p - stop_gradient(log p)), after the clamps.

    Returns:
        A tensor of the shape of `logprobs`.

    Raises:
        ValueError: unknown kind.
    """
    if kind not in _ESTIMATES:
        raise ValueError(f"unknown KL estimator {kind!r}: use {', '.join(_ESTIMATES)}")
    d = reference_logprobs - logprobs
    if input_clamp is not None:
        d = d.clamp(-input_clamp, input_clamp)
    estimate = _ESTIMATES[kind](d)
    if output_clamp is not None:
        estimate = estimate.clamp(-output_clamp, output_clamp)
    if score_function:
        estimate = estimate * torch.exp(logprobs - logprobs.detach())
    return estimate
