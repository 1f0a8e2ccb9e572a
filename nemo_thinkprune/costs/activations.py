"""Bytes of activations that the backward pass needs, by layer and by pipeline stage, on GPUs.

Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models" (arXiv 2205.05198), counts
sbh (34 + 5 a s / h) bytes a layer (eq. 1), of which tensor parallelism divides 24 + 5 a s / h by t (eq. 2) and
sequence parallelism all (eq. 4); recomputing the attention core leaves 34 sbh / t (eq. 6), recomputing everything
the layer's input, 2 sbh.  The models here differ from the paper's: no dropout (no masks), grouped-query attention,
three MLP matrices, and an attention kernel that keeps no scores, so that 5 a s / h becomes a float32 a token and
head.  The same count, tensor by tensor, of the layers of Megatron-Core 0.16.1 with TransformerEngine::

    norm of attention and of MLP    input, output                      4 h        a token of this rank's share
    attention                       query, key, value, output          2 q + 2 k  x head size, / TP
    MLP                             gate and up, their product         3 f / TP

times the bytes of a number, with h hidden size, q and k query and key-value heads and f MLP width.
"""

from __future__ import annotations

from dataclasses import dataclass

from checkpoints_tools.model_config import ModelConfig
from nemo_thinkprune.costs.parts import BYTES
from nemo_thinkprune.costs.shards import Split, layers_of_stage
from nemo_thinkprune.recipe.schema import Recipe

_FP32 = 4


@dataclass(frozen=True, slots=True)
class Recompute:
    """What the backward pass computes again: `granularity` none, selective (`modules`) or full (each layer)."""

    granularity: str = "none"
    modules: tuple[str, ...] = ()

    @classmethod
    def of(cls, recipe: Recipe) -> Recompute:
        """What `policy.megatron_cfg.activation_checkpointing` and its two companions ask for."""
        megatron = recipe.policy.megatron_cfg
        if not megatron.activation_checkpointing:
            return cls()
        if megatron.recompute_granularity == "full":
            return cls("full")
        return cls("selective", tuple(megatron.recompute_modules or ("core_attn",)))


