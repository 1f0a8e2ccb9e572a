"""Importance ratios of whole responses, and weights that undo the sampler's own numerics or staleness.

Everything works on packed tokens: responses end to end, `sequence_ids` [T] int64 counting them 0, 1, 2, ...
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

TruncationType = Literal["tis", "icepop", "seq-mask-tis"]


def response_sums(values: Tensor, sequence_ids: Tensor) -> Tensor:
    """Sum of the values [T] of each response: [S] for S responses, differentiable."""
    lengths = torch.bincount(sequence_ids)
    if not len(lengths):
        return values.new_zeros(0)
    # A padded sum, unlike index_add, adds up in the same order on every run on a GPU.
    present = torch.arange(int(lengths.max()), device=values.device) < lengths[:, None]
    return values.new_zeros(present.shape).masked_scatter(present, values).sum(-1)


def response_means(values: Tensor, keep: Tensor, sequence_ids: Tensor) -> Tensor:
    """Mean of the values [T] over the kept tokens of each response, at each of its tokens: [T].

    A response without a kept token has mean 0.
    """
    kept = torch.where(keep, values, 0.0)
    counts = response_sums(keep.to(values.dtype), sequence_ids).clamp_min(1)
    return (response_sums(kept, sequence_ids) / counts)[sequence_ids]


def sampler_weights(
    old_logprobs: Tensor,
    sampling_logprobs: Tensor,
    keep: Tensor,
    sequence_ids: Tensor,
    *,
    by_response: bool = False,
    truncation: TruncationType | None = None,
    upper: float | None = None,
    lower: float | None = None,
) -> Tensor:
    """Weights p_old / p_sampling [T] of the surrogate's tokens, without gradient, as NeMo-RL has them.

    Args:
        old_logprobs: [T] of the policy before the update, by the trainer.
        sampling_logprobs: [T] of the policy that sampled, by the sampler.
        keep: [T] bool; what stands elsewhere never matters.
        sequence_ids: [T] int64.
        by_response: one weight for a response, the product over its tokens (GSPO).
        truncation: "tis" clamps the weights to [lower or 0, upper]; "icepop" sets those outside [lower, upper]
            to 0; "seq-mask-tis" sets those of a response to 0 whose geometric mean is outside; None: nothing.
        upper: see `truncation`.
        lower: see `truncation`.

    Returns:
        [T]; 0 for a weight that is not finite.
    """
    gap = torch.where(keep, old_logprobs - sampling_logprobs, 0.0).detach()
    exponents = response_sums(gap, sequence_ids)[sequence_ids] if by_response else gap
    weights = torch.exp(exponents).nan_to_num(nan=0.0, posinf=0.0)
    if truncation is None:
        return weights
    low, high = (0.0 if lower is None else lower), (torch.inf if upper is None else upper)
    if truncation == "tis":
        return weights.clamp(low, high)
    judged = weights
    if truncation == "seq-mask-tis":
        judged = torch.exp(response_means(gap.nan_to_num(posinf=0.0, neginf=0.0), keep, sequence_ids))
    outside = (judged < low) | (judged > high)
    return weights.masked_fill(outside, 0.0)
