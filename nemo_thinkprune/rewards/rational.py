r"""Exact rational value of arithmetic written in LaTeX or plain text, without sympy and without floats.

Understands integers (zero-padded too), decimals, repeating decimals (`0.\overline{3}`), scientific notation,
thousands separators, + - * / ^, `\frac`, `\binom`, `!`, mixed numbers (`1\frac{4}{5}`, `1 4/5`), percent and
brackets. Everything else has no rational value here, and None says so.
"""

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from nemo_thinkprune.rewards.guard import MAX_BINOMIAL, MAX_EXPONENT, MAX_FACTORIAL, MAX_RESULT_DIGITS

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)\\overline\s*\{\d+\}|(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,4}(?![\d.]))?)"
    r"|(?P<command>\\frac|\\binom|\\cdot|\\times|\\div|\\ast)(?![A-Za-z])|(?P<sign>[-+*/^!%(){}\[\]:]))"
)
_THOUSANDS = re.compile(r"[-+]?\s*[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?|[-+]?\s*[1-9]\d{0,2}(?: \d{3})+(?:\.\d+)?")
_CLOSING = {"(": ")", "{": "}", "[": "]"}
_MULTIPLY = ("*", r"\cdot", r"\times", r"\ast")
_DIVIDE = ("/", r"\div", ":")


class _NotRational(Exception):
    """The text is no rational arithmetic, or its value is beyond the bounds of guard.py."""


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    number: Fraction | None
    spaced: bool  # white space before it


def rational(text: str) -> Fraction | None:
    """The value of `text` (as normalize.normalize writes it), or None when it is not rational arithmetic."""
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "").replace(" ", "")
    try:
        tokens = _tokens(text)
        value, position = _sum(tokens, 0)
    except (_NotRational, ZeroDivisionError, RecursionError):
        return None
    return value if position == len(tokens) else None


def is_thousands(text: str) -> bool:
    """Whether `text` can be one number with separators between its thousands, such as `12,345`."""
    return _THOUSANDS.fullmatch(text) is not None


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    position = 0
    text = text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _NotRational
        written = match.group("number")
        spaced = match.group()[:1].isspace()
        symbol = written or match.group("command") or match.group("sign")
        tokens.append(_Token(symbol, _number(written) if written else None, spaced))
        position = match.end()
    if not tokens:
        raise _NotRational
    return tokens


def _number(written: str) -> Fraction:
    if "overline" not in written:
        return Fraction(written if written[0] != "." else "0" + written)
    head, _, repeating = written.partition(r"\overline")
    if "." not in head:
        raise _NotRational
    digits = repeating.strip().strip("{}")
    places = len(head.partition(".")[2])
    start = Fraction(head + "0" if head[0] != "." else "0" + head + "0")
    return start + Fraction(int(digits), (10 ** len(digits) - 1) * 10**places)


def _at(tokens: list[_Token], position: int) -> str:
    return tokens[position].text if position < len(tokens) else ""


def _sum(tokens: list[_Token], position: int) -> tuple[Fraction, int]:
    value, position = _product(tokens, position)
    while (sign := _at(tokens, position)) in ("+", "-") and sign:
        term, position = _product(tokens, position + 1)
        value = _bounded(value + term if sign == "+" else value - term)
    return value, position


def _product(tokens: list[_Token], position: int) -> tuple[Fraction, int]:
    value, position = _signed(tokens, position)
    while position < len(tokens):
        sign = _at(tokens, position)
        if sign in _MULTIPLY or sign in _DIVIDE:
            factor, position = _signed(tokens, position + 1)
            value = value * factor if sign in _MULTIPLY else value / factor
        elif sign in ("(", "{", "[", r"\frac", r"\binom"):
            factor, position = _power(tokens, position)
            value *= factor
        else:
            break
        _bounded(value)
    return value, position


def _signed(tokens: list[_Token], position: int) -> tuple[Fraction, int]:
    sign = 1
    while _at(tokens, position) in ("+", "-"):
        sign = -sign if _at(tokens, position) == "-" else sign
        position += 1
    value, position = _power(tokens, position)
    return sign * value, position


def _power(tokens: list[_Token], position: int) -> tuple[Fraction, int]:
    base, position = _mixed(tokens, position)
    if _at(tokens, position) != "^":
        return base, position
    position += 1
    opening = _at(tokens, position)
    if opening in ("{", "("):
        exponent, position = _bracket(tokens, position)
    else:
        exponent, position = _signed(tokens, position)
    return _raise(base, exponent), position


def _mixed(tokens: list[_Token], position: int) -> tuple[Fraction, int]:
    r"""A postfix atom; an integer right before a fraction is a mixed number: `1\frac{4}{5}`, `1 4/5`."""
    value, after = _postfix(tokens, position)
    if not tokens[position].text.isdigit() or after != position + 1:
        return value, after
    if _at(tokens, after) == r"\frac" and all(
        _at(tokens, after + offset).isdigit() for offset in (2, 5)
    ) and _at(tokens, after + 6) == "}":
        fraction, end = _postfix(tokens, after)
        return value + fraction, end
    plain = [_at(tokens, after), _at(tokens, after + 1), _at(tokens, after + 2)]
    if plain[0].isdigit() and plain[1] == "/" and plain[2].isdigit() and tokens[after].spaced:
        return value + Fraction(int(plain[0]), int(plain[2])), after + 3
    return value, after


def _postfix(tokens: list[_Token], position: int) -> tuple[Fraction, int]:
    value, position = _atom(tokens, position)
    while (sign := _at(tokens, position)) in ("!", "%") and sign:
        if sign == "%":
            value /= 100
        elif value.denominator == 1 and 0 <= value <= MAX_FACTORIAL:
            value = Fraction(math.factorial(value.numerator))
        else:
            raise _NotRational
        position += 1
    return value, position


def _atom(tokens: list[_Token], position: int) -> tuple[Fraction, int]:
    if position >= len(tokens):
        raise _NotRational
    token = tokens[position]
    if token.number is not None:
        return token.number, position + 1
    if token.text in _CLOSING:
        return _bracket(tokens, position)
    if token.text not in (r"\frac", r"\binom"):
        raise _NotRational
    upper, position = _bracket(tokens, position + 1)
    lower, position = _bracket(tokens, position)
    if token.text == r"\frac":
        return upper / lower, position
    if upper.denominator != 1 or lower.denominator != 1 or not 0 <= lower <= upper <= MAX_BINOMIAL:
        raise _NotRational
    return Fraction(math.comb(upper.numerator, lower.numerator)), position


def _bracket(tokens: list[_Token], position: int) -> tuple[Fraction, int]:
    closing = _CLOSING.get(_at(tokens, position))
    value, position = _sum(tokens, position + 1)
    if closing is None or _at(tokens, position) != closing:
        raise _NotRational
    return value, position + 1


def _raise(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1 or abs(exponent) > MAX_EXPONENT:
        raise _NotRational
    digits = max(base.numerator.bit_length(), base.denominator.bit_length()) * 0.302
    if digits * abs(exponent) > MAX_RESULT_DIGITS:
        raise _NotRational
    return base**exponent.numerator


def _bounded(value: Fraction) -> Fraction:
    if value.numerator.bit_length() + value.denominator.bit_length() > 8 * MAX_RESULT_DIGITS:
        raise _NotRational
    return value
