"""Recipes and names that no careful user writes: each is a message, never a traceback."""

import os

import pytest

from nemo_thinkprune.recipe.checks import check_recipe
from nemo_thinkprune.recipe.describe import training_rows
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.load import load_recipe, recipe_from_dict

GOOD = "policy: {model_name: m}\ndata: {train: {data_path: p}}\n"
BASE = {"policy": {"model_name": "m"}, "data": {"train": {"data_path": "p"}}}
HUGE = "9" * 5000
LARGE = "9" * 90


@pytest.fixture
def load(tmp_path):
    def run(text="", *overrides):
        file = tmp_path / "r.yaml"
        file.write_text(GOOD + text)
        return load_recipe(file, overrides)

    return run


@pytest.mark.parametrize(
    "text", [f"grpo: {{seed: {HUGE}}}", f"grpo: {{seed: -{HUGE}}}", f"grpo:\n  ? {HUGE}\n  : 1"], ids=range(3)
)
def test_a_number_of_thousands_of_digits_is_refused_with_its_line(load, text):
    with pytest.raises(UserError, match=r"r\.yaml, line [34]: a whole number of 500\d digits is too large"):
        load(text)


@pytest.mark.parametrize("value", [HUGE, f"[1, {HUGE}]", f"${{mul:{HUGE},2}}"], ids=range(3))
def test_the_same_in_an_override(load, value):
    with pytest.raises(UserError, match="digits is too large"):
        load("", f"grpo.seed={value}")


@pytest.mark.parametrize("function", ["mul:${grpo.seed},${grpo.seed}", f"mul:${{grpo.seed}},1{'0' * 60}"])
def test_products_are_bounded_too(load, function):
    with pytest.raises(UserError, match="too large a number"):
        load(f"grpo: {{seed: {LARGE}, max_num_steps: '${{{function}}}'}}")


def test_a_place_in_a_list_may_be_any_number(load):
    with pytest.raises(UserError, match="does not exist or has no value"):
        load(f"thinkprune: {{limits: [4]}}\ngrpo: {{max_num_steps: '${{thinkprune.limits.{HUGE}}}'}}")


def test_a_parent_with_a_nul_in_its_name(load):
    with pytest.raises(UserError, match=r"not the name of a recipe file \(named in .*r\.yaml, line 3\)"):
        load('defaults: "a\\0b"\n')


@pytest.mark.parametrize("value", ['""', '["", a.yaml]', "[]", "0", "false"])
def test_an_empty_parent_is_said_to_be_one(load, value):
    if value == "[]":
        assert load(f"defaults: {value}\n").policy.model_name == "m"
        return
    with pytest.raises(UserError, match=r"line 3: defaults must be the name of a recipe file"):
        load(f"defaults: {value}\n")


def test_parents_that_are_links_in_a_circle(load, tmp_path):
    os.symlink("loop.yaml", tmp_path / "loop.yaml")
    with pytest.raises(UserError, match=r"cannot read recipe .*loop\.yaml"):
        load("defaults: loop.yaml\n")


@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "", "x/" + "a" * 300 + ".yaml"], ids=range(4))
def test_a_recipe_name_that_no_file_can_have(name):
    with pytest.raises(UserError, match=r"no recipe file|directory"):
        load_recipe(name)


def problems(recipe):
    try:
        check_recipe(recipe)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("engine", ["local", "nemo-rl"])
@pytest.mark.parametrize(
    "model",
    ["", " ", "a" * 300, "a\0b", "/no/such/folder", "./model", "../model", "~/no-such-model", "a/b/c", "a b"],
    ids=range(10),
)
def test_a_model_that_is_neither_a_folder_nor_a_hub_id_is_refused(model, engine):
    recipe = recipe_from_dict({**BASE, "policy": {"model_name": model}})
    with pytest.raises(UserError, match=r"policy\.model_name (is empty|= .*there is no such folder)"):
        check_recipe(recipe, engine=engine)


@pytest.mark.parametrize("model", ["gpt2", "Qwen/QwQ-32B", "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"])
def test_hub_ids_pass(model):
    assert not problems(recipe_from_dict({**BASE, "policy": {"model_name": model}}))


def test_a_model_folder_passes_and_a_file_does_not(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert not problems(recipe_from_dict({**BASE, "policy": {"model_name": str(tmp_path)}}))
    message = problems(recipe_from_dict({**BASE, "policy": {"model_name": str(tmp_path / "config.json")}}))
    assert "is a file: give the folder it is in" in message


@pytest.mark.parametrize(
    "override",
    [
        'data.train={data_path: ""}',
        'data.train=[{data_path: p}, {data_path: " "}]',
        'data.validation={data_path: ""}',
        'thinkprune.report_data=""',
        'thinkprune.warmup={data_path: ""}',
        'thinkprune.warmup={data_path: p, validation_path: ""}',
    ],
)
def test_an_empty_path_of_data_is_refused(override):
    message = problems(recipe_from_dict(BASE, [override]))
    assert "has a problem" in message and "is empty: give a file, a folder or a hub id" in message


def test_a_path_of_data_that_no_file_can_have():
    assert "cannot be a path" in problems(
        recipe_from_dict({**BASE, "data": {"train": {"data_path": "a\0b"}}})
    )
    long = recipe_from_dict({**BASE, "data": {"train": {"data_path": "a" * 300 + ".jsonl"}}})
    assert training_rows(long) is None


def test_a_seed_is_below_2_to_the_63():
    assert not problems(recipe_from_dict(BASE, [f"grpo.seed={2**63 - 1}"]))
    assert "grpo.seed" in problems(recipe_from_dict(BASE, [f"grpo.seed={2**63}"]))


@pytest.mark.parametrize("metric", ["accuracy", "val:loss", "val:", "train:", ""])
def test_a_metric_to_rank_by_that_is_none(metric):
    message = problems(recipe_from_dict(BASE, [f'checkpointing.metric_name="{metric}"']))
    assert f"checkpointing.metric_name = {metric!r}: use val:accuracy, val:mean_tokens" in message


@pytest.mark.parametrize("metric", ["null", "val:accuracy", "val:mean_tokens", "train:reward_mean"])
def test_metrics_to_rank_by(metric):
    assert not problems(recipe_from_dict(BASE, [f"checkpointing.metric_name={metric}"]))


def test_what_local_checkpoints_do_not_record_cannot_rank_them():
    overrides = ["checkpointing.metric_name=train:reward", "checkpointing.keep_top_k=2"]
    recipe = recipe_from_dict(BASE, overrides)
    assert "could not rank them" in problems(recipe)
    check_recipe(recipe, engine="nemo-rl")


def test_a_scoring_worker_needs_memory_for_its_libraries(load):
    assert load("", "thinkprune.scoring.memory_mb=256").thinkprune.scoring.memory_mb == 256
    with pytest.raises(UserError, match=r"memory_mb: expected a number not below 256, got 255"):
        load("", "thinkprune.scoring.memory_mb=255")


@pytest.mark.parametrize(("text", "value"), [("True", True), ("TRUE", True), ("False", False)])
def test_booleans_of_yaml_1_2_in_any_of_its_spellings(load, text, value):
    assert load(f"grpo: {{val_at_start: {text}}}").grpo.val_at_start is value
