"""From scored samples to optimizer steps: advantages, reference log-probs and the loss of each micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor

from nemo_thinkprune.algorithms.advantages import AdvantageConfig, response_advantages
from nemo_thinkprune.algorithms.losses import (
    LossConfig,
    LossOutput,
    PackedTokens,
    StepTotals,
    policy_loss,
)
from nemo_thinkprune.policy.batch import MicroBatch, TokenSequence
from nemo_thinkprune.policy.policy import LossFn, Policy, UpdateResult
from nemo_thinkprune.recipe.schema import Recipe
from nemo_thinkprune.rewards.length_rewards import LengthReward, length_reward
from nemo_thinkprune.training.clock import Clock
from nemo_thinkprune.training.samples import Sample

TokenLoss = Callable[[PackedTokens, StepTotals], LossOutput]
# What LossConfig has beyond NeMo-RL's loss_fn section; all its other fields are keys of the recipe.
OWN_LOSS_FIELDS = {"kl_score_function", "constant_normaliser"}


@dataclass(frozen=True, slots=True)
class Objective:
    """What is optimised: a reward by length, an advantage estimator and a loss. Another algorithm is another one.

    Attributes:
        reward: Reward of a response within its group.
        estimate: Advantages [G, n] from rewards [G, n] and lengths [G, n].
        loss: Share of a packed part of the step in its loss.
        needs_reference: Whether the loss reads log-probs under the reference policy.
        needs_old: Whether it reads those of the policy before the step's updates, once it has moved.
        group_size: Responses to a prompt.
        update_size: Responses in an optimizer update.
    """

    reward: LengthReward
    estimate: Callable[[Tensor, Tensor], Tensor]
    loss: TokenLoss
    needs_reference: bool
    needs_old: bool
    group_size: int
    update_size: int

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Objective:
        """Read `thinkprune.length_reward`, `grpo`, `loss_fn` and the batch sizes."""
        grpo, length = recipe.grpo, recipe.thinkprune.length_reward
        names = {f.name for f in fields(LossConfig)} - OWN_LOSS_FIELDS
        loss = LossConfig(**{name: getattr(recipe.loss_fn, name) for name in names})
        return cls(
            reward=length_reward(length.name, length.params),
            estimate=partial(response_advantages, config=_advantage_config(recipe)),
            loss=partial(policy_loss, config=loss),
            needs_reference=loss.reference_policy_kl_penalty != 0,
            needs_old=not loss.force_on_policy_ratio
            and (not loss.disable_ppo_ratio or loss.use_importance_sampling_correction),
            group_size=grpo.num_generations_per_prompt,
            update_size=recipe.policy.train_global_batch_size,
        )

    def advantages(self, samples: Sequence[Sample]) -> list[list[float]]:
        """Advantage of each response token; samples are ordered by prompt, `group_size` to each."""
        rewards = torch.tensor([s.verdict.reward for s in samples], dtype=torch.float64)
        lengths = torch.tensor([len(s.rollout.response_ids) for s in samples])
        shape = (-1, self.group_size)
        by_response = self.estimate(rewards.view(shape), lengths.view(shape)).flatten()
        return [[value] * count for value, count in zip(by_response.tolist(), lengths.tolist(), strict=True)]


def _advantage_config(recipe: Recipe) -> AdvantageConfig:
    grpo, estimator = recipe.grpo, recipe.grpo.adv_estimator
    return AdvantageConfig(
        name=estimator.name,
        normalize_rewards=estimator.normalize_rewards,
        use_leave_one_out_baseline=estimator.use_leave_one_out_baseline,
        minus_baseline=estimator.minus_baseline,
        advantage_clip_low=grpo.advantage_clip_low,
        advantage_clip_high=grpo.advantage_clip_high,
    )


def optimise(
    policy: Policy,
    objective: Objective,
    samples: Sequence[Sample],
    advantages: Sequence[list[float]],
    *,
    lrs: list[float],
    clock: Clock,
) -> list[UpdateResult]:
    """One optimizer update per `update_size` samples, in order; every rank passes all samples.

    Each data-parallel rank works on every dp-th group of an update, or on every dp-th sample where groups do not
    come out even. With a single update the policy that is differentiated is the one that sampled, so old
    log-probs are its own, detached; with several they are computed once before the first.
    """
    size = objective.update_size
    slices = [range(start, min(start + size, len(samples))) for start in range(0, len(samples), size)]
    dp, dp_rank = policy.layout.dp, policy.layout.dp_rank
    shares = [_share(part, objective.group_size, dp=dp, dp_rank=dp_rank) for part in slices]
    mine = [index for share in shares for index in share]
    with clock.phase("logprobs_s"):
        values = _token_fields(
            policy, objective, [samples[i] for i in mine], updates=len(slices), clock=clock
        )
    for index, value in zip(mine, values, strict=True):
        value["advantages"] = advantages[index]
        value["positive"] = [float(samples[index].verdict.reason == "correct")] * len(advantages[index])
    by_sample = dict(zip(mine, values, strict=True))
    results = []
    for part, share, lr in zip(slices, shares, lrs, strict=True):
        sequences = [_sequence(samples[i], by_sample[i]) for i in share]
        totals = _totals([samples[i] for i in part])
        with clock.phase("update_s"):
            results.append(policy.update(sequences, _loss_fn(objective.loss, totals), lr=lr))
    return results


def _share(part: range, group_size: int, *, dp: int, dp_rank: int) -> list[int]:
    """The samples of one data-parallel rank: whole groups if every rank gets as many, since they share a prompt."""
    if part.start % group_size == 0 and len(part) % (group_size * dp) == 0:
        return [index for index in part if index // group_size % dp == dp_rank]
    return list(part)[dp_rank::dp]


def _token_fields(
    policy: Policy, objective: Objective, samples: Sequence[Sample], *, updates: int, clock: Clock
) -> list[dict[str, list[float]]]:
    """Per-token inputs of the loss that come from a forward pass: reference and old log-probs."""
    plain = [_sequence(sample, {}) for sample in samples]
    values: list[dict[str, list[float]]] = [{"sampled": s.rollout.logprobs} for s in samples]
    if objective.needs_reference:
        with clock.phase("reference_logprobs_s"), policy.reference_weights():
            for value, logprobs in zip(values, policy.logprobs(plain), strict=True):
                value["reference"] = logprobs.tolist()
    if updates > 1 and objective.needs_old:
        with clock.phase("old_logprobs_s"):
            for value, logprobs in zip(values, policy.logprobs(plain), strict=True):
                value["old"] = logprobs.tolist()
    return values


def _sequence(sample: Sample, values: dict[str, list[float]]) -> TokenSequence:
    return TokenSequence(sample.rollout.prompt_ids, sample.rollout.response_ids, values)


def _totals(samples: Sequence[Sample]) -> StepTotals:
    lengths = [len(s.rollout.response_ids) for s in samples]
    positive = [n for s, n in zip(samples, lengths, strict=True) if s.verdict.reason == "correct"]
    return StepTotals(tokens=sum(lengths), sequences=len(lengths), positive_tokens=sum(positive))


def _loss_fn(loss: TokenLoss, totals: StepTotals) -> LossFn:
    def loss_fn(logprobs: Tensor, entropy: Tensor, micro: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        ids = torch.repeat_interleave(torch.tensor(micro.lengths, device=logprobs.device))
        batch = PackedTokens(
            logprobs=logprobs,
            advantages=micro.fields["advantages"],
            mask=torch.ones_like(logprobs),
            sequence_ids=ids,
            old_logprobs=micro.fields.get("old", logprobs.detach()),
            sampling_logprobs=micro.fields["sampled"],
            reference_logprobs=micro.fields.get("reference"),
            positive=micro.fields["positive"].bool(),
            entropies=entropy,
        )
        output = loss(batch, totals)
        gap = (logprobs.detach() - micro.fields["sampled"]).abs().sum()
        return output.loss, {**output.sums, "sampler_gap": gap}

    return loss_fn
