"""Megatron's names of one tensor: as a parameter of a rank's module and as a checkpoint key."""

import re

EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT = "output_layer.weight"

# The local layer spec has norm modules of its own; its checkpoints use TransformerEngine's fused names.
# Source: megatron-core get_gpt_layer_local_spec, sharded_state_dict_keys_map.
LOCAL_SPEC_NORMS = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")


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
    rest = match[2]
    for local, stored in LOCAL_SPEC_NORMS.items():
        if rest.startswith(local):
            rest = stored + rest.removeprefix(local)
    return f"decoder.layers.{int(match[1]) + layer_offset}.{rest}"
