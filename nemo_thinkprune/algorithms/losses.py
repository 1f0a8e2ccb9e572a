"""The clipped policy-gradient loss on packed tokens, written so that its parts sum up exactly.

A step is split into micro-batches and over data-parallel ranks.  Each part is given the totals of the whole
step and divides by them, so the parts, and their gradients, are added and never averaged: how a step is split
changes nothing but rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_thinkprune.algorithms.importance import (
    TruncationType,
    response_means,
    response_sums,
    sampler_weights,
)
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
        sequence_level_importance_ratios: GSPO (arXiv 2507.18071): one ratio for a response, exp(mean over its
            tokens of log p - log p_old); needs token_level_loss False.
        use_cispo: CISPO (arXiv 2506.13585): -A stop_gradient(clip(ratio)) log p; needs ratios of tokens, the
            token mean and no dual clip.
        token_level_loss: mean over the step's tokens; False: mean over its responses of their token means.
        use_importance_sampling_correction: weigh the surrogate's tokens by `sampler_weights`.
        truncated_importance_sampling_type: `truncation` there; needs the upper bound, and all but "tis" a lower.
        truncated_importance_sampling_ratio: `upper` there.
        truncated_importance_sampling_ratio_min: `lower` there.
        reference_policy_kl_penalty: coefficient of the KL term; positive pulls towards the reference.
        reference_policy_kl_type: estimator of the KL term.
        kl_input_clamp_value: see `kl_estimate`.
        kl_output_clamp_value: see `kl_estimate`.
        use_on_policy_kl_approximation: weigh the KL estimates by p / p_sampling, see `kl_estimate`.
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
    sequence_level_importance_ratios: bool = False
    use_cispo: bool = False
    token_level_loss: bool = True
    use_importance_sampling_correction: bool = False
    truncated_importance_sampling_type: TruncationType | None = None
    truncated_importance_sampling_ratio: float | None = None
    truncated_importance_sampling_ratio_min: float | None = None
    reference_policy_kl_penalty: float = 0.001
    reference_policy_kl_type: KLType = "k3"
    kl_input_clamp_value: float | None = 20.0
    kl_output_clamp_value: float | None = 10.0
    use_on_policy_kl_approximation: bool = False
    positive_example_nll_weight: float = 0.0
    kl_score_function: bool = True
    constant_normaliser: float | None = None

    def __post_init__(self) -> None:
        if self.ratio_clip_c is not None and self.ratio_clip_c <= 1:
            raise ValueError(f"ratio_clip_c must be above 1, got {self.ratio_clip_c}")
        if self.constant_normaliser is not None and self.constant_normaliser <= 0:
            raise ValueError(f"constant_normaliser must be positive, got {self.constant_normaliser}")
        if self.sequence_level_importance_ratios and self.token_level_loss:
            raise ValueError("sequence_level_importance_ratios needs token_level_loss=False")
        token_clip = not (
            self.disable_ppo_ratio or self.force_on_policy_ratio or self.sequence_level_importance_ratios
        )
        if self.use_cispo and not (token_clip and self.token_level_loss and self.ratio_clip_c is None):
            raise ValueError("use_cispo needs clipped ratios of tokens, their mean, and no ratio_clip_c")
        self._check_truncation()

    def _check_truncation(self) -> None:
        kind, upper = self.truncated_importance_sampling_type, self.truncated_importance_sampling_ratio
        lower = self.truncated_importance_sampling_ratio_min
        if (kind is None) != (upper is None) or (
            kind is not None and not self.use_importance_sampling_correction
        ):
            raise ValueError(
                "truncated_importance_sampling_type, its ratio and use_importance_sampling_correction go together"
            )
        if kind not in (None, "tis") and lower is None:
            raise ValueError(f"{kind} needs truncated_importance_sampling_ratio_min")
        if upper is not None and not 0 <= (lower or 0) <= upper:
            raise ValueError(f"truncated_importance_sampling bounds are not in order: {lower}, {upper}")
        if kind == "seq-mask-tis" and self.sequence_level_importance_ratios:
            raise ValueError("seq-mask-tis needs sequence_level_importance_ratios=False")


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
        sequence_ids: [T] int64, the responses of the part counted 0, 1, 2, ...
        old_logprobs: [T] under the policy before the step's first update; None only where no ratio is taken.
        sampling_logprobs: [T] as the sampler computed them; None only where neither the importance-sampling
            correction nor the on-policy KL approximation is on.
        reference_logprobs: [T] under the reference; None only with a KL coefficient of 0.
        positive: [T] bool, token of a correct response; None only with an NLL weight of 0.
        entropies: [T] float, passed through to the sums; None: left out.
    """

    logprobs: Tensor
    advantages: Tensor
    mask: Tensor
    sequence_ids: Tensor
    old_logprobs: Tensor | None = None
    sampling_logprobs: Tensor | None = None
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
    surrogate, sums, maxima = _surrogate(logprobs, advantages, keep, batch, config)
    if config.use_importance_sampling_correction:
        surrogate = surrogate * _correction(logprobs, keep, batch, config)
    policy_term = (surrogate * weights).sum()
    loss = policy_term
    sums["policy_loss"] = policy_term.detach()
    if config.reference_policy_kl_penalty != 0:
        kl = _kl(logprobs, keep, batch, config)
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
    counts = response_sums(kept, sequence_ids)
    return kept / (counts.clamp_min(1)[sequence_ids] * totals.sequences)


