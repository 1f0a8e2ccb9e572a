"""Random draws that no library version can change: SHA-256 in counter mode.

A run that is continued years later, or on a machine with another numpy, must still see the same prompts in
the same order.  `random` and `numpy.random` guarantee their raw streams but not what `shuffle` or `integers`
do with them, so the few draws that decide what data a run sees are written out here.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

_WORD_BITS = 64
_WORDS_PER_DIGEST = 4


class CounterStream:
    """A stream of 64-bit words: words 4c to 4c+3 are SHA-256("key|key|...|c"), big-endian.

    Equal keys give equal streams; different keys give independent ones.  A key is rendered with `str`.
    """

    __slots__ = ("_counter", "_prefix", "_words")

    def __init__(self, *key: str | int) -> None:
        self._prefix = "|".join(str(part) for part in key)
        self._counter = 0
        self._words: list[int] = []

    def word(self) -> int:
        """Return the next word, uniform on 0 .. 2**64 - 1."""
        if not self._words:
            digest = hashlib.sha256(f"{self._prefix}|{self._counter}".encode()).digest()
            # Reversed, so that pop() hands the words out in order.
            self._words = [
                int.from_bytes(digest[8 * i : 8 * i + 8]) for i in reversed(range(_WORDS_PER_DIGEST))
            ]
            self._counter += 1
        return self._words.pop()

    def below(self, bound: int) -> int:
        """Return an integer uniform on 0 .. bound - 1 (rejection, so exactly uniform).

        Raises:
            ValueError: when `bound` is not in 1 .. 2**64.
        """
        if not 1 <= bound <= 1 << _WORD_BITS:
            raise ValueError(f"bound must be in 1 .. 2**64, got {bound}")
        limit = (1 << _WORD_BITS) - (1 << _WORD_BITS) % bound
        while (word := self.word()) >= limit:
            pass
        return word % bound

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Return a float uniform on [low, high), made of 53 bits."""
        return low + (high - low) * ((self.word() >> 11) * 2.0**-53)


@lru_cache(maxsize=4)  # consecutive steps read one epoch; without it each would shuffle the epoch again
def permutation(n: int, *key: str | int) -> tuple[int, ...]:
    """Return a uniform permutation of 0 .. n - 1 (Fisher and Yates, Knuth's algorithm P) for this key."""
    stream = CounterStream("permutation", n, *key)
    order = list(range(n))
    for i in range(n - 1, 0, -1):
        j = stream.below(i + 1)
        order[i], order[j] = order[j], order[i]
    return tuple(order)
