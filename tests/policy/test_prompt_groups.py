"""A prompt computed once for all its responses gives what each response gives with a prompt of its own."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import load_policy, write_hf
from support.ranks import run_ranks

from nemo_thinkprune.policy.batch import TokenSequence
from nemo_thinkprune.policy.group_attention import group_attention
from nemo_thinkprune.policy.prompt_groups import PromptGroup, assign_groups, pack_groups

CPU = torch.device("cpu")
# prompts of different lengths, responses of one token, of equal and of different lengths
LENGTHS = {3: (1, 6, 6, 2), 7: (5,), 1: (4, 1), 12: (9, 9, 9)}


def sequences() -> list[TokenSequence]:
    generator = torch.Generator().manual_seed(3)

    def draw(n: int) -> list[int]:
        return torch.randint(61, (n,), generator=generator).tolist()

    rows = []
    for prompt, responses in LENGTHS.items():
        ids = draw(prompt)
        for number, length in enumerate(responses):
            advantages = {"advantages": [float(number + 1) - prompt / 4] * length}
            rows.append(TokenSequence(ids, draw(length), advantages))
    return rows[::2] + rows[1::2]  # those of one prompt do not stand side by side


def test_laid_out_by_hand() -> None:
    rows = [TokenSequence([5, 6], [7, 8, 9]), TokenSequence([4], [3]), TokenSequence([5, 6], [2, 1])]
    micro = pack_groups(rows, [0, 1, 2], device=CPU, divisible_by=4)
    assert micro.indices == [0, 2, 1]
    assert micro.tokens.tolist() == [5, 6, 7, 8, 2, 4, 0, 0]
    assert micro.attention.position_ids.tolist() == [0, 1, 2, 3, 2, 0, 0, 1]
    assert micro.positions.tolist() == [1, 2, 3, 1, 4, 5]
    assert micro.targets.tolist() == [7, 8, 9, 2, 1, 3]
    assert micro.lengths == [3, 2, 1]
    assert micro.attention.groups == (
        PromptGroup(0, 2, (2, 1)),
        PromptGroup(5, 1, (0,)),
        PromptGroup(6, 2, ()),
    )


def test_a_response_of_no_tokens_keeps_its_prompt() -> None:
    rows = [TokenSequence([5, 6], []), TokenSequence([5, 6], [7, 8]), TokenSequence([4], [])]
    micro = pack_groups(rows, [0, 1, 2], device=CPU)
    assert micro.tokens.tolist() == [5, 6, 7, 4]
    assert micro.positions.tolist() == [1, 2]
    assert micro.targets.tolist() == [7, 8]
    assert micro.lengths == [0, 2, 0]
    assert micro.attention.groups == (PromptGroup(0, 2, (0, 1)), PromptGroup(3, 1, (0,)))


def test_a_group_that_is_too_large_is_cut_into_large_parts() -> None:
    rows = [TokenSequence([1, 2], [9] * length) for length in (3, 9, 5, 4, 8)]
    # of 14 tokens 12 are left beside the prompt; fed are 2, 8, 4, 3 and 7
    assert assign_groups(rows, max_tokens=14) == [[1, 2], [4, 3, 0]]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=25),
    st.integers(4, 40),
    st.one_of(st.none(), st.integers(1, 6)),
)
@settings(max_examples=60, deadline=None)
def test_every_sequence_has_one_place_within_the_budget(
    shapes: list[tuple[int, int]], budget: int, most: int | None
) -> None:
    rows = [TokenSequence([prompt] * (prompt + 1), [9] * length) for prompt, length in shapes]
    bins = assign_groups(rows, max_tokens=budget, max_sequences=most)
    assert sorted(i for b in bins for i in b) == list(range(len(rows)))
    for chosen in bins:
        tokens = len(pack_groups(rows, chosen, device=CPU).tokens)
        assert tokens <= budget or len(chosen) == 1
        assert most is None or len(chosen) <= most


def test_groups_that_fit_stay_together() -> None:
    rows = sequences()
    bins = assign_groups(rows, max_tokens=60)
    prompts = [{tuple(rows[i].prompt_ids) for i in chosen} for chosen in bins]
    assert sum(len(p) for p in prompts) == len(LENGTHS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_equals_a_softmax_under_a_mask(dtype: torch.dtype, kv_heads: int) -> None:
    groups = (PromptGroup(0, 3, (4, 4, 0, 2)), PromptGroup(13, 5, ()), PromptGroup(18, 1, (1, 3)))
    total, heads, size = 23, 4, 8
    generator = torch.Generator().manual_seed(0)
    shapes = ((total, heads, size), (total, kv_heads, size), (total, kv_heads, size))
    inputs = [torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]
    weight = torch.randn(total, heads * size, generator=generator, dtype=dtype)
    ours = group_attention(*inputs, groups, scale=0.3)  # type: ignore[call-arg]
    grads = torch.autograd.grad((ours * weight).sum(), inputs)
    expected = masked(*inputs, visible(groups, total), scale=0.3)
    expected_grads = torch.autograd.grad((expected * weight).sum(), inputs)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    for a, b in zip((ours, *grads), (expected, *expected_grads), strict=True):
        assert (a - b).abs().max() < tolerance * b.abs().max()


def visible(groups: tuple[PromptGroup, ...], total: int) -> torch.Tensor:
    """[total, total] bool, written token by token: who sees whom."""
    seen = torch.zeros(total, total, dtype=torch.bool)
    for group in groups:
        prompt = range(group.start, group.start + group.prompt)
        start = prompt.stop
        for length in (0, *group.responses):
            own = range(start, start + length) if length else prompt
            for row in own:
                before = [p for p in prompt if p <= row] + [p for p in own if p <= row]
                seen[row, before] = True
            start += length
    return seen


def masked(query: Any, key: Any, value: Any, seen: torch.Tensor, *, scale: float) -> torch.Tensor:
    repeat = query.size(1) // key.size(1)
    key, value = (x.repeat_interleave(repeat, dim=1) for x in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, value).flatten(1)


def compare(layout: Any, folder: Path, share: bool, options: dict[str, Any]) -> dict[str, Any]:
    """Log-probs, loss and gradients with and without shared prompts."""
    from unittest.mock import patch

    from nemo_thinkprune.policy import policy as module

    budget = options.pop("max_tokens", 100)
    policy = load_policy(layout, folder, optimizer={"lr": 1e-3}, **options)
    policy.batch = replace(policy.batch, max_tokens=budget)
    rows = sequences()
    total = sum(len(row.response_ids) for row in rows)
    grads: dict[str, Any] = {}
    step = policy.optimizer.step

    def keep_and_step() -> Any:
        grads.update({n: p.main_grad.clone().numpy() for n, p in policy.network.named_parameters()})
        return step()

    policy.optimizer.step = keep_and_step

    def loss_fn(logprobs: Any, entropy: Any, micro: Any) -> Any:
        ratio = torch.exp(logprobs - logprobs.detach())
        return -(ratio * micro.fields["advantages"]).sum() / total, {"entropy": entropy.sum()}

    alone = {"assign_groups": _assign_alone, "pack_groups": module.pack}
    with nullcontext() if share else patch.multiple(module, **alone):
        logprobs = policy.logprobs(rows)
        result = policy.update(rows, loss_fn, lr=1e-3)
    return {
        "logprobs": [x.tolist() for x in logprobs],
        "loss": result.loss,
        "grad_norm": result.grad_norm,
        "entropy": result.sums["entropy"],
        "grads": grads,
    }


def _assign_alone(rows: Any, **limits: Any) -> Any:
    from nemo_thinkprune.policy.batch import assign

    return assign([len(row) for row in rows], **limits)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama3"])
@pytest.mark.parametrize("name", ["one", "recompute", "small_batches", "tp2", "tp2_sequence_parallel", "pp2"])
def test_shared_prompts_equal_prompts_of_their_own(family: str, name: str, tmp_path: Path) -> None:
    if family != "qwen2" and name not in ("one", "tp2"):
        pytest.skip("the layouts are compared with one family")
    shape = {"tp2": {"world": 2, "tp": 2}, "pp2": {"world": 2, "pp": 2}}.get(name, {"world": 1})
    options: dict[str, Any] = {}
    if name == "recompute":
        options = {"activation_checkpointing": True}
    elif name == "tp2_sequence_parallel":
        shape, options = {"world": 2, "tp": 2}, {"sequence_parallel": True}
    elif name == "small_batches":
        options = {"max_tokens": 18}
    write_hf(family, tmp_path)
    alone = run_ranks(compare, tmp_path, False, dict(options), **shape)
    shared = run_ranks(compare, tmp_path, True, dict(options), **shape)
    for one, other in zip(alone, shared, strict=True):
        flat = [torch.tensor([v for row in r["logprobs"] for v in row]) for r in (one, other)]
        assert (flat[0] - flat[1]).abs().max() < 1e-5
        for key in ("loss", "grad_norm", "entropy"):
            assert other[key] == pytest.approx(one[key], rel=2e-6, abs=1e-7)
        whole = sum(float((g**2).sum()) for g in one["grads"].values()) ** 0.5
        apart = sum(float(((g - other["grads"][n]) ** 2).sum()) for n, g in one["grads"].items()) ** 0.5
        assert apart < 2e-6 * whole
