import itertools
import math
import random

import pytest

from nemo_thinkprune.evaluation import stats


def row(problem, *, correct=True, tokens=10, cut=False, sample=0, answer=None, reason=None):
    verdict = reason or ("correct" if correct else "truncated" if cut else "wrong")
    return {
        "problem_id": problem,
        "sample": sample,
        "reward": float(correct),
        "response_tokens": tokens,
        "stop_reason": "limit" if cut else "eos",
        "reason": verdict,
        "answer": answer,
    }


def test_accuracy_error_is_clustered_by_problem():
    # problem means 1, 0, 1/2 -> mean 1/2; sd of the three means = 1/2; se = 0.5 / sqrt(3)
    rows = [
        row("a"),
        row("a"),
        row("b", correct=False),
        row("b", correct=False),
        row("c"),
        row("c", correct=False),
    ]
    estimate = stats.accuracy(rows)
    assert estimate.mean == pytest.approx(0.5)
    assert estimate.se == pytest.approx(0.5 / math.sqrt(3))


def test_identical_samples_do_not_shrink_the_error():
    one = [row("a"), row("b", correct=False), row("c"), row("d")]
    many = [dict(r, sample=s) for r in one for s in range(16)]
    assert stats.accuracy(many).se == pytest.approx(stats.accuracy(one).se)


def test_unequal_clusters_follow_the_ratio_formula():
    # values: a = (1, 1, 1), b = (0); m = 3/4; residual sums 3/4 and -3/4; se = sqrt(2 * 2 * 9/16) / 4 = 0.375
    estimate = stats.accuracy([row("a"), row("a"), row("a"), row("b", correct=False)])
    assert estimate.mean == pytest.approx(0.75)
    assert estimate.se == pytest.approx(0.375)


def test_one_problem_has_no_error_and_no_rows_is_refused():
    assert stats.accuracy([row("a"), row("a", correct=False)]) == stats.Estimate(0.5, None)
    with pytest.raises(ValueError, match="no samples"):
        stats.accuracy([])


def test_mean_tokens_counts_cut_responses_with_their_limit():
    # problem means 20 and 40: mean 30, sd sqrt(200), se 10
    estimate = stats.mean_tokens(
        [row("a", tokens=10), row("a", tokens=30), row("b", tokens=40), row("b", tokens=40)]
    )
    assert (estimate.mean, estimate.se) == (pytest.approx(30), pytest.approx(10))


def test_accuracy_as_if_cut_at_a_smaller_limit():
    rows = [
        row("a", tokens=64),
        row("b", tokens=65),
        row("c", correct=False, tokens=5),
        row("d", tokens=64, cut=True),
    ]
    assert stats.accuracy(rows, within=64).mean == pytest.approx(0.25)
    assert stats.accuracy(rows, within=65).mean == pytest.approx(0.5)
    assert stats.accuracy(rows).mean == pytest.approx(0.75)  # scored as it stands, a cut one may be correct


def test_correctness_is_the_verdict_not_a_shaped_reward():
    shaped = dict(row("a"), reward=0.4)
    assert stats.accuracy([shaped, row("b", reason="timeout", correct=False)]).mean == 0.5


@pytest.mark.parametrize(
    ("q", "expected"), [(0, 1.0), (25, 1.75), (50, 2.5), (75, 3.25), (95, 3.85), (100, 4.0)]
)
def test_percentiles_interpolate(q, expected):
    assert stats.percentile([4, 1, 3, 2], q) == pytest.approx(expected)


@pytest.mark.parametrize(("values", "q"), [([], 50), ([1.0], 101), ([1.0], -1)])
def test_percentile_refuses_nonsense(values, q):
    with pytest.raises(ValueError, match="percentile"):
        stats.percentile(values, q)


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [(4, 0, 1, 0.0), (4, 1, 1, 0.25), (4, 1, 2, 0.5), (4, 2, 2, 5 / 6), (4, 3, 2, 1.0), (16, 1, 8, 0.5)],
)
def test_pass_at_k_by_hand(n, c, k, expected):
    assert stats.pass_at_k(n, c, k) == pytest.approx(expected)


