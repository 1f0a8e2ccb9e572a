"""The smallest change that fits: it fits when it is made, and no part of it can be left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from nemo_thinkprune.costs.known_models import known_models
from nemo_thinkprune.plan.advice import Advice, advise, candidates
from nemo_thinkprune.plan.plan import Plan, make_plan
from nemo_thinkprune.recipe.checks import check_recipe
from nemo_thinkprune.recipe.load import load_recipe

QWQ = known_models()["Qwen/QwQ-32B"]
MEGATRON, VLLM = "policy.megatron_cfg", "policy.generation.vllm_cfg"


def plan(*overrides: str, gpu: str = "h100-80g", recipe: str = "qwq-32b-4k-4n8g") -> Plan:
    return make_plan(load_recipe(recipe, overrides), QWQ, gpu=gpu)


def advice(*overrides: str, gpu: str = "h100-80g", recipe: str = "qwq-32b-4k-4n8g") -> Advice | None:
    def replan(more: Sequence[str]) -> Plan:
        return plan(*overrides, *more, gpu=gpu, recipe=recipe)

    return advise(replan([]), replan)


def test_what_fits_needs_no_advice() -> None:
    assert plan().fits and plan().missing_bytes == 0
    assert advice() is None


CASES = {
    "logits of a long row": (
        "policy.logprob_chunk_size=null",
        "policy.sequence_packing.train_mb_tokens=100000",
        "policy.sequence_packing.logprob_mb_tokens=100000",
    ),
    "vLLM's share": (f"{VLLM}.gpu_memory_utilization=0.99",),
    "no room for one sequence": (f"{VLLM}.gpu_memory_utilization=0.2",),
    "activations of a long row": (
        f"{MEGATRON}.activation_checkpointing=false",
        "policy.sequence_packing.train_mb_tokens=30000",
    ),
    "weights of one node": (f"{MEGATRON}.pipeline_model_parallel_size=1", "cluster.num_nodes=1"),
    "too many rows kept by the first stage": (
        f"{MEGATRON}.activation_checkpointing=false",
        f"{MEGATRON}.sequence_parallel=false",
        f"{MEGATRON}.tensor_model_parallel_size=1",
    ),
    "a refit buffer for half a tensor": ("policy.refit_buffer_size_gb=1",),
}


@pytest.mark.parametrize("overrides", CASES.values(), ids=CASES)
def test_the_advice_fits_and_every_part_of_it_is_needed(overrides: tuple[str, ...]) -> None:
    before = plan(*overrides)
    assert not before.fits and before.missing_bytes > 0
    found = advice(*overrides)
    assert found is not None
    after = plan(*overrides, *found.overrides)
    assert after.fits and after.worst.bytes <= after.capacity
    check_recipe(after.recipe, engine="nemo-rl")
    for left_out in found.changes:
        rest = [text for change in found.changes if change != left_out for text in change.overrides]
        assert not plan(*overrides, *rest).fits


def test_what_costs_nothing_comes_before_what_costs_time() -> None:
    found = advice(*CASES["logits of a long row"])
    assert found is not None
    assert [change.group for change in found.changes] == ["logits"]
    assert found.overrides[0].startswith("policy.logprob_chunk_size=")


def test_vllms_share_is_lowered_no_further_than_needed() -> None:
    found = advice(*CASES["vLLM's share"])
    assert found is not None
    (text,) = found.overrides
    share = float(text.rpartition("=")[2])
    assert plan(f"{VLLM}.gpu_memory_utilization={share}").fits
    assert not plan(f"{VLLM}.gpu_memory_utilization={share + 0.01:.2f}").fits


def test_no_advice_where_nothing_helps() -> None:
    model = replace(QWQ, hidden_size=5120 * 16, ffn=27648 * 16)

    def replan(more: Sequence[str]) -> Plan:
        return make_plan(load_recipe("qwq-32b-4k-4n8g", more), model, gpu="a100-80g")

    assert advise(replan([]), replan) is None


def test_changes_of_the_local_engine_are_its_own() -> None:
    tiny = plan(recipe="quickstart")
    groups = {change.group for change in candidates(tiny)}
    assert groups == {"logits", "rollouts", "recompute", "train_mb_tokens", "logprob_mb_tokens"}


def test_the_local_engine_is_advised_on_a_machine_with_little_memory() -> None:
    model = replace(QWQ, num_layers=4, hidden_size=1024, ffn=4096, num_heads=16, num_kv_heads=4, head_dim=64)

    def replan(more: Sequence[str], *, host_bytes: int = 2**40) -> Plan:
        return make_plan(load_recipe("quickstart", more), model, gpu="h100-80g", host_bytes=host_bytes)

    little = int(0.9 * replan([]).worst.bytes)
    before = replan([], host_bytes=little)
    found = advise(before, lambda more: replan(more, host_bytes=little))
    assert not before.fits and found is not None
    assert replan(found.overrides, host_bytes=little).fits


@pytest.mark.parametrize("gpus", [1, 2])
def test_small_nodes_get_more_gpus_before_more_nodes_come(gpus: int) -> None:
    small = known_models()["deepseek-ai/DeepSeek-R1-Distill-Qwen-14B"]
    words = [f"cluster.gpus_per_node={gpus}"]

    def replan(more: Sequence[str]) -> Plan:
        return make_plan(load_recipe("r1-distill-qwen-1.5b-4k", [*words, *more]), small, gpu="h100-80g")

    before = replan([])
    found = advise(before, replan)
    assert not before.fits and found is not None
    assert found.plan.fits and found.plan.recipe.cluster.num_nodes == 1
    assert found.plan.split.tp <= found.plan.recipe.cluster.gpus_per_node <= 8
