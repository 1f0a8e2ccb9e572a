"""Ratios of whole responses (GSPO), CISPO and the weights that correct for the sampler: numbers by hand."""

import math
from dataclasses import replace

import pytest
import torch

from nemo_thinkprune.algorithms.importance import response_means, response_sums, sampler_weights
from nemo_thinkprune.algorithms.kl import kl_estimate
from nemo_thinkprune.algorithms.losses import LossConfig, PackedTokens, StepTotals, policy_loss

GSPO = LossConfig(
    reference_policy_kl_penalty=0.0, sequence_level_importance_ratios=True, token_level_loss=False
)
CISPO = LossConfig(reference_policy_kl_penalty=0.0, use_cispo=True)
# Log ratios: response 0 has 0.3 and -0.1 (mean 0.1), response 1 has 0.6, 0.3 and a masked one (mean 0.45).
RATIOS = [0.3, -0.1, 0.6, 0.3, 9.0]
IDS = torch.tensor([0, 0, 1, 1, 1])
KEEP = torch.tensor([1, 1, 1, 1, 0]).bool()
TOTALS = StepTotals(tokens=4, sequences=2)


def batch(advantages, **fields):
    old = torch.full((5,), -2.0, dtype=torch.float64)
    tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in fields.items()}
    logprobs = (old + torch.tensor(RATIOS, dtype=torch.float64)).requires_grad_()
    return PackedTokens(
        logprobs=logprobs,
        advantages=torch.tensor(advantages, dtype=torch.float64)[IDS],
        mask=KEEP,
        sequence_ids=IDS,
        old_logprobs=old,
        **tensors,
    )


def test_sums_and_means_of_responses():
    values = torch.tensor([1.0, 2, 3, 5, 100])
    assert response_sums(values, IDS).tolist() == [3, 108]
    assert response_means(values, KEEP, IDS).tolist() == [1.5, 1.5, 4, 4, 4]
    assert response_means(values, torch.zeros(5).bool(), IDS).tolist() == [0] * 5
    nothing = torch.zeros(0, dtype=torch.int64)
    assert response_sums(torch.zeros(0), nothing).shape == (0,)


def test_the_ratio_of_a_response_is_the_geometric_mean_of_its_tokens():
    part = batch([1.0, 1.0])
    output = policy_loss(part, TOTALS, GSPO)
    output.loss.backward()
    # Response 0: u = e^0.1 = 1.105, not clipped. Response 1: u = e^0.45 = 1.568, cut at 1.2, no gradient.
    u = math.exp(0.1)
    assert output.loss.item() == pytest.approx(-(u + 1.2) / 2)
    # d u / d log p_t = u / 2 for each of two tokens; the mean over two responses halves it again.
    assert part.logprobs.grad.tolist() == pytest.approx([-u / 4, -u / 4, 0, 0, 0])
    assert output.sums["clipped"].item() == 2  # its tokens
    assert output.maxima["ratio"].item() == pytest.approx(math.exp(0.45))


def test_without_a_ratio_of_one_token_standing_out_the_tokens_would_be_clipped_alone():
    by_token = policy_loss(batch([1.0, 1.0]), TOTALS, replace(GSPO, sequence_level_importance_ratios=False))
    # e^0.3 and e^0.6 are cut at 1.2, e^-0.1 is not.
    assert by_token.loss.item() == pytest.approx(-((1.2 + math.exp(-0.1)) / 2 + 1.2) / 2)


def test_on_policy_the_ratio_of_a_response_has_the_gradient_of_its_mean_log_prob():
    part = batch([1.0, -2.0])
    part = replace(part, old_logprobs=part.logprobs.detach())
    policy_loss(part, TOTALS, GSPO).loss.backward()
    assert part.logprobs.grad.tolist() == pytest.approx([-0.25, -0.25, 0.5, 0.5, 0])


def test_cispo_keeps_the_gradient_of_clipped_tokens():
    part = batch([1.0, -1.0])
    output = policy_loss(part, TOTALS, CISPO)
    output.loss.backward()
    weights = [1.2, math.exp(-0.1), 1.2, 1.2]  # clip(u), without gradient
    assert part.logprobs.grad.tolist() == pytest.approx(
        [-weights[0] / 4, -weights[1] / 4, weights[2] / 4, weights[3] / 4, 0]
    )
    value = -1.2 * -1.7 + -weights[1] * -2.1 + 1.2 * -1.4 + 1.2 * -1.7
    assert output.loss.item() == pytest.approx(value / 4)
    assert output.sums["clipped"].item() == 3


