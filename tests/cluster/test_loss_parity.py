"""Our loss against NeMo-RL's ClippedPGLossFn: the same numbers and gradients, and where they part on purpose."""

import math
from types import SimpleNamespace

import pytest
import torch
from support.nemo_rl import require_nemo_rl

from nemo_thinkprune.algorithms.losses import (
    LossConfig,
    PackedTokens,
    StepTotals,
    policy_loss,
    token_weights,
)

TOLERANCE = 1e-6
SEEDS = range(6)
ROWS = 8
GSPO = {"sequence_level_importance_ratios": True, "token_level_loss": False}
CORRECTED = {"use_importance_sampling_correction": True}


def truncated(kind, upper, lower=None):
    return {
        **CORRECTED,
        "truncated_importance_sampling_type": kind,
        "truncated_importance_sampling_ratio": upper,
        "truncated_importance_sampling_ratio_min": lower,
    }


CASES = {
    **{
        f"{kind} {'+' if weight > 0 else '-'} {mean}": {
            "reference_policy_kl_type": kind,
            "reference_policy_kl_penalty": weight,
            "token_level_loss": mean == "tokens",
        }
        for kind in ("k1", "k2", "k3")
        for weight in (0.05, -0.05)
        for mean in ("tokens", "responses")
    },
    "no KL": {"reference_policy_kl_penalty": 0.0},
    "as released": {"reference_policy_kl_penalty": -0.001, "kl_input_clamp_value": None},
    "no clamps": {"kl_input_clamp_value": None, "kl_output_clamp_value": None},
    "tight clamps": {"kl_input_clamp_value": 1.0, "kl_output_clamp_value": 0.4},
    "clip higher": {"ratio_clip_max": 0.28},
    "no lower room": {"ratio_clip_min": 0.0, "ratio_clip_max": 0.0},
    "dual clip": {"ratio_clip_c": 3.0, "ratio_clip_max": 0.28},
    "dual clip, responses": {"ratio_clip_c": 1.1, "token_level_loss": False},
    "forced on-policy": {"force_on_policy_ratio": True, "ratio_clip_c": 3.0},
    "reinforce": {"disable_ppo_ratio": True, "ratio_clip_c": 3.0},
    "reinforce, responses": {"disable_ppo_ratio": True, "token_level_loss": False},
    "forced reinforce": {"disable_ppo_ratio": True, "force_on_policy_ratio": True},
    "GSPO": GSPO,
    "GSPO, dual clip": {**GSPO, "ratio_clip_c": 1.5, "ratio_clip_min": 3e-4, "ratio_clip_max": 4e-4},
    "GSPO, forced": {**GSPO, "force_on_policy_ratio": True},
    "GSPO, corrected": {**GSPO, **CORRECTED},
    "GSPO, tis": {**GSPO, **truncated("tis", 2.0)},
    "GSPO, icepop": {**GSPO, **truncated("icepop", 2.0, 0.5)},
    "CISPO": {"use_cispo": True, "ratio_clip_max": 0.28},
    "corrected": CORRECTED,
    "corrected, responses": {**CORRECTED, "token_level_loss": False},
    "corrected reinforce": {**CORRECTED, "disable_ppo_ratio": True},
    "corrected, forced": {**CORRECTED, "force_on_policy_ratio": True},
    "tis": truncated("tis", 1.5),
    "tis, both bounds": truncated("tis", 1.5, 0.7),
    "icepop": truncated("icepop", 1.5, 0.7),
    "seq-mask-tis": truncated("seq-mask-tis", 1.1, 0.9),
    "KL p / sampler": {"use_on_policy_kl_approximation": True},
    "KL p / sampler, k1 -": {
        "use_on_policy_kl_approximation": True,
        "reference_policy_kl_type": "k1",
        "reference_policy_kl_penalty": -0.05,
    },
    "NLL": {"positive_example_nll_weight": 0.1},
}


