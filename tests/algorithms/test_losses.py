"""The loss: numbers by hand, a second implementation, finite differences, and invariance to splitting."""

import math
import random
from dataclasses import replace

import plain_objective
import pytest
import torch
from plain_objective import Response

from nemo_thinkprune.algorithms.losses import (
    LossConfig,
    PackedTokens,
    StepTotals,
    masked_nll,
    policy_loss,
    token_weights,
)

NO_KL = LossConfig(reference_policy_kl_penalty=0.0)


def tokens(**fields):
    n = len(fields["logprobs"])
    defaults = {"advantages": [1.0] * n, "mask": [1.0] * n, "old_logprobs": [-1.0] * n}
    tensors = {
        name: torch.tensor(values, dtype=torch.float64)
        for name, values in {**defaults, **fields}.items()
        if name != "ids"
    }
    tensors["logprobs"].requires_grad_()
    return PackedTokens(sequence_ids=torch.tensor(fields.get("ids", [0] * n)), **tensors)


def single(ratio, advantage, config=NO_KL):
    batch = tokens(logprobs=[-1.0 + math.log(ratio)], advantages=[advantage])
    output = policy_loss(batch, StepTotals(tokens=1, sequences=1), config)
    output.loss.backward()
    # d loss / d log p = u d loss / d u.
    return output, batch.logprobs.grad.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        (1.0, 2.0, -2.0, -2.0, 0),
        (1.1, 2.0, -2.2, -2.2, 0),
        (1.5, 2.0, -2.4, 0.0, 1),  # A u is cut at 1.2 A: nothing more to gain
        (0.5, 2.0, -1.0, -1.0, 0),  # a loss of probability of a good token is not clipped
        (0.5, -2.0, 1.6, 0.0, 1),
        (1.5, -2.0, 3.0, 3.0, 0),
        (9.0, -2.0, 18.0, 18.0, 0),
    ],
)
def test_clipping_by_hand(ratio, advantage, loss, gradient, clipped):
    output, slope = single(ratio, advantage)
    assert output.loss.item() == pytest.approx(loss)
    assert slope == pytest.approx(gradient)
    assert output.sums["clipped"].item() == clipped
    assert output.maxima["ratio"].item() == pytest.approx(ratio)


def test_asymmetric_and_dual_clips_by_hand():
    wide = replace(NO_KL, ratio_clip_max=0.28)
    assert single(1.25, 1.0, wide)[0].loss.item() == pytest.approx(-1.25)
    assert single(1.5, 1.0, wide)[0].loss.item() == pytest.approx(-1.28)
    dual = replace(NO_KL, ratio_clip_c=3.0)
    output, slope = single(9.0, -2.0, dual)
    assert (output.loss.item(), slope, output.sums["dual_clipped"].item()) == (pytest.approx(6.0), 0.0, 1)
    assert single(2.0, -2.0, dual)[0].loss.item() == pytest.approx(4.0)
    # A positive advantage is never dual-clipped.
    assert single(0.5, 2.0, dual)[1] == pytest.approx(-1.0)


def test_forced_on_policy_ratio_ignores_the_old_log_probs():
    forced = replace(NO_KL, force_on_policy_ratio=True)
    output, slope = single(5.0, -2.0, forced)
    assert (output.loss.item(), slope) == (2.0, 2.0)
    batch = replace(tokens(logprobs=[-1.0, -2.0]), old_logprobs=None)
    assert policy_loss(batch, StepTotals(2, 1), forced).loss.item() == -1.0


def test_without_ratio_it_is_reinforce():
    output, slope = single(5.0, -2.0, replace(NO_KL, disable_ppo_ratio=True))
    assert output.loss.item() == pytest.approx(2 * (-1 + math.log(5.0)))
    assert slope == pytest.approx(2.0)


def test_the_three_means_by_hand():
    # Responses of 1 and 3 tokens, ratio 1, A = 1 and -1: token terms -1 | 1 1 1.
    batch = tokens(logprobs=[-1.0] * 4, advantages=[1.0, -1, -1, -1], ids=[0, 1, 1, 1])
    totals = StepTotals(tokens=4, sequences=2)
    assert policy_loss(batch, totals, NO_KL).loss.item() == pytest.approx(2 / 4)
    by_sequence = replace(NO_KL, token_level_loss=False)
    assert policy_loss(batch, totals, by_sequence).loss.item() == pytest.approx((-1 + 1) / 2)
    constant = replace(NO_KL, constant_normaliser=10.0)
    assert policy_loss(batch, totals, constant).loss.item() == pytest.approx((-0.1 + 0.3) / 2)


