"""Names of tensors: Megatron's, as a parameter of a rank's module and as a checkpoint key, and Hugging Face's ends."""

import re
from dataclasses import dataclass

EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT = "output_layer.weight"
HF_EMBEDDING, HF_OUTPUT = "model.embed_tokens.weight", "lm_head.weight"

# The local layer spec has norm modules of its own; its checkpoints use TransformerEngine's fused names.
# Source: megatron-core get_gpt_layer_local_spec, sharded_state_dict_keys_map.
LOCAL_SPEC_NORMS = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}

# In per-layer checkpoints the two halves of a gated fc1 are tensors of their own: gate, up.
# Source: megatron-core apply_swiglu_sharded_factory with singleton_local_shards.
FC1_HALVES = ("weight_w", "weight_v")

_LAYERS = "decoder.layers."
_LAYER = re.compile(r"decoder\.layers\.(0|[1-9]\d{0,5})\.(.+)")
_EXTRA_STATE = "._extra_state"
# What Megatron saves beside the model's tensors, as first part of a key. All else is taken for the model's.
_OPTIMIZER = re.compile(r"(chained_\d+\.)?optimizer[./]")
_STATE = re.compile(r"(rng_state|rerun_state_machine_state|opt_param_scheduler|common_state)(/|$)")


def canonical_name(parameter: str, *, layer_offset: int = 0, tied: bool = False) -> str:
    """Name in the weight map of a GPTModel parameter of either layer spec.

    `layer_offset` is how many decoder layers lie on earlier pipeline stages. With `tied` embeddings the last
    pipeline stage's copy, `output_layer.weight`, is the word embedding.
    """
    if tied and parameter == OUTPUT:
        return EMBEDDING
    match = _LAYER.fullmatch(parameter)
    if match is None:
        return parameter
    return f"{_LAYERS}{int(match[1]) + layer_offset}.{_renamed(match[2])}"


@dataclass(frozen=True, slots=True)
class StoredKey:
    """What a checkpoint key names.

    `layer` is None for a tensor outside the decoder layers and for one that is `stacked`: all layers along a
    leading axis. `half`: 0 is the gate, 1 the up half of fc1, None the whole tensor. `name` is the weight map's
    name, without its layer when stacked (`decoder.layers.mlp.linear_fc2.weight`).
    """

    name: str
    layer: int | None = None
    stacked: bool = False
    half: int | None = None

    def of_layer(self, layer: int) -> str:
        """The weight map's name of one layer of a stacked tensor."""
        return f"{_LAYERS}{layer}.{self.name.removeprefix(_LAYERS)}"


def parse_key(key: str) -> StoredKey | None:
    """What a checkpoint key names in the weight map; None for what is known not to be a model weight.

    That is optimizer, random and common state and TransformerEngine's `_extra_state`. A key that is neither
    gets a name that no weight map has, so that it is reported and not passed over.
    """
    if is_optimizer_key(key) or _STATE.match(key) or _EXTRA_STATE in key:
        return None
    if not key.startswith(_LAYERS):
        return StoredKey(key)
    match = _LAYER.fullmatch(key)
    rest = _renamed(match[2] if match else key.removeprefix(_LAYERS))
    half = None
    for index, suffix in enumerate(FC1_HALVES):
        if rest == f"mlp.linear_fc1.{suffix}":
            rest, half = "mlp.linear_fc1.weight", index
    if match is None:
        return StoredKey(_LAYERS + rest, None, True, half)
    return StoredKey(f"{_LAYERS}{int(match[1])}.{rest}", int(match[1]), False, half)


def is_optimizer_key(key: str) -> bool:
    """Whether a checkpoint key is the optimizer's."""
    return _OPTIMIZER.match(key) is not None


def stored_key(name: str) -> tuple[str, int | None]:
    """Key under which Megatron stores the weight map's tensor `name` with layers stacked, and its layer there.

    `decoder.layers.3.mlp.linear_fc2.weight` is layer 3 of `decoder.layers.mlp.linear_fc2.weight`; a tensor
    outside the layers (layer None) keeps its name.
    """
    match = _LAYER.fullmatch(name)
    return (name, None) if match is None else (_LAYERS + match[2], int(match[1]))


def extra_state_key(module: str, layer: int, num_layers: int) -> str:
    """Key of the object that a TransformerEngine (or stand-in) module of a layer stores, layers stacked.

    `module` is relative to the layer, for example `mlp.linear_fc1`.
    """
    return f"{_LAYERS}{module}{_EXTRA_STATE}/shard_{layer}_{num_layers}"


def _renamed(rest: str) -> str:
    for local, stored in LOCAL_SPEC_NORMS.items():
        if rest.startswith(local):
            return stored + rest.removeprefix(local)
    return rest
