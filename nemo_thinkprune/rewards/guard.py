r"""Refuses, before anything is parsed, what would cost a parser or an evaluator without bound.

The bounds are far above any answer of a competition and far below what fills memory. What slips through
here (a sum of 10^9 terms, say) meets the deadline and the memory limit of the worker process.
"""

import math
import re

MAX_CHARS = 2_000
MAX_DIGITS = 1_000
MAX_DEPTH = 40
MAX_EXPONENT = 10_000
MAX_RESULT_DIGITS = 20_000
MAX_FACTORIAL = 2_000
MAX_BINOMIAL = 10_000
MAX_PARTS = 64

_DIGIT_RUN = re.compile(rf"\d{{{MAX_DIGITS + 1},}}")
_E_NOTATION = re.compile(r"\d[eE][-+]?\d{4,}")
_POWER = re.compile(r"\^|\*\*")
_FACTORIAL = re.compile(r"(\d+|[)}\]])\s*(?:\\?!)(?!\s*=)")
_DOUBLE_FACTORIAL = re.compile(r"(?<!\d)\d{1,2}!!(?!\s*[)}\]]*\s*!)")
_BINOMIAL = re.compile(r"\\[dt]?binom|\\choose|\{\s*\d+\s*\\choose")
_NUMBER = re.compile(r"\d+")
_PLAIN_EXPONENT = re.compile(r"[\s{(+-]*(\d+)")


def too_large(text: str) -> bool:
    """Whether `text` must not be parsed: too long, too deep, or a number too large to write out."""
    if len(text) > MAX_CHARS:
        return True
    if _DIGIT_RUN.search(text) or _E_NOTATION.search(text) or _depth(text) > MAX_DEPTH:
        return True
    if text.count(",") + text.count(";") + text.count("&") + text.count(r"\pm") * 4 > MAX_PARTS:
        return True
    return _factorials(text) or _binomials(text) or _powers(text)


def _depth(text: str) -> int:
    """Bracket nesting, and runs of prefix signs and chained commands, which parsers recurse on too."""
    depth = deepest = 0
    for char in text:
        if char in "{([":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "})]":
            depth = max(0, depth - 1)
    longest_sign_run = max((len(run) for run in re.findall(r"[-+\s]{8,}", text)), default=0)
    commands = max(
        (run.count("\\") for run in re.findall(r"(?:\\(?:sqrt|frac|log|sin|cos)\s*)+", text)), default=0
    )
    return max(deepest, longest_sign_run, commands)


def _factorials(text: str) -> bool:
    text = _DOUBLE_FACTORIAL.sub("", text)
    for match in _FACTORIAL.finditer(text):
        argument = match.group(1)
        if argument.isdigit():
            if len(argument) > 6 or int(argument) > MAX_FACTORIAL:
                return True
        elif any(int(number) > 100 for number in _NUMBER.findall(text[: match.start() + 1])[-8:]):
            return True  # a factorial of an expression that holds a large number
    return bool(re.search(r"!\s*[)}\]]*\s*!", text)) or bool(re.search(r"\\?Gamma.{0,3}\d{4,}", text))


def _binomials(text: str) -> bool:
    if not _BINOMIAL.search(text):
        return False
    return any(len(number) > 5 or int(number) > MAX_BINOMIAL for number in _NUMBER.findall(text))


def _powers(text: str) -> bool:
    """Towers (an exponent with a power of numbers in it) and exponents that are too large."""
    for match in _POWER.finditer(text):
        exponent = _group_after(text, match.end())
        inner = _POWER.split(exponent)
        if len(inner) > 2 or (len(inner) == 2 and _log10_power(inner) > math.log10(MAX_EXPONENT)):
            return True
        if "!" in exponent and any(int(number) > 7 for number in _NUMBER.findall(exponent)[:50]):
            return True
        literal = _PLAIN_EXPONENT.match(exponent)
        if literal is None:
            continue
        if len(literal.group(1)) > 6 or int(literal.group(1)) > MAX_EXPONENT:
            return True
        if int(literal.group(1)) * _base_digits(text, match.start()) > MAX_RESULT_DIGITS:
            return True
    return _multiplied_exponents(text)


def _group_after(text: str, start: int) -> str:
    r"""The exponent that begins at `start`: a group with what chains on to it (`^{2}^{3}`), or a token."""
    index, depth = start, 0
    while index < len(text):
        char = text[index]
        if char in "{([":
            depth += 1
        elif char in "})]":
            depth -= 1
            if depth < 0:
                break
        follows = text[index + 1 : index + 3].lstrip()
        index += 1
        continues = char.isspace() or char in "+-^*" or (char.isdigit() and follows[:1].isdigit())
        if depth == 0 and not continues and not _POWER.match(follows):
            break
    return text[start:index]


def _log10_power(parts: list[str]) -> float:
    """log10 of base^exponent for the last number before and the first after the sign; -inf for symbols."""
    base, exponent = _NUMBER.findall(parts[0]), _NUMBER.search(parts[1])
    if not base or exponent is None:
        return -math.inf
    if len(exponent.group()) > 6:
        return math.inf
    return int(exponent.group()) * math.log10(max(1, int(base[-1])))


def _base_digits(text: str, end: int) -> int:
    """Digits of the number, or of all numbers in the group, that a power sign at `end` raises."""
    base = text[:end].rstrip()
    if not base or base[-1] not in ")}]":
        number = re.search(r"[\d.]+$", base)
        return len(number.group()) if number else 1
    depth = 0
    for index in range(len(base) - 1, -1, -1):
        depth += (base[index] in ")}]") - (base[index] in "({[")
        if depth == 0:
            return max((len(number) for number in _NUMBER.findall(base[index:])), default=1)
    return len(base)


def _multiplied_exponents(text: str) -> bool:
    """Powers of powers, `((9^{999})^{999})^{999}`: the product of exponents applied one on another."""
    product = 1
    for match in re.finditer(r"([)}\]])?\s*(?:\^|\*\*)[\s{(]*(\d+)", text):
        exponent = int(match.group(2)[:7])
        product = product * exponent if match.group(1) else exponent
        if product > MAX_EXPONENT * 10:
            return True
    return False