@dataclass(frozen=True, slots=True)
class Shape:
    """A micro-batch on one rank: its tokens, the bytes of a number, the split and what is recomputed."""

    tokens: int
    width: int
    split: Split
    recompute: Recompute

    @property
    def share(self) -> int:
        """Tokens of this rank between tensor-parallel regions: its part under sequence parallelism, else all."""
        return -(-self.tokens // self.split.tp) if self.split.sequence_parallel else self.tokens


def train_shape(recipe: Recipe, split: Split) -> Shape:
    """The largest micro-batch of the update."""
    return Shape(
        _tokens(recipe, split, train=True), BYTES[recipe.policy.precision], split, Recompute.of(recipe)
    )


def logprob_shape(recipe: Recipe, split: Split) -> Shape:
    """The largest micro-batch of a log-probability pass; nothing is kept for a backward pass."""
    return Shape(_tokens(recipe, split, train=False), BYTES[recipe.policy.precision], split, Recompute())


def _tokens(recipe: Recipe, split: Split, *, train: bool) -> int:
    """Tokens of a full micro-batch, padded as NeMo-RL pads it, divided by the context parallel ranks."""
    policy = recipe.policy
    key = "train_mb_tokens" if train else "logprob_mb_tokens"
    rows = policy.train_micro_batch_size if train else policy.logprob_batch_size
    if policy.sequence_packing.enabled:
        tokens = getattr(policy.sequence_packing, key)
    elif policy.dynamic_batching.enabled:
        tokens = getattr(policy.dynamic_batching, key)
    else:
        tokens = rows * policy.max_total_sequence_length
    multiple = policy.make_sequence_length_divisible_by
    return -(-tokens // multiple) * multiple // split.cp


def longest_sequence(recipe: Recipe) -> int:
    """Tokens of the longest prompt with the longest response of the first limit, padded."""
    tokens = recipe.data.max_input_seq_length + recipe.policy.generation.max_new_tokens
    multiple = recipe.policy.make_sequence_length_divisible_by
    return -(-tokens // multiple) * multiple


def micro_batches(recipe: Recipe, split: Split) -> int:
    """Micro-batches of an update on a data-parallel rank when every sequence has the greatest length."""
    sequences = -(-recipe.policy.train_global_batch_size // split.dp)
    per_row = max(1, train_shape(recipe, split).tokens * split.cp // longest_sequence(recipe))
    return max(1, -(-sequences // per_row))


def in_flight(split: Split, pp_rank: int, count: int) -> int:
    """Micro-batches whose activations a stage holds at once under one-forward-one-backward: min(pp - p, count).

    Source: megatron-core 0.16.1, pipeline_parallel/schedules.py,
    `forward_backward_pipelining_without_interleaving`: pp - p - 1 warm-up passes and the one at work.
    """
    return min(split.pp - pp_rank, count)


def layer_bytes(model: ModelConfig, shape: Shape) -> int:
    """What one layer keeps for its backward pass, by the table above; see `Recompute` for what it then leaves out."""
    share, width = shape.share, shape.width
    if shape.recompute.granularity == "full":
        return share * model.hidden_size * width
    return sum(_layer_parts(model, shape).values())


def _layer_parts(model: ModelConfig, shape: Shape) -> dict[str, int]:
    tokens, share, width, tp = shape.tokens, shape.share, shape.width, shape.split.tp
    heads, kv_heads, head = model.num_heads, model.num_kv_heads, model.head_dim
    modules = shape.recompute.modules
    norm = 2 * share * model.hidden_size * width + share * _FP32  # input, output; a root a token
    parts = {
        "attention norm": norm,
        "query, key, value": tokens * (heads + 2 * kv_heads) * head // tp * width,
        "attention output": tokens * heads * head // tp * width,
        "softmax statistics": tokens * heads // tp * _FP32,
        "MLP norm": norm,
        "MLP": 3 * tokens * model.ffn // tp * width,
    }
    if model.qk_norm:  # inputs of the two norms, beside their outputs, and a root a token and head
        parts["query and key norm"] = tokens * (heads + kv_heads) // tp * (head * width + _FP32)
    if "core_attn" in modules:
        parts["softmax statistics"] = (
            0  # query, key and value are the checkpoint, the output is the next input
        )
    if (
        "mlp" in modules
    ):  # TransformerEngine's norm is part of the first linear layer, so of what is computed again
        parts["MLP"] = 0
        parts["MLP norm"] = share * model.hidden_size * width
    return parts


def workspace_bytes(model: ModelConfig, shape: Shape, *, backward: bool) -> int:
    """What is alive for a moment at the widest point of a layer.

    Forward: input, the gathered input under sequence parallelism, gate and up, their product.  Backward, while
    the first MLP matrix is differentiated: gradients of gate and up, of its input, of the layer's output, and
    the gathered input; under full recomputation the layer's own activations too, made anew.
    """
    tokens, hidden, tp = shape.tokens, model.hidden_size, shape.split.tp
    gathered = tokens * hidden if shape.split.sequence_parallel else 0
    gate_up = 2 * tokens * model.ffn // tp
    if not backward:
        return (2 * shape.share * hidden + gathered + gate_up + gate_up // 2) * shape.width
    again = 0
    if shape.recompute.granularity == "full":
        again = sum(_layer_parts(model, Shape(tokens, shape.width, shape.split, Recompute())).values())
    elif "mlp" in shape.recompute.modules:
        again = 3 * tokens * model.ffn // tp * shape.width + shape.share * hidden * shape.width
    return (shape.share * hidden + tokens * hidden + gathered + gate_up) * shape.width + again


def stage_bytes(model: ModelConfig, shape: Shape, pp_rank: int, *, count: int) -> int:
    """Activations that a pipeline stage keeps: of all its layers, for every micro-batch in flight.

    The last stage adds the final norm's input and output, of the one micro-batch it has in flight.
    """
    layers = len(layers_of_stage(model, shape.split, pp_rank))
    total = layers * layer_bytes(model, shape) * in_flight(shape.split, pp_rank, count)
    if pp_rank == shape.split.pp - 1:
        rows = shape.tokens if shape.split.sequence_parallel else 0  # the output layer's input, gathered
        total += (2 * shape.share + rows) * model.hidden_size * shape.width
    return total
