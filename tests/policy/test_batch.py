"""Packing: nothing lost, nothing twice, budgets kept, each response token beside the token that predicts it."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from nemo_thinkprune.policy.batch import TokenSequence, assign, pack


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 60), st.integers(1, 8) | st.none()
)
def test_assignment_is_a_partition_within_the_budget(
    lengths: list[int], budget: int, most: int | None
) -> None:
    bins = assign(lengths, max_tokens=budget, max_sequences=most)
    assert sorted(i for b in bins for i in b) == list(range(len(lengths)))
    for b in bins:
        assert sum(lengths[i] for i in b) <= budget or len(b) == 1
        assert most is None or len(b) <= most


def test_no_budget_puts_all_together() -> None:
    assert [sorted(b) for b in assign([5, 1, 9], max_tokens=None)] == [[0, 1, 2]]


def test_packed_by_hand() -> None:
    rows = [
        TokenSequence([1, 2], [3, 4, 5], {"advantages": [0.1, 0.2, 0.3]}),
        TokenSequence([6], [7], {"advantages": [9.0]}),
    ]
    micro = pack(rows, [1, 0], device=torch.device("cpu"), divisible_by=4)
    assert micro.tokens.tolist() == [6, 7, 1, 2, 3, 4, 5, 0]
    assert micro.attention.cu_seqlens_q.tolist() == [0, 2, 7, 8]  # the padding is a sequence of its own
    assert micro.attention.max_seqlen_q == 5
    assert micro.targets.tolist() == [7, 3, 4, 5]
    assert micro.positions.tolist() == [0, 3, 4, 5]  # 6 predicts 7; 2, 3, 4 predict 3, 4, 5
    assert micro.lengths == [1, 3]
    assert torch.allclose(micro.fields["advantages"], torch.tensor([9.0, 0.1, 0.2, 0.3]))
    assert [part.tolist() for part in micro.split(micro.targets)] == [[7], [3, 4, 5]]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12), st.integers(1, 8))
def test_every_target_follows_its_position(shapes: list[tuple[int, int]], divisible: int) -> None:
    rows, token = [], 1
    for prompt, response in shapes:
        ids = list(range(token, token + prompt + response))
        token += prompt + response
        rows.append(TokenSequence(ids[:prompt], ids[prompt:]))
    micro = pack(rows, list(range(len(rows))), device=torch.device("cpu"), divisible_by=divisible)
    assert len(micro.tokens) % divisible == 0
    assert (micro.tokens[micro.positions] + 1).tolist() == micro.targets.tolist()
    assert int(micro.attention.cu_seqlens_q[-1]) == len(micro.tokens)
