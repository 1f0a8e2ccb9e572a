"""The clipped policy-gradient loss on packed tokens, written so that its parts sum up exactly.

A step is split into micro-batches and over data-parallel ranks.  Each part is given the totals of the whole
step and divides by them, so the parts, and their gradients, are added and never averaged: how a step is split
changes nothing but rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_thinkprune.algorithms.kl import KLType, kl_estimate


@dataclass(frozen=True, slots=True)
class LossConfig:
    """The objective, under NeMo-RL's loss_fn key names; the last two fields are ours.

    Attributes:
        ratio_clip_min: ratios below 1 - this are clipped (arXiv 1707.06347).
        ratio_clip_max: ratios above 1 + this are clipped; DAPO takes it larger (arXiv 2503.14476).
        ratio_clip_c: dual clip, above 1: for A < 0 the loss is at most -c A (arXiv 1912.09729); None: none.
        force_on_policy_ratio: take the ratio as 1 with the gradient of log p; needs one update per rollout.
        disable_ppo_ratio: REINFORCE: -A log p, without ratio and clip.
        token_level_loss: mean over the step's tokens; False: mean over its responses of their token means.
        reference_policy_kl_penalty: coefficient of the KL term; positive pulls towards the reference.
        reference_policy_kl_type: estimator of the KL term.
        kl_input_clamp_value: see `kl_estimate`.
        kl_output_clamp_value: see `kl_estimate`.
        positive_example_nll_weight: coefficient of VAPO's NLL on correct responses (arXiv 2504.05118).
        kl_score_function: see `kl_estimate`; True is NeMo-RL's gradient, False the plain one of verl.
        constant_normaliser: Dr.GRPO (arXiv 2503.20783): mean over the responses of their token sums over this
            constant (the response limit); overrides token_level_loss.  None: not used.
    """

    ratio_clip_min: float = 0.2
    ratio_clip_max: float = 0.2
    ratio_clip_c: float | None = None
    force_on_policy_ratio: bool = False
    disable_ppo_ratio: bool = False
    token_level_loss: bool = True
    reference_policy_kl_penalty: float = 0.001
    reference_policy_kl_type: KLType = "k3"
    kl_input_clamp_value: float | None = 20.0
    kl_output_clamp_value: float | None = 10.0
    positive_example_nll_weight: float = 0.0
    kl_score_function: bool = True
    constant_normaliser: float | None = None

    def __post_init__(self) -> None:
        if self.ratio_clip_c is not None and self.ratio_clip_c <= 1:
            raise ValueError(f"ratio_clip_c must be above 1, got {self.ratio_clip_c}")
        if self.constant_normaliser is not None and self.constant_normaliser <= 0:
            raise ValueError(f"constant_normaliser must be positive, got {self.constant_normaliser}")


@dataclass(frozen=True, slots=True)
class StepTotals:
    """Totals over the whole step: all micro-batches of all data-parallel ranks.

    Attributes:
        tokens: response tokens in the loss (mask 1).
        sequences: responses, also those without a token in the loss.
        positive_tokens: tokens in the loss of correct responses; only the NLL term needs it.
    """

    tokens: int
    sequences: int
    positive_tokens: int = 0


@dataclass(frozen=True, slots=True)
class PackedTokens:
    """One part of the step: responses end to end, T tokens in all; no response is split over parts.

    Attributes:
        logprobs: [T] float log-probs of the tokens under the policy, with gradient.
        advantages: [T] float.
        mask: [T] 1 where the token counts, else 0; what stands at masked tokens never matters, NaN included.
        sequence_ids: [T] int64, equal within a response, 0 .. number of responses of the part - 1.
        old_logprobs: [T] under the policy that sampled; None only where no ratio is taken.
        reference_logprobs: [T] under the reference; None only with a KL coefficient of 0.
        positive: [T] bool, token of a correct response; None only with an NLL weight of 0.
        entropies: [T] float, passed through to the sums; None: left out.
    """

    logprobs: Tensor
    advantages: Tensor
    mask: Tensor
    sequence_ids: Tensor
    old_logprobs: Tensor | None = None
    reference_logprobs: Tensor | None = None
    positive: Tensor | None = None
    entropies: Tensor | None = None


@dataclass(frozen=True, slots=True)
class LossOutput:
    """The part's share of the loss and what to report.

    Attributes:
        loss: scalar with gradient, already divided by the totals of the step.
        sums: scalars without gradient to add over the parts.  policy_loss, kl_loss and nll_loss then are the
            terms of the step's loss; tokens, kl, ratio, clipped, dual_clipped and entropy are sums over
            tokens, to be divided by tokens.
        maxima: scalars of which the maximum over the parts is to be taken: ratio.
    """

    loss: Tensor
    sums: dict[str, Tensor]
    maxima: dict[str, Tensor]


def policy_loss(batch: PackedTokens, totals: StepTotals, config: LossConfig) -> LossOutput:
    """Return this part's share of the clipped policy-gradient loss with its KL and NLL terms.

    Per token, with the ratio u = p / p_old: max(-A u, -A clip(u, 1 - min, 1 + max)), for A < 0 at most -c A,
    plus coefficient times KL, weighted by `token_weights` and summed.

    Raises:
        ValueError: when a tensor that the configuration needs is None, or totals are not positive.
    """
    keep = batch.mask.bool()
    logprobs = torch.where(keep, batch.logprobs, 0.0)
    advantages = torch.where(keep, batch.advantages, 0.0)
    weights = token_weights(keep.to(logprobs.dtype), batch.sequence_ids, totals, config)
    surrogate, sums, maxima = _clipped_surrogate(logprobs, advantages, keep, batch.old_logprobs, config)
    policy_term = (surrogate * weights).sum()
    loss = policy_term
    sums["policy_loss"] = policy_term.detach()
    if config.reference_policy_kl_penalty != 0:
        kl = _kl(logprobs, keep, batch.reference_logprobs, config)
        kl_term = config.reference_policy_kl_penalty * (kl * weights).sum()
        loss = loss + kl_term
        sums["kl"], sums["kl_loss"] = kl.detach().sum(), kl_term.detach()
    if config.positive_example_nll_weight != 0:
        nll = _positive_nll(logprobs, keep, batch.positive, totals)
        nll_term = config.positive_example_nll_weight * nll
        loss = loss + nll_term
        sums["nll_loss"] = nll_term.detach()
    if batch.entropies is not None:
        sums["entropy"] = torch.where(keep, batch.entropies, 0.0).detach().sum()
    sums["tokens"] = keep.sum().to(logprobs.dtype)
    return LossOutput(loss, sums, maxima)


def token_weights(mask: Tensor, sequence_ids: Tensor, totals: StepTotals, config: LossConfig) -> Tensor:
    """Return each token's weight [T] in the step's loss; over a whole step the weights of a mean sum to 1.

    Token mean: 1 / tokens.  Sequence mean: 1 / (sequences x tokens of its response).  Constant: 1 /
    (sequences x constant).
    """
    if totals.tokens < 1 or totals.sequences < 1:
        raise ValueError(f"a step without tokens has no mean: {totals}")
    kept = mask if mask.is_floating_point() else mask.float()
    if config.constant_normaliser is not None:
        return kept / (totals.sequences * config.constant_normaliser)
    if config.token_level_loss:
        return kept / totals.tokens
    size = int(sequence_ids.max()) + 1 if len(sequence_ids) else 0
    counts = kept.new_zeros(size).index_add(0, sequence_ids, kept)
    return kept / (counts.clamp_min(1)[sequence_ids] * totals.sequences)


def masked_nll(logprobs: Tensor, mask: Tensor, total_tokens: int) -> Tensor:
    """Supervised loss: negative log-probs [T] under the mask [T] over `total_tokens` of the whole step.

    Raises:
        ValueError: when `total_tokens` is not positive.
    """
    if total_tokens < 1:
        raise ValueError("a step without tokens has no mean")
    return -torch.where(mask.bool(), logprobs, 0.0).sum() / total_tokens


def _clipped_surrogate(
    logprobs: Tensor, advantages: Tensor, keep: Tensor, old_logprobs: Tensor | None, config: LossConfig
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Return the per-token surrogate [T], the sums and the maxima of its ratios."""
    if config.disable_ppo_ratio:
        return -advantages * logprobs, {}, {}
    if config.force_on_policy_ratio:
        old = logprobs.detach()
    elif old_logprobs is None:
        raise ValueError("old_logprobs are needed unless force_on_policy_ratio or disable_ppo_ratio is set")
    else:
        old = torch.where(keep, old_logprobs, 0.0)
    ratio = torch.exp(logprobs - old)
    unclipped = -advantages * ratio
    bounded = -advantages * ratio.clamp(1 - config.ratio_clip_min, 1 + config.ratio_clip_max)
    surrogate = torch.maximum(unclipped, bounded)
    clipped = bounded > unclipped
    dual = torch.zeros_like(clipped)
    if config.ratio_clip_c is not None:
        ceiling = -advantages * config.ratio_clip_c
        dual = (advantages < 0) & (surrogate > ceiling)
        surrogate = torch.where(dual, ceiling, surrogate)
    kept_ratio = torch.where(keep, ratio.detach(), 0.0)
    sums = {
        "ratio": kept_ratio.sum(),
        "clipped": clipped.sum().to(ratio.dtype),
        "dual_clipped": dual.sum().to(ratio.dtype),
    }
    return surrogate, sums, {"ratio": kept_ratio.max() if len(kept_ratio) else kept_ratio.sum()}


def _kl(logprobs: Tensor, keep: Tensor, reference_logprobs: Tensor | None, config: LossConfig) -> Tensor:
    """Return the KL estimate [T], 0 at masked tokens."""
    if reference_logprobs is None:
        raise ValueError("reference_logprobs are needed when reference_policy_kl_penalty is not 0")
    return kl_estimate(
        logprobs,
        torch.where(keep, reference_logprobs, 0.0),
        kind=config.reference_policy_kl_type,
        input_clamp=config.kl_input_clamp_value,
        output_clamp=config.kl_output_clamp_value,
        score_function=config.kl_score_function,
    )


def _positive_nll(logprobs: Tensor, keep: Tensor, positive: Tensor | None, totals: StepTotals) -> Tensor:
    """Return VAPO's likelihood term: token mean of -log p over all correct responses of the step."""
    if positive is None:
        raise ValueError("positive is needed when positive_example_nll_weight is not 0")
    return masked_nll(logprobs, keep & positive.bool(), max(totals.positive_tokens, 1))
