"""Response lengths before a run: one distribution with one parameter, stated, in the place of a single average.

Generation waits for its longest response, so an average alone says too little.  A length is min(limit, E) with E
exponential: a response ends at each token with the same probability and is cut at the limit.  The mean fixes the
rate, and with it the share that is cut.
"""

from __future__ import annotations

import math


def cut_lengths(count: int, *, mean: float, limit: int) -> list[int]:
    """The `count` quantiles (i + 1/2) / count of the distribution, in tokens.

    They come in an order without a trend (golden-section steps through the quantiles), so that each stretch of them
    looks like the whole: engines and ranks then get equal shares, which real ones do not quite.

    Args:
        count: Responses.
        mean: Their mean length; at least 1 and at most `limit`.
        limit: Length at which a response is cut.

    Raises:
        ValueError: A mean outside of this.
    """
    if not 1 <= mean <= limit:
        raise ValueError(f"a mean response of {mean} tokens is not within 1 .. the limit of {limit}")
    rate = _rate(mean / limit)
    if rate == 0:
        return [limit] * count
    points = [-math.log1p(-(i + 0.5) / count) / rate for i in range(count)]
    return [max(1, min(limit, round(limit * points[i]))) for i in _spread(count)]


def cut_share(*, mean: float, limit: int) -> float:
    """Share of the responses that reach the limit."""
    return math.exp(-_rate(mean / limit))


def _spread(count: int) -> list[int]:
    """0 .. count - 1 in steps of about 0.618 count, each once."""
    step = max(1, round(count * (math.sqrt(5) - 1) / 2))
    while math.gcd(step, count) > 1:
        step += 1
    return [i * step % count for i in range(count)]


def _rate(share: float) -> float:
    """x with (1 - exp(-x)) / x = share: the mean of min(1, Exp(x)); 0 when all reach the limit."""
    if share > 1 - 1e-9:
        return 0.0
    low, high = 0.0, 1.0 / share  # the mean at rate x lies below 1 / x
    for _ in range(100):
        middle = (low + high) / 2
        if -math.expm1(-middle) / middle > share:
            low = middle
        else:
            high = middle
    return high