def test_kl_and_nll_terms_by_hand():
    batch = tokens(
        logprobs=[-1.0, -2.0],
        advantages=[0.0, 0.0],
        reference_logprobs=[-1.5, -2.0],
        positive=[1, 0],
        old_logprobs=[-1.0, -2.0],
    )
    config = LossConfig(reference_policy_kl_penalty=0.1, positive_example_nll_weight=0.5)
    output = policy_loss(batch, StepTotals(tokens=2, sequences=1, positive_tokens=1), config)
    k3 = math.exp(-0.5) - 0.5
    assert output.sums["kl"].item() == pytest.approx(k3)
    assert output.sums["kl_loss"].item() == pytest.approx(0.1 * k3 / 2)
    assert output.sums["nll_loss"].item() == pytest.approx(0.5 * 1.0)
    assert output.loss.item() == pytest.approx(0.1 * k3 / 2 + 0.5)


def test_a_positive_coefficient_pulls_to_the_reference_in_the_loss():
    # The policy gives the token more than the reference does: descending must lower its log-prob.
    for score_function in (False, True):
        config = LossConfig(reference_policy_kl_penalty=0.1, kl_score_function=score_function)
        batch = tokens(logprobs=[-1.0], advantages=[0.0], reference_logprobs=[-1.5])
        policy_loss(batch, StepTotals(1, 1), config).loss.backward()
        assert batch.logprobs.grad.item() > 0


def random_responses(seed, count=7):
    draw = random.Random(seed)
    responses = []
    for _ in range(count):
        n = draw.randint(1, 6)
        logp = [draw.uniform(-4, -0.05) for _ in range(n)]
        responses.append(
            Response(
                logprobs=logp,
                old=[x + draw.uniform(-0.6, 0.6) for x in logp],
                ref=[x + draw.uniform(-1.0, 1.0) for x in logp],
                advantage=draw.uniform(-2, 2),
                keep=[draw.random() < 0.8 for _ in range(n)],
                positive=draw.random() < 0.5,
            )
        )
    responses[0].keep[0] = responses[0].positive = True
    return responses


def packed(responses, shift=None):
    """One packed part; `shift` replaces the log-probs by a leaf tensor's slice."""

    def flat(name):
        return torch.tensor([x for r in responses for x in getattr(r, name)], dtype=torch.float64)

    repeats = [len(r.logprobs) for r in responses]
    return PackedTokens(
        logprobs=flat("logprobs") if shift is None else shift,
        old_logprobs=flat("old"),
        reference_logprobs=flat("ref"),
        mask=flat("keep"),
        advantages=torch.tensor([r.advantage for r in responses], dtype=torch.float64).repeat_interleave(
            torch.tensor(repeats)
        ),
        positive=torch.tensor([r.positive for r in responses]).repeat_interleave(torch.tensor(repeats)),
        sequence_ids=torch.arange(len(responses)).repeat_interleave(torch.tensor(repeats)),
        entropies=-flat("logprobs"),
    )


def totals_of(responses):
    return StepTotals(
        tokens=sum(sum(r.keep) for r in responses),
        sequences=len(responses),
        positive_tokens=sum(sum(r.keep) for r in responses if r.positive),
    )


CASES = [
    (LossConfig(), {"coefficient": 0.001}),
    (LossConfig(kl_score_function=False, reference_policy_kl_penalty=0.05), {"coefficient": 0.05}),
    (
        LossConfig(reference_policy_kl_type="k1", reference_policy_kl_penalty=0.1),
        {"coefficient": 0.1, "kind": "k1"},
    ),
    (
        LossConfig(reference_policy_kl_type="k2", reference_policy_kl_penalty=0.1),
        {"coefficient": 0.1, "kind": "k2"},
    ),
    (LossConfig(ratio_clip_max=0.28, ratio_clip_c=1.3), {"high": 0.28, "dual": 1.3, "coefficient": 0.001}),
    (LossConfig(token_level_loss=False), {"aggregate": "sequence", "coefficient": 0.001}),
    (LossConfig(constant_normaliser=5.0), {"aggregate": "constant", "constant": 5.0, "coefficient": 0.001}),
    (LossConfig(positive_example_nll_weight=0.1), {"nll": 0.1, "coefficient": 0.001}),
]


