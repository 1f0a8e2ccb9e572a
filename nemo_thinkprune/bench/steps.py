"""From what a run left to its measured steps: phases that add up, token counts, FLOPs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from checkpoints_tools.model_config import ModelConfig
from nemo_thinkprune.bench.phases import (
    LABELS,
    LOCAL,
    LOGPROBS,
    NEMO_RL,
    OLD,
    OTHER,
    REFERENCE,
    ROLLOUT,
    ROLLOUT_AND_SCORING,
    UPDATE,
)
from nemo_thinkprune.bench.result import MeasuredStep, PhaseUse
from nemo_thinkprune.bench.run import Records
from nemo_thinkprune.costs.flops import RECOMPUTE_ALL, Work, forward_flops, generate_flops, train_flops
from nemo_thinkprune.data.recipe_prompts import training_prompts
from nemo_thinkprune.data.tokenizer import load_tokenizer
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.schema import Recipe

_STEP, _RECORD, _SAVE = "step_s", "record_s", "save_s"
_OUTER = (_STEP, "logprobs_s")
"""Timers around others: what memory they hold outside those belongs to "other"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counting:
    """What FLOPs are counted with.

    `passes` are the forward passes of log-probs by phase; `recompute` the parts that the backward pass runs again;
    `shared_prompts` whether log-probs and update compute a prompt once for its group.
    """

    model: ModelConfig
    group_size: int
    passes: Mapping[str, int]
    recompute: Sequence[str]
    recompute_logits: bool
    flash_attention: bool
    shared_prompts: bool


def counting(recipe: Recipe, model: ModelConfig, *, on_our_policy: bool, device: str) -> Counting:
    """How to count the FLOPs of a recipe; `on_our_policy` false where NeMo-RL's own workers train.

    Our policy computes a prompt once for all its responses on a CPU (policy/policy.py): copies of it that are not
    computed must not count.
    """
    old = not recipe.loss_fn.force_on_policy_ratio
    reference = recipe.loss_fn.reference_policy_kl_penalty != 0
    return Counting(
        model=model,
        group_size=recipe.grpo.num_generations_per_prompt,
        passes={OLD: 1, REFERENCE: 1, LOGPROBS: int(old) + int(reference)},
        recompute=recomputed_parts(recipe),
        recompute_logits=on_our_policy,
        flash_attention=True,
        shared_prompts=on_our_policy and device == "cpu",
    )


def recomputed_parts(recipe: Recipe) -> tuple[str, ...]:
    """What the backward pass runs again, in the words of costs/flops.py."""
    megatron = recipe.policy.megatron_cfg
    if not megatron.activation_checkpointing:
        return ()
    if megatron.recompute_granularity == "full":
        return RECOMPUTE_ALL
    return tuple(megatron.recompute_modules or ("core_attn",))


def prompt_lengths(records: Records) -> dict[str, int]:
    """Tokens of every training prompt by the id of its problem, as both engines encode them."""
    job = records.job
    found = training_prompts(job.recipe, load_tokenizer(job.model), limit=job.limit)
    return {prompt.problem.id: len(prompt.token_ids) for prompt in found.prompts}


def local_steps(records: Records, steps: range, how: Counting) -> list[MeasuredStep]:
    """The measured steps of the local engine, from what every rank told of its phases."""
    prompts = prompt_lengths(records)
    return [_step(step, records, prompts, how, *_local_phases(records.uses[step])) for step in steps]


def nemo_rl_steps(records: Records, steps: range, how: Counting) -> list[MeasuredStep]:
    """The measured steps of NeMo-RL, from its timers."""
    prompts = prompt_lengths(records)
    return [
        _step(step, records, prompts, how, *_nemo_rl_phases(records.metrics[step]["timing"]))
        for step in steps
    ]