def test_pass_at_k_is_the_mean_over_all_subsets():
    marks = [True, False, False, True, False, False]
    for k in range(1, 7):
        subsets = list(itertools.combinations(marks, k))
        expected = sum(any(subset) for subset in subsets) / len(subsets)
        assert stats.pass_at_k(6, 2, k) == pytest.approx(expected)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, 1, 5), (4, 1, 0), (4, -1, 1)])
def test_pass_at_k_refuses_impossible_counts(n, c, k):
    with pytest.raises(ValueError, match="pass@k"):
        stats.pass_at_k(n, c, k)


def test_mean_pass_at_k_needs_k_samples_of_every_problem():
    rows = [row("a"), row("a", correct=False), row("b", correct=False), row("b", correct=False)]
    assert stats.mean_pass_at_k(rows, 2) == pytest.approx(0.5)
    assert stats.mean_pass_at_k([*rows, row("c")], 2) is None


def test_majority_vote_with_a_tie_and_silent_samples():
    sure = [row("a", answer="7"), row("a", answer=" 7"), row("a", answer="8", correct=False)]
    tie = [row("b", answer="1"), row("b", answer="2", correct=False)]
    silent = [row("c", correct=False, reason="no_answer")]
    assert stats.majority_vote(sure) == 1.0
    assert stats.majority_vote([*sure, *tie]) == pytest.approx(0.75)
    assert stats.majority_vote([*sure, *tie, *silent]) == pytest.approx(0.5)


def test_paired_change_uses_shared_problems_and_their_differences():
    before = [row("a", tokens=100), row("b", correct=False, tokens=60), row("x")]
    after = [row("a", tokens=50), row("b", tokens=30), row("y")]
    change = stats.paired_change(before, after)
    assert (change.mean, change.se) == (pytest.approx(0.5), pytest.approx(0.5))
    tokens = stats.paired_change(before, after, value="tokens")
    assert (tokens.mean, tokens.se) == (pytest.approx(-40), pytest.approx(10))
    assert stats.paired_change(before, [row("z")]) is None


def test_summary_holds_every_number_an_eval_reports():
    rows = [
        row("a", tokens=40, sample=0, answer="5"),
        row("a", tokens=100, sample=1, answer="5"),
        row("b", tokens=60, sample=0, answer="4", correct=False),
        row("b", tokens=240, sample=1, correct=False, cut=True),
    ]
    summary = stats.summarise(rows, limits=(64, 128), model="m", limit=240)
    assert summary["model"] == "m" and summary["limit"] == 240
    assert (summary["problems"], summary["rows"]) == (2, 4)
    assert summary["accuracy"] == 0.5 and summary["accuracy_se"] == pytest.approx(0.5)
    assert summary["mean_tokens"] == 110 and summary["mean_tokens_correct"] == 70
    assert summary["share_cut"] == 0.25
    assert summary["pass_at_k"] == {"1": 0.5, "2": 0.5}
    assert summary["accuracy_at"] == {"64": 0.25, "128": 0.5}
    assert summary["accuracy_at_se"]["64"] == pytest.approx(0.25)
    assert summary["majority_vote"] == 0.5
    assert summary["reasons"] == {"correct": 2, "truncated": 1, "wrong": 1}
    assert summary["tokens_percentiles"]["50"] == 80


def test_stated_error_matches_the_spread_over_repeated_surveys():
    # 40 problems of unequal difficulty, 8 samples each: the clustered error predicts how far surveys spread
    rng = random.Random(5)
    means, errors = [], []
    for _ in range(300):
        chances = [rng.random() for _ in range(40)]
        rows = [
            row(str(p), correct=rng.random() < chance) for p, chance in enumerate(chances) for _ in range(8)
        ]
        estimate = stats.accuracy(rows)
        means.append(estimate.mean)
        errors.append(estimate.se)
    centre = sum(means) / len(means)
    spread = math.sqrt(sum((m - centre) ** 2 for m in means) / (len(means) - 1))
    assert sum(errors) / len(errors) == pytest.approx(spread, rel=0.15)
