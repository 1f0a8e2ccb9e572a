"""Parameters of a rank, against arithmetic written out and the numbers that the hub shows."""

from __future__ import annotations

import json
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest

from checkpoints_tools.hf_config import config_to_dict
from checkpoints_tools.model_config import ModelConfig
from checkpoints_tools.weight_map import weight_map
from nemo_thinkprune.costs.known_models import BUILT_IN, architecture_of, known_models
from nemo_thinkprune.costs.shards import (
    Split,
    layer_parameters,
    layers_of_stage,
    model_parameters,
    split_of,
    stage_parameters,
    stage_shapes,
)
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.load import load_recipe

# What the hub shows for the safetensors of these repositories.
ON_THE_HUB = {
    "Qwen/QwQ-32B": 32_763_876_352,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": 7_615_616_512,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": 14_770_033_664,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B": 32_763_876_352,
    "agentica-org/DeepScaleR-1.5B-Preview": 1_777_088_000,
}
SPLITS = (
    Split(),
    Split(tp=2, pp=4, dp=2),
    Split(tp=4, pp=2, layers_first=10),
    Split(pp=4, layers_first=3, layers_last=5),
    Split(tp=2, pp=4, cp=2, layers_last=5),
)


def known(name: str) -> ModelConfig:
    return known_models()[name]


@pytest.mark.parametrize("name", ON_THE_HUB)
def test_the_built_in_architectures_have_the_hubs_parameters(name: str) -> None:
    assert model_parameters(known(name)) == weight_map(known(name)).parameters == ON_THE_HUB[name]


def test_qwq_32b_written_out() -> None:
    qkv = 5120 * (40 + 8 + 8) * 128 + (40 + 8 + 8) * 128
    layer = qkv + 40 * 128 * 5120 + 3 * 5120 * 27648 + 2 * 5120
    assert layer_parameters(known("Qwen/QwQ-32B")) == layer == 487_605_248
    assert model_parameters(known("Qwen/QwQ-32B")) == 64 * layer + 2 * 152064 * 5120 + 5120


def test_one_stage_of_qwq_32b_at_tp8_pp2_written_out() -> None:
    # a rank has 5 query heads, 1 key and 1 value head of 128, 3456 of the MLP, 19008 + 64 rows of the vocabulary
    qkv = 5120 * 7 * 128 + 7 * 128
    layer = qkv + 5 * 128 * 5120 + 3 * 5120 * 3456 + 2 * 5120
    rows = 149 * 1024 // 8  # 152064 = 148.5 x 8 x 128: padded
    model, split = known("Qwen/QwQ-32B"), Split(tp=8, pp=2, dp=4)
    assert rows == 19_072
    assert stage_parameters(model, split, 0) == 32 * layer + rows * 5120 == 2_048_356_352
    assert stage_parameters(model, split, 1) == 32 * layer + rows * 5120 + 5120 == 2_048_361_472


def test_a_tied_embedding_is_held_twice_over_pipeline_stages_and_once_without() -> None:
    model = known("Qwen/Qwen2.5-1.5B")
    embedding = 151936 * 1536  # 1187 x 128: not padded on one rank
    assert stage_parameters(model, Split(), 0) == 1_543_714_304
    two = [stage_parameters(model, Split(pp=2), stage) for stage in range(2)]
    assert sum(two) == 1_543_714_304 + embedding
    assert "output_layer.weight" in stage_shapes(model, Split(pp=2), 1)
    assert "output_layer.weight" not in stage_shapes(model, Split(), 0)


