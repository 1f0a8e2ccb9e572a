"""The three KL estimates: values by hand, clamps, gradients, and which way they pull."""

import math

import pytest
import torch

from nemo_thinkprune.algorithms.kl import kl_estimate

KINDS = ["k1", "k2", "k3"]


def one(kind, logp, ref, **options):
    return kl_estimate(torch.tensor([logp]), torch.tensor([ref]), kind=kind, **options).item()


@pytest.mark.parametrize(
    ("kind", "value"), [("k1", 0.5), ("k2", 0.125), ("k3", math.exp(-0.5) - 0.5)]
)  # d = ref - logp = -0.5
def test_values_by_hand(kind, value):
    assert one(kind, -1.0, -1.5) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_policies_have_no_divergence(kind):
    assert one(kind, -2.0, -2.0) == 0.0


def test_clamps_by_hand():
    # d = 30: the input clamp gives 20, then k1 = -20 -> -10, k2 = 200 -> 10, k3 = e^20 -> 10.
    assert [one(kind, -31.0, -1.0) for kind in KINDS] == [-10.0, 10.0, 10.0]
    assert one("k2", -31.0, -1.0, output_clamp=None) == 200.0
    assert one("k2", -31.0, -1.0, input_clamp=None, output_clamp=None) == 450.0


def test_k3_keeps_its_digits_near_zero():
    # In fp32 exp(d) - 1 - d is rounding noise of 1e-7 here; the true value is d^2 / 2.
    assert one("k3", -1.0, -1.0 + 2**-12) == pytest.approx(2**-25, rel=2e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("score_function", [False, True])
def test_gradients_match_finite_differences(kind, score_function):
    logp = torch.tensor([-1.0, -0.2, -3.0], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([-1.3, -0.7, -2.1], dtype=torch.float64)
    kl_estimate(logp, ref, kind=kind, score_function=score_function).sum().backward()
    base, step = logp.detach(), 1e-6

    def value(x):
        # The factor's stopped part stays at the base point while the log-prob moves.
        factor = torch.exp(x - base) if score_function else 1.0
        return kl_estimate(x, ref, kind=kind) * factor

    expected = (value(base + step) - value(base - step)) / (2 * step)
    torch.testing.assert_close(logp.grad, expected, atol=1e-8, rtol=1e-6)


def exact_gradient(kind, score_function, logits, reference):
    """Gradient of the expected loss term under the policy, by enumeration of a small vocabulary."""
    leaf = logits.clone().requires_grad_()
    logp = torch.log_softmax(leaf, -1)
    estimate = kl_estimate(
        logp, reference, kind=kind, input_clamp=None, output_clamp=None, score_function=score_function
    )
    (logp.detach().exp() * estimate).sum().backward()
    return leaf.grad


def divergence_gradient(logits, reference, *, reverse):
    leaf = logits.clone().requires_grad_()
    logp = torch.log_softmax(leaf, -1)
    forward = (logp.exp() * (logp - reference)).sum()
    backward = (reference.exp() * (reference - logp)).sum()
    (backward if reverse else forward).backward()
    return leaf.grad


LOGITS = torch.tensor([0.3, -1.2, 0.8, 0.1], dtype=torch.float64)
REFERENCE = torch.log_softmax(torch.tensor([1.0, 0.2, -0.4, 0.0], dtype=torch.float64), -1)


def test_expected_gradients_are_those_of_the_documented_divergences():
    forward = divergence_gradient(LOGITS, REFERENCE, reverse=False)
    backward = divergence_gradient(LOGITS, REFERENCE, reverse=True)
    assert not torch.allclose(forward, backward, atol=1e-2)
    for kind, score_function, expected in [
        ("k1", False, torch.zeros(4, dtype=torch.float64)),
        ("k2", False, forward),
        ("k3", False, backward),
        ("k1", True, forward),
        ("k3", True, forward),
    ]:
        torch.testing.assert_close(exact_gradient(kind, score_function, LOGITS, REFERENCE), expected)


@pytest.mark.parametrize(
    ("kind", "score_function"), [("k1", True), ("k2", False), ("k3", False), ("k3", True)]
)
def test_minimising_the_term_pulls_towards_the_reference(kind, score_function):
    logits = LOGITS.clone()
    before = (torch.log_softmax(logits, -1) - REFERENCE).abs().sum()
    for _ in range(200):
        logits = logits - 0.5 * exact_gradient(kind, score_function, logits, REFERENCE)
    after = (torch.log_softmax(logits, -1) - REFERENCE).abs().sum()
    assert after < 0.01 * before


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="k4"):
        kl_estimate(torch.zeros(1), torch.zeros(1), kind="k4")
