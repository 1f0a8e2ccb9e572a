r"""Exact rational value of arithmetic written in LaTeX or plain text, without sympy and without floats.

Understands integers (zero-padded too), decimals, repeating decimals (`0.\overline{3}`), scientific notation,
thousands separators, + - * / ^, `\frac`, `\binom`, `!`, `!!`, whole roots, mixed numbers (`1\frac{4}{5}`,
`1 4/5`), percent and brackets. Everything else has no rational value here, and None says so.

`approximate` also reads `\sqrt` and `\pi`, in floating point: good enough to tell two constants apart, never
to call them equal.
"""

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from nemo_thinkprune.rewards.guard import MAX_BINOMIAL, MAX_EXPONENT, MAX_FACTORIAL, MAX_RESULT_DIGITS

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)\\overline\s*\{\d+\}|(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,4}(?![\d.]))?)"
    r"|(?P<command>\\frac|\\binom|\\sqrt|\\pi|\\cdot|\\times|\\div|\\ast)(?![A-Za-z])|(?P<sign>[-+*/^!%(){}\[\]]))"
)
_THOUSANDS = re.compile(
    r"[-+]?\s*[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?|[-+]?\s*[1-9]\d{0,2}(?: \d{3})+(?:\.\d+)?"
)
_COMMAND = re.compile(r"\\[A-Za-z]+")
_LETTER = re.compile("[A-Za-z]")
_NAME_OR_COMMAND = re.compile(r"\\[A-Za-z]+|[A-Za-z]")
_WORDY = re.compile(r"\\(?:text|operatorname|begin|math)")
_FUNCTION_NAME = re.compile(
    "sin|cos|tan|cot|sec|csc|log|ln|lg|exp|max|min|gcd|lcm|mod|sqrt|floor|ceil|inf|arg|deg"
)
_CLOSING = {"(": ")", "{": "}", "[": "]"}
_MULTIPLY = ("*", r"\cdot", r"\times", r"\ast")
_DIVIDE = ("/", r"\div")
_FACTORS = ("(", "{", "[", r"\frac", r"\binom", r"\sqrt", r"\pi")
_LARGEST, _SMALLEST = 1e6, 1e-3  # beyond these a float may have lost what tells it from another

_Value = Fraction | float


class _NotRational(Exception):
    """The text is no rational arithmetic, or its value is beyond the bounds of guard.py."""


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    number: Fraction | None
    spaced: bool  # white space before it


def rational(text: str) -> Fraction | None:
    """The value of `text` (as normalize.normalize writes it), or None when it is not rational arithmetic."""
    value = _value(text)
    return value if isinstance(value, Fraction) else None


def approximate(text: str) -> float | None:
    """The value of a constant with roots and pi, to at least 1e-4, or None."""
    value = _value(text)
    return None if value is None or not -_LARGEST <= value <= _LARGEST else float(value)


def at_point(text: str) -> Fraction | float | None:
    r"""The value of `text` with a different small integer in place of each of its letters, or None.

    None too where a letter may be no variable: `e`, `i`, a function's name, a word in a command.
    """
    letters = sorted(set(_LETTER.findall(_COMMAND.sub(" ", text))))
    if {"e", "i"} & set(letters) or _WORDY.search(text) or _FUNCTION_NAME.search(_COMMAND.sub(" ", text)):
        return None
    numbers = {letter: f"({3 + 2 * index})" for index, letter in enumerate(letters)}
    return _value(_NAME_OR_COMMAND.sub(lambda match: numbers.get(match.group(), match.group()), text))


@lru_cache(maxsize=4096)
def _value(text: str) -> _Value | None:
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "").replace(" ", "")
    try:
        tokens = _tokens(text)
        value, position = _sum(tokens, 0)
    except (_NotRational, ZeroDivisionError, OverflowError, RecursionError):
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


def _sum(tokens: list[_Token], position: int) -> tuple[_Value, int]:
    value, position = _product(tokens, position)
    while (sign := _at(tokens, position)) in ("+", "-") and sign:
        term, position = _product(tokens, position + 1)
        value = _bounded(value + term if sign == "+" else value - term)
    return value, position


def _product(tokens: list[_Token], position: int) -> tuple[_Value, int]:
    value, position = _signed(tokens, position)
    while position < len(tokens):
        sign = _at(tokens, position)
        if sign in _MULTIPLY or sign in _DIVIDE:
            factor, position = _signed(tokens, position + 1)
            value = value * factor if sign in _MULTIPLY else _quotient(value, factor)
        elif sign in _FACTORS:
            factor, position = _power(tokens, position)
            value *= factor
        else:
            break
        _bounded(value)
    return value, position


def _signed(tokens: list[_Token], position: int) -> tuple[_Value, int]:
    sign = 1
    while _at(tokens, position) in ("+", "-"):
        sign = -sign if _at(tokens, position) == "-" else sign
        position += 1
    value, position = _power(tokens, position)
    return sign * value, position


