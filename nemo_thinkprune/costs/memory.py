"""Memory of one GPU under NeMo-RL v0.7.0 with Megatron-Core and vLLM: every phase, every pipeline stage.

What stays on the GPU between phases is NeMo-RL's choice (nemo_rl/models/policy/workers/megatron_policy_worker.py):

- generate (`offload_after_refit`): weights and optimizer state lie in host memory, gradient buffers are freed.
- log-probs (`prepare_for_lp_inference`): weights return; gradients are freed; the optimizer stays in host memory
  where generation shares the GPUs, else only with policy.offload_optimizer_for_logprob.
- forward/backward, optimizer, save (`prepare_for_training`): weights, gradients and optimizer are all there.
- refit (`offload_before_refit`): weights alone, beside the weights of a vLLM that has woken up.

vLLM sleeps through all but generation and refit (`finish_generation`, sleep level 1).  Bytes of weights, gradients
and optimizer shards: Megatron-LM training/theoretical_memory_usage.py, 18 bytes a parameter, or 6 + 12 / DP with the
distributed optimizer; here by the types that the recipe names.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from checkpoints_tools.model_config import ModelConfig
from nemo_thinkprune.costs import assumed
from nemo_thinkprune.costs.activations import (
    logprob_shape,
    micro_batches,
    stage_bytes,
    train_shape,
    workspace_bytes,
)
from nemo_thinkprune.costs.gpus import Gpu
from nemo_thinkprune.costs.kv_cache import Engine, engine_of
from nemo_thinkprune.costs.logits import logprob_logits_bytes, train_logits_bytes
from nemo_thinkprune.costs.parts import BYTES, GIB, Part, PhaseMemory, phase
from nemo_thinkprune.costs.shards import Split, split_of, stage_shapes
from nemo_thinkprune.costs.training_state import precision_of, reduction_of, training_state
from nemo_thinkprune.recipe.schema import Recipe

_FP32 = 4


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes that one GPU of a pipeline stage holds of the model.

    `optimizer` is what the GPU has of the optimizer's state in training and `offloaded` what the host has instead;
    `stays` is the part of `optimizer` that does not leave the GPU for generation.  `main_gradients` are float32
    copies of the gradients while the optimizer steps.
    """

    parameters: int
    weights: int
    gradients: int
    optimizer: int
    offloaded: int
    stays: int
    main_gradients: int


def held(recipe: Recipe, model: ModelConfig, split: Split, pp_rank: int) -> Held:
    """Weights, gradients and optimizer state of one GPU of a stage."""
    keys, precision = recipe.policy.megatron_cfg.optimizer, precision_of(recipe)
    state = training_state(model, split, pp_rank, precision=precision, reduction=reduction_of(recipe))
    share = keys.optimizer_offload_fraction if keys.optimizer_cpu_offload else 0.0
    offloaded = int(state.optimizer * share)
    # NeMo-RL moves the optimizer's `state` (move_optimizer); float32 master weights are parameters of it and stay
    in_state = precision.master != _FP32
    return Held(
        parameters=state.parameters,
        weights=state.weights,
        gradients=state.gradients,
        optimizer=state.optimizer - offloaded,
        offloaded=offloaded,
        stays=0 if in_state or keys.optimizer_cpu_offload else state.optimizer_elements * _FP32,
        main_gradients=state.step,
    )


def gpu_phases(recipe: Recipe, model: ModelConfig, *, gpu: Gpu) -> list[PhaseMemory]:
    """The peak of every phase on one GPU of every pipeline stage, in the order of PHASES.

    With GPUs set aside for generation, "generate" is one of those and all other phases one that trains.

    Raises:
        UserError: The split does not divide the ranks, the layers or the heads.
    """
    split = split_of(recipe)
    engine = engine_of(recipe, model, gpu=gpu)
    phases: list[PhaseMemory] = []
    for stage in range(split.pp):
        phases += _stage_phases(recipe, model, split, stage, engine=engine, gpu_bytes=gpu.memory_bytes)
    return phases


