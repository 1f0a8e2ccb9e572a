"""Seconds of a synchronous or asynchronous GRPO step of NeMo-RL, phase by phase, before it runs.

Phases: generation (`decode`), log-probabilities of the policy and of the reference, the updates (`train_time`), the
optimizer, handing the weights to vLLM, and what moves between GPU and host.  Tokens per second and GPU are those of
NeMo-RL: prompt and response tokens of all rollouts, over the time of the step and all GPUs of the cluster.

GPUs that are shared do one thing after another.  With GPUs set aside, generation of the next step runs beside the
training of this one: the step takes the longer of the two, at best.
"""

from __future__ import annotations

from dataclasses import dataclass

from checkpoints_tools.model_config import ModelConfig
from nemo_thinkprune.costs.decode import EngineSpeed, Generated, generate_seconds
from nemo_thinkprune.costs.flops import Work, mfu, model_flops, train_flops
from nemo_thinkprune.costs.shards import Split
from nemo_thinkprune.costs.train_time import (
    FORWARD,
    Machine,
    PassTime,
    Rows,
    parameters,
    pass_time,
    training_pass,
)

_BYTES = 2  # of a weight or a hidden state in bfloat16


@dataclass(frozen=True, slots=True, kw_only=True)
class Engines:
    """The vLLM engines of a cluster.

    Attributes:
        count: Engines, each with a copy of the model.
        tp: GPUs of one.
        weight_bytes: Weights on one GPU.
        cache_tokens: Tokens in the cache of one engine.
        token_bytes: Keys and values of a token on one GPU.
        most_sequences: Sequences that may run at once.
    """

    count: int
    tp: int
    weight_bytes: int
    cache_tokens: int
    token_bytes: int
    most_sequences: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a step does.

    Attributes:
        model: Architecture, trained in bfloat16.
        split: Of the ranks that train.
        engines: That generate.
        colocated: Whether they do it on the same GPUs.
        work: Prompts and responses of the step.
        updates: Optimizer steps in it.
        train_rows, logprob_rows: Micro-batches.
        passes: Log-probability passes before the update: 2 with old and reference ones, 1, or 0.
        reference: Whether one of them is of the reference policy, whose weights wait in host memory.
        recompute: Parts of a layer that run again in the backward pass, as in `flops.train_flops`.
        weight_bytes, optimizer_bytes: Of one GPU that trains, which leave it for generation.
    """

    model: ModelConfig
    split: Split
    engines: Engines
    colocated: bool
    work: Work
    updates: int
    train_rows: Rows
    logprob_rows: Rows
    passes: int
    reference: bool
    recompute: tuple[str, ...]
    weight_bytes: int
    optimizer_bytes: int

    @property
    def gpus(self) -> int:
        """GPUs of the cluster."""
        return self.split.world + (0 if self.colocated else self.engines.count * self.engines.tp)


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Seconds of a phase and what they hold."""

    name: str
    seconds: float
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """A predicted step.  `train_mfu` is model FLOPs of the update over its seconds on the GPUs that train."""

    phases: tuple[Phase, ...]
    seconds: float
    tokens: int
    gpus: int
    train_mfu: float
    generated: Generated

    @property
    def tokens_per_gpu_second(self) -> float:
        """Prompt and response tokens per second and GPU of the cluster."""
        return self.tokens / self.seconds / self.gpus

    def phase(self, name: str) -> float:
        """Seconds of the phase of that name; 0 when the step has none."""
        return sum(p.seconds for p in self.phases if p.name == name)


def engine_speed(machine: Machine, model: ModelConfig, engines: Engines) -> EngineSpeed:
    """What one engine takes for a token, from bandwidth, peak and the assumptions."""
    gpu, tp, assumed = machine.gpu, engines.tp, machine.assumed
    hbm = gpu.memory_bandwidth * assumed.decode_bandwidth
    reduce = 2 * model.num_layers * machine.all_reduce(model.hidden_size * _BYTES, tp)
    products = 2 * parameters(model) / tp
    embedding = 0 if model.tied else model.vocab_size * model.hidden_size * _BYTES / tp
    layers = model_flops(model, tokens=1, pairs=0, logits=0).total
    pair = model_flops(model, tokens=0, pairs=1, logits=0).total
    return EngineSpeed(
        weights=(engines.weight_bytes - embedding) / hbm,
        sequence_compute=products / machine.flops(model),
        sequence_reduce=reduce,
        cached_token=engines.token_bytes / hbm,
        prompt_token=layers / tp / machine.flops(model) + reduce,
        prompt_pair=pair / tp / machine.flops(model),
        cache_tokens=engines.cache_tokens,
        most_sequences=engines.most_sequences,
    )