@pytest.fixture(scope="module")
def nemo():
    """NeMo-RL's loss, and the root of its sources."""
    found = require_nemo_rl()
    from nemo_rl.algorithms.loss import ClippedPGLossConfig, ClippedPGLossFn
    from nemo_rl.distributed.batched_data_dict import BatchedDataDict

    def loss_fn(keys):
        return ClippedPGLossFn(ClippedPGLossConfig(**{"reference_policy_kl_penalty": 0.05, **keys}))

    return SimpleNamespace(loss_fn=loss_fn, data=BatchedDataDict, root=found.root)


def random_batch(seed, *, dtype=torch.float64, on_policy=False):
    """A padded batch as NeMo-RL's trainer makes it: prompts and responses of any length, two samples left out."""
    g = torch.Generator().manual_seed(seed)

    def normal(scale):
        return torch.randn(ROWS, width, generator=g, dtype=torch.float64) * scale

    prompts, lengths = torch.randint(1, 5, (ROWS,), generator=g), torch.randint(1, 13, (ROWS,), generator=g)
    width = int((prompts + lengths).max()) + 2  # padding behind the longest, too
    position = torch.arange(width)
    response = (position >= prompts[:, None]) & (position < (prompts + lengths)[:, None])
    kept = response & (torch.rand(ROWS, width, generator=g) < 0.9)
    kept[torch.arange(ROWS), prompts] = True
    wild = torch.rand(ROWS, width, generator=g)
    now = -normal(1.5).abs() - 0.01
    # Most ratios are close to 1, some far out on either side; some references make both KL clamps act.
    old = now if on_policy else now + normal(0.2) + (wild < 0.1) * 2.5 - (wild > 0.9) * 2.5
    reference = now + normal(0.7) + (wild.roll(1, 1) < 0.08) * 24 - (wild.roll(1, 1) > 0.92) * 24
    sample_mask = torch.ones(ROWS)
    sample_mask[torch.randperm(ROWS, generator=g)[:2]] = 0
    data = {
        "advantages": torch.randn(ROWS, 1, generator=g, dtype=torch.float64).expand(ROWS, width) * 1.5,
        "prev_logprobs": old,
        "generation_logprobs": old + normal(0.3),
        "reference_policy_logprobs": reference,
        "token_mask": kept,
        "sample_mask": sample_mask,
        "rewards": (torch.rand(ROWS, generator=g) < 0.5).double(),
    }
    data["rewards"][sample_mask.argmax()] = 1.0
    return {k: v.to(dtype) for k, v in data.items()}, now[:, 1:].to(dtype), response[:, 1:]


def totals_of(data):
    mask = data["token_mask"][:, 1:] * data["sample_mask"][:, None]
    positive = (mask * (data["rewards"] > 0)[:, None]).sum()
    return StepTotals(int(mask.sum()), int(data["sample_mask"].sum()), int(positive))


def theirs(nemo, keys, batch, parts=((0, ROWS),), **changes):
    """NeMo-RL's loss and its gradient [B, S - 1], summed over micro-batches as its Megatron worker does."""
    data, logprobs, _ = batch
    data, leaf = {**data, **changes}, logprobs.clone().requires_grad_()
    totals, loss_fn, loss = totals_of(batch[0]), nemo.loss_fn(keys), 0.0
    for start, stop in parts:
        rows = nemo.data({name: value[start:stop] for name, value in data.items() if value is not None})
        sequences, tokens = torch.tensor(totals.sequences), torch.tensor(totals.tokens)
        loss = loss + loss_fn(leaf[start:stop], rows, sequences, tokens)[0]
    loss.backward()
    return loss.detach(), leaf.grad


def ours(keys, batch, parts=((0, ROWS),), **own):
    """Our loss and its gradient, laid out as NeMo-RL's, from the responses packed end to end."""
    data, logprobs, response = batch
    config = LossConfig(**{"reference_policy_kl_penalty": 0.05, **keys, **own})
    leaf, totals, loss = logprobs.clone().requires_grad_(), totals_of(data), 0.0
    for start, stop in parts:
        loss = loss + policy_loss(pack(data, leaf, response, start, stop), totals, config).loss
    loss.backward()
    return loss.detach(), leaf.grad


