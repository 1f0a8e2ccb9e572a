"""Bytes that the local engine's layers keep for the backward pass, tensor by tensor, exactly as autograd does.

The engine runs Megatron-Core's local layers with norms, SwiGLU and attention of its own (policy/local_layers.py,
policy/group_attention.py).  A layer keeps, for each token, with h hidden size, q query and k key-value heads of size
d, f MLP width, and w bytes of a number::

    two norms        input, a float32 factor                              2 (h w + 4)    of this rank's share
    linear layers    inputs of query-key-value and of gate-up             2 h w          of this rank's share
    rotation         cosine and sine of half a head, query and key        2 d w
    attention        rotated query and key, output                        (2 q + k) d w / TP
                     value: a view of the whole query-key-value product   (q + 2 k) d w / TP
                     log-sum-exp of the scores                            4 q / TP
    MLP              gate and up 2 f, their product f                     3 f w / TP

The projection's input is attention's output.  The share is 1 / TP with sequence parallelism.  tests/costs compares
this with what autograd saves, to the byte.
"""

from __future__ import annotations

from checkpoints_tools.model_config import ModelConfig
from nemo_thinkprune.costs.activations import Shape, in_flight
from nemo_thinkprune.costs.shards import layers_of_stage

_FP32 = 4


def layer_bytes(model: ModelConfig, shape: Shape) -> int:
    """What autograd keeps of one layer for a micro-batch.

    Recomputed in full, its input remains.  Recomputed core attention loses the log-sum-exp, a recomputed MLP all
    but its input.
    """
    if shape.recompute.granularity == "full":
        return shape.share * model.hidden_size * shape.width
    return sum(layer_parts(model, shape).values())


def layer_parts(model: ModelConfig, shape: Shape) -> dict[str, int]:
    """The rows of the table above for a micro-batch."""
    tokens, share, width, tp = shape.tokens, shape.share, shape.width, shape.split.tp
    heads, kv_heads, head = model.num_heads // tp, model.num_kv_heads // tp, model.head_dim
    parts = {
        "norms": 2 * share * (model.hidden_size * width + _FP32),
        "inputs of linear layers": 2 * share * model.hidden_size * width,
        "rotation": 2 * tokens * head * width,
        "attention": 3 * tokens * (heads + kv_heads) * head * width + tokens * heads * _FP32,
        "MLP": 3 * tokens * model.ffn // tp * width,
    }
    if model.qk_norm:  # the key is a view of the product, and so is the query of a single group
        query = heads * head * width if kv_heads > 1 else 0
        parts["query and key norm"] = tokens * (query + (heads + kv_heads) * _FP32)
    modules = shape.recompute.modules
    if "core_attn" in modules:
        parts["attention"] -= tokens * heads * _FP32 - _FP32  # a tensor of one int32 for the mask's kind
    if "mlp" in modules:
        parts["MLP"] = 0
    return parts


def stage_bytes(model: ModelConfig, shape: Shape, pp_rank: int, *, count: int) -> int:
    """What a pipeline stage keeps: its layers for every micro-batch in flight, and what it sent to the next stage.

    Megatron's schedule holds the states that a stage sent (`output_tensors`) until they are differentiated; those
    that it received are its first layer's input.  The first stage keeps token ids, every stage with recomputed
    layers the rotation's angles; the last, for one micro-batch, the final norm.
    """
    split, hidden = shape.split, model.hidden_size
    flight = in_flight(split, pp_rank, count)
    each = len(layers_of_stage(model, split, pp_rank)) * layer_bytes(model, shape)
    if shape.recompute.granularity == "full":
        each += shape.tokens * model.head_dim * _FP32
    states = shape.share * hidden * shape.width
    if pp_rank < split.pp - 1:
        each += states
    if pp_rank == 0:
        each += shape.tokens * (8 + (split.tp > 1))  # ids, and which of them this rank has a row for
    total = flight * each
    if pp_rank == split.pp - 1:
        total += states + shape.share * _FP32
    return total
