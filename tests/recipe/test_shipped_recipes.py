import os
import re
from pathlib import Path

import pytest
import yaml

from nemo_thinkprune.cluster.find import SUPPORTED, find_nemo_rl
from nemo_thinkprune.recipe.checks import ENGINES, check_recipe
from nemo_thinkprune.recipe.checks_layout import training_layout
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.recipe.load import dump_yaml, load_recipe, recipes_folder
from nemo_thinkprune.recipe.yaml_file import parse_mapping

SHIPPED = sorted(recipes_folder().glob("*.yaml"))


def test_recipes_are_found():
    assert {file.stem for file in SHIPPED} == {
        "quickstart", "thinkprune", "thinkprune-as-released", "tiny-hf-cpu",
        "r1-distill-qwen-1.5b-4k", "r1-distill-qwen-1.5b-rounds", "deepscaler-1.5b-4k", "deepscaler-1.5b-rounds",
        "qwq-32b-4k-4n8g", "qwq-32b-3k-4n8g", "qwq-32b-2k-4n8g", "qwq-32b-rounds", "qwq-32b-4k-8n8g",
        "qwq-32b-4k-8n8g-async",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("qwq-32b-4k-4n8g", (32, 4, 4, 2)),
        ("qwq-32b-4k-8n8g", (64, 8, 2, 4)),
        ("qwq-32b-4k-8n8g-async", (32, 4, 4, 2)),
        ("r1-distill-qwen-1.5b-4k", (8, 1, 1, 8)),
        ("deepscaler-1.5b-4k", (8, 1, 1, 8)),
    ],
)
def test_layouts_are_those_of_the_headers(name, layout):
    found = training_layout(load_recipe(name))
    assert (found.world, found.tp, found.pp, found.dp) == layout


@pytest.mark.parametrize("file", [file for file in SHIPPED if "1.5b" in file.stem or "32b" in file.stem])
def test_the_objective_of_every_large_recipe_is_that_of_the_paper(file):
    recipe, paper = load_recipe(file), load_recipe("thinkprune")
    assert recipe.policy.train_global_batch_size == paper.policy.train_global_batch_size == 128 * 16
    assert recipe.policy.megatron_cfg.optimizer == paper.policy.megatron_cfg.optimizer
    assert recipe.grpo.adv_estimator == paper.grpo.adv_estimator
    correction = {"use_importance_sampling_correction": recipe.grpo.async_grpo.enabled}
    assert recipe.loss_fn == paper.loss_fn.model_copy(update=correction)
    assert recipe.thinkprune.truncation == "zero"
    assert recipe.thinkprune.prompt_family == ("qwen" if "qwq" in file.stem else "deepseek")


def test_the_quickstart_packs_as_when_its_numbers_were_measured():
    policy = load_recipe("quickstart").policy
    assert policy.max_total_sequence_length == 256
    assert policy.sequence_packing.train_mb_tokens == policy.sequence_packing.logprob_mb_tokens == 192 * 64


def header(file):
    lines = file.read_text().splitlines()
    return "\n".join(lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))])


def engines(file):
    """The engines that a recipe says it is for."""
    named = re.search(r"^# Engines: ([^;\n]+)", header(file), flags=re.M)[1].split(", ")
    assert set(named) <= set(ENGINES)
    return named


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_shipped_recipe_passes_the_checks_of_its_engines_and_no_other(file):
    recipe = load_recipe(file.stem)
    for engine in engines(file):
        check_recipe(recipe, engine=engine)
    for engine in set(ENGINES) - set(engines(file)):
        with pytest.raises(UserError, match=f"for the {engine} engine"):
            check_recipe(recipe, engine=engine)
    assert load_recipe(file) == recipe


def test_only_the_asynchronous_recipe_is_not_for_both_engines():
    assert [file.stem for file in SHIPPED if engines(file) != list(ENGINES)] == ["qwq-32b-4k-8n8g-async"]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_recipe_but_the_asynchronous_one_runs_on_a_cpu_with_its_sizes_overridden(file):
    recipe = load_recipe(file)
    if recipe.grpo.async_grpo.enabled:
        with pytest.raises(UserError, match=r"the synchronous trainer; set grpo\.async_grpo\.enabled=false"):
            check_recipe(recipe, engine="nemo-rl", on_cpu=True)
    else:
        check_recipe(recipe, engine="nemo-rl", on_cpu=True)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_shipped_recipe_says_what_it_is_and_what_was_not_run(file):
    text = header(file)
    assert "# What:" in text
    assert "# Sources:" in text
    assert "run:" in text.lower().replace("not run:", "run:")
    if load_recipe(file).world_size > 1:
        assert "# GPUs:" in text and "# Not run:" in text


LARGE = [file for file in SHIPPED if re.match("qwq-|deepscaler-|r1-", file.stem)]


@pytest.mark.parametrize("file", LARGE, ids=lambda file: file.stem)
def test_the_header_says_how_nemo_rl_samples_in_validation(file):
    recipe = load_recipe(file)
    training, paper = recipe.policy.generation, recipe.thinkprune.validation
    here, there = (
        f"{training.temperature:g} and top_p {training.top_p:g}",
        f"{paper.temperature} and {paper.top_p}",
    )
    sentence = f"Validation under NeMo-RL samples at temperature {here}, not at thinkprune.yaml's {there}."
    assert sentence in header(file)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_a_recipe_of_rounds_compares_accuracies_within_one_limit(file):
    notes = [note for engine in engines(file) for note in check_recipe(load_recipe(file), engine=engine)]
    skewed = [note for note in notes if "thinkprune.selection.baseline" in note]
    if file.stem.endswith("-rounds"):
        assert load_recipe(file).thinkprune.selection.baseline == "round_start"
        assert len(load_recipe(file).thinkprune.limits) > 1 and not skewed
    elif file.stem not in (
        "thinkprune",
        "thinkprune-as-released",
        "quickstart",
    ):  # rounds of the local engine too
        assert not skewed


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_our_reading_of_a_shipped_recipe_is_that_of_a_plain_yaml_reader(file):
    # Numbers are written as 1.0e-6, which every YAML reader takes for a number.
    assert parse_mapping(file.read_text()).data == yaml.safe_load(file.read_text())


def test_the_paper_recipe_states_what_the_defaults_are():
    stated = load_recipe("thinkprune")
    bare = {
        "policy": {"model_name": stated.policy.model_name},
        "thinkprune": {"report_data": "data/aime24.jsonl"},
    }
    from nemo_thinkprune.recipe.load import recipe_from_dict, to_dict

    plain = recipe_from_dict({**bare, "data": to_dict(stated)["data"]})
    assert dump_yaml(plain) == dump_yaml(stated)


@pytest.mark.parametrize("name", ["grpo_math_1B", "grpo_math_1B_megatron"])
def test_the_schema_knows_every_key_of_nemo_rls_own_recipes(name):
    root = os.environ.get("NEMO_RL_ROOT")
    if not root:
        pytest.skip("NEMO_RL_ROOT names no checkout of NeMo-RL")
    if f"v{find_nemo_rl(Path(root)).version}" != SUPPORTED:
        pytest.skip(f"the checkout is not {SUPPORTED}, whose keys the schema has")
    recipe = load_recipe(Path(root) / "examples" / "configs" / f"{name}.yaml")
    assert recipe.policy.model_name
    assert recipe.policy.sequence_packing.train_mb_tokens == (
        recipe.policy.max_total_sequence_length * recipe.policy.train_micro_batch_size
    )