def _power(tokens: list[_Token], position: int) -> tuple[_Value, int]:
    base, position = _postfix(tokens, position)
    if _at(tokens, position) != "^":
        return base, position
    position += 1
    opening = _at(tokens, position)
    if opening in ("{", "("):
        exponent, position = _bracket(tokens, position)
    else:
        exponent, position = _signed(tokens, position)
    return _raise(base, exponent), position


def _postfix(tokens: list[_Token], position: int) -> tuple[_Value, int]:
    value, position = _mixed(tokens, position)
    while (sign := _at(tokens, position)) in ("!", "%") and sign:
        step = 2 if sign == "!" and _at(tokens, position + 1) == "!" else 1
        if sign == "%":
            value /= 100
        elif _is_integer(value) and 0 <= value <= MAX_FACTORIAL:
            value = Fraction(math.prod(range(int(value), 0, -step)))
        else:
            raise _NotRational
        position += step
    return value, position


def _mixed(tokens: list[_Token], position: int) -> tuple[_Value, int]:
    r"""An atom; an integer right before a fraction is a mixed number: `1\frac{4}{5}`, `1 4/5`."""
    value, after = _atom(tokens, position)
    if not tokens[position].text.isdigit():
        return value, after
    if (
        _at(tokens, after) == r"\frac"
        and all(_at(tokens, after + offset).isdigit() for offset in (2, 5))
        and _at(tokens, after + 6) == "}"
    ):
        fraction, end = _atom(tokens, after)
        return value + fraction, end
    plain = [_at(tokens, after), _at(tokens, after + 1), _at(tokens, after + 2)]
    if plain[0].isdigit() and plain[1] == "/" and plain[2].isdigit() and tokens[after].spaced:
        return value + Fraction(int(plain[0]), int(plain[2])), after + 3
    return value, after


def _atom(tokens: list[_Token], position: int) -> tuple[_Value, int]:
    if position >= len(tokens):
        raise _NotRational
    token = tokens[position]
    if token.number is not None:
        return token.number, position + 1
    if token.text in _CLOSING:
        return _bracket(tokens, position)
    if token.text == r"\pi":
        return math.pi, position + 1
    if token.text == r"\sqrt":
        return _root(tokens, position + 1)
    if token.text not in (r"\frac", r"\binom"):
        raise _NotRational
    upper, position = _bracket(tokens, position + 1)
    lower, position = _bracket(tokens, position)
    if token.text == r"\frac":
        return _quotient(upper, lower), position
    if not (_is_integer(upper) and _is_integer(lower) and 0 <= lower <= upper <= MAX_BINOMIAL):
        raise _NotRational
    return Fraction(math.comb(int(upper), int(lower))), position


def _bracket(tokens: list[_Token], position: int) -> tuple[_Value, int]:
    closing = _CLOSING.get(_at(tokens, position))
    value, position = _sum(tokens, position + 1)
    if closing is None or _at(tokens, position) != closing:
        raise _NotRational
    return value, position + 1


def _root(tokens: list[_Token], position: int) -> tuple[_Value, int]:
    degree: _Value = Fraction(2)
    if _at(tokens, position) == "[":
        degree, position = _bracket(tokens, position)
    radicand, position = _bracket(tokens, position)
    if not _is_integer(degree) or not 2 <= degree <= 100 or (radicand < 0 and degree % 2 == 0):
        raise _NotRational
    sign = -1 if radicand < 0 else 1
    size = sign * radicand
    if isinstance(size, Fraction):
        root = Fraction(_whole_root(size.numerator, int(degree)), _whole_root(size.denominator, int(degree)))
        if root ** int(degree) == size:
            return sign * root, position
    return _bounded(sign * float(size) ** (1 / float(degree))), position


def _whole_root(number: int, degree: int) -> int:
    """The integer nearest to the root of `number`: the root itself where there is a whole one."""
    if degree == 2:
        return math.isqrt(number)
    if number.bit_length() > 1000:
        raise _NotRational
    guess = round(float(number) ** (1 / degree))
    return max(1, guess) if number else 0


def _raise(base: _Value, exponent: _Value) -> _Value:
    if not _is_integer(exponent) or not -MAX_EXPONENT <= exponent <= MAX_EXPONENT:
        raise _NotRational
    if isinstance(base, float):
        return _bounded(base ** int(exponent))
    digits = max(base.numerator.bit_length(), base.denominator.bit_length()) * 0.302
    if digits * abs(int(exponent)) > MAX_RESULT_DIGITS:
        raise _NotRational
    return base ** int(exponent)


def _quotient(value: _Value, divisor: _Value) -> _Value:
    if isinstance(divisor, float) and abs(divisor) < _SMALLEST:
        raise _NotRational
    return value / divisor


def _is_integer(value: _Value) -> bool:
    return isinstance(value, Fraction) and value.denominator == 1


def _bounded(value: _Value) -> _Value:
    if isinstance(value, float):
        if abs(value) > _LARGEST:
            raise _NotRational
    elif value.numerator.bit_length() + value.denominator.bit_length() > 8 * MAX_RESULT_DIGITS:
        raise _NotRational
    return value