def pack(data, leaf, response, start, stop):
    spans, rows = response[start:stop], slice(start, stop)

    def flat(name):
        return data[name][rows, 1:][spans]

    return PackedTokens(
        logprobs=leaf[rows][spans],
        advantages=flat("advantages"),
        mask=(data["token_mask"][:, 1:] * data["sample_mask"][:, None])[rows][spans],
        sequence_ids=torch.arange(stop - start).repeat_interleave(spans.sum(1)),
        old_logprobs=flat("prev_logprobs"),
        sampling_logprobs=flat("generation_logprobs"),
        reference_logprobs=flat("reference_policy_logprobs"),
        positive=(data["rewards"] > 0)[rows].repeat_interleave(spans.sum(1)),
    )


def largest_difference(one, other):
    return max((a.double() - b.double()).abs().max().item() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("on_policy", [False, True])
@pytest.mark.parametrize("keys", CASES.values(), ids=CASES)
def test_loss_and_gradient_are_nemo_rls(nemo, keys, on_policy):
    for seed in SEEDS:
        batch = random_batch(seed, on_policy=on_policy)
        assert largest_difference(theirs(nemo, keys, batch), ours(keys, batch)) < TOLERANCE


@pytest.mark.parametrize("keys", CASES.values(), ids=CASES)
def test_any_split_into_micro_batches_gives_the_same_step(nemo, keys):
    if keys.get("positive_example_nll_weight"):
        keys = {}  # a difference with a test of its own
    for seed in SEEDS:
        batch = random_batch(seed)
        expected = theirs(nemo, keys, batch, parts=[(0, 1), (1, 4), (4, 8)])
        assert largest_difference(expected, ours(keys, batch, parts=[(0, 3), (3, 5), (5, 8)])) < TOLERANCE


# Without clamps the gradient of k3 at d = 24 is a difference of two numbers of e^24: noise in float32.
@pytest.mark.parametrize("name", [name for name in CASES if name != "no clamps"])
def test_single_precision_differs_by_rounding_only(nemo, name):
    for seed in SEEDS:
        batch = random_batch(seed, dtype=torch.float32)
        (loss, gradient), (our_loss, our_gradient) = (
            theirs(nemo, CASES[name], batch),
            ours(CASES[name], batch),
        )
        torch.testing.assert_close(our_loss, loss, rtol=1e-5, atol=TOLERANCE)
        torch.testing.assert_close(our_gradient, gradient, rtol=1e-4, atol=TOLERANCE)


def test_the_random_batches_reach_every_branch():
    reached = set()
    for seed in SEEDS:
        data, now, response = random_batch(seed)
        part = pack(data, now, response, 0, ROWS)
        d = (part.reference_logprobs - part.logprobs)[part.mask.bool()]
        sums = policy_loss(part, totals_of(data), LossConfig(ratio_clip_c=3.0)).sums
        left_out = data["sample_mask"] == 0
        conditions = {
            "clip": sums["clipped"] > 0,
            "dual clip": sums["dual_clipped"] > 0,
            "clamp of d, above": d.max() > 20,
            "clamp of d, below": d.min() < -20,
            "masked token in a response": (data["token_mask"][:, 1:].bool() != response).any(),
            "correct response left out": (left_out & (data["rewards"] > 0)).any(),
        }
        reached |= {name for name, met in conditions.items() if met}
    assert reached == set(conditions)


@pytest.mark.parametrize("mean", ["tokens", "responses"])
def test_the_weight_of_each_token_in_nemo_rls_step(nemo, mean):
    # With A = -1 and no ratio the gradient is the weight: 1 / tokens of the step, or 1 / (responses x length).
    keys = {
        "disable_ppo_ratio": True,
        "reference_policy_kl_penalty": 0.0,
        "token_level_loss": mean == "tokens",
    }
    data, now, response = batch = random_batch(0)
    data["advantages"] = torch.full_like(data["advantages"], -1.0)
    _, gradient = theirs(nemo, keys, batch, parts=[(0, 3), (3, 8)])
    part = pack(data, now, response, 0, ROWS)
    expected = token_weights(part.mask, part.sequence_ids, totals_of(data), LossConfig(**keys))
    assert (gradient[response] - expected).abs().max() < TOLERANCE
    assert expected.sum().item() == pytest.approx(1) and gradient.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_nemo_rls_kl_gradient_is_not_the_published_one(nemo, kind):
    # Equal values; per token the gradients differ by weight x coefficient x estimate, the score function's part.
    keys = {"reference_policy_kl_type": kind, "kl_input_clamp_value": None, "kl_output_clamp_value": None}
    data, now, _ = batch = random_batch(1)
    loss, gradient = theirs(nemo, keys, batch)
    plain_loss, plain_gradient = ours(keys, batch, kl_score_function=False)
    assert (loss - plain_loss).abs() < TOLERANCE
    d = (data["reference_policy_logprobs"][:, 1:] - now).double()
    estimate = {"k1": -d, "k2": d**2 / 2, "k3": d.exp() - 1 - d}[kind]
    mask = data["token_mask"][:, 1:] * data["sample_mask"][:, None]
    expected = 0.05 * estimate * mask / totals_of(data).tokens
    torch.testing.assert_close(gradient - plain_gradient, expected, atol=TOLERANCE, rtol=1e-6)
    assert expected.abs().max() > 1e-4


def test_a_clamped_token_has_a_gradient_in_neither(nemo):
    batch = random_batch(2)
    keys = {"kl_input_clamp_value": 1e-9, "reference_policy_kl_penalty": 5.0}
    silent = {**keys, "reference_policy_kl_penalty": 0.0}
    assert largest_difference(theirs(nemo, keys, batch), theirs(nemo, silent, batch)) < TOLERANCE
    assert largest_difference(ours(keys, batch), ours(silent, batch)) < TOLERANCE


def test_a_negative_weight_pushes_away_and_needs_a_real_reference(nemo):
    batch = random_batch(3)
    keys = {"reference_policy_kl_penalty": -0.001}
    negative, positive, none = (
        theirs(nemo, {"reference_policy_kl_penalty": weight}, batch) for weight in (-0.001, 0.001, 0.0)
    )
    for a, b, zero in zip(negative, positive, none, strict=True):
        torch.testing.assert_close(a - zero, zero - b)
    # What the trainer puts in where the reference was not loaded: log-probs of 0.
    zeros = torch.zeros_like(batch[0]["reference_policy_logprobs"])
    wrong = theirs(nemo, keys, batch, reference_policy_logprobs=zeros)
    assert largest_difference(wrong, negative) > 1e-5


def test_nemo_rl_loads_no_reference_for_a_negative_weight(nemo):
    source = (nemo.root / "nemo_rl/algorithms/grpo.py").read_text(encoding="utf-8")
    assert "init_reference_model = loss_config.reference_policy_kl_penalty > 0" in source


def test_nemo_rls_likelihood_term_is_a_mean_of_each_micro_batch(nemo):
    keys, parts = {"positive_example_nll_weight": 0.1}, [(0, 2), (2, 5), (5, 8)]
    data, now, _ = batch = random_batch(4)
    correct = data["token_mask"][:, 1:] * (data["sample_mask"] * data["rewards"])[:, None]
    means = [(-now * correct)[a:b].sum() / correct[a:b].sum().clamp_min(1) for a, b in parts]
    whole = (-now * correct).sum() / correct.sum()
    difference = theirs(nemo, keys, batch, parts)[0] - ours(keys, batch, parts)[0]
    assert sum(m > 0 for m in means) > 1
    assert difference.item() == pytest.approx(0.1 * (sum(means) - whole).item(), abs=TOLERANCE)


def test_nemo_rl_drops_the_likelihood_term_without_rewards(nemo):
    # Its GRPO trainers put no rewards into the training data (the PPO trainer does).
    batch = random_batch(4)
    without = theirs(nemo, {"positive_example_nll_weight": 0.1}, batch, rewards=None)
    assert largest_difference(without, ours({}, batch)) < TOLERANCE


def test_what_stands_at_masked_tokens_matters_in_nemo_rl_only(nemo):
    data, now, response = random_batch(5)
    hole = (data["token_mask"][:, 1:] == 0) & response
    assert hole.any()
    dirty = (data, now.masked_fill(hole, math.nan), response)
    assert torch.isnan(theirs(nemo, {}, dirty)[0])
    assert (ours({}, dirty)[0] - ours({}, (data, now, response))[0]).abs() == 0