def _stage_phases(
    recipe: Recipe, model: ModelConfig, split: Split, stage: int, *, engine: Engine, gpu_bytes: int
) -> Iterable[PhaseMemory]:
    own = held(recipe, model, split, stage)
    colocated = recipe.policy.generation.colocated.enabled
    weights, gradients = Part("weights", own.weights), Part("gradients", own.gradients)
    optimizer = Part("optimizer", own.optimizer)
    base = [Part("trainer's reserve", assumed.TRAINER_RESERVE_BYTES, assumed.TRAINER_RESERVE_SOURCE)]
    asleep = assumed.vllm_asleep_bytes(recipe.policy.generation.vllm_cfg.tensor_parallel_size)
    beside = [*base, *([Part("vLLM asleep", asleep, assumed.ASLEEP_SOURCE)] if colocated else [])]
    training = [weights, gradients, optimizer, *beside]
    stays = [Part("master weights", own.stays), *base] if colocated else []
    return (
        phase("load", stage, [weights, Part("copied into one buffer", own.weights), gradients, *beside]),
        phase("generate", stage, [*engine.parts(), *stays]),
        phase("log-probs", stage, [weights, *_logprob_parts(recipe, model, split, stage, own), *beside]),
        phase("forward/backward", stage, [*training, *_train_parts(recipe, model, split, stage)]),
        phase("optimizer", stage, [*training, Part("gradients of master weights", own.main_gradients)]),
        phase("refit", stage, [weights, *_refit_parts(recipe, model, own, engine, gpu_bytes), *beside]),
        phase("save", stage, training),
    )  # fmt: skip


def _train_parts(recipe: Recipe, model: ModelConfig, split: Split, stage: int) -> list[Part]:
    shape = train_shape(recipe, split)
    parts = [
        Part("activations", stage_bytes(model, shape, stage, count=micro_batches(recipe, split))),
        Part("workspace of a layer", workspace_bytes(model, shape, backward=True)),
    ]
    if stage == split.pp - 1:
        parts.append(Part("logits", train_logits_bytes(recipe, model, shape)))
    return parts


def _logprob_parts(recipe: Recipe, model: ModelConfig, split: Split, stage: int, own: Held) -> list[Part]:
    """Log-probabilities keep nothing for a backward pass."""
    shape = logprob_shape(recipe, split)
    generation_elsewhere = not recipe.policy.generation.colocated.enabled
    keeps = generation_elsewhere and not recipe.policy.offload_optimizer_for_logprob
    parts = [
        Part("optimizer", own.optimizer if keeps else own.stays),
        Part("workspace of a layer", workspace_bytes(model, shape, backward=False)),
    ]
    if stage == split.pp - 1:
        parts.append(Part("logits", logprob_logits_bytes(recipe, model, shape)))
    return parts


def _refit_parts(recipe: Recipe, model: ModelConfig, own: Held, engine: Engine, gpu_bytes: int) -> list[Part]:
    """The buffer through which weights go to vLLM, and the largest tensor, gathered over its ranks."""
    gathered = Part("largest tensor gathered", largest_tensor_bytes(recipe, model))
    if not recipe.policy.generation.colocated.enabled:
        one = min(int(gpu_bytes * assumed.BROADCAST_SHARE), assumed.BROADCAST_MOST_BYTES)
        # optimizer and gradients stay: nothing is offloaded for an engine on other GPUs
        return [
            Part("optimizer", own.optimizer),
            Part("gradients", own.gradients),
            gathered,
            Part("two broadcast buffers", 2 * max(one, gathered.bytes), assumed.BROADCAST_SOURCE),
        ]
    woken = Part("vLLM weights", engine.weights)
    given = recipe.policy.refit_buffer_size_gb
    if given is not None:
        return [gathered, woken, Part("refit buffer", int(given * GIB))]
    asleep = assumed.vllm_asleep_bytes(recipe.policy.generation.vllm_cfg.tensor_parallel_size)
    free = gpu_bytes - own.weights - own.stays - engine.weights - asleep - assumed.TRAINER_RESERVE_BYTES
    buffer = Part("refit buffer", int(max(0, free) * assumed.REFIT_FREE_SHARE), assumed.REFIT_SOURCE)
    return [gathered, woken, buffer]


def largest_tensor_bytes(recipe: Recipe, model: ModelConfig) -> int:
    """The largest Hugging Face tensor; half of a refit buffer must hold it (models/policy/utils.py)."""
    whole = stage_shapes(model, Split(), 0)
    width = BYTES[recipe.policy.precision]
    # gate and up are one tensor in Megatron and are two when handed on, made of one gathered copy
    return max(prod(shape) for shape in whole.values()) * width
