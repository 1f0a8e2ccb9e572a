"""Which layers and tensors each rank holds, and how many parameters that is.

Sources: megatron-core 0.16.1, transformer/transformer_block.py `get_num_layers_to_build`,
transformer/transformer_layer.py `get_transformer_layer_offset` (layers of a stage), models/gpt/gpt_model.py and
models/common/language_module (embedding, output layer, and the copy of a tied embedding on the last stage).
"""

from __future__ import annotations

from dataclasses import dataclass

from checkpoints_tools.errors import CheckpointError
from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.shapes import Index
from checkpoints_tools.weight_map import (
    ARCHITECTURES,
    MegatronTensor,
    local_shape,
    padded_vocab_size,
    supported,
)
from checkpoints_tools.weight_map.names import EMBEDDING, OUTPUT
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.resources import training_gpus
from nemo_thinkprune.recipe.schema import Recipe

FINAL_NORM = "decoder.final_layernorm.weight"
# Order of a layer's parameters in a module of Megatron-Core's local layer spec.
_ORDER = (
    "self_attention.linear_qkv.layer_norm_weight",
    "self_attention.linear_proj.weight",
    "self_attention.linear_qkv.weight",
    "self_attention.linear_qkv.bias",
    "self_attention.q_layernorm.weight",
    "self_attention.k_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight",
    "mlp.linear_fc1.weight",
    "mlp.linear_fc2.weight",
)


