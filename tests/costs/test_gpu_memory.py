"""Phases of a GPU and of a node under NeMo-RL."""

from __future__ import annotations

import pytest

from nemo_thinkprune.costs.gpus import GPUS
from nemo_thinkprune.costs.host_memory import host_phases
from nemo_thinkprune.costs.known_models import known_models
from nemo_thinkprune.costs.memory import gpu_phases, held, largest_tensor_bytes
from nemo_thinkprune.costs.parts import GIB, PHASES, Part, PhaseMemory, phase, worst
from nemo_thinkprune.costs.shards import split_of
from nemo_thinkprune.recipe.load import load_recipe
from nemo_thinkprune.recipe.schema import Recipe

QWQ = known_models()["Qwen/QwQ-32B"]
H100 = GPUS["h100-80g"].memory_bytes
OPTIMIZER = "policy.megatron_cfg.optimizer"


def recipe(*overrides: str) -> Recipe:
    return load_recipe("qwq-32b-4k-4n8g", overrides)


def one(phases: list[PhaseMemory], name: str, stage: int = 0) -> dict[str, int]:
    """Bytes of the parts of a phase by name."""
    found = next(p for p in phases if (p.phase, p.stage) == (name, stage))
    return {part.name: part.bytes for part in found.parts}


def planned(*overrides: str) -> list[PhaseMemory]:
    return gpu_phases(recipe(*overrides), QWQ, gpu=GPUS["h100-80g"])


def test_every_phase_of_every_stage_and_none_is_a_sum_of_others() -> None:
    phases = planned()
    assert [(p.phase, p.stage) for p in phases] == [(name, stage) for stage in range(4) for name in PHASES]
    assert all(p.bytes == sum(part.bytes for part in p.parts) for p in phases)
    assert worst(phases).bytes == max(p.bytes for p in phases) < sum(p.bytes for p in phases)


def test_parts_of_nothing_are_left_out() -> None:
    assert phase("load", 0, [Part("a", 1), Part("b", 0)]).parts == (Part("a", 1),)


def test_weights_gradients_and_optimizer_of_the_first_stage() -> None:
    """16 layers and the embedding at TP4; two copies share the state: 8 of moments and 2 of master weight."""
    layer = 5120 * 14 * 128 + 14 * 128 + 5120 * 1280 + 3 * 5120 * 6912 + 2 * 5120
    parameters = 16 * layer + 38016 * 5120
    own = held(recipe(), QWQ, split_of(recipe()), 0)
    assert own.parameters == parameters
    for found, expected in ((own.weights, 2), (own.gradients, 2), (own.optimizer, 10 / 2)):
        assert found == pytest.approx(parameters * expected, rel=1e-4)  # buffers are padded
    assert (own.stays, own.offloaded, own.main_gradients) == (0, 0, 0)


def test_float32_master_weights_stay_while_vllm_generates() -> None:
    plain = recipe(f"{OPTIMIZER}.use_precision_aware_optimizer=false")
    own = held(plain, QWQ, split_of(plain), 1)
    assert own.stays == pytest.approx(own.parameters * 4 / 2, rel=1e-3)
    assert own.main_gradients == own.stays
    parts = one(planned(f"{OPTIMIZER}.use_precision_aware_optimizer=false"), "generate", 1)
    assert parts["master weights"] == own.stays


def test_what_is_offloaded_is_on_the_host_instead() -> None:
    offloaded = (f"{OPTIMIZER}.optimizer_cpu_offload=true", f"{OPTIMIZER}.optimizer_offload_fraction=1.0")
    own = held(recipe(*offloaded), QWQ, split_of(recipe()), 0)
    assert own.optimizer == 0 and own.offloaded == pytest.approx(own.parameters * 12 / 2, rel=1e-3)
    host = {p.phase: p for p in host_phases(recipe(*offloaded), QWQ)}["forward/backward"]
    assert {part.name for part in host.parts} >= {"optimizer kept on the host", "reference policy"}


def test_generation_takes_vllms_share_and_what_training_keeps() -> None:
    parts = one(planned(), "generate")
    reserve = parts.pop("trainer's reserve")
    assert 0 <= int(0.6 * H100) - sum(parts.values()) < 16 * 65_536
    assert reserve == 4 * GIB
    alone = load_recipe("qwq-32b-4k-8n8g-async")
    apart = one(gpu_phases(alone, QWQ, gpu=GPUS["h100-80g"]), "generate")
    assert sum(apart.values()) <= int(0.8 * H100) and "trainer's reserve" not in apart


def test_log_probs_keep_the_optimizer_only_where_generation_is_elsewhere() -> None:
    assert "optimizer" not in one(planned(), "log-probs")
    alone = load_recipe("qwq-32b-4k-8n8g-async")
    assert one(gpu_phases(alone, QWQ, gpu=GPUS["h100-80g"]), "log-probs")["optimizer"] > 0
    offloaded = load_recipe("qwq-32b-4k-8n8g-async", ["policy.offload_optimizer_for_logprob=true"])
    assert "optimizer" not in one(gpu_phases(offloaded, QWQ, gpu=GPUS["h100-80g"]), "log-probs")


def test_only_the_last_stage_has_logits() -> None:
    phases = planned()
    has = [stage for stage in range(4) if "logits" in one(phases, "forward/backward", stage)]
    assert has == [3]


def test_the_refit_buffer_is_the_key_or_a_share_of_what_is_free() -> None:
    assert one(planned("policy.refit_buffer_size_gb=4"), "refit")["refit buffer"] == 4 * GIB
    parts = one(planned(), "refit")
    taken = parts["weights"] + parts["vLLM weights"] + parts["vLLM asleep"] + parts["trainer's reserve"]
    assert parts["refit buffer"] == int((H100 - taken) * 0.3)
    assert largest_tensor_bytes(recipe(), QWQ) == 152064 * 5120 * 2


def test_the_node_holds_what_its_gpus_do_not() -> None:
    """Eight GPUs of the last stage: TP4 x DP2."""
    host = {p.phase: {part.name: part.bytes for part in p.parts} for p in host_phases(recipe(), QWQ)}
    own = held(recipe(), QWQ, split_of(recipe()), 3)
    assert host["log-probs"]["reference policy"] == 8 * own.weights
    assert host["generate"]["optimizer"] == 8 * own.optimizer
    assert host["save"]["what the ranks write"] == 8 * own.weights // 2 + 8 * own.optimizer
    without = host_phases(recipe("loss_fn.reference_policy_kl_penalty=0"), QWQ)
    assert all(part.name != "reference policy" for p in without for part in p.parts)
