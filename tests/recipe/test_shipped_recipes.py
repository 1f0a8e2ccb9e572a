import os
from pathlib import Path

import pytest
import yaml

from nemo_thinkprune.recipe.checks import ENGINES, check_recipe
from nemo_thinkprune.recipe.load import dump_yaml, load_recipe, recipes_folder
from nemo_thinkprune.recipe.yaml_file import parse_mapping

SHIPPED = sorted(recipes_folder().glob("*.yaml"))


def test_recipes_are_found():
    assert {"quickstart", "thinkprune", "tiny-hf-cpu", "r1-distill-qwen-1.5b-4k"} <= {
        file.stem for file in SHIPPED
    }


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_shipped_recipe_passes_the_checks_of_both_engines(file):
    recipe = load_recipe(file.stem)
    for engine in ENGINES:
        check_recipe(recipe, engine=engine)
    assert load_recipe(file) == recipe


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_shipped_recipe_says_what_it_is_and_what_was_not_run(file):
    header = []
    for line in file.read_text().splitlines():
        if not line.startswith("#"):
            break
        header.append(line)
    text = "\n".join(header)
    assert "# What:" in text
    assert "# Sources:" in text
    assert "run:" in text.lower().replace("not run:", "run:")


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
    recipe = load_recipe(Path(root) / "examples" / "configs" / f"{name}.yaml")
    assert recipe.policy.model_name
    assert recipe.policy.sequence_packing.train_mb_tokens == (
        recipe.policy.max_total_sequence_length * recipe.policy.train_micro_batch_size
    )