# p_old / p_sampling of the four tokens: 2, 1/2, 4, 1; NaN stands at the masked one.
OLD = torch.log(torch.tensor([2.0, 0.5, 4.0, 1.0, 1.0]))
SAMPLING = torch.tensor([0.0, 0, 0, 0, math.nan])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [2, 0.5, 4, 1]),
        ({"by_response": True}, [1, 1, 4, 4]),
        ({"truncation": "tis", "upper": 3.0}, [2, 0.5, 3, 1]),
        ({"truncation": "tis", "upper": 3.0, "lower": 0.75}, [2, 0.75, 3, 1]),
        ({"truncation": "tis", "upper": 3.0, "by_response": True}, [1, 1, 3, 3]),
        ({"truncation": "icepop", "upper": 3.0, "lower": 0.75}, [2, 0, 0, 1]),
        # Geometric means 1 and 2: the second response is left out, the first keeps its weights as they are.
        ({"truncation": "seq-mask-tis", "upper": 1.5, "lower": 0.5}, [2, 0.5, 0, 0]),
        ({"truncation": "seq-mask-tis", "upper": 2.5, "lower": 1.5}, [0, 0, 4, 1]),
    ],
)
def test_sampler_weights_by_hand(options, expected):
    weights = sampler_weights(OLD, SAMPLING, KEEP, IDS, **options)
    assert weights[:4].tolist() == pytest.approx(expected)


def test_weights_that_are_not_finite_are_zero():
    old, sampling = torch.tensor([0.0, 0.0]), torch.tensor([-1e4, -math.inf])
    weights = sampler_weights(old, sampling, torch.ones(2).bool(), torch.tensor([0, 1]))
    assert weights.tolist() == [0, 0]


def test_the_correction_weighs_the_surrogate_and_not_the_kl_term():
    fields = {"sampling_logprobs": [-2.5] * 5, "reference_logprobs": [-2.0] * 5}
    plain = LossConfig(reference_policy_kl_penalty=0.1)
    corrected = replace(plain, use_importance_sampling_correction=True)
    outputs = [policy_loss(batch([1.0, -1.0], **fields), TOTALS, c) for c in (plain, corrected)]
    factor = math.exp(0.5)  # the same for every token here
    terms = [output.sums["policy_loss"].item() for output in outputs]
    assert terms[1] == pytest.approx(factor * terms[0])
    assert outputs[0].sums["kl_loss"] == outputs[1].sums["kl_loss"]


def test_kl_weighted_by_policy_over_sampler_by_hand():
    logprobs = torch.tensor([-1.0, -1.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-1.5, -1.5], dtype=torch.float64)
    sampling = torch.tensor([-1.2, -math.inf], dtype=torch.float64)
    estimate = kl_estimate(logprobs, reference, kind="k1", sampling_logprobs=sampling)
    estimate.sum().backward()
    w = math.exp(0.2)
    assert estimate.tolist() == pytest.approx([0.5 * w, 0.0])
    assert logprobs.grad.tolist() == pytest.approx([w + 0.5 * w, 0.0])  # d(w k1) = w k1' + k1 w'


@pytest.mark.parametrize("clamps", [{"input_clamp": 0.4}, {"output_clamp": 0.05}])
def test_a_token_on_which_a_clamp_acts_has_no_gradient(clamps):
    logprobs = torch.tensor([-1.0, -1.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-1.5, -1.1], dtype=torch.float64)
    estimate = kl_estimate(logprobs, reference, kind="k2", score_function=True, **clamps)
    estimate.sum().backward()
    # k2 of 0.1 with the factor: 0.1 + 0.005.
    assert logprobs.grad.tolist() == pytest.approx([0.0, 0.105])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sequence_level_importance_ratios": True}, "needs token_level_loss=False"),
        ({"use_cispo": True, "token_level_loss": False}, "use_cispo needs"),
        ({"use_cispo": True, "disable_ppo_ratio": True}, "use_cispo needs"),
        ({"use_cispo": True, "force_on_policy_ratio": True}, "use_cispo needs"),
        ({"use_cispo": True, "ratio_clip_c": 3.0}, "use_cispo needs"),
        (
            {"truncated_importance_sampling_type": "tis", "truncated_importance_sampling_ratio": 2.0},
            "go together",
        ),
        (
            {"truncated_importance_sampling_type": "tis", "use_importance_sampling_correction": True},
            "together",
        ),
        ({"truncated_importance_sampling_ratio": 2.0}, "go together"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LossConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"truncated_importance_sampling_type": "icepop"}, "icepop needs"),
        ({"truncated_importance_sampling_ratio_min": 3.0}, "not in order"),
        (
            {
                "truncated_importance_sampling_type": "seq-mask-tis",
                "truncated_importance_sampling_ratio_min": 0.5,
                "sequence_level_importance_ratios": True,
                "token_level_loss": False,
            },
            "seq-mask-tis needs",
        ),
    ],
)
def test_bounds_that_make_no_sense_are_refused(settings, message):
    defaults = {
        "use_importance_sampling_correction": True,
        "truncated_importance_sampling_type": "tis",
        "truncated_importance_sampling_ratio": 2.0,
    }
    with pytest.raises(ValueError, match=message):
        LossConfig(**{**defaults, **settings})


@pytest.mark.parametrize("setting", ["use_importance_sampling_correction", "use_on_policy_kl_approximation"])
def test_log_probs_of_the_sampler_are_asked_for(setting):
    config = LossConfig(**{setting: True})
    with pytest.raises(ValueError, match="sampling_logprobs are needed"):
        policy_loss(batch([1.0, 1.0], reference_logprobs=[-2.0] * 5), TOTALS, config)
