"""Building blocks of an architecture's description: which Hugging Face tensors make one Megatron tensor."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.shapes import Index
from checkpoints_tools.weight_map.geometry import Copy, MegatronTensor
from checkpoints_tools.weight_map.names import EMBEDDING, HF_EMBEDDING, HF_OUTPUT, OUTPUT


@dataclass(frozen=True, slots=True)
class Piece:
    """One Megatron tensor, the Hugging Face tensors (name, shape) it holds, and the copies between them."""

    tensor: MegatronTensor
    hf: tuple[tuple[str, Index], ...]
    copies: tuple[Copy, ...]


@dataclass(frozen=True, slots=True)
class Architecture:
    """Description of one Hugging Face architecture: all that tells it from the others.

    `layer` gives the pieces of one decoder layer, with names relative to `model.layers.N.` and
    `decoder.layers.N.`. The defaults are what config.json means when it does not state head_dim (None: hidden
    size / heads), rope_theta, rms_norm_eps and tie_word_embeddings; source: the architecture's configuration
    class in transformers. `bridge` are fields that Megatron-Bridge's provider of the architecture sets apart
    from its common ones; a text names an object of torch.
    """

    name: str
    model_type: str
    qkv_bias: bool
    qk_norm: bool
    layer: Callable[[ModelConfig], tuple[Piece, ...]]
    default_head_dim: int | None = None
    default_rope_theta: float = 10000.0
    default_rms_norm_eps: float = 1e-6
    default_tied: bool = False
    bridge: Mapping[str, bool | int | float | str] = field(default_factory=dict)


def whole(
    hf_name: str, megatron_name: str, shape: Index, *, tp_axis: int | None = None, vocab: bool = False
) -> Piece:
    """A tensor that is the same on both sides."""
    origin = (0,) * len(shape)
    tensor = MegatronTensor(megatron_name, shape, tp_axis=tp_axis, vocab=vocab)
    return Piece(tensor, ((hf_name, shape),), (Copy(hf_name, origin, megatron_name, origin, shape),))


def qkv(config: ModelConfig, kind: str) -> Piece:
    """Attention's input projection: rows of q, k and v of one query group after the other.

    `kind` is "weight" or "bias". Source: megatron-core `SelfAttention.get_query_key_value_tensors`.
    """
    group = config.num_heads // config.num_kv_heads * config.head_dim
    rows = {"q": group, "k": config.head_dim, "v": config.head_dim}
    columns: Index = (config.hidden_size,) if kind == "weight" else ()
    rest = (0,) * len(columns)
    name = f"self_attention.linear_qkv.{kind}"
    copies, at = [], 0
    for index in range(config.num_kv_heads):
        for part, size in rows.items():
            hf_name = f"self_attn.{part}_proj.{kind}"
            copies.append(Copy(hf_name, (index * size, *rest), name, (at, *rest), (size, *columns)))
            at += size
    hf = tuple(
        (f"self_attn.{part}_proj.{kind}", (config.num_kv_heads * size, *columns))
        for part, size in rows.items()
    )
    return Piece(MegatronTensor(name, (at, *columns), tp_axis=0), hf, tuple(copies))


def qk_norms(config: ModelConfig) -> tuple[Piece, Piece]:
    """The norms of each query and key head, shared by all heads."""
    shape = (config.head_dim,)
    return (
        whole("self_attn.q_norm.weight", "self_attention.q_layernorm.weight", shape),
        whole("self_attn.k_norm.weight", "self_attention.k_layernorm.weight", shape),
    )


def attention_output(config: ModelConfig) -> Piece:
    """Attention's output projection, split over its input columns."""
    shape = (config.hidden_size, config.num_heads * config.head_dim)
    return whole("self_attn.o_proj.weight", "self_attention.linear_proj.weight", shape, tp_axis=1)


def swiglu(config: ModelConfig) -> tuple[Piece, Piece]:
    """The MLP: gate over up in fc1, each half split by itself, and the down projection."""
    shape, name = (config.ffn, config.hidden_size), "mlp.linear_fc1.weight"
    gate, up = "mlp.gate_proj.weight", "mlp.up_proj.weight"
    fc1 = Piece(
        MegatronTensor(name, (2 * config.ffn, config.hidden_size), tp_axis=0, tp_blocks=2),
        ((gate, shape), (up, shape)),
        (Copy(gate, (0, 0), name, (0, 0), shape), Copy(up, (0, 0), name, (config.ffn, 0), shape)),
    )
    down = (config.hidden_size, config.ffn)
    return fc1, whole("mlp.down_proj.weight", "mlp.linear_fc2.weight", down, tp_axis=1)


def layer_norms(config: ModelConfig) -> tuple[Piece, Piece]:
    """The RMS norms before attention and before the MLP, under Megatron's checkpoint keys."""
    shape = (config.hidden_size,)
    return (
        whole("input_layernorm.weight", "self_attention.linear_qkv.layer_norm_weight", shape),
        whole("post_attention_layernorm.weight", "mlp.linear_fc1.layer_norm_weight", shape),
    )


def decoder_only(config: ModelConfig, layer: tuple[Piece, ...]) -> Iterator[Piece]:
    """Embedding, all decoder layers, last norm and, unless tied, the output layer; in the model's order."""
    vocab = (config.vocab_size, config.hidden_size)
    yield whole(HF_EMBEDDING, EMBEDDING, vocab, tp_axis=0, vocab=True)
    for index in range(config.num_layers):
        yield from (_in_layer(piece, index) for piece in layer)
    yield whole("model.norm.weight", "decoder.final_layernorm.weight", (config.hidden_size,))
    if not config.tied:
        yield whole(HF_OUTPUT, OUTPUT, vocab, tp_axis=0, vocab=True)


def _in_layer(piece: Piece, index: int) -> Piece:
    hf_prefix, prefix = f"model.layers.{index}.", f"decoder.layers.{index}."
    return Piece(
        replace(piece.tensor, name=prefix + piece.tensor.name),
        tuple((hf_prefix + name, shape) for name, shape in piece.hf),
        tuple(
            replace(copy, hf_name=hf_prefix + copy.hf_name, megatron_name=prefix + copy.megatron_name)
            for copy in piece.copies
        ),
    )