def test_qwen3_has_norms_of_heads_and_no_biases() -> None:
    model = known("Qwen/Qwen3-32B")
    plain = replace(model, architecture="LlamaForCausalLM", qk_norm=False)
    assert layer_parameters(model) - layer_parameters(plain) == 128 + 128
    # the norms are not split: every tensor parallel rank holds all of them
    assert layer_parameters(model, 8) == (layer_parameters(plain) - 2 * 5120) // 8 + 2 * 5120 + 256
    shapes = stage_shapes(model, Split(tp=8, pp=4), 1)
    assert shapes["decoder.layers.16.self_attention.q_layernorm.weight"] == (128,)
    assert shapes["decoder.layers.16.self_attention.linear_qkv.weight"] == ((64 + 16) * 128 // 8, 5120)
    assert not any(name.endswith("bias") for name in shapes)


def test_layers_stand_where_the_recipe_wants_them() -> None:
    model = known("Qwen/QwQ-32B")

    def stages(split: Split) -> list[tuple[int, int]]:
        return [(r.start, r.stop) for r in (layers_of_stage(model, split, p) for p in range(split.pp))]

    assert stages(Split(pp=4)) == [(0, 16), (16, 32), (32, 48), (48, 64)]
    assert stages(Split(pp=4, layers_first=10)) == [(0, 10), (10, 28), (28, 46), (46, 64)]
    assert stages(Split(pp=4, layers_last=13)) == [(0, 17), (17, 34), (34, 51), (51, 64)]
    assert stages(Split(pp=4, layers_first=15, layers_last=13)) == [(0, 15), (15, 33), (33, 51), (51, 64)]
    assert stages(Split(pp=2, layers_first=40, layers_last=24)) == [(0, 40), (40, 64)]


@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("name", ["Qwen/QwQ-32B", "Qwen/Qwen3-32B", "Qwen/Qwen2.5-1.5B"])
def test_the_formula_is_the_sum_of_the_shapes(name: str, split: Split) -> None:
    model = replace(known(name), num_layers=20, num_heads=12, num_kv_heads=4)
    for stage in range(split.pp):
        shapes = stage_shapes(model, split, stage)
        assert stage_parameters(model, split, stage) == sum(prod(shape) for shape in shapes.values())


@pytest.mark.parametrize(
    ("split", "told"),
    [
        (Split(tp=16), "num_attention_heads = 40"),
        (Split(tp=10), "num_key_value_heads = 8"),
        (Split(pp=3), "64 of the model's 64 layers do not divide over 3"),
        (Split(pp=2, layers_first=40, layers_last=25), "-1 of the model's 64 layers"),
        (Split(pp=3, layers_first=64), "0 of the model's 64 layers"),
    ],
)
def test_what_does_not_divide_is_told(split: Split, told: str) -> None:
    with pytest.raises(UserError, match=told):
        stage_parameters(known("Qwen/QwQ-32B"), split, 0)
    with pytest.raises(UserError, match=told):
        stage_shapes(known("Qwen/QwQ-32B"), split, 0)


def test_the_split_of_a_recipe_leaves_out_the_gpus_that_generate() -> None:
    assert split_of(load_recipe("qwq-32b-4k-8n8g")) == Split(tp=8, pp=2, dp=4, sequence_parallel=True)
    asynchronous = split_of(load_recipe("qwq-32b-4k-8n8g-async"))
    assert (asynchronous.world, asynchronous.dp) == (32, 2)
    with pytest.raises(UserError, match="32 training ranks cannot be divided"):
        split_of(load_recipe("qwq-32b-4k-4n8g", ["policy.megatron_cfg.pipeline_model_parallel_size=3"]))


def test_a_config_at_hand_goes_before_what_is_built_in(tmp_path: Path) -> None:
    nowhere = {"HF_HOME": str(tmp_path / "none")}
    built_in = architecture_of("Qwen/QwQ-32B", environment=nowhere)
    assert built_in is not None and built_in.source == BUILT_IN
    assert architecture_of("somebody/model", environment=nowhere) is None
    snapshot = tmp_path / "hub" / "models--Qwen--QwQ-32B" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    small = replace(built_in.config, num_layers=8)
    (snapshot / "config.json").write_text(json.dumps(config_to_dict(small)))
    found = architecture_of("Qwen/QwQ-32B", environment={"HF_HOME": str(tmp_path)})
    assert found is not None and found.config.num_layers == 8 and found.source == f"{snapshot}/config.json"
    given = architecture_of("Qwen/QwQ-32B", folder=snapshot, environment=nowhere)
    assert given == found
    with pytest.raises(UserError, match=r"config\.json"):
        architecture_of("Qwen/QwQ-32B", folder=tmp_path, environment=nowhere)
