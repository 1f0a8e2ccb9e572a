"""vLLM's share of a GPU, with the numbers worked out by hand."""

from __future__ import annotations

import pytest

from nemo_thinkprune.costs import assumed
from nemo_thinkprune.costs.gpus import GPUS
from nemo_thinkprune.costs.known_models import known_models
from nemo_thinkprune.costs.kv_cache import engine_of, token_bytes, weight_bytes
from nemo_thinkprune.costs.parts import GIB
from nemo_thinkprune.costs.shards import model_parameters
from nemo_thinkprune.recipe.load import load_recipe

QWQ = known_models()["Qwen/QwQ-32B"]
H100, A100 = GPUS["h100-80g"], GPUS["a100-80g"]
VLLM = "policy.generation.vllm_cfg"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([f"{VLLM}.tensor_parallel_size=8"], 64 * 2 * 1 * 128 * 2),
        ([f"{VLLM}.tensor_parallel_size=4"], 64 * 2 * 2 * 128 * 2),
        ([f"{VLLM}.tensor_parallel_size=1"], 64 * 2 * 8 * 128 * 2),
        ([f"{VLLM}.tensor_parallel_size=8", f"{VLLM}.pipeline_parallel_size=2"], 32 * 2 * 1 * 128 * 2),
        ([f"{VLLM}.tensor_parallel_size=8", f"{VLLM}.kv_cache_dtype=fp8"], 64 * 2 * 1 * 128),
    ],
)
def test_a_token_of_qwq(overrides: list[str], expected: int) -> None:
    assert token_bytes(load_recipe("qwq-32b-4k-4n8g", overrides), QWQ) == expected


def test_more_gpus_than_key_value_heads_hold_one_each() -> None:
    recipe = load_recipe("qwq-32b-4k-4n8g", [f"{VLLM}.tensor_parallel_size=16"])
    assert token_bytes(recipe, QWQ) == 64 * 2 * 1 * 128 * 2


def test_weights_are_those_of_the_model() -> None:
    """152064 rows are a multiple of 64; four GPUs share everything but the norms."""
    one = weight_bytes(load_recipe("qwq-32b-4k-4n8g", [f"{VLLM}.tensor_parallel_size=1"]), QWQ)
    assert one == 2 * model_parameters(QWQ)
    norms = (2 * 64 + 1) * 5120 * 2
    four = weight_bytes(load_recipe("qwq-32b-4k-4n8g"), QWQ)
    assert four == (one - norms) // 4 + norms


def test_the_cache_is_what_is_left_in_blocks_of_16_tokens() -> None:
    recipe = load_recipe("qwq-32b-4k-4n8g")
    engine = engine_of(recipe, QWQ, gpu=H100)
    assert engine.budget == int(0.6 * H100.memory_bytes)
    left = engine.budget - engine.weights - engine.running - engine.graphs
    assert engine.blocks == left // (16 * 65_536)
    assert engine.sequences == engine.blocks // 316  # 5056 tokens
    assert engine.cache_bytes <= left < engine.cache_bytes + 16 * 65_536


def test_the_profiling_run_is_the_layer_or_the_sampler() -> None:
    recipe = load_recipe("qwq-32b-4k-4n8g")
    sampler = 1024 * 152064 * (2 + 12)
    assert engine_of(recipe, QWQ, gpu=H100).running == sampler
    few = load_recipe("qwq-32b-4k-4n8g", ["policy.generation.vllm_kwargs={max_num_seqs: 8}"])
    assert engine_of(few, QWQ, gpu=H100).running == 16384 * (3 * 5120 + 3 * 27648 // 4) * 2


def test_an_engine_without_room_has_no_blocks() -> None:
    recipe = load_recipe("qwq-32b-4k-4n8g", [f"{VLLM}.gpu_memory_utilization=0.2"])
    engine = engine_of(recipe, QWQ, gpu=H100)
    assert engine.blocks == engine.sequences == engine.cache_bytes == 0
    assert engine.weights + engine.running + engine.graphs > engine.budget


def test_an_a100_has_vllms_smaller_defaults_whatever_its_memory() -> None:
    recipe = load_recipe("qwq-32b-4k-4n8g")
    engine, large = (engine_of(recipe, QWQ, gpu=gpu) for gpu in (A100, H100))
    assert engine.running == max(256 * 152064 * (2 + 12), 8192 * (3 * 5120 + 3 * 27648 // 4) * 2)
    assert (engine.most_sequences, large.most_sequences) == (256, 1024)
    assert "8192 tokens (vLLM's default) and 256 sequences" in engine.running_source
    assert "16384 tokens (vLLM's default) and 1024 sequences" in large.running_source


def test_no_more_sequences_at_once_than_vllm_runs() -> None:
    few = load_recipe("qwq-32b-4k-4n8g", ["policy.generation.vllm_kwargs={max_num_seqs: 8}"])
    engine = engine_of(few, QWQ, gpu=H100)
    assert engine.sequences == engine.most_sequences == 8 < engine.blocks // 316
    assert "and 8 sequences at a time" in engine.running_source


@pytest.mark.parametrize("tp", [1, 2, 8])
@pytest.mark.parametrize("eager", [True, False])
def test_awake_an_engine_has_all_that_it_keeps_asleep(tp: int, eager: bool) -> None:
    awake = assumed.vllm_context_bytes(eager=eager, tp=tp)
    assert awake >= assumed.vllm_asleep_bytes(tp)
    assert awake >= int(0.8 * GIB) + (0 if eager else int(1.5 * GIB))