def masked_nll(logprobs: Tensor, mask: Tensor, total_tokens: int) -> Tensor:
    """Supervised loss: negative log-probs [T] under the mask [T] over `total_tokens` of the whole step.

    Raises:
        ValueError: when `total_tokens` is not positive.
    """
    if total_tokens < 1:
        raise ValueError("a step without tokens has no mean")
    return -torch.where(mask.bool(), logprobs, 0.0).sum() / total_tokens


def _surrogate(
    logprobs: Tensor, advantages: Tensor, keep: Tensor, batch: PackedTokens, config: LossConfig
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Return the per-token surrogate [T], the sums and the maxima of its ratios."""
    if config.disable_ppo_ratio and not config.force_on_policy_ratio:
        return -advantages * logprobs, {}, {}
    log_ratio = logprobs - _old(logprobs, keep, batch, config)
    if config.sequence_level_importance_ratios and not config.force_on_policy_ratio:
        log_ratio = response_means(log_ratio, keep, batch.sequence_ids)
    ratio = torch.exp(log_ratio)
    bounded_ratio = ratio.clamp(1 - config.ratio_clip_min, 1 + config.ratio_clip_max)
    dual = torch.zeros_like(keep)
    if config.use_cispo:
        surrogate = -advantages * bounded_ratio.detach() * logprobs
        clipped = bounded_ratio != ratio
    else:
        unclipped, bounded = -advantages * ratio, -advantages * bounded_ratio
        surrogate = torch.maximum(unclipped, bounded)
        clipped = bounded > unclipped
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


def _old(logprobs: Tensor, keep: Tensor, batch: PackedTokens, config: LossConfig) -> Tensor:
    """Return log-probs [T] before the update, 0 at masked tokens; the policy's own where that is forced."""
    if config.force_on_policy_ratio:
        return logprobs.detach()
    return torch.where(keep, _needed(batch.old_logprobs, "old_logprobs", "the ratio is taken"), 0.0)


def _correction(logprobs: Tensor, keep: Tensor, batch: PackedTokens, config: LossConfig) -> Tensor:
    """Return the weights [T] that make up for a sampler that is not quite the policy."""
    return sampler_weights(
        _old(logprobs, keep, batch, config),
        _needed(batch.sampling_logprobs, "sampling_logprobs", "the sampler is corrected for"),
        keep,
        batch.sequence_ids,
        by_response=config.sequence_level_importance_ratios,
        truncation=config.truncated_importance_sampling_type,
        upper=config.truncated_importance_sampling_ratio,
        lower=config.truncated_importance_sampling_ratio_min,
    )


def _kl(logprobs: Tensor, keep: Tensor, batch: PackedTokens, config: LossConfig) -> Tensor:
    """Return the KL estimate [T], 0 at masked tokens."""
    reference = _needed(
        batch.reference_logprobs, "reference_logprobs", "reference_policy_kl_penalty is not 0"
    )
    sampling = None
    if config.use_on_policy_kl_approximation:
        sampling = _needed(batch.sampling_logprobs, "sampling_logprobs", "the KL estimate is weighted")
        sampling = torch.where(keep, sampling, 0.0)
    return kl_estimate(
        logprobs,
        torch.where(keep, reference, 0.0),
        kind=config.reference_policy_kl_type,
        input_clamp=config.kl_input_clamp_value,
        output_clamp=config.kl_output_clamp_value,
        score_function=config.kl_score_function,
        sampling_logprobs=sampling,
    )


def _positive_nll(logprobs: Tensor, keep: Tensor, positive: Tensor | None, totals: StepTotals) -> Tensor:
    """Return VAPO's likelihood term: token mean of -log p over all correct responses of the step."""
    correct = _needed(positive, "positive", "positive_example_nll_weight is not 0").bool()
    return masked_nll(logprobs, keep & correct, max(totals.positive_tokens, 1))


def _needed(values: Tensor | None, name: str, when: str) -> Tensor:
    if values is None:
        raise ValueError(f"{name} are needed when {when}")
    return values
