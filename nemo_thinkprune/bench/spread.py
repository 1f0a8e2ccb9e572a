"""Medians with their spread, and ratios of two samples with the spread of the ratio."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

RESAMPLES = 4000
CONFIDENCE = 0.95
FEWEST = 5
"""Below so many steps the percentile bootstrap of a median says "differs" of equal things in up to a fifth of cases."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A sample in six numbers; `lower` and `upper` are its quartiles."""

    n: int
    median: float
    lower: float
    upper: float
    min: float
    max: float


def spread(values: Sequence[float]) -> Spread:
    """Median, quartiles and extremes of a sample that is not empty."""
    ordered = sorted(values)
    return Spread(
        n=len(ordered),
        median=quantile(ordered, 0.5),
        lower=quantile(ordered, 0.25),
        upper=quantile(ordered, 0.75),
        min=ordered[0],
        max=ordered[-1],
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """The quantile of a sorted sample, with straight lines between its values (Hyndman & Fan 1996, type 7)."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """B over A; `low` and `high` bound it with 95% confidence, None where there are too few steps to say."""

    value: float
    low: float | None
    high: float | None

    @property
    def beyond_spread(self) -> bool | None:
        """Whether A and B differ by more than their spread; None where there are too few steps to say."""
        if self.low is None or self.high is None:
            return None
        return not self.low <= 1 <= self.high


def ratio_of_medians(a: Sequence[float], b: Sequence[float]) -> Ratio:
    """median(B) / median(A), bounded by the percentile bootstrap over the steps of each."""
    draw = random.Random(0)

    def again() -> float:
        return _median(_resampled(draw, b)) / _median(_resampled(draw, a))

    return _bounded(_median(b) / _median(a), again, enough=min(len(a), len(b)) >= FEWEST)


def paired_ratio(a: Sequence[float], b: Sequence[float]) -> Ratio:
    """The median of B / A step by step, bounded by the percentile bootstrap over the pairs."""
    draw, ratios = random.Random(0), [y / x for x, y in zip(a, b, strict=True)]
    return _bounded(_median(ratios), lambda: _median(_resampled(draw, ratios)), enough=len(ratios) >= FEWEST)


def _bounded(value: float, again: Callable[[], float], *, enough: bool) -> Ratio:
    """Efron & Tibshirani 1993, An Introduction to the Bootstrap, section 13.3."""
    if not enough:
        return Ratio(value=value, low=None, high=None)
    drawn = sorted(again() for _ in range(RESAMPLES))
    tail = (1 - CONFIDENCE) / 2
    return Ratio(value=value, low=quantile(drawn, tail), high=quantile(drawn, 1 - tail))


def _median(values: Sequence[float]) -> float:
    return quantile(sorted(values), 0.5)


def _resampled(draw: random.Random, values: Sequence[float]) -> list[float]:
    return draw.choices(values, k=len(values))
