"""Whether two values without names and units are the same: rationals here, the rest by `expressions`."""

import re
from collections.abc import Callable
from fractions import Fraction

from nemo_thinkprune.rewards.normalize import squeeze
from nemo_thinkprune.rewards.rational import approximate, at_point, rational
from nemo_thinkprune.rewards.words import number_in_words

_BASE = re.compile(r"\(?([0-9A-Za-z]+)\)?_\{?\s*(?:\\text\s*\{)?\s*(\w+)\s*\}?\}?")
_APART = 1e-4
_UNREAD = re.compile(
    r"\\text\s*\{[^{}]*[A-Za-z]{2}[^{}]*\}"  # words
    r"|(?<=[\w})%] )(?!sqrt|sinh|cosh|tanh|arcsin|arccos|arctan|floor|ceil)[A-Za-z]{4,}"
    r"|[0-9)}\]]\s*'|:"  # feet or minutes, a clock time
)


def same_number(answer: str, gold: str, expressions: Callable[[str, str], bool | None]) -> bool | None:
    """Whether two values are equal; None where `expressions` is needed and does not know.

    Text that is not understood (words, primes after a number, clock times) equals only itself.
    """
    if squeeze(answer) == squeeze(gold):
        return True
    left, right = rational(answer), rational(gold)
    if left is not None and right is not None:
        return left == right
    based = _same_in_base(answer, gold)
    if based is not None:
        return based
    if not answer or not gold or _UNREAD.search(answer) or _UNREAD.search(gold):
        return False
    return False if _clearly_differ(answer, gold) else expressions(answer, gold)


def _clearly_differ(answer: str, gold: str) -> bool:
    """Constants apart by more than any rounding, or an expression that is not a constant at some point."""
    first, second = approximate(answer), approximate(gold)
    if first is None and second is None:
        return False
    if first is not None and second is not None:
        return abs(first - second) > _APART
    constant, other = (answer, gold) if first is not None else (gold, answer)
    here, there = rational(constant), at_point(other)
    if isinstance(here, Fraction) and isinstance(there, Fraction):
        return here != there
    value = approximate(constant)
    return there is not None and value is not None and abs(float(there) - value) > _APART


def _same_in_base(answer: str, gold: str) -> bool | None:
    r"""`52_8` and `52` have the same digits, and only one names the base; None when neither has a base."""
    left, right = _digits_and_base(answer), _digits_and_base(gold)
    if left is None or right is None or not (left[1] or right[1]):
        return None
    return left[0] == right[0] and (not left[1] or not right[1] or left[1] == right[1])


def _digits_and_base(text: str) -> tuple[str, str] | None:
    if match := _BASE.fullmatch(squeeze(text)):
        base, digits = number_in_words(match.group(2)), match.group(1)
        named = str(base) if base is not None else match.group(2)
        if digits[0].isdigit() or (named.isdigit() and 11 <= int(named[:3]) <= 36):
            return digits.upper(), named
    return (text, "") if re.fullmatch(r"[0-9A-Z]+", text) else None
