"""Real Megatron-Core modules of every rank beside the closed form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from checkpoints_tools.hf_config import config_to_dict
from checkpoints_tools.model_config import ModelConfig
from nemo_thinkprune.costs.buffers import Reduction
from nemo_thinkprune.costs.known_models import known_models
from nemo_thinkprune.costs.shards import Split, split_of
from nemo_thinkprune.costs.training_state import precision_of, reduction_of
from nemo_thinkprune.plan import build, commands
from nemo_thinkprune.plan.build import BuildMismatch, build_and_compare, rank_faults, table, world_faults
from nemo_thinkprune.plan.built_rank import BuiltRank, built_rank, meta_device
from nemo_thinkprune.policy.model import ModelOptions
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.load import load_recipe
from nemo_thinkprune.recipe.schema import Recipe

RECIPES = sorted(file.stem for file in (Path(__file__).parents[2] / "recipes").glob("*.yaml"))
TINY = ModelConfig(
    "Qwen2ForCausalLM", 64, 8, 4, 2, 16, 96, 130, False, 1e4, None, 1e-6, True, False, 512, 0.02, "float32"
)  # fmt: skip
MEGATRON = "policy.megatron_cfg"
# Short sequences, for the few positions of the tiny model, on 8 ranks.
LOCAL = (
    "cluster.gpus_per_node=8",
    "thinkprune.limits=[64]",
    "data.max_input_seq_length=64",
)


def small(*words: str, gpus: int = 8) -> Recipe:
    """A recipe of `gpus` ranks on one node."""
    return load_recipe("thinkprune", [f"cluster.gpus_per_node={gpus}", "cluster.num_nodes=1", *words])


def layout(tp: int = 1, pp: int = 1, cp: int = 1, **layers: int) -> list[str]:
    sizes = {"tensor_model": tp, "pipeline_model": pp, "context": cp}
    words = [f"{MEGATRON}.{name}_parallel_size={size}" for name, size in sizes.items()]
    return words + [f"{MEGATRON}.num_layers_in_{which}_pipeline_stage={n}" for which, n in layers.items()]


def distinct() -> Iterator[tuple[str, ...]]:
    """Recipes by what their ranks hold: model, split, precision and reduction."""
    alike: dict[object, list[str]] = {}
    for name in RECIPES:
        recipe = load_recipe(name)
        key = (recipe.policy.model_name, split_of(recipe), precision_of(recipe), reduction_of(recipe))
        alike.setdefault(key, []).append(name)
    return (tuple(names) for names in alike.values())


def test_there_are_fourteen_recipes_to_build() -> None:
    assert len(RECIPES) == 14 == sum(len(names) for names in distinct())


@pytest.mark.parametrize("names", list(distinct()), ids=" ".join)
def test_every_rank_of_every_recipe_equals_the_closed_form(names: tuple[str, ...]) -> None:
    recipe, told = load_recipe(names[0]), []
    model = known_models().get(recipe.policy.model_name, TINY)  # the tiny ones are made by the quickstart
    stages = build_and_compare(recipe, model, say=told.append)
    assert sum(stage.ranks for stage in stages) == split_of(recipe).world
    assert [n for stage in stages for n in stage.layers] == list(range(model.num_layers))
    assert all(stage.parameters == stage.formula > 0 for stage in stages)
    assert told[0].startswith(f"building {split_of(recipe).world} ranks")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (replace(TINY, tied=True), layout(tp=2, pp=2)),
        (replace(TINY, tied=True), layout(tp=2)),
        (TINY, layout(pp=4, first=1, last=3)),
        (replace(TINY, tied=True), layout(pp=4, first=2)),
        (TINY, [*layout(tp=2, pp=2, cp=2)]),
        (
            replace(TINY, architecture="Qwen3ForCausalLM", qkv_bias=False, qk_norm=True, head_dim=32),
            layout(tp=2, pp=2, last=5),
        ),
        (replace(TINY, architecture="LlamaForCausalLM", qkv_bias=False), layout(tp=2)),
        (TINY, [*layout(tp=2), "policy.precision=float32"]),
        (TINY, [*layout(tp=2), "policy.precision=float16"]),
        (TINY, [f"{MEGATRON}.distributed_data_parallel_config.grad_reduce_in_fp32=true", *layout(pp=2)]),
        (
            TINY,
            [
                f"{MEGATRON}.optimizer.use_distributed_optimizer=false",
                f"{MEGATRON}.optimizer.use_precision_aware_optimizer=false",
            ],
        ),
    ],
)
def test_other_layouts_and_models_equal_the_closed_form(model: ModelConfig, words: list[str]) -> None:
    assert build_and_compare(small(*words), model, say=lambda line: None)


def test_the_table_has_a_row_for_each_stage() -> None:
    text = table(build_and_compare(small(*layout(tp=2, pp=2)), TINY, say=lambda line: None))
    assert [line.split()[:3] for line in text.splitlines()[2:4]] == [["0", "0..3", "4"], ["1", "4..7", "4"]]
    assert "8 of 8 ranks equal the closed form" in text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (layout(tp=4), "does not divide the model's num_key_value_heads = 2; use one of 1, 2"),
        (layout(pp=8, first=2), "6 of the model's 8 layers do not divide over 7 pipeline stages"),
        ([*layout(tp=2, pp=3)], "8 ranks cannot be divided by"),
        ([f"{MEGATRON}.peft.enabled=true"], "peft.enabled = True: plan --build cannot honour this"),
    ],
)
def test_what_cannot_be_built_is_the_users_to_change(words: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        build_and_compare(small(*words), TINY, say=lambda line: None)


def test_a_difference_names_rank_and_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = build.stage_shapes
    name = "decoder.layers.5.mlp.linear_fc2.weight"

    def wrong(model: ModelConfig, split: Split, stage: int) -> dict[str, tuple[int, ...]]:
        return {n: (1, 2) if n == name else shape for n, shape in honest(model, split, stage).items()}

    monkeypatch.setattr(build, "stage_shapes", wrong)
    with pytest.raises(
        BuildMismatch, match=r"rank 4 \(stage 1, tensor rank 0, data rank 0\): decoder.layers.5"
    ):
        build_and_compare(small(*layout(tp=2, pp=2)), TINY, say=lambda line: None)


@pytest.fixture(scope="module")
def four() -> list[BuiltRank]:
    options, split = ModelOptions(dtype=torch.bfloat16, grad_reduce_in_fp32=False), Split(tp=2, pp=2)
    with meta_device() as device:
        return [
            built_rank(TINY, split, rank, options=options, reduction=Reduction(), device=device)
            for rank in range(4)
        ]


def test_each_kind_of_difference_is_found(four: list[BuiltRank]) -> None:
    recipe = small(
        *layout(tp=2, pp=2), f"{MEGATRON}.distributed_data_parallel_config.overlap_grad_reduce=false"
    )
    expected = build.expected_stage(TINY, Split(tp=2, pp=2), 0, recipe=recipe)
    honest = four[0]
    assert not list(rank_faults(honest, expected))
    shapes = dict(honest.shapes)
    shapes["decoder.layers.9.mlp.linear_fc1.weight"] = shapes.pop("decoder.layers.3.mlp.linear_fc1.weight")
    for change, told in (
        ({"layers": (0, 1, 3)}, "layers 0, 1, 3 were built, 0..3 expected"),
        ({"shapes": shapes}, "layers.3.mlp.linear_fc1.weight: nothing was built"),
        ({"shapes": dict(reversed(honest.shapes.items()))}, "another order"),
        ({"parameters": 1}, "parameters: 1 were built"),
        ({"weight_bytes": 1}, "bytes of weights"),
        ({"gradient_elements": 1}, "elements of the gradient buffer"),
        ({"gradient_bytes": 1}, "bytes of the gradient buffer"),
        ({"optimizer_elements": 1}, "elements of the optimizer's share"),
    ):
        assert any(told in fault for fault in rank_faults(replace(honest, **change), expected)), told


def test_ranks_together_hold_every_layer_and_row_once(four: list[BuiltRank]) -> None:
    split = Split(tp=2, pp=2)
    assert not list(world_faults(four, TINY, split))
    assert "3 ranks were built at 3 places, 4 expected" in next(world_faults(four[:3], TINY, split))
    twice = [*four[:3], replace(four[3], layers=(3, 5, 6, 7))]
    assert "layers 0, 1, 2, 3, 3, 5, 6, 7 over all stages" in next(world_faults(twice, TINY, split))
    gap = [replace(four[0], vocabulary=range(0, 100)), *four[1:]]
    assert "the embedding's rows are" in next(world_faults(gap, TINY, split))


def test_nothing_is_left_of_the_fake_world(four: list[BuiltRank]) -> None:
    assert not torch.distributed.is_initialized()
    assert torch.empty(1).device.type == "cpu"


def test_the_verb_tells_what_was_built_and_a_difference_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_to_dict(TINY)))
    words = [f"policy.model_name={tmp_path}", *layout(tp=2, pp=2), *LOCAL]

    def run(**options: bool) -> tuple[int, str]:
        lines: list[str] = []
        settings = {"as_json": False, "build": True, **options}
        code = commands.plan("thinkprune", words, gpu="h100-80g", model=None, say=lines.append, **settings)
        return code, "\n".join(lines)

    code, text = run()
    assert code == 0 and "8 of 8 ranks equal the closed form" in text
    code, text = run(as_json=True)
    built = json.loads(text)["built"]
    assert code == 0 and built["fault"] is None
    assert [stage["parameters"] for stage in built["stages"]] == [
        stage["closed_form_parameters"] for stage in built["stages"]
    ]
    assert "built" not in json.loads(run(as_json=True, build=False)[1])
    monkeypatch.setattr(build, "stage_parameters", lambda *_: 7)
    code, text = run()
    assert code == 1 and "rank 0 (stage 0, tensor rank 0, data rank 0): parameters: " in text
    assert "7 expected" in json.loads(run(as_json=True)[1])["built"]["fault"]
