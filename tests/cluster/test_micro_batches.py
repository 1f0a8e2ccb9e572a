"""What NeMo-RL asserts about micro-batches, which `check` repeats before anything is started."""

from __future__ import annotations

from typing import Any

import pytest
from support.nemo_rl import require_nemo_rl
from support.nemo_rl_recipes import problems

RESPONSES, RANKS, MICRO, TOKENS = 48, 2, 64, 40
SIZES = (
    "grpo.num_prompts_per_step=6",
    "grpo.num_generations_per_prompt=8",
    f"cluster.gpus_per_node={RANKS}",
    f"policy.train_micro_batch_size={MICRO}",
)


@pytest.fixture
def batch() -> Any:
    require_nemo_rl()
    import torch
    from nemo_rl.distributed.batched_data_dict import BatchedDataDict

    lengths = torch.tensor([5 + row % 30 for row in range(RESPONSES)])
    ids = torch.arange(RESPONSES)[:, None].expand(RESPONSES, TOKENS).contiguous()
    return BatchedDataDict({"input_ids": ids, "input_lengths": lengths})


def seen(shards: list[Any], micro_batches: str) -> list[int]:
    """The responses of all micro-batches of all ranks."""
    parts = [micro for shard in shards for micro in getattr(shard, micro_batches)()]
    return sorted(int(row[0]) for micro in parts for row in micro["input_ids"])


def test_packed_responses_need_not_fill_micro_batches(batch: Any) -> None:
    packing = {
        "algorithm": "modified_first_fit_decreasing",
        "input_key": "input_ids",
        "input_lengths_key": "input_lengths",
        "sequence_length_pad_multiple": 1,
        "max_tokens_per_microbatch": TOKENS * MICRO,
    }
    shards, _ = batch.shard_by_batch_size(RANKS, batch_size=RESPONSES, sequence_packing_args=packing)
    assert seen(shards, "make_microbatch_iterator_for_packable_sequences") == list(range(RESPONSES))
    assert problems(*SIZES) == []


def test_nor_do_those_batched_by_tokens(batch: Any) -> None:
    by_tokens = {
        "input_key": "input_ids",
        "input_lengths_key": "input_lengths",
        "sequence_length_round": 1,
        "max_tokens_per_microbatch": TOKENS * MICRO,
    }
    shards, _ = batch.shard_by_batch_size(RANKS, batch_size=RESPONSES, dynamic_batching_args=by_tokens)
    assert seen(shards, "make_microbatch_iterator_with_dynamic_shapes") == list(range(RESPONSES))
    keys = ("policy.sequence_packing.enabled=false", "policy.dynamic_batching.enabled=true")
    assert problems(*SIZES, *keys) == []


def test_others_must(batch: Any) -> None:
    (shard, _) = batch.shard_by_batch_size(RANKS, batch_size=RESPONSES)
    with pytest.raises(AssertionError, match="not a multiple of the provided microbatch size"):
        list(shard.make_microbatch_iterator(MICRO))
    (message,) = problems(*SIZES, "policy.sequence_packing.enabled=false")
    assert "is not a multiple of train_micro_batch_size" in message


def test_ranks_share_evenly_whatever_the_micro_batches(batch: Any) -> None:
    with pytest.raises(AssertionError, match="not a multiple of shards"):
        batch.shard_by_batch_size(5, batch_size=RESPONSES, sequence_packing_args={})
    assert any(
        "shared by 5 data-parallel ranks" in one for one in problems(*SIZES, "cluster.gpus_per_node=5")
    )
