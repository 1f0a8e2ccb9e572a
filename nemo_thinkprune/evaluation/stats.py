"""Statistics of sampled responses: accuracy, length, pass@k, and their standard errors. Pure, no torch.

A row is one sample as the eval job writes it: a mapping with ``problem_id``, ``sample``, ``response_tokens``
(int, the end token included), ``stop_reason`` ("eos" or "limit"), ``reason`` (a reward verdict's reason) and
optionally ``answer``. A sample is correct when its reason is "correct", whatever reward was shaped from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its standard error; ``se`` is None where one problem alone leaves it undefined."""

    mean: float
    se: float | None


def is_correct(row: Row) -> bool:
    """Whether the verdict of this sample is "correct"."""
    return row["reason"] == "correct"


def is_cut(row: Row) -> bool:
    """Whether generation stopped at the token limit rather than by itself."""
    return row["stop_reason"] == "limit"


def correct_within(row: Row, limit: int) -> bool:
    """Whether the sample is correct and ended by itself within ``limit`` tokens (the end token counts)."""
    return is_correct(row) and not is_cut(row) and row["response_tokens"] <= limit


def by_problem(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows grouped by problem, in order of first appearance."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str(row["problem_id"]), []).append(row)
    return groups


def clustered_mean(clusters: Sequence[Sequence[float]]) -> Estimate:
    """Mean over all values, with a standard error that treats each cluster as one observation.

    Samples of one problem are not independent, so the naive error is too small. With P clusters, N values
    x_ij and m their mean (the clustered error of Miller 2024, arXiv 2411.00640, with the small-sample factor
    P / (P - 1))::

        se = sqrt( P / (P - 1) * sum_i ( sum_j (x_ij - m) )^2 ) / N

    With n values in every cluster this is the standard error of the P cluster means.

    Raises:
        ValueError: no values at all.
    """
    total = sum(len(cluster) for cluster in clusters)
    if total == 0:
        raise ValueError("no samples to summarise")
    mean = math.fsum(x for cluster in clusters for x in cluster) / total
    groups = [cluster for cluster in clusters if cluster]
    if len(groups) < 2:
        return Estimate(mean, None)
    squares = math.fsum(math.fsum(x - mean for x in cluster) ** 2 for cluster in groups)
    return Estimate(mean, math.sqrt(len(groups) / (len(groups) - 1) * squares) / total)


def accuracy(rows: Iterable[Row], *, within: int | None = None) -> Estimate:
    """Share of correct samples; with ``within``, of those also finished in at most that many tokens."""
    groups = by_problem(rows).values()
    if within is None:
        return clustered_mean([[float(is_correct(row)) for row in group] for group in groups])
    return clustered_mean([[float(correct_within(row, within)) for row in group] for group in groups])


def mean_tokens(rows: Iterable[Row]) -> Estimate:
    """Mean response length in tokens; a cut response counts with the tokens it was cut at."""
    groups = by_problem(rows).values()
    return clustered_mean([[float(row["response_tokens"]) for row in group] for group in groups])


def percentile(values: Sequence[float], q: float) -> float:
    """The ``q``-th percentile (0..100) by linear interpolation between order statistics (numpy's default).

    Raises:
        ValueError: no values, or q outside 0..100.
    """
    if not values or not 0 <= q <= 100:
        raise ValueError("percentile needs values and q within 0..100")
    ordered = sorted(values)
    position = (len(ordered) - 1) * q / 100
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased chance that at least one of k samples is correct: 1 - C(n - c, k) / C(n, k).

    Chen et al. 2021, "Evaluating Large Language Models Trained on Code", equation 1.

    Raises:
        ValueError: unless 1 <= k <= n and 0 <= correct <= n.
    """
    if not (1 <= k <= n and 0 <= correct <= n):
        raise ValueError(f"pass@k needs 1 <= k <= n and 0 <= correct <= n, got n={n} correct={correct} k={k}")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def mean_pass_at_k(rows: Iterable[Row], k: int) -> float | None:
    """Mean of :func:`pass_at_k` over problems; None when some problem has fewer than k samples."""
    groups = by_problem(rows).values()
    if not groups or any(len(group) < k for group in groups):
        return None
    scores = [pass_at_k(len(group), sum(map(is_correct, group)), k) for group in groups]
    return math.fsum(scores) / len(scores)


def majority_vote(rows: Iterable[Row]) -> float | None:
    """Accuracy of the most frequent answer per problem.

    A tie counts with the share of tied answers that are right. Samples without an answer do not vote. None
    when there are no rows.
    """
    groups = by_problem(rows).values()
    if not groups:
        return None
    return math.fsum(_majority(group) for group in groups) / len(groups)


def _majority(group: Sequence[Row]) -> float:
    votes: dict[str, list[bool]] = {}
    for row in group:
        answer = row.get("answer")
        if answer is not None:
            votes.setdefault(str(answer).strip(), []).append(is_correct(row))
    if not votes:
        return 0.0
    most = max(len(marks) for marks in votes.values())
    winners = [marks for marks in votes.values() if len(marks) == most]
    return sum(any(marks) for marks in winners) / len(winners)


def paired_change(before: Iterable[Row], after: Iterable[Row], *, value: str = "accuracy") -> Estimate | None:
    """Mean change after - before over the problems present in both, with the paired standard error.

    Per problem d_i = mean(after_i) - mean(before_i); the change is mean(d) and se = sd(d) / sqrt(P). Pairing
    removes the spread between easy and hard problems, so it is the right error for "did accuracy fall?".

    Args:
        before: rows of the first model.
        after: rows of the second model on the same problems.
        value: "accuracy" or "tokens".

    Returns:
        None when the two share no problem.
    """
    measure = {"accuracy": lambda r: float(is_correct(r)), "tokens": lambda r: float(r["response_tokens"])}[
        value
    ]
    first, second = by_problem(before), by_problem(after)
    shared = [key for key in first if key in second]
    if not shared:
        return None

    def mean(group: Sequence[Row]) -> float:
        return math.fsum(measure(row) for row in group) / len(group)

    return clustered_mean([[mean(second[key]) - mean(first[key])] for key in shared])


def summarise(
    rows: Sequence[Row], *, limits: Sequence[int] = (), ks: Sequence[int] = (), **about: Any
) -> dict[str, Any]:
    """Everything an eval job reports about its samples, as a JSON-ready dict.

    Args:
        rows: per-sample rows (module docstring).
        limits: also report the accuracy as if responses were cut at each of these token counts.
        ks: the k of pass@k; by default the powers of two up to the fewest samples a problem has.
        about: further entries copied to the front (model, data, limit, samples, temperature, top_p, ...).

    Returns:
        ``about`` plus the entries below; mean_tokens_correct is None without a correct sample, majority_vote
        with a single sample of some problem. Keys of pass_at_k, accuracy_at and percentiles are strings.
        Raises ValueError without rows.
    """
    acc, length = accuracy(rows), mean_tokens(rows)
    tokens = [float(row["response_tokens"]) for row in rows]
    fewest = min(len(group) for group in by_problem(rows).values())
    at = {str(limit): accuracy(rows, within=limit) for limit in limits}
    right = [float(row["response_tokens"]) for row in rows if is_correct(row)]
    reasons = sorted({str(row["reason"]) for row in rows})
    return {
        **about,
        "problems": len(by_problem(rows)),
        "rows": len(rows),
        "accuracy": acc.mean,
        "accuracy_se": acc.se,
        "mean_tokens": length.mean,
        "mean_tokens_se": length.se,
        "mean_tokens_correct": math.fsum(right) / len(right) if right else None,
        "tokens_percentiles": {str(q): percentile(tokens, q) for q in (5, 25, 50, 75, 95)},
        "share_cut": sum(map(is_cut, rows)) / len(rows),
        "pass_at_k": {str(k): mean_pass_at_k(rows, k) for k in (ks or _powers_of_two(fewest))},
        "majority_vote": majority_vote(rows) if fewest > 1 else None,
        "accuracy_at": {limit: estimate.mean for limit, estimate in at.items()},
        "accuracy_at_se": {limit: estimate.se for limit, estimate in at.items()},
        "reasons": {reason: sum(str(row["reason"]) == reason for row in rows) for reason in reasons},
    }


def _powers_of_two(most: int) -> list[int]:
    return [2**i for i in range(most.bit_length()) if 2**i <= most]