@pytest.mark.parametrize(("config", "options"), CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_the_plain_implementation(config, options, seed):
    responses = random_responses(seed)
    output = policy_loss(packed(responses), totals_of(responses), config)
    assert output.loss.item() == pytest.approx(plain_objective.objective(responses, **options), abs=1e-12)


@pytest.mark.parametrize(("config", "options"), CASES)
def test_gradients_match_finite_differences(config, options):
    # The score-function factor is not in the value, so the plain objective differentiates the plain estimate.
    config = replace(config, kl_score_function=False)
    responses = random_responses(3)
    leaf = packed(responses).logprobs.requires_grad_()
    policy_loss(packed(responses, leaf), totals_of(responses), config).loss.backward()
    step, position = 1e-6, 0
    for response in responses:
        for t, base in enumerate(list(response.logprobs)):
            values = []
            for sign in (1, -1):
                response.logprobs[t] = base + sign * step
                values.append(plain_objective.objective(responses, **options))
            response.logprobs[t] = base
            assert leaf.grad[position].item() == pytest.approx((values[0] - values[1]) / (2 * step), abs=2e-9)
            position += 1


@pytest.mark.parametrize(("config", "options"), CASES)
@pytest.mark.parametrize("parts", [[7], [1] * 7, [3, 4], [2, 4, 1]])
def test_any_split_into_micro_batches_and_ranks_gives_the_same_step(config, options, parts):
    responses = random_responses(5)
    totals = totals_of(responses)
    whole = packed(responses).logprobs.requires_grad_()
    expected = policy_loss(packed(responses, whole), totals, config)
    expected.loss.backward()
    leaf = packed(responses).logprobs.requires_grad_()
    loss, sums, first, token = torch.zeros(()), {}, 0, 0
    for size in parts:
        part = responses[first : first + size]
        length = sum(len(r.logprobs) for r in part)
        output = policy_loss(packed(part, leaf[token : token + length]), totals, config)
        loss = loss + output.loss
        sums = {name: sums.get(name, 0.0) + value for name, value in output.sums.items()}
        first, token = first + size, token + length
    loss.backward()
    torch.testing.assert_close(loss, expected.loss)
    torch.testing.assert_close(leaf.grad, whole.grad)
    torch.testing.assert_close(sums, expected.sums)
    assert sums["tokens"].item() == totals.tokens


def test_masked_tokens_never_matter():
    responses = random_responses(6)
    clean = packed(responses)
    garbage = {}
    for name in ("logprobs", "old_logprobs", "reference_logprobs", "advantages", "entropies"):
        values = getattr(clean, name)
        garbage[name] = torch.where(clean.mask.bool(), values, math.nan)
    dirty = replace(clean, **garbage)
    dirty.logprobs.requires_grad_()
    config = LossConfig(positive_example_nll_weight=0.1)
    expected, output = (policy_loss(b, totals_of(responses), config) for b in (clean, dirty))
    torch.testing.assert_close(output.loss, expected.loss)
    torch.testing.assert_close(output.sums, expected.sums)
    output.loss.backward()
    assert not dirty.logprobs.grad[~clean.mask.bool()].any()


def test_the_sequence_mean_counts_responses_without_tokens():
    batch = tokens(logprobs=[-1.0] * 3, mask=[0.0, 1, 1], ids=[0, 1, 1])
    weights = token_weights(
        batch.mask, batch.sequence_ids, StepTotals(2, 2), LossConfig(token_level_loss=False)
    )
    assert weights.tolist() == [0.0, 0.25, 0.25]


def test_an_empty_part_contributes_nothing():
    nothing = torch.zeros(0, requires_grad=True)
    empty = PackedTokens(
        logprobs=nothing,
        advantages=nothing,
        mask=nothing,
        sequence_ids=torch.zeros(0, dtype=torch.int64),
        old_logprobs=nothing,
    )
    for config in (NO_KL, replace(NO_KL, token_level_loss=False)):
        output = policy_loss(empty, StepTotals(5, 2), config)
        assert output.loss.item() == 0.0 and output.maxima["ratio"].item() == 0.0


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        ({"old_logprobs": None}, NO_KL, "old_logprobs"),
        ({}, LossConfig(), "reference_logprobs"),
        ({}, replace(NO_KL, positive_example_nll_weight=1.0), "positive"),
    ],
)
def test_missing_tensors_are_named(change, config, message):
    with pytest.raises(ValueError, match=message):
        policy_loss(replace(tokens(logprobs=[-1.0]), **change), StepTotals(1, 1), config)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="ratio_clip_c"):
        LossConfig(ratio_clip_c=1.0)
    with pytest.raises(ValueError, match="constant_normaliser"):
        LossConfig(constant_normaliser=0.0)
    with pytest.raises(ValueError, match="without tokens"):
        policy_loss(tokens(logprobs=[-1.0]), StepTotals(0, 1), NO_KL)
    with pytest.raises(ValueError, match="without tokens"):
        masked_nll(torch.zeros(1), torch.ones(1), 0)


def test_supervised_loss_by_hand():
    logprobs = torch.tensor([-9.0, -1.0, -2.0], requires_grad=True)
    loss = masked_nll(logprobs, torch.tensor([0, 1, 1]), 4)
    loss.backward()
    assert loss.item() == 0.75
    assert logprobs.grad.tolist() == [0.0, -0.25, -0.25]