def step_time(machine: Machine, step: Step) -> StepTime:
    """Predict a step.

    Raises:
        UserError: The longest sequence does not fit into an engine's cache.
    """
    generated = _generation(machine, step)
    train = _passes(machine, step)
    phases = [_generation_phase(step, generated), *train, *_moves(machine, step)]
    phases.append(Phase(name="other", seconds=machine.assumed.fixed_seconds, note="assumed for any step"))
    if step.colocated:
        seconds = sum(p.seconds for p in phases)
    else:
        beside = sum(p.seconds for p in phases[1:])
        seconds = max(generated.seconds, beside)
    flops = train_flops(step.model, step.work, recompute=step.recompute).model.total
    update = next(p.seconds for p in train if p.name == "update")
    return StepTime(
        phases=tuple(phases),
        seconds=seconds,
        tokens=step.work.tokens,
        gpus=step.gpus,
        train_mfu=mfu(flops, seconds=update, devices=step.split.world, peak=machine.gpu.bf16_flops),
        generated=generated,
    )


def _generation(machine: Machine, step: Step) -> Generated:
    """The engine with the most tokens: all others wait for it."""
    work, engines = step.work, step.engines
    groups = len(work.prompts) // work.group_size
    share = -(-groups // engines.count) * work.group_size
    starts = range(0, len(work.prompts), share)
    start = max(starts, key=lambda i: sum(work.responses[i : i + share]))
    speed = engine_speed(machine, step.model, engines)
    return generate_seconds(
        speed,
        work.prompts[start : start + share],
        work.responses[start : start + share],
        group_size=work.group_size,
    )


def _generation_phase(step: Step, generated: Generated) -> Phase:
    engines = step.engines
    note = (
        f"{engines.count} engines of {engines.tp} GPUs, {generated.steps} token steps of "
        f"{generated.mean_batch:.0f} sequences on average"
    )
    if generated.preemptions:
        note += f"; cache full: {generated.preemptions} preemptions, {generated.again:.1f} s to read again"
    return Phase(name="generate", seconds=generated.seconds, note=note)


def _passes(machine: Machine, step: Step) -> list[Phase]:
    """Log-probability passes, updates and optimizer, on the data-parallel rank with the most sequences."""
    lengths = [p + r for p, r in zip(step.work.prompts, step.work.responses, strict=True)]
    dp = step.split.dp
    phases = []
    if step.passes:
        rank = lengths[: -(-len(lengths) // dp)]
        one = pass_time(machine, step.model, step.split, FORWARD, lengths=rank, rows=step.logprob_rows)
        of = "old and reference" if step.passes == 2 else "reference" if step.reference else "old"
        phases.append(_pass_phase("log-probs", one, times=step.passes, note=f"{of}, "))
    rank = lengths[: -(-len(lengths) // (dp * step.updates))]
    both = training_pass(step.recompute)
    one = pass_time(machine, step.model, step.split, both, lengths=rank, rows=step.train_rows)
    phases.append(_pass_phase("update", one, times=step.updates))
    phases.append(_optimizer(machine, step))
    return phases


def _pass_phase(name: str, one: PassTime, *, times: int, note: str = "") -> Phase:
    parts = f"{times} x {one.rows} micro-batches, {one.padding:.0%} padding, "
    parts += f"{one.communication * times:.1f} s communication"
    if one.bubble:
        parts += f", {one.bubble * times:.1f} s pipeline bubble"
    return Phase(name=name, seconds=times * one.seconds, note=note + parts)


def _optimizer(machine: Machine, step: Step) -> Phase:
    """Reading and writing the state, reduce-scatter of the gradients and all-gather of the weights over DP."""
    split = step.split
    hbm = machine.gpu.memory_bandwidth * machine.assumed.decode_bandwidth
    state = (2 * step.optimizer_bytes + 2 * step.weight_bytes / split.shards) / hbm
    reduce = machine.all_reduce(step.weight_bytes, split.shards, span=split.tp * split.shards)
    seconds = step.updates * (state + reduce)
    return Phase(
        name="optimizer",
        seconds=seconds,
        note=f"{step.updates} x state through HBM and gradients over {split.shards} ranks",
    )


def _moves(machine: Machine, step: Step) -> list[Phase]:
    """Weights to vLLM, and weights and optimizer state between GPU and host."""
    split, whole = step.split, parameters(step.model) * _BYTES
    network = machine.gpu.network_bandwidth * machine.assumed.network_efficiency
    if step.colocated:
        handed = whole / split.tp * (split.pp > 1) / machine.bandwidth(split.world)
        handed += whole * (split.tp - 1) / split.tp / machine.bandwidth(split.tp)
        note = "each GPU sees the whole model: over the stages, then over the tensor parallel ranks"
    else:
        handed, note = whole / network, "the whole model to the GPUs that generate, over the network"
    host = machine.gpu.host_bandwidth * machine.assumed.host_efficiency
    moved = 2 * (step.weight_bytes + step.optimizer_bytes) if step.colocated else 0
    moved += 3 * step.weight_bytes if step.reference else 0
    return [
        Phase(name="refit", seconds=handed, note=note),
        Phase(
            name="host copies",
            seconds=moved / host,
            note=f"{moved / 1e9:.1f} GB of weights and optimizer to and from unpinned host memory",
        ),
    ]
