"""Seconds of the passes of Megatron-Core over packed rows: log-probabilities, forward and backward.

Of a pipeline with p stages and m micro-batches, scheduled one forward, one backward, a rank takes part for m + p - 1
turns (Narayanan et al. 2021, arXiv 2104.04473, section 2.2)::

    seconds = sum over micro-batches of the slowest stage  +  (p - 1) x the mean of the slowest stage

and a stage of a micro-batch of T tokens takes its hardware FLOPs at the layer efficiency, plus its communication:

* tensor parallel, each pass through a layer: two all-reduces of T hidden states (or reduce-scatter and all-gather
  under sequence parallelism, the same bytes), 2 (t - 1) / t x T x h x 2 bytes each; backward and recomputation are
  passes too (Korthikanti et al. 2022, arXiv 2205.05198, section 4.2).  None of it is hidden: NeMo-RL does not turn
  Megatron's overlap on.
* context parallel: keys and values of the other ranks, once forward and twice backward.
* pipeline parallel: T hidden states handed on, once in each direction.

NeMo-RL computes logits at every position of a row, and with several stages fills rows up to their full length
(nemo_rl/models/megatron/data.py): time is counted for what runs, MFU for what was needed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from checkpoints_tools.model_config import ModelConfig
from nemo_thinkprune.costs.flops import Flops, causal_pairs, model_flops
from nemo_thinkprune.costs.gpus import Gpu
from nemo_thinkprune.costs.shards import Split, layers_of_stage
from nemo_thinkprune.costs.time_assumptions import TimeAssumptions

_SMALL_PARAMETERS = 5_000_000_000
_BYTES = 2  # of a hidden state


@dataclass(frozen=True, slots=True)
class Machine:
    """GPUs of one kind in servers of `gpus_per_node`, with what is assumed about them."""

    gpu: Gpu
    gpus_per_node: int
    assumed: TimeAssumptions

    def bandwidth(self, ranks: int) -> float:
        """Bytes/s between neighbours of a group that spans so many ranks in a row."""
        if ranks <= self.gpus_per_node:
            return self.gpu.link_bandwidth * self.assumed.link_efficiency
        return self.gpu.network_bandwidth * self.assumed.network_efficiency

    def flops(self, model: ModelConfig) -> float:
        """FLOP/s that the layers of a model run at."""
        return self.gpu.bf16_flops * getattr(self.assumed, layer_assumption(model))

    def all_reduce(self, size: float, ranks: int, *, span: int | None = None) -> float:
        """Seconds of a ring all-reduce of `size` bytes: 2 (n - 1) / n of them cross each link."""
        return 2 * (ranks - 1) / ranks * size / self.bandwidth(span or ranks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """How sequences are put into micro-batches.

    Attributes:
        tokens: Length of a packed row; None: no packing, sequences are padded to the longest of all.
        sequences: Sequences of a micro-batch without packing.
        multiple: Each sequence is padded to a multiple of this.
        full: Packed rows are padded to their full length, as NeMo-RL does with several pipeline stages.
    """

    tokens: int | None
    sequences: int = 1
    multiple: int = 1
    full: bool = False

    def micro_batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """Padded lengths of the sequences of each micro-batch (first fit, longest first)."""
        padded = sorted((-(-n // self.multiple) * self.multiple for n in lengths), reverse=True)
        if self.tokens is None:
            return [
                [padded[0]] * len(padded[i : i + self.sequences])
                for i in range(0, len(padded), self.sequences)
            ]
        bins: list[list[int]] = []
        room: list[int] = []
        for length in padded:
            chosen = next((b for b, free in enumerate(room) if length <= free), None)
            if chosen is None:
                bins.append([])
                room.append(max(self.tokens, length))
                chosen = len(bins) - 1
            bins[chosen].append(length)
            room[chosen] -= length
        if self.full:
            for row, free in zip(bins, room, strict=True):
                row[-1] += free
        return bins


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One pass over rows: how often each part of a layer and the logits run.

    `layer` counts (projections, mlp, attention) in forward passes, `through` how often hidden states pass a layer's
    communication, `handed_on` how often they cross a stage boundary.
    """

    projections: int
    mlp: int
    attention: float
    lm_head: int
    through: int
    handed_on: int

    def flops(self, flops: Flops) -> float:
        """FLOPs of the layers of this pass, of a forward pass's."""
        return flops.projections * self.projections + flops.mlp * self.mlp + flops.attention * self.attention


