"""Log-probabilities of given tokens, vocabulary-parallel and in chunks.

The logits of all positions never exist at once: each chunk of positions is projected, reduced over the tensor
parallel group to its log-sum-exp, and dropped; backward projects it again.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_thinkprune.policy.cpu_linear import multiply


class _ChunkedLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        vocab_start: int,
        inverse_temperature: float,
        chunk: int,
        group: dist.ProcessGroup,
    ) -> tuple[Tensor, Tensor]:
        logprobs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        entropy = torch.empty_like(logprobs)
        lse = torch.empty_like(logprobs)
        for part in _chunks(len(targets), chunk):
            logits = multiply(hidden[part], weight).float() * inverse_temperature
            lse[part], mean_logit = _log_sum_exp(logits, group)
            logprobs[part] = _target_logits(logits, targets[part] - vocab_start, group) - lse[part]
            entropy[part] = lse[part] - mean_logit
        ctx.save_for_backward(hidden, weight, targets, lse)
        ctx.vocab_start, ctx.inverse_temperature, ctx.chunk = vocab_start, inverse_temperature, chunk
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, grad_logprobs: Tensor, _: Tensor) -> tuple:
        hidden, weight, targets, lse = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        for part in _chunks(len(targets), ctx.chunk):
            logits = multiply(hidden[part], weight).float() * ctx.inverse_temperature
            # d logp / d logit = onehot(target) - softmax
            grad = torch.exp(logits - lse[part, None]).mul_(-grad_logprobs[part, None])
            local = targets[part] - ctx.vocab_start
            row = torch.nonzero((local >= 0) & (local < len(weight))).squeeze(1)
            grad[row, local[row]] += grad_logprobs[part][row]
            grad = grad.mul_(ctx.inverse_temperature).to(hidden.dtype)
            grad_hidden[part] = multiply(grad, weight.T)
            grad_weight += (grad.T @ hidden[part]).float()
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None, None, None


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    vocab_size: int,
    tp_rank: int,
    tp_group: dist.ProcessGroup,
    temperature: float = 1.0,
    chunk: int = 1024,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of its distribution, softmax over the true vocabulary.

    Args:
        hidden: [r, hidden] states that predict the targets; the same on every tensor parallel rank.
        weight: [padded vocabulary / TP, hidden], this rank's rows of the output projection.
        targets: [r] int64 token ids.
        vocab_size: Tokens that exist; rows of padding beyond it take no part.
        temperature: Divides the logits, as in sampling.
        chunk: Positions whose logits exist at one time.

    Returns:
        (log-probs [r] fp32, differentiable; entropies [r] fp32, not differentiable), in nats.
    """
    vocab_start = tp_rank * len(weight)
    weight = weight[: max(0, min(len(weight), vocab_size - vocab_start))]
    return _ChunkedLogProbs.apply(hidden, weight, targets, vocab_start, 1.0 / temperature, chunk, tp_group)


def _chunks(total: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def _log_sum_exp(logits: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """Over the whole vocabulary: log-sum-exp [c] and the mean logit under the softmax [c]."""
    peak = logits.amax(dim=1) if logits.size(1) else logits.new_full((len(logits),), -torch.inf)
    _all_reduce(peak, group, dist.ReduceOp.MAX)
    weights = torch.exp(logits - peak[:, None])
    sums = torch.stack([weights.sum(1), (weights * logits).sum(1)])
    _all_reduce(sums, group, dist.ReduceOp.SUM)
    return peak + sums[0].log(), sums[1] / sums[0]


def _target_logits(logits: Tensor, local: Tensor, group: dist.ProcessGroup) -> Tensor:
    inside = (local >= 0) & (local < logits.size(1))
    picked = logits.new_zeros(len(logits))
    rows = torch.nonzero(inside).squeeze(1)
    picked[rows] = logits[rows, local[rows]]
    _all_reduce(picked, group, dist.ReduceOp.SUM)
    return picked


def _all_reduce(tensor: Tensor, group: dist.ProcessGroup, op: Any) -> None:
    if group.size() > 1:
        dist.all_reduce(tensor, op=op, group=group)
