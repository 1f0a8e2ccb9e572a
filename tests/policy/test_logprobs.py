"""Chunked log-probs against the plain softmax: values, gradients, temperature, padding, chunk size."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nemo_thinkprune.policy.logprobs import token_logprobs

VOCAB, HIDDEN, TOKENS = 23, 7, 41


class Alone:
    """A process group of one rank."""

    def size(self) -> int:
        return 1


def inputs(padded: int = VOCAB) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator, requires_grad=True)
    weight = torch.randn(padded, HIDDEN, generator=generator, requires_grad=True)
    return hidden, weight, torch.randint(VOCAB, (TOKENS,), generator=generator)


def ours(hidden: Any, weight: Any, targets: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return token_logprobs(hidden, weight, targets, vocab_size=VOCAB, tp_rank=0, tp_group=Alone(), **options)


@pytest.mark.parametrize("chunk", [1, 8, TOKENS, 1000])
@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_values_and_gradients_equal_the_plain_softmax(chunk: int, temperature: float) -> None:
    hidden, weight, targets = inputs()
    upstream = torch.linspace(-1, 2, TOKENS)
    logprobs, entropy = ours(hidden, weight, targets, chunk=chunk, temperature=temperature)
    grads = torch.autograd.grad((logprobs * upstream).sum(), (hidden, weight))
    table = torch.log_softmax(hidden @ weight.T / temperature, dim=-1)
    expected = table.gather(1, targets[:, None]).squeeze(1)
    expected_grads = torch.autograd.grad((expected * upstream).sum(), (hidden, weight))
    assert torch.allclose(logprobs, expected, atol=1e-5)
    assert torch.allclose(entropy, -(table.exp() * table).sum(-1), atol=1e-5)
    for grad, reference in zip(grads, expected_grads, strict=True):
        assert torch.allclose(grad, reference, atol=2e-5)
    assert not entropy.requires_grad


def test_by_hand() -> None:
    hidden = torch.tensor([[1.0]])
    weight = torch.tensor([[0.0], [1.0], [2.0]]).log1p()  # logits log 1, log 2, log 3
    logprobs, entropy = token_logprobs(
        hidden, weight, torch.tensor([1]), vocab_size=3, tp_rank=0, tp_group=Alone()
    )
    assert logprobs.exp().item() == pytest.approx(2 / 6, abs=1e-6)
    # H = -(1/6 ln 1/6 + 1/3 ln 1/3 + 1/2 ln 1/2)
    assert entropy.item() == pytest.approx(1.0114043, abs=1e-6)


def test_rows_of_padding_take_no_part() -> None:
    hidden, weight, targets = inputs(padded=32)
    logprobs, entropy = ours(hidden, weight, targets)
    cut, cut_entropy = ours(hidden, weight[:VOCAB], targets)
    assert torch.equal(logprobs, cut) and torch.equal(entropy, cut_entropy)
    (grad,) = torch.autograd.grad(logprobs.sum(), weight)
    assert torch.equal(grad[VOCAB:], torch.zeros(32 - VOCAB, HIDDEN))


def test_large_logits_do_not_overflow() -> None:
    hidden = torch.full((2, 1), 1000.0)
    weight = torch.tensor([[1.0], [-1.0], [0.5]])
    logprobs, entropy = token_logprobs(
        hidden, weight, torch.tensor([0, 1]), vocab_size=3, tp_rank=0, tp_group=Alone()
    )
    assert logprobs.tolist() == [0.0, -2000.0]
    assert entropy.tolist() == [0.0, 0.0]
