"""The draws are fixed for all time: literal expectations, and uniformity."""

import hashlib
import math
from collections import Counter

import pytest

from nemo_thinkprune.data.streams import CounterStream, permutation


def test_words_are_the_documented_digests():
    stream = CounterStream("a", 7)
    digests = hashlib.sha256(b"a|7|0").digest() + hashlib.sha256(b"a|7|1").digest()
    expected = [int.from_bytes(digests[i : i + 8]) for i in range(0, 64, 8)]
    assert [stream.word() for _ in range(8)] == expected


def test_a_known_permutation_never_changes():
    assert permutation(10, 42, 0) == (5, 4, 8, 7, 9, 3, 1, 0, 6, 2)
    assert permutation(10, 42, 1) != permutation(10, 42, 0)


def test_permutations_of_three_are_uniform():
    counts = Counter(permutation(3, "uniform", i) for i in range(6000))
    assert len(counts) == 6
    chi_square = sum((count - 1000) ** 2 / 1000 for count in counts.values())
    assert chi_square < 20.5  # 99.9% point with 5 degrees of freedom


def test_below_rejects_the_biased_tail(monkeypatch):
    words = iter([2**64 - 1, 5])
    monkeypatch.setattr(CounterStream, "word", lambda self: next(words))
    # 2**64 - 1 is in the incomplete last block of 10 and must be drawn again.
    assert CounterStream("x").below(10) == 5


def test_uniform_fills_its_interval():
    stream = CounterStream("u")
    draws = [stream.uniform(0.3, 0.8) for _ in range(4000)]
    assert min(draws) >= 0.3 and max(draws) < 0.8
    assert math.isclose(sum(draws) / len(draws), 0.55, abs_tol=0.01)


@pytest.mark.parametrize("bound", [0, -1, 2**64 + 1])
def test_below_refuses_impossible_bounds(bound):
    with pytest.raises(ValueError, match="bound"):
        CounterStream("x").below(bound)