def _local_phases(ranks: Mapping[int, Mapping[str, Any]]) -> tuple[dict[str, PhaseUse], PhaseUse | None]:
    """Phases in order, and the checkpoint: wall time of rank 0, processor time of all, memory of each."""
    uses = {ours: _joined(ranks, (theirs,)) for theirs, ours in LOCAL.items() if theirs in ranks[0]}
    inside = [uses[ours] for theirs, ours in LOCAL.items() if ours in uses and theirs != _RECORD]
    whole, around = _joined(ranks, (_STEP,)), [name for name in _OUTER if name in ranks[0]]
    lows, highs = _extremes(ranks, around, "own_peak")
    uses[OTHER] = PhaseUse(
        seconds=max(whole.seconds - sum(use.seconds for use in inside), 0.0),
        cpu_seconds=max((whole.cpu_seconds or 0.0) - sum(use.cpu_seconds or 0.0 for use in inside), 0.0),
        peak_bytes_max=highs,
        peak_bytes_min=lows,
    )
    saved = _joined(ranks, (_SAVE,)) if _SAVE in ranks[0] else None
    return {name: uses[name] for name in LABELS if name in uses}, saved


def _joined(ranks: Mapping[int, Mapping[str, Any]], names: Sequence[str]) -> PhaseUse:
    lows, highs = _extremes(ranks, names, "peak")
    return PhaseUse(
        seconds=sum(ranks[0][name]["seconds"] for name in names),
        cpu_seconds=sum(told[name]["cpu_s"] for told in ranks.values() for name in names),
        peak_bytes_max=highs,
        peak_bytes_min=lows,
    )


def _extremes(
    ranks: Mapping[int, Mapping[str, Any]], names: Sequence[str], key: str
) -> tuple[int | None, int | None]:
    """Least and most of what the ranks held at their peaks; None where it could not be measured."""
    peaks = [max(told[name][key] for name in names) for told in ranks.values()]
    return (min(peaks), max(peaks)) if all(peaks) else (None, None)


def _nemo_rl_phases(timing: Mapping[str, Any]) -> tuple[dict[str, PhaseUse], PhaseUse | None]:
    seconds: dict[str, float] = {}
    for theirs, ours in NEMO_RL.items():
        if timing.get(theirs) is not None:
            seconds[ours] = seconds.get(ours, 0.0) + timing[theirs]
    seconds[OTHER] = max(timing[_STEP] - sum(seconds.values()), 0.0)
    saved = timing.get(_SAVE)
    uses = {name: _wall(seconds[name]) for name in LABELS if name in seconds}
    return uses, None if saved is None else _wall(saved)


def _wall(seconds: float) -> PhaseUse:
    return PhaseUse(seconds=seconds, cpu_seconds=None, peak_bytes_max=None, peak_bytes_min=None)


def _step(
    step: int,
    records: Records,
    prompts: Mapping[str, int],
    how: Counting,
    phases: dict[str, PhaseUse],
    checkpoint: PhaseUse | None,
) -> MeasuredStep:
    rows, recipe = records.rollouts[step], records.job.recipe
    expected = recipe.grpo.num_prompts_per_step * how.group_size
    if len(rows) != expected:
        raise UserError(
            f"{len(rows)} responses of step {step} were recorded where the recipe has {expected}: tokens cannot be "
            "counted; measure without dynamic sampling"
        )
    lengths = [prompts[row["problem_id"]] for row in rows], [row["response_tokens"] for row in rows]
    work = Work(prompts=lengths[0], responses=lengths[1], group_size=how.group_size)
    model, hardware = _flops(work, how, phases)
    return MeasuredStep(
        step=step,
        seconds=sum(use.seconds for use in phases.values()),
        phases=phases,
        checkpoint=checkpoint,
        sequences=len(rows),
        prompt_tokens=sum(lengths[0]),
        response_tokens=sum(lengths[1]),
        lengths=hashlib.sha256(json.dumps(lengths).encode()).hexdigest(),
        flops=model,
        hardware_flops=hardware,
    )


def _flops(
    work: Work, how: Counting, phases: Mapping[str, PhaseUse]
) -> tuple[dict[str, int], dict[str, int]]:
    """Model FLOPs of each phase that has any, and FLOPs that are executed."""
    forward = forward_flops(how.model, work, shared_prompts=how.shared_prompts).total
    train = train_flops(
        how.model,
        work,
        recompute=how.recompute,
        recompute_logits=how.recompute_logits,
        flash_attention=how.flash_attention,
        shared_prompts=how.shared_prompts,
    )
    rollout = generate_flops(how.model, work).model.total
    counts = {ROLLOUT: rollout, ROLLOUT_AND_SCORING: rollout, UPDATE: train.model.total}
    counts |= {name: forward * times for name, times in how.passes.items()}
    model = {name: counts[name] for name in phases if counts.get(name)}
    return model, {**model, UPDATE: train.hardware.total}
