"""Activations and logits on a GPU, with the numbers worked out by hand for QwQ-32B."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nemo_thinkprune.costs.activations import (
    Recompute,
    Shape,
    in_flight,
    layer_bytes,
    logprob_shape,
    micro_batches,
    stage_bytes,
    train_shape,
    workspace_bytes,
)
from nemo_thinkprune.costs.known_models import known_models
from nemo_thinkprune.costs.logits import logprob_logits_bytes, train_logits_bytes
from nemo_thinkprune.costs.shards import Split, split_of
from nemo_thinkprune.recipe.load import load_recipe

QWQ = known_models()["Qwen/QwQ-32B"]
TP4 = Split(tp=4, sequence_parallel=True)


def shape(split: Split = TP4, recompute: Recompute | None = None) -> Shape:
    """A micro-batch of 5056 tokens in bfloat16."""
    return Shape(5056, 2, split, recompute or Recompute())


def test_a_layer_at_tp4_with_sequence_parallelism() -> None:
    """1264 of 5056 tokens, 10 of 40 heads, 2 of 8 key-value heads, 6912 of 27648 columns on each rank."""
    two_norms = 2 * (2 * 1264 * 5120 * 2 + 1264 * 4)
    query_key_value = 5056 * (10 + 2 * 2) * 128 * 2
    attention_output = 5056 * 10 * 128 * 2
    softmax = 5056 * 10 * 4
    mlp = 3 * 5056 * 6912 * 2
    assert layer_bytes(QWQ, shape()) == two_norms + query_key_value + attention_output + softmax + mlp
    assert layer_bytes(QWQ, shape()) == 292_732_288


def test_without_sequence_parallelism_every_rank_has_the_norms_of_all_tokens() -> None:
    more = layer_bytes(QWQ, shape(Split(tp=4))) - layer_bytes(QWQ, shape())
    assert more == 2 * (2 * (5056 - 1264) * 5120 * 2 + (5056 - 1264) * 4)


def test_korthikanti_equation_4_but_for_masks_and_scores() -> None:
    """One head a group and f = 4 h in two matrices: sbh (34 + 5 a s / h) / t without 3 of dropout and the scores.

    The paper's MLP keeps 8 sbh before and 8 behind its activation; three matrices of 8/3 h keep 2 x 16/3 and 16/3.
    """
    model = replace(QWQ, num_kv_heads=40, ffn=5120 * 8 // 3 - 5120 * 8 // 3 % 4)
    tokens, tp = 5056, 4
    linear = layer_bytes(model, shape()) - 2 * 1264 * 4 - 5056 * 10 * 4  # roots and softmax statistics
    paper = tokens * 5120 * (34 - 2) / tp  # the two dropout masks of a byte are not there
    assert linear == pytest.approx(paper, rel=2e-3)


def test_recomputation_leaves_the_input_or_all_but_what_is_named() -> None:
    whole = layer_bytes(QWQ, shape())
    assert layer_bytes(QWQ, shape(recompute=Recompute("full"))) == 1264 * 5120 * 2
    assert whole - layer_bytes(QWQ, shape(recompute=Recompute("selective", ("core_attn",)))) == 5056 * 10 * 4
    norm_output = 1264 * 5120 * 2 + 1264 * 4
    mlp = whole - layer_bytes(QWQ, shape(recompute=Recompute("selective", ("mlp",))))
    assert mlp == 3 * 5056 * 6912 * 2 + norm_output


def test_what_is_recomputed_is_workspace_of_the_backward_pass() -> None:
    plain = workspace_bytes(QWQ, shape(), backward=True)
    again = workspace_bytes(QWQ, shape(recompute=Recompute("full")), backward=True)
    assert again - plain == layer_bytes(QWQ, shape())
    assert plain == (1264 * 5120 + 5056 * 5120 + 5056 * 5120 + 2 * 5056 * 6912) * 2


def test_a_stage_holds_as_many_micro_batches_as_stages_follow() -> None:
    split = Split(tp=4, pp=4, sequence_parallel=True)
    assert [in_flight(split, stage, 100) for stage in range(4)] == [4, 3, 2, 1]
    assert [in_flight(split, stage, 2) for stage in range(4)] == [2, 2, 2, 1]
    full = shape(split, Recompute("full"))
    states = 1264 * 5120 * 2
    assert stage_bytes(QWQ, full, 0, count=100) == 4 * 16 * states
    last = (
        16 * states + 2 * states + 5056 * 5120 * 2
    )  # the final norm's input and output, gathered for the logits
    assert stage_bytes(QWQ, full, 3, count=100) == last


def test_micro_batches_of_the_recipe() -> None:
    recipe = load_recipe("qwq-32b-4k-4n8g")
    split = split_of(recipe)
    assert train_shape(recipe, split).tokens == logprob_shape(recipe, split).tokens == 5056
    assert logprob_shape(recipe, split).recompute == Recompute()
    assert micro_batches(recipe, split) == 1024  # 2048 sequences on two copies, one to a row
    longer = load_recipe("qwq-32b-4k-4n8g", ["policy.sequence_packing.train_mb_tokens=10112"])
    assert micro_batches(longer, split) == 512
    alone = load_recipe("qwq-32b-4k-4n8g", ["policy.sequence_packing.enabled=false"])
    assert train_shape(alone, split).tokens == 5056


def test_logits_in_chunks() -> None:
    """152064 / 4 = 38016 columns; the longest sequence has 5024 tokens, the row 5056, the chunk 1024."""
    recipe = load_recipe("qwq-32b-4k-4n8g")
    train = 38016 * ((2 * 5056 + 5024) * 2 + 1024 * 24)
    assert train_logits_bytes(recipe, QWQ, shape()) == train
    assert logprob_logits_bytes(recipe, QWQ, shape()) == 38016 * (5056 * 2 + 3 * 4 * 1024)


def test_logits_whole_and_in_float32() -> None:
    recipe = load_recipe("qwq-32b-4k-4n8g", ["policy.logprob_chunk_size=null"])
    assert not recipe.policy.megatron_cfg.defer_fp32_logits
    forward = 4 * 5056 + 4 * 5056 + 8 * 5024
    backward = 4 * 5056 + 4 * 5056 + 4 * 5024 + 4 * 5056
    assert train_logits_bytes(recipe, QWQ, shape()) == 38016 * max(forward, backward)
    assert logprob_logits_bytes(recipe, QWQ, shape()) == 38016 * 5056 * 12
