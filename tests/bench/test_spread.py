"""Medians, quartiles and ratios, worked out by hand."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_thinkprune.bench.spread import paired_ratio, quantile, ratio_of_medians, spread


def test_quartiles_lie_on_straight_lines_between_values() -> None:
    found = spread([4.0, 1.0, 10.0, 2.0])  # 1 2 4 10: places 0.75, 1.5 and 2.25
    assert (found.n, found.min, found.max) == (4, 1.0, 10.0)
    assert (found.lower, found.median, found.upper) == (1.75, 3.0, 5.5)


def test_one_value_is_its_own_spread() -> None:
    found = spread([7.0])
    assert {found.median, found.lower, found.upper, found.min, found.max} == {7.0} and found.n == 1


def test_a_ratio_of_medians_by_hand() -> None:
    ratio = ratio_of_medians([1.0, 1.5, 2.0, 5.0, 9.0], [3.0, 3.5, 4.0, 4.5, 5.0])
    assert ratio.value == 2.0
    # the smallest and largest ratios that five of each can make: 3/9 and 5/1
    assert ratio.low is not None and ratio.high is not None
    assert 3 / 9 <= ratio.low < 2.0 < ratio.high <= 5.0


def test_pairs_are_compared_one_by_one() -> None:
    # the steps differ tenfold, their ratios do not: paired, the spread between steps is gone
    a, b = [1.0, 10.0, 100.0, 5.0, 3.0], [2.0, 20.0, 200.0, 10.0, 6.0]
    assert paired_ratio(a, b).value == paired_ratio(a, b).low == paired_ratio(a, b).high == 2.0
    wide = ratio_of_medians(a, b)
    assert wide.low is not None and wide.low < 1 and wide.beyond_spread is False


def test_what_is_equal_does_not_differ_and_what_is_far_apart_does() -> None:
    values = [1.0, 1.1, 0.9, 1.05, 0.95]
    assert ratio_of_medians(values, values).beyond_spread is False
    assert ratio_of_medians(values, [3 * v for v in values]).beyond_spread is True
    assert ratio_of_medians(values[:4], [9.0] * 5).beyond_spread is None


def test_the_same_samples_give_the_same_interval() -> None:
    a, b = [1.0, 1.4, 0.9, 1.1, 2.0], [1.2, 1.9, 1.0, 0.8, 1.5]
    assert ratio_of_medians(a, b) == ratio_of_medians(a, b)


@given(st.lists(st.floats(0.1, 1e6), min_size=1, max_size=30))
def test_a_quantile_never_leaves_the_sample(values: list[float]) -> None:
    ordered = sorted(values)
    found = [quantile(ordered, share / 8) for share in range(9)]
    assert all(a <= b or a == pytest.approx(b) for a, b in itertools.pairwise(found))
    assert found[0] == ordered[0] and found[-1] == pytest.approx(ordered[-1])
