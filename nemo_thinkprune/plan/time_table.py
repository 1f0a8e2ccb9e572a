"""The time part of a plan: a recipe's predicted step, phase by phase, with everything that was assumed."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from checkpoints_tools.model_config import ModelConfig
from nemo_thinkprune.costs.flops import RECOMPUTE_ALL, Work
from nemo_thinkprune.costs.gpus import Gpu
from nemo_thinkprune.costs.kv_cache import engine_of
from nemo_thinkprune.costs.lengths import cut_lengths, cut_share
from nemo_thinkprune.costs.memory import held
from nemo_thinkprune.costs.shards import Split, split_of
from nemo_thinkprune.costs.step_time import Engines, Step, StepTime, step_time
from nemo_thinkprune.costs.time_assumptions import Assumption, TimeAssumptions, assumptions_for
from nemo_thinkprune.costs.train_time import Machine, Rows, layer_assumption
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.resources import rollout_gpus
from nemo_thinkprune.recipe.schema import Recipe

WIDTH = 120
RESPONSE_SHARE = 0.8
RESPONSE_SOURCE = "NeMo-RL's published Qwen3-32B rows have 3251 of 3992 tokens"
PROMPT_TOKENS = 128
PROMPT_SOURCE = "NeMo-RL's published rows have 104 (Qwen3-32B) and 127 (Llama 3.1 8B): docs/performance.md"
KNOWN_ERROR = (
    "against NeMo-RL's published steps of dense models such predictions were 2% to 22% too short on H100 and 33% to "
    "48% on GB200: take them as a lower bound (docs/performance.md)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimePlan:
    """A predicted step, or in `problem` why there is none.

    `response_tokens` is the mean response, `cut` the share of responses that reach the limit, `assumed` every number
    that neither the recipe nor a data sheet gives.  With `beside`, generation runs while the other phases do.
    """

    step: StepTime | None
    problem: str | None = None
    response_tokens: float = 0.0
    cut: float = 0.0
    beside: bool = False
    assumed: tuple[Assumption, ...] = field(default_factory=tuple)


def time_rows(
    recipe: Recipe,
    model: ModelConfig,
    gpu: Gpu,
    *,
    response_tokens: float | None = None,
    prompt_tokens: int | None = None,
    assumed: TimeAssumptions | None = None,
) -> TimePlan:
    """Predict the time of a step under NeMo-RL.

    Args:
        recipe: A recipe that its own checks accept.
        model: Its model's architecture.
        gpu: Of the cluster.
        response_tokens: Mean length of a response; None: RESPONSE_SHARE of the limit.
        prompt_tokens: Length of a prompt; None: PROMPT_TOKENS, assumed.
        assumed: Efficiencies; None: those of `assumptions_for`.

    Raises:
        UserError: The split does not divide the ranks, the layers or the heads.
    """
    if (problem := _not_predicted(recipe)) is not None:
        return TimePlan(step=None, problem=problem)
    efficiencies, prompt = assumed or assumptions_for(gpu.name), prompt_tokens or PROMPT_TOKENS
    limit = _limit(recipe, prompt)
    mean = min(response_tokens or RESPONSE_SHARE * limit, limit)
    step = step_of(recipe, model, gpu, work=_work(recipe, prompt=prompt, mean=mean, limit=limit))
    try:
        found = step_time(Machine(gpu, recipe.cluster.gpus_per_node, efficiencies), step)
    except UserError as error:
        return TimePlan(step=None, problem=str(error))
    given = _assumed_inputs(recipe, prompt=prompt_tokens is None, response=response_tokens is None)
    return TimePlan(
        step=found,
        response_tokens=step.work.response_tokens / len(step.work.responses),
        cut=cut_share(mean=mean, limit=limit),
        beside=not step.colocated,
        assumed=(*given, *_used(efficiencies, model)),
    )


def _not_predicted(recipe: Recipe) -> str | None:
    """Why there is no prediction: peaks and efficiencies are known for 16 bits only."""
    precision, vllm = recipe.policy.precision, recipe.policy.generation.vllm_cfg.precision
    if precision == "float32":
        return "policy.precision is float32; peaks and efficiencies are known for bfloat16 only"
    if recipe.policy.megatron_cfg.fp8_cfg.enabled or vllm == "fp8":
        return "8-bit training or generation is not predicted, only bfloat16"
    return None


def _assumed_inputs(recipe: Recipe, *, prompt: bool, response: bool) -> Iterator[Assumption]:
    """What was assumed of the work, where it was not given."""
    if prompt:
        yield Assumption("prompt", PROMPT_TOKENS, "tokens", PROMPT_SOURCE)
    if response:
        yield Assumption("mean response", RESPONSE_SHARE, "of the limit", RESPONSE_SOURCE)
    if recipe.grpo.use_dynamic_sampling:
        source = (
            "grpo.use_dynamic_sampling generates until enough groups differ in reward; how often is not known"
        )
        yield Assumption("generation batches", 1, "a step", source)


def step_of(recipe: Recipe, model: ModelConfig, gpu: Gpu, *, work: Work) -> Step:
    """What NeMo-RL v0.7.0 does in a step of a recipe (nemo_rl/algorithms/grpo.py, grpo_train).

    Raises:
        UserError: as `time_rows`.
    """
    split, loss = split_of(recipe), recipe.loss_fn
    own = max((held(recipe, model, split, stage) for stage in range(split.pp)), key=lambda one: one.weights)
    reference = loss.reference_policy_kl_penalty != 0
    old = not loss.force_on_policy_ratio or recipe.grpo.seq_logprob_error_threshold is not None
    rollouts = recipe.grpo.num_prompts_per_step * recipe.grpo.num_generations_per_prompt
    return Step(
        model=model,
        split=split,
        engines=_engines(recipe, model, gpu),
        colocated=recipe.policy.generation.colocated.enabled,
        work=work,
        updates=max(1, rollouts // recipe.policy.train_global_batch_size),
        train_rows=_rows(recipe, split, train=True),
        logprob_rows=_rows(recipe, split, train=False),
        passes=int(old) + int(reference),
        reference=reference,
        recompute=_recompute(recipe),
        weight_bytes=own.weights,
        optimizer_bytes=own.optimizer - own.stays,
    )


def _limit(recipe: Recipe, prompt: int) -> int:
    """Response tokens at which a response is cut."""
    whole = min(recipe.policy.max_total_sequence_length, recipe.policy.generation.vllm_cfg.max_model_len)
    return max(1, min(recipe.policy.generation.max_new_tokens, whole - prompt))


def _work(recipe: Recipe, *, prompt: int, mean: float, limit: int) -> Work:
    group = recipe.grpo.num_generations_per_prompt
    count = recipe.grpo.num_prompts_per_step * group
    responses = cut_lengths(count, mean=max(1.0, mean), limit=limit)
    return Work(prompts=[prompt] * count, responses=responses, group_size=group)


def _engines(recipe: Recipe, model: ModelConfig, gpu: Gpu) -> Engines:
    config = recipe.policy.generation.vllm_cfg
    engine = engine_of(recipe, model, gpu=gpu)
    return Engines(
        count=max(
            1, rollout_gpus(recipe).count // (config.tensor_parallel_size * config.pipeline_parallel_size)
        ),
        tp=config.tensor_parallel_size * config.pipeline_parallel_size,
        weight_bytes=engine.weights,
        cache_tokens=engine.tokens,
        token_bytes=engine.token_bytes,
        most_sequences=engine.most_sequences,
    )


def _rows(recipe: Recipe, split: Split, *, train: bool) -> Rows:
    policy = recipe.policy
    key = "train_mb_tokens" if train else "logprob_mb_tokens"
    sequences = policy.train_micro_batch_size if train else policy.logprob_batch_size
    tokens = None
    if policy.sequence_packing.enabled:
        tokens = getattr(policy.sequence_packing, key)
    elif policy.dynamic_batching.enabled:
        tokens = getattr(policy.dynamic_batching, key)
    return Rows(
        tokens=tokens,
        sequences=sequences,
        multiple=policy.make_sequence_length_divisible_by,
        full=split.pp > 1,
    )


def _recompute(recipe: Recipe) -> tuple[str, ...]:
    megatron = recipe.policy.megatron_cfg
    if not megatron.activation_checkpointing:
        return ()
    if megatron.recompute_granularity == "full":
        return RECOMPUTE_ALL
    return tuple(megatron.recompute_modules or ["core_attn"])


def _used(assumed: TimeAssumptions, model: ModelConfig) -> Iterator[Assumption]:
    """All but the efficiency of models of another size."""
    both = {"layer_efficiency", "small_layer_efficiency"}
    return (one for one in assumed.listed() if one.name not in both - {layer_assumption(model)})


def time_lines(plan: TimePlan) -> Iterator[str]:
    """The prediction as text: a line a phase, the totals, then each assumption with its source."""
    if plan.step is None:
        yield f"step time: none, {plan.problem}"
        return
    step = plan.step
    yield "step time (predicted, from data sheets and the assumptions below; not measured):"
    for phase in step.phases:
        yield f"  {phase.name:<12} {phase.seconds:8.1f} s  {phase.note}"
    how = "the longer of generate and all others" if plan.beside else "one after another"
    yield f"  {'step':<12} {step.seconds:8.1f} s  {how}"
    yield (
        f"  {step.tokens_per_gpu_second:.0f} tokens/s/GPU (prompt and response tokens of all rollouts, all "
        f"{step.gpus} GPUs); MFU of the update {step.train_mfu:.0%}"
    )
    yield (
        f"  mean response {plan.response_tokens:.0f} tokens, {plan.cut:.0%} cut at the limit "
        "(lengths: exponential, cut)"
    )
    yield _filled(f"  {KNOWN_ERROR}")
    yield "assumed:"
    for one in plan.assumed:
        yield _filled(f"  {one.name} = {one.value:g} {one.unit}: {one.source}")


def _filled(text: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent="    ", break_on_hyphens=False)


def time_values(plan: TimePlan) -> dict[str, Any]:
    """The prediction as JSON values; every number has its unit in its name."""
    step = plan.step
    if step is None:
        return {"problem": plan.problem}
    return {
        "predicted": True,
        "known_error": KNOWN_ERROR,
        "phases": [{"phase": p.name, "seconds": p.seconds, "note": p.note} for p in step.phases],
        "generation_beside_training": plan.beside,
        "step_seconds": step.seconds,
        "tokens_per_second_per_gpu": step.tokens_per_gpu_second,
        "tokens_per_step": step.tokens,
        "gpus": step.gpus,
        "update_mfu": step.train_mfu,
        "mean_response_tokens": plan.response_tokens,
        "share_cut_at_limit": plan.cut,
        "assumed": [
            {"name": one.name, "value": one.value, "unit": one.unit, "source": one.source}
            for one in plan.assumed
        ],
    }
