"""Gradient buffers laid out by hand, and bytes of weights, gradients and optimizer state."""

from __future__ import annotations

import pytest

from nemo_thinkprune.costs.buffers import Bucket, Reduction, gradient_buffer, stage_buffer
from nemo_thinkprune.costs.known_models import known_models
from nemo_thinkprune.costs.shards import Split, split_of, stage_shapes
from nemo_thinkprune.costs.training_state import (
    EngineName,
    Precision,
    precision_of,
    reduction_of,
    training_state,
)
from nemo_thinkprune.recipe.load import load_recipe

SIZES = [(100, False), (70, False), (10, False)]


def test_a_buffer_without_sharing_is_not_padded() -> None:
    buffer = gradient_buffer(SIZES, shards=3, distributed=False, bucket_size=None)
    assert buffer.elements == 180 and buffer.buckets[0].spans == ((0, 10), (10, 80), (80, 180))


def test_a_shared_buffer_is_padded_and_its_parts_are_uneven() -> None:
    # last parameter first; starts at multiples of 64, the end at one of lcm(3, 128) = 384
    buffer = gradient_buffer(SIZES, shards=3, distributed=True, bucket_size=None)
    assert buffer.buckets == (Bucket(0, 384, ((0, 10), (64, 134), (192, 292))),)
    assert buffer.owned(3) == [10 + 64, 6 + 64, 36]


def test_buckets_close_when_they_are_large_enough() -> None:
    buffer = gradient_buffer(SIZES, shards=2, distributed=True, bucket_size=100)
    # 10 at 0 and 70 at 64 reach 134 >= 100: closed at 256; then 100 at 256, closed at 384
    assert [(b.start, b.end) for b in buffer.buckets] == [(0, 256), (256, 384)]
    assert buffer.owned(2) == [10 + 64 + 64, 6 + 36]


def test_a_tied_embedding_over_stages_has_a_bucket_of_its_own() -> None:
    sizes = [(100, True), (70, False), (10, False)]
    buffer = gradient_buffer(sizes, shards=1, distributed=True, bucket_size=None)
    assert [b.spans for b in buffer.buckets] == [((0, 10), (64, 134)), ((256, 356),)]
    model = known_models()["Qwen/Qwen2.5-1.5B"]
    for split, buckets in ((Split(pp=2), 2), (Split(), 1)):
        shapes = stage_shapes(model, split, 0)
        assert len(stage_buffer(shapes, model, split, 0, Reduction()).buckets) == buckets


def test_qwq_32b_under_nemo_rl_keeps_remainders_of_master_weights() -> None:
    recipe = load_recipe("qwq-32b-4k-8n8g")
    assert precision_of(recipe) == Precision(weight=2, gradient=2, master=2, moments=8, step=0)
    state = training_state(
        known_models()["Qwen/QwQ-32B"],
        split_of(recipe),
        0,
        precision=precision_of(recipe),
        reduction=reduction_of(recipe),
    )
    assert state.parameters == state.gradient_elements == 2_048_356_352
    assert state.optimizer_elements == 2_048_356_352 // 4
    assert (state.weights, state.gradients) == (4_096_712_704, 4_096_712_704)
    assert state.optimizer == 10 * 512_089_088 and state.step == 0


@pytest.mark.parametrize(
    ("engine", "words", "expected"),
    [
        ("local", [], Precision(2, 2, 4, 8, 4)),
        ("local", ["policy.precision=float32"], Precision(4, 4, 0, 8, 0)),
        ("nemo-rl", ["policy.precision=float16"], Precision(2, 2, 4, 8, 0)),
        ("nemo-rl", ["policy.precision=float32"], Precision(4, 4, 4, 8, 0)),
        (
            "local",
            ["policy.megatron_cfg.distributed_data_parallel_config.grad_reduce_in_fp32=true"],
            Precision(2, 4, 4, 8, 0),
        ),
        (
            "nemo-rl",
            ["policy.megatron_cfg.optimizer.use_precision_aware_optimizer=false"],
            Precision(2, 2, 4, 8, 4),
        ),
    ],
)
def test_bytes_of_a_parameter(engine: EngineName, words: list[str], expected: Precision) -> None:
    assert precision_of(load_recipe("qwq-32b-4k-8n8g", words), engine=engine) == expected


def test_the_local_engine_shares_nothing_with_itself() -> None:
    assert reduction_of(load_recipe("quickstart"), engine="local") == Reduction(False, False)
    assert reduction_of(load_recipe("qwq-32b-4k-8n8g"), engine="local") == Reduction(True, False)
    assert reduction_of(load_recipe("qwq-32b-4k-8n8g")) == Reduction(True, True)
