"""Checkpoint keys: which are weights, of which layer, and back."""

from __future__ import annotations

import pytest
from support.models import small_config

from checkpoints_tools.weight_map import (
    ARCHITECTURES,
    StoredKey,
    extra_state_key,
    parse_key,
    stored_key,
    weight_map,
)

KEYS = {
    "embedding.word_embeddings.weight": StoredKey("embedding.word_embeddings.weight"),
    "decoder.layers.mlp.linear_fc2.weight": StoredKey("decoder.layers.mlp.linear_fc2.weight", None, True),
    "decoder.layers.12.mlp.linear_fc2.weight": StoredKey("decoder.layers.12.mlp.linear_fc2.weight", 12),
    "decoder.layers.3.mlp.linear_fc1.weight_w": StoredKey(
        "decoder.layers.3.mlp.linear_fc1.weight", 3, False, 0
    ),
    "decoder.layers.mlp.linear_fc1.weight_v": StoredKey(
        "decoder.layers.mlp.linear_fc1.weight", None, True, 1
    ),
    "decoder.layers.3.input_layernorm.weight": StoredKey(
        "decoder.layers.3.self_attention.linear_qkv.layer_norm_weight", 3
    ),
    "decoder.layers.pre_mlp_layernorm.weight": StoredKey(
        "decoder.layers.mlp.linear_fc1.layer_norm_weight", None, True
    ),
}


@pytest.mark.parametrize("key", KEYS)
def test_weights(key: str) -> None:
    assert parse_key(key) == KEYS[key]


@pytest.mark.parametrize(
    "key",
    [
        "optimizer.state.exp_avg.decoder.layers.mlp.linear_fc2.weight",
        "chained_0.optimizer.state.fp32_param.output_layer.weight",
        "optimizer/shard_0_1",
        "rng_state",
        "rng_state/shard_0.0_1.1",
        "rerun_state_machine_state/shard_0_1",
        "common_state/shard_0_1",
        "decoder.layers.mlp.linear_fc1._extra_state/shard_3_4",
        "decoder.layers.3.self_attention.core_attention._extra_state",
    ],
)
def test_what_is_no_weight(key: str) -> None:
    assert parse_key(key) is None


@pytest.mark.parametrize(
    "key", ["mtp.layers.0.weight", "optimizers", "decoder.layers.03.mlp.linear_fc2.weight"]
)
def test_an_unknown_key_gets_a_name_that_no_model_has(key: str) -> None:
    parsed = parse_key(key)
    assert parsed is not None
    name = parsed.of_layer(0) if parsed.stacked else parsed.name
    assert name not in weight_map(small_config("Qwen2ForCausalLM")).megatron


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_name_has_a_stacked_key_that_leads_back(architecture: str) -> None:
    for name in weight_map(small_config(architecture)).megatron:
        key, layer = stored_key(name)
        parsed = parse_key(key)
        assert parsed is not None
        assert (parsed.of_layer(layer) if layer is not None else parsed.name) == name
        assert parsed.stacked == (layer is not None)
        assert parse_key(name) == StoredKey(name, layer)


def test_extra_state_keys() -> None:
    key = extra_state_key("mlp.linear_fc1", 2, 4)
    assert key == "decoder.layers.mlp.linear_fc1._extra_state/shard_2_4"
    assert parse_key(key) is None
