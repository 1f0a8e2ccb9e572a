"""Drawing tokens: reproducible streams, the right distribution, exact tails."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nemo_thinkprune.rollout.sampling import sample_tokens, uniforms
from nemo_thinkprune.rollout.types import Sampling


def test_a_stream_depends_on_seed_key_and_sample_only() -> None:
    first = uniforms(1, "step 3/p7", 2, 50)
    assert np.array_equal(first[:20], uniforms(1, "step 3/p7", 2, 20))
    others = [
        uniforms(2, "step 3/p7", 2, 50),
        uniforms(1, "step 4/p7", 2, 50),
        uniforms(1, "step 3/p7", 3, 50),
    ]
    assert all(not np.array_equal(first, other) for other in others)
    assert first.min() >= 0 and first.max() < 1


def test_key_and_sample_cannot_be_confused() -> None:
    assert not np.array_equal(uniforms(1, "a1", 1, 8), uniforms(1, "a", 11, 8))


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.0])
def test_tokens_follow_the_softmax(temperature: float) -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0, 2.0, 0.5]])
    expected = torch.softmax(logits[0] / temperature, dim=0)
    count = 40_000
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count  # an even grid: no luck involved
    tokens, logprobs = sample_tokens(logits.expand(count, -1), uniform, Sampling(temperature=temperature))
    share = torch.bincount(tokens, minlength=5) / count
    assert (share - expected).abs().max() < 2 / count * 5
    assert torch.allclose(logprobs, expected.log()[tokens], atol=1e-6)


def test_greedy_takes_the_largest_logit() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 1.0, 2.0]])
    tokens, logprobs = sample_tokens(logits, torch.tensor([0.99, 0.99]).double(), Sampling(temperature=0.0))
    assert tokens.tolist() == [1, 0]
    assert torch.allclose(logprobs, torch.log_softmax(logits, -1)[[0, 1], [1, 0]])


def test_top_k_and_top_p_by_hand() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()[None]
    grid = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    rows = logits.expand(1000, -1)

    def shares(sampling: Sampling) -> list[float]:
        tokens, _ = sample_tokens(rows, grid, sampling)
        return (torch.bincount(tokens, minlength=4) / 1000).tolist()

    assert shares(Sampling(top_k=2)) == pytest.approx([0.625, 0.375, 0, 0], abs=2e-3)
    # the nucleus is the smallest set whose mass reaches top_p: {0.5, 0.3} for 0.6, {0.5} for 0.5
    assert shares(Sampling(top_p=0.6)) == pytest.approx([0.625, 0.375, 0, 0], abs=2e-3)
    assert shares(Sampling(top_p=0.4)) == pytest.approx([1, 0, 0, 0])
    _, logprobs = sample_tokens(logits, torch.tensor([0.0]).double(), Sampling(top_k=1))
    assert logprobs.item() == pytest.approx(np.log(0.5), abs=1e-6)  # of the whole distribution


def test_extreme_numbers_stay_inside_the_vocabulary() -> None:
    logits = torch.full((2, 7), -torch.inf)
    logits[:, 3] = 0.0
    tokens, _ = sample_tokens(logits, torch.tensor([0.0, np.nextafter(1.0, 0.0)]), Sampling())
    assert tokens.tolist() == [3, 3]
