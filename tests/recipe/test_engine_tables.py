"""The tables of what engines take: every path in them is a key, and no default is refused."""

import pytest
from support.nemo_rl_recipes import recipe

from nemo_thinkprune.recipe import checks_megatron, local_support, nemo_rl_support, support
from nemo_thinkprune.recipe.keys import dotted, walk
from nemo_thinkprune.recipe.schema import Recipe
from nemo_thinkprune.recipe.section_run import Dataset
from nemo_thinkprune.recipe.support import value_at

RULES = {
    "local": local_support.RESTRICTIONS,
    "nemo-rl": nemo_rl_support.RESTRICTIONS,
    "cpu": nemo_rl_support.CPU_RESTRICTIONS,
    "gpu": checks_megatron.GPU_RESTRICTIONS,
}
PATHS = {
    "MODEL_KEYS": local_support.MODEL_KEYS,
    "_AROUND_POLICY": local_support._AROUND_POLICY,
    "TUNING": local_support.TUNING,
    "CPU_TUNING": nemo_rl_support.CPU_TUNING,
    "_RAW_PATHS": nemo_rl_support._RAW_PATHS,
}
KEYS = {dotted(path) for path, _ in walk(Recipe)}


@pytest.mark.parametrize("engine", RULES)
def test_rules_are_about_keys_and_allow_their_defaults(engine):
    rules, plain = RULES[engine], recipe()
    assert {rule.path for rule in rules} - KEYS == set()
    assert {rule.path for rule in rules if value_at(plain, rule.path) not in rule.allowed} == set()
    assert len({rule.path for rule in rules}) == len(rules)


@pytest.mark.parametrize("table", PATHS)
def test_paths_are_keys(table):
    assert set(PATHS[table]) - KEYS == set()


@pytest.mark.parametrize("table", ["MODEL_KEYS", "_AROUND_POLICY"])
def test_parts_of_the_local_table_are_in_it(table):
    assert set(PATHS[table]) <= {rule.path for rule in RULES["local"]}


def test_rules_on_data_sets_are_about_keys_and_allow_their_defaults():
    rules = (*support.DATASET_RESTRICTIONS, *nemo_rl_support.DATASET_RESTRICTIONS)
    plain = Dataset()
    assert {rule.path for rule in rules} - set(Dataset.model_fields) == set()
    assert {rule.path for rule in rules if getattr(plain, rule.path) not in rule.allowed} == set()


def test_what_is_said_to_be_the_other_engines_is_not_refused_there():
    sent = {rule.path for rule in RULES["local"] if rule.advice == local_support._OTHER_ENGINE}
    assert "grpo.async_grpo.enabled" in sent
    assert sent & {rule.path for rule in (*RULES["nemo-rl"], *RULES["gpu"])} == set()
