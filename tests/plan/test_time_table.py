"""A recipe's predicted step: which passes it makes, what is printed as assumed, and the published rows."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

from nemo_thinkprune.costs.flops import RECOMPUTE_ALL, Work
from nemo_thinkprune.costs.gpus import GPUS
from nemo_thinkprune.costs.known_models import known_models
from nemo_thinkprune.costs.time_assumptions import TimeAssumptions
from nemo_thinkprune.plan.time_table import (
    KNOWN_ERROR,
    RESPONSE_SHARE,
    step_of,
    time_lines,
    time_rows,
    time_values,
)
from nemo_thinkprune.recipe.load import load_recipe

H100 = GPUS["h100-80g"]
WORK = Work(prompts=[10], responses=[10])


def planned(name: str, *overrides: str, gpu=H100, **more):
    recipe = load_recipe(name, overrides)
    return time_rows(recipe, known_models()[recipe.policy.model_name], gpu, **more)


def step(name: str, *overrides: str, gpu=H100):
    recipe = load_recipe(name, overrides)
    return step_of(recipe, known_models()[recipe.policy.model_name], gpu, work=WORK)


@pytest.mark.parametrize(
    "name",
    [
        "qwq-32b-4k-4n8g",
        "qwq-32b-4k-8n8g",
        "qwq-32b-2k-4n8g",
        "r1-distill-qwen-1.5b-4k",
        "deepscaler-1.5b-4k",
    ],
)
def test_recipes_get_a_step_time_with_everything_assumed_named(name):
    plan = planned(name)
    assert plan.step is not None
    assert plan.step.seconds == pytest.approx(sum(p.seconds for p in plan.step.phases))
    assert 0 < plan.step.train_mfu < 1
    text = " ".join(" ".join(time_lines(plan)).split())
    small, name_of_size = "1.5b" in name, {True: "small_layer_efficiency", False: "layer_efficiency"}
    for one in TimeAssumptions().listed():
        printed = f" {one.name} = {one.value:g} {one.unit}: {one.source}" in text
        assert printed == (one.name != name_of_size[not small])
    assert f"mean response = {RESPONSE_SHARE} of the limit" in text
    assert "not measured" in text
    values = json.loads(json.dumps(time_values(plan)))
    assert values["step_seconds"] == plan.step.seconds
    assert {one["name"] for one in values["assumed"]} >= {"mean response", "prompt", name_of_size[small]}


def test_an_a100_reaches_more_of_its_peak_and_blackwell_says_where_its_numbers_are_from():
    def assumed(name):
        return {one.name: one for one in planned("qwq-32b-4k-4n8g", gpu=GPUS[name]).assumed}

    a100, h100, b200 = assumed("a100-80g"), assumed("h100-80g"), assumed("b200-192g")
    assert a100["layer_efficiency"].value > h100["layer_efficiency"].value == b200["layer_efficiency"].value
    assert "A100" in a100["layer_efficiency"].source and "H100" in h100["layer_efficiency"].source
    assert b200["decode_bandwidth"].source.startswith("measured on Hopper")


def test_a_given_length_is_not_printed_as_assumed():
    plan = planned("qwq-32b-4k-4n8g", response_tokens=2000, prompt_tokens=200)
    assert plan.response_tokens == pytest.approx(2000, rel=2e-3)
    assert not {"mean response", "prompt"} & {one.name for one in plan.assumed}
    assert plan.step.tokens == pytest.approx(2048 * 2200, rel=2e-3)


def test_asynchronous_recipe_generates_beside_training():
    plan = planned("qwq-32b-4k-8n8g-async")
    assert plan.beside and plan.step.gpus == 64
    assert plan.step.seconds < sum(p.seconds for p in plan.step.phases)


def test_passes_follow_the_loss():
    both = step("qwq-32b-4k-4n8g")
    assert (both.passes, both.reference, both.updates) == (2, True, 1)
    assert both.recompute == RECOMPUTE_ALL
    on_policy = step("qwq-32b-4k-4n8g", "loss_fn.force_on_policy_ratio=true")
    assert (on_policy.passes, on_policy.reference) == (1, True)
    none = step(
        "qwq-32b-4k-4n8g", "loss_fn.force_on_policy_ratio=true", "loss_fn.reference_policy_kl_penalty=0"
    )
    assert (none.passes, none.reference) == (0, False)
    four = step("qwq-32b-4k-4n8g", "policy.train_global_batch_size=512")
    assert four.updates == 4


def test_recomputation_and_rows_follow_the_recipe():
    selective = step("qwq-32b-4k-4n8g", "policy.megatron_cfg.recompute_granularity=selective")
    assert selective.recompute == ("core_attn",)
    assert step("qwq-32b-4k-4n8g", "policy.megatron_cfg.activation_checkpointing=false").recompute == ()
    recipe = load_recipe("qwq-32b-4k-4n8g")
    assert selective.train_rows.tokens == recipe.policy.sequence_packing.train_mb_tokens
    assert selective.train_rows.full
    loose = step("r1-distill-qwen-1.5b-4k", "policy.sequence_packing.enabled=false")
    assert loose.train_rows.tokens is None and not loose.train_rows.full


def test_the_engines_follow_the_recipe_and_the_gpu():
    engines = step("qwq-32b-4k-4n8g").engines
    assert (engines.count, engines.tp, engines.most_sequences) == (8, 4, 1024)
    assert step("qwq-32b-4k-4n8g", gpu=GPUS["a100-80g"]).engines.most_sequences == 256
    assert step("qwq-32b-4k-4n8g", gpu=GPUS["h200-141g"]).engines.cache_tokens > 2 * engines.cache_tokens
    few = step("qwq-32b-4k-4n8g", "policy.generation.vllm_kwargs={max_num_seqs: 7}")
    assert few.engines.most_sequences == 7


@pytest.mark.parametrize(
    "setting",
    [
        "policy.precision=float32",
        "policy.megatron_cfg.fp8_cfg.enabled=true",
        "policy.generation.vllm_cfg.precision=fp8",
    ],
)
def test_other_precisions_are_not_predicted(setting):
    plan = planned("qwq-32b-4k-4n8g", setting)
    assert plan.step is None
    assert "bfloat16" in plan.problem


def test_dynamic_sampling_is_told_as_an_assumption():
    plan = planned("qwq-32b-4k-4n8g", "grpo.use_dynamic_sampling=true")
    assert "generation batches" in {one.name for one in plan.assumed}


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_every_gpu_gets_a_step_time(gpu):
    plan = planned("r1-distill-qwen-1.5b-4k", gpu=gpu)
    assert 0 < plan.step.train_mfu < 1
    assert plan.step.tokens_per_gpu_second > 0


def test_an_engine_without_room_is_said_not_raised():
    plan = planned("qwq-32b-4k-4n8g", "policy.generation.vllm_cfg.gpu_memory_utilization=0.22")
    assert plan.step is None
    assert "cache holds" in plan.problem
    assert list(time_lines(plan)) == [f"step time: none, {plan.problem}"]
    assert time_values(plan) == {"problem": plan.problem}


@pytest.fixture(scope="module")
def published():
    file = Path(__file__).parents[2] / "benchmarks" / "published_step.py"
    spec = importlib.util.spec_from_file_location("published_step", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_published_rows_are_missed_by_what_every_plan_says(published):
    errors = {True: [], False: []}
    for row in published.ROWS:
        assert row.prompt in range(100, 135)
        errors[row.gpu is H100].append(1 - published.seconds(published.predict(row)) / row.seconds)
    said = [int(n) for n in re.findall(r"(\d+)%", KNOWN_ERROR)]
    found = [f(errors[gpu]) for gpu in (True, False) for f in (min, max)]
    assert found == pytest.approx([n / 100 for n in said], abs=0.01)


def test_the_docs_have_the_predictions_of_today(published):
    text = (Path(__file__).parents[2] / "docs" / "performance.md").read_text(encoding="utf-8")
    for row in published.ROWS:
        line = next(line for line in text.splitlines() if line.startswith(row.name))
        printed, stated = (float(n) for n in re.findall(r"([\d.]+) s", line)[:2])
        assert printed == pytest.approx(published.seconds(published.predict(row)), rel=0.01), row.name
        assert stated == row.seconds


def test_sensitivity_names_every_assumption(published):
    text = "\n".join(published.sensitivity(published.ROWS[0]))
    for one in TimeAssumptions().listed():
        assert one.name in text