@dataclass(frozen=True, slots=True)
class Split:
    """How the ranks that train share the work.

    `tp`, `pp`, `dp`, `cp`: tensor, pipeline, data and context parallel size. `layers_first` and `layers_last` are
    the layers of the first and last pipeline stage; None: an equal share.
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    cp: int = 1
    layers_first: int | None = None
    layers_last: int | None = None
    sequence_parallel: bool = False

    @property
    def world(self) -> int:
        """All ranks that train."""
        return self.tp * self.pp * self.dp * self.cp

    @property
    def shards(self) -> int:
        """Ranks with the same parameters: the distributed optimizer divides its state by them."""
        return self.dp * self.cp


def split_of(recipe: Recipe) -> Split:
    """The split that a recipe asks for; GPUs set aside for generation have no part in it.

    Raises:
        UserError: The ranks do not divide.
    """
    megatron, world = recipe.policy.megatron_cfg, training_gpus(recipe).count
    tp, pp = megatron.tensor_model_parallel_size, megatron.pipeline_model_parallel_size
    cp = megatron.context_parallel_size
    if world % (tp * pp * cp):
        raise UserError(
            f"{world} training ranks cannot be divided by tensor x pipeline x context parallel size = "
            f"{tp} x {pp} x {cp}; use a multiple of {tp * pp * cp} ranks"
        )
    return Split(
        tp=tp,
        pp=pp,
        dp=world // (tp * pp * cp),
        cp=cp,
        layers_first=megatron.num_layers_in_first_pipeline_stage,
        layers_last=megatron.num_layers_in_last_pipeline_stage,
        sequence_parallel=megatron.sequence_parallel and tp > 1,
    )


def layers_of_stage(model: ModelConfig, split: Split, pp_rank: int) -> range:
    """The decoder layers of a pipeline stage, numbered over the whole model.

    Raises:
        UserError: The layers do not divide over the stages.
    """
    counts = _layers_per_stage(model, split)
    return range(sum(counts[:pp_rank]), sum(counts[: pp_rank + 1]))


def stage_shapes(model: ModelConfig, split: Split, pp_rank: int) -> dict[str, Index]:
    """Name and shape of every parameter of one rank of a pipeline stage; all its tensor parallel ranks are alike.

    Names are the weight map's, with the layer's number in the whole model, in the module's order. The vocabulary is
    padded. The last of several stages has a copy of a tied embedding, under the output layer's name.

    Raises:
        UserError: `split.tp` does not divide a tensor, or the architecture is not supported.
    """
    padded = padded_vocab_size(model.vocab_size, split.tp)
    try:
        return _local_shapes(model, split, pp_rank, padded)
    except CheckpointError as error:
        raise UserError(str(error)) from None


def stage_parameters(model: ModelConfig, split: Split, pp_rank: int) -> int:
    """Parameters of one rank of a pipeline stage, by arithmetic alone.

    With h hidden size, d head size, q query and k key-value heads, f MLP width, V padded vocabulary, t ranks of
    tensor parallelism, a stage of L layers holds::

        L x layer + [first stage: V h / t] + [last stage: h + V h / t]

    where a tied output layer on the same stage as its embedding counts nothing.

    Raises:
        UserError: as `layers_of_stage`, or tensor parallelism does not divide heads or MLP.
    """
    _check_tensor_split(model, split.tp)
    vocabulary = padded_vocab_size(model.vocab_size, split.tp) // split.tp * model.hidden_size
    total = len(layers_of_stage(model, split, pp_rank)) * layer_parameters(model, split.tp)
    if pp_rank == 0:
        total += vocabulary
    if pp_rank == split.pp - 1:
        total += model.hidden_size
        total += vocabulary if holds_output(model, split) else 0
    return total


def layer_parameters(model: ModelConfig, tp: int = 1) -> int:
    """Parameters of one rank's part of one decoder layer.

    ::

        h d (q + 2k) / t            query, key and value      [+ d (q + 2k) / t  biases]
        h d q / t                   attention's output
        2 h f / t + h f / t         gate and up, down
        2 h                         two norms                 [+ 2 d  query and key norm]
    """
    hidden, head, heads = model.hidden_size, model.head_dim, model.num_heads
    qkv_rows = head * (heads + 2 * model.num_kv_heads) // tp
    attention = hidden * qkv_rows + (qkv_rows if model.qkv_bias else 0) + hidden * head * heads // tp
    mlp = 3 * hidden * model.ffn // tp
    norms = 2 * hidden + (2 * head if model.qk_norm else 0)
    return attention + mlp + norms


def model_parameters(model: ModelConfig) -> int:
    """Parameters of the whole model as Hugging Face counts them: no padding, a tied embedding once."""
    embeddings = (1 if model.tied else 2) * model.vocab_size * model.hidden_size
    return model.num_layers * layer_parameters(model) + model.hidden_size + embeddings


def holds_output(model: ModelConfig, split: Split) -> bool:
    """Whether the last stage has an output weight beside the embedding: its own, or a copy of the tied one."""
    return not model.tied or split.pp > 1


def _layers_per_stage(model: ModelConfig, split: Split) -> list[int]:
    given = [count for count in (split.layers_first, split.layers_last) if count is not None]
    if split.pp == 1:
        return [model.num_layers]
    rest, stages = model.num_layers - sum(given), split.pp - len(given)
    fits = rest == 0 if stages == 0 else rest > 0 and rest % stages == 0
    if not fits:
        raise UserError(
            f"{rest} of the model's {model.num_layers} layers do not divide over {stages} pipeline stages; change "
            "policy.megatron_cfg.pipeline_model_parallel_size or num_layers_in_first_pipeline_stage and _last_"
        )
    counts = [rest // stages if stages else 0] * split.pp
    if split.layers_first is not None:
        counts[0] = split.layers_first
    if split.layers_last is not None:
        counts[-1] = split.layers_last
    return counts


def _check_tensor_split(model: ModelConfig, tp: int) -> None:
    for what, count in (
        ("num_attention_heads", model.num_heads),
        ("num_key_value_heads", model.num_kv_heads),
        ("intermediate_size", model.ffn),
    ):
        if count % tp:
            raise UserError(
                f"policy.megatron_cfg.tensor_model_parallel_size = {tp} does not divide the model's {what} = {count}; "
                "choose a divisor"
            )


def _local_shapes(model: ModelConfig, split: Split, pp_rank: int, padded: int) -> dict[str, Index]:
    """What `stage_shapes` promises; `padded` rows of the vocabulary."""
    _check_tensor_split(model, split.tp)
    architecture = ARCHITECTURES.get(model.architecture)
    if architecture is None:
        raise UserError(f"architecture {model.architecture} is not supported; there is {supported()}")
    vocabulary = (model.vocab_size, model.hidden_size)
    rows = local_shape(MegatronTensor(EMBEDDING, vocabulary, tp_axis=0, vocab=True), split.tp, padded)
    pieces = sorted((piece.tensor for piece in architecture.layer(model)), key=lambda t: _ORDER.index(t.name))
    of_layer = {tensor.name: local_shape(tensor, split.tp, padded) for tensor in pieces}
    shapes = {EMBEDDING: rows} if pp_rank == 0 else {}
    for layer in layers_of_stage(model, split, pp_rank):
        shapes |= {f"decoder.layers.{layer}.{name}": shape for name, shape in of_layer.items()}
    if pp_rank == split.pp - 1:
        shapes[FINAL_NORM] = (model.hidden_size,)
        if holds_output(model, split):
            shapes[OUTPUT] = rows
    return shapes