FORWARD = Pass(projections=1, mlp=1, attention=1, lm_head=1, through=1, handed_on=1)


def training_pass(recompute: Collection[str]) -> Pass:
    """Forward and backward; `recompute` as in `flops.train_flops`.  Flash attention computes the scores again."""
    projections, mlp, core = "projections" in recompute, "mlp" in recompute, "core_attn" in recompute
    return Pass(
        projections=3 + projections,
        mlp=3 + mlp,
        attention=3.5 + core,
        lm_head=3,
        through=2 + (projections and mlp),
        handed_on=2,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PassTime:
    """Seconds of a pass on one data-parallel rank.

    `communication` and `bubble` are parts of `seconds`; `padding` is the share of the rows' tokens that are none.
    """

    seconds: float
    communication: float
    bubble: float
    rows: int
    padding: float


def pass_time(
    machine: Machine, model: ModelConfig, split: Split, what: Pass, *, lengths: Sequence[int], rows: Rows
) -> PassTime:
    """Seconds for one data-parallel rank's sequences of these lengths (prompt and response)."""
    batches = rows.micro_batches(lengths)
    slowest: list[tuple[float, float]] = []
    for batch in batches:
        stages = [_stage(machine, model, split, what, batch, stage) for stage in range(split.pp)]
        slowest.append(max(stages, key=sum))
    compute = sum(c for c, _ in slowest)
    communication = sum(c for _, c in slowest)
    bubble = (split.pp - 1) * (compute + communication) / max(1, len(batches))
    return PassTime(
        seconds=compute + communication + bubble,
        communication=communication,
        bubble=bubble,
        rows=len(batches),
        padding=1 - sum(lengths) / max(1, sum(map(sum, batches))),
    )


def _stage(
    machine: Machine, model: ModelConfig, split: Split, what: Pass, batch: list[int], stage: int
) -> tuple[float, float]:
    """Seconds of compute and of communication of one stage for one micro-batch."""
    tokens = sum(batch)
    whole = model_flops(model, tokens=tokens, pairs=sum(causal_pairs(n) for n in batch), logits=tokens)
    layers = len(layers_of_stage(model, split, stage))
    flops = what.flops(whole) * layers / model.num_layers
    if stage == split.pp - 1:
        flops += what.lm_head * whole.lm_head
    compute = flops / (split.tp * split.cp) / machine.flops(model)
    share = tokens // split.cp
    hidden = share * model.hidden_size * _BYTES
    communication = what.through * layers * 2 * machine.all_reduce(hidden, split.tp)
    if split.cp > 1:
        kv = 2 * model.num_kv_heads * model.head_dim * _BYTES / split.tp * tokens * (split.cp - 1) / split.cp
        times = 1 if what.handed_on == 1 else 3
        communication += layers * times * kv / machine.bandwidth(split.tp * split.cp)
    if split.pp > 1:
        own = hidden / split.tp if split.sequence_parallel else hidden
        communication += what.handed_on * own / machine.bandwidth(2 * split.tp * split.cp * split.dp)
    return compute, communication


def layer_assumption(model: ModelConfig) -> str:
    """Name of the efficiency that holds for a model of this size."""
    return "small_layer_efficiency" if parameters(model) < _SMALL_PARAMETERS else "layer_efficiency"


def parameters(model: ModelConfig) -> int:
    """Parameters in matrix products, with the output layer and without the embedding's rows."""
    one = model_flops(model, tokens=1, pairs=0, logits=1)
    return one.total // 2
