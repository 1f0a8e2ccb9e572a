r"""When an equation answers a question for a value: `x=5` is 5, `m+n=25` is 25, `x^2=4` is not 4."""

import re
from collections.abc import Callable, Iterable

from nemo_thinkprune.rewards.normalize import squeeze
from nemo_thinkprune.rewards.rational import rational
from nemo_thinkprune.rewards.structure import split_name, split_top
from nemo_thinkprune.rewards.units import split_unit

Comparison = Callable[[str, str], bool | None]

_FUNCTION = re.compile(r"([A-Za-z])\s*\(\s*([A-Za-z])\s*\)")
_RELATION = re.compile(r"<|>|\\leq|\\geq|\\neq|\\equiv")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_GREEK = (
    r"\\(?:alpha|beta|gamma|delta|(?:var)?epsilon|zeta|eta|(?:var)?theta|kappa|lambda|mu|nu|xi|rho|sigma|tau"
    r"|(?:var)?phi|chi|psi|omega|ell|Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Phi|Psi|Omega)(?![A-Za-z])"
)
_SUBSCRIPT = r"(?:\s*_\s*(?:\{[^{}]*\}|\w))?'*"
_NAME = (
    r"(?:m?\s*\\(?:angle|measuredangle|triangle)\s*)?"
    rf"(?:(?:\\(?:vec|hat|bar|tilde|overline)\s*)?(?:[A-Za-z]+|{_GREEK}|\{{\s*[A-Za-z]+\s*\}})"
    rf"|\\text\s*\{{[A-Za-z .,'-]+\}}){_SUBSCRIPT}"
)
_FUNCTION_VALUE = (
    rf"(?:[A-Zf-hp-su-w]|\\text\s*\{{[A-Za-z]+\}}){_SUBSCRIPT}(?:\s*\^\s*\{{?\s*-\s*1\s*\}}?)?\s*\([^()=]*\)"
    rf"|\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])(?:\s*\^\s*\{{?\d\}}?)?\s*(?:{_NAME}|\(\s*{_NAME}\s*\))"
)
_MODULUS = r"(?:\||\\[lr]?vert(?![a-z]))"
_ASKED_FOR = re.compile(
    rf"\s*(?:{_NAME}(?:\s*\+\s*{_NAME})*|{_FUNCTION_VALUE}|\[[A-Z]{{3,}}\]"
    rf"|{_MODULUS}\s*(?:[zw]|[A-Z]+|\\vec\s*\{{?\s*[A-Za-z]+\s*\}}?)\s*{_MODULUS})\s*"
)
_BOUND = re.compile(r"\s*\\(?:sum|prod|int|lim)(?![a-z])")


def is_relation(text: str) -> bool:
    """Whether `text` has an inequality or a congruence sign."""
    return _RELATION.search(text) is not None


def all_hold(results: Iterable[bool | None]) -> bool | None:
    """False where one is, else None (unknown) where one is, else True."""
    verdict: bool | None = True
    for result in results:
        if result is False:
            return False
        verdict = None if result is None else verdict
    return verdict


def same_equation(
    answer: str, gold: str, same_value: Comparison, expressions: Comparison
) -> tuple[bool, bool | None]:
    r"""(handled, verdict) of equations: `x=5` is 5, `m+n=25` is 25 to a gold that is a value.

    Not handled: two relations, or two values. Two equations with different names are left to `expressions`.
    """
    left, right = split_top(answer, {"=", r"\approx"}), split_top(gold, {"=", r"\approx"})
    relations = is_relation(answer), is_relation(gold)
    if len(left) == 1 and len(right) == 1:
        return relations[0] != relations[1], False
    left_name, left_value = split_name(answer)
    right_name, right_value = split_name(gold)
    if left_name and right_name:
        left_name, left_value = _with_argument_of(right_name, left_name, left_value)
        if squeeze(left_name) == squeeze(right_name):
            return True, same_value(left_value, right_value)
        return True, expressions(answer, gold)
    if len(right) == 1 and not relations[1]:
        return True, _value_of_chain(answer, gold, same_value)
    if len(left) == 1 and not relations[0]:
        return True, same_value(answer, right_value) if right_name else False
    return True, expressions(answer, gold)


def _with_argument_of(wanted: str, name: str, value: str) -> tuple[str, str]:
    """`f(n)=2n` written with the argument of `f(x)=2x`."""
    target, source = _FUNCTION.fullmatch(wanted), _FUNCTION.fullmatch(name)
    if not target or not source or target.group(1) != source.group(1) or target.group(2) in value:
        return name, value
    return wanted, re.sub(rf"(?<![A-Za-z\\]){source.group(2)}(?![A-Za-z])", target.group(2), value)


def _value_of_chain(answer: str, gold: str, same_value: Comparison) -> bool | None:
    r"""`m+n=10+15=25` and `\sqrt2 \approx 1.41` to a gold that is a value.

    The right side answers only where the left names what was asked for, or is arithmetic that equals it.
    """
    exact, *rounded = split_top(answer, {r"\approx"})
    parts = [part.strip() for part in split_top(exact, {"="})]
    if len(parts) == 1 and rounded:
        return same_value(rounded[-1].strip() if _ASKED_FOR.fullmatch(exact) else exact.strip(), gold)
    constant = [part for part in parts[:-1] if _is_constant(part)]
    if constant[:1] != parts[:1] and not _ASKED_FOR.fullmatch(parts[0]):
        return False
    values = [rational(split_unit(part)[0]) for part in parts]
    if len({value for value in values if value is not None}) > 1:
        return False
    verdict = same_value(parts[-1], gold)
    return (
        verdict if verdict is False else all_hold([verdict, *(same_value(part, gold) for part in constant)])
    )


def _is_constant(part: str) -> bool:
    letters = set(re.findall("[A-Za-z]", _COMMAND.sub(" ", part))) - {"e", "i"}
    return bool(_BOUND.match(part)) or (not letters and not re.search(_GREEK, part) and r"\text" not in part)
