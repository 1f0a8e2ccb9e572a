r"""Whether two answers are the same mathematics: exact, structural, and without evaluating anything.

`equal` decides whatever needs only rational arithmetic, text and shape. Where two expressions must be
compared it asks `expressions(answer, gold)`, which the worker process answers with math-verify and which
is None (unknown) elsewhere, so that one function serves as the fast path and as the judge.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from fractions import Fraction

from nemo_thinkprune.rewards.equations import all_hold, is_relation, same_equation
from nemo_thinkprune.rewards.normalize import normalize, squeeze, unwrap_text
from nemo_thinkprune.rewards.numbers import same_number
from nemo_thinkprune.rewards.rational import rational
from nemo_thinkprune.rewards.solution_sets import alike, meaning_of_phrase
from nemo_thinkprune.rewards.structure import Shape, by_name, shapes, split_name
from nemo_thinkprune.rewards.units import split_unit, units_differ
from nemo_thinkprune.rewards.words import labelled, number_in_words, same_text

Expressions = Callable[[str, str], bool | None]


def unknown(answer: str, gold: str) -> None:
    """The `expressions` of the fast path: leaves every comparison of expressions open."""
    return None


def equal(answer: str, gold: str, expressions: Expressions = unknown) -> bool | None:
    """Whether `answer` is the same as `gold`; None when `expressions` would be needed and does not know.

    Both must have passed guard.too_large. Symmetric but for names and units that only one side writes.
    """
    left, right = alike(_symbols(normalize(answer)), _symbols(normalize(gold)))
    if left and squeeze(left) == squeeze(right):
        return True
    if not left or not right:
        return False
    return _any(_same(a, g, expressions) for a in shapes(_unnamed(left)) for g in shapes(_unnamed(right)))


def _symbols(text: str) -> str:
    r"""A number or a phrase in words as symbols: `one hundred and five`, `\text{no solution}`."""
    number = number_in_words(unwrap_text(text)) if re.search("[A-Za-z]{3}", text) else None
    return meaning_of_phrase(text) if number is None else str(number)


def _unnamed(text: str) -> str:
    r"""Drops the name of a collection: `x \in [0,1]`, `(x,y) = (1,2)`, `x = 1, 2`. A value keeps its own."""
    name, value = split_name(text)
    if (
        name is not None
        and text.count("=") < 2
        and (value[:1] in ("(", "[", "{") or value[:2] == r"\{" or r"\pm" in value)
    ):
        return value
    return text


def _any(results: Iterable[bool | None]) -> bool | None:
    verdict: bool | None = False
    for result in results:
        if result:
            return True
        verdict = None if result is None else verdict
    return verdict


def _same(answer: Shape, gold: Shape, expressions: Expressions) -> bool | None:
    kinds = {answer.kind, gold.kind}
    if kinds == {"value"}:
        return _same_value(answer.text, gold.text, expressions)
    if kinds <= {"list", "set"}:
        return _unordered(answer, gold, expressions)
    if "matrix" in kinds and len(kinds) == 1:
        same_form = answer.columns == gold.columns and len(answer.items) == len(gold.items)
        return _in_order(answer, gold, expressions) if same_form else False
    if kinds == {"ordered"}:
        return _in_order(answer, gold, expressions) if answer.brackets == gold.brackets else False
    if kinds == {"ordered", "list"}:
        brackets = answer.brackets or gold.brackets
        return _in_order(by_name(answer), by_name(gold), expressions) if brackets == "()" else False
    if "ratio" in kinds:
        return _same_ratio(answer, gold, expressions)
    if kinds in ({"list", "value"}, {"set", "value"}):
        return _unordered(_as_collection(answer), _as_collection(gold), expressions)
    if kinds == {"union"} and _unordered(answer, gold, expressions):
        return True
    if kinds == {"ordered", "value"} and not _states_relation(answer) and not _states_relation(gold):
        return False
    if "matrix" in kinds or kinds in ({"ordered", "set"}, {"list", "union"}):
        return False
    return expressions(answer.text, gold.text)


def _states_relation(shape: Shape) -> bool:
    return shape.kind == "value" and is_relation(shape.text)


def _same_ratio(answer: Shape, gold: Shape, expressions: Expressions) -> bool | None:
    """Ratios are compared after scaling; one of two parts is also the fraction that it makes."""
    if answer.kind == gold.kind:
        if len(answer.items) != len(gold.items):
            return False
        quotients = zip(_quotients(answer), _quotients(gold), strict=True)
        return all_hold(same_number(left, right, expressions) for left, right in quotients)
    ratio, value = (answer, gold) if answer.kind == "ratio" else (gold, answer)
    if value.kind != "value" or len(ratio.items) != 2 or not re.search(r"\\frac|/", value.text):
        return False
    return same_number(rf"\frac{{{ratio.items[0].text}}}{{{ratio.items[1].text}}}", value.text, expressions)


def _quotients(ratio: Shape) -> list[str]:
    first = ratio.items[0].text
    return [rf"\frac{{{item.text}}}{{{first}}}" for item in ratio.items[1:]]


def _as_collection(shape: Shape) -> Shape:
    return Shape("list", shape.text, (shape,)) if shape.kind == "value" else shape


def _in_order(answer: Shape, gold: Shape, expressions: Expressions) -> bool | None:
    if len(answer.items) != len(gold.items):
        return False
    pairs = list(zip(answer.items, gold.items, strict=True))
    if all_hold(_same(a, g, unknown) for a, g in pairs) is False:
        return False  # decided without a single comparison of expressions
    return all_hold(_same(a, g, expressions) for a, g in pairs)


def _unordered(answer: Shape, gold: Shape, expressions: Expressions) -> bool | None:
    """Same members whatever their order; repeated members count in a list and not in a set."""
    as_sets = "set" in (answer.kind, gold.kind)
    left, right = _without_common(_members(answer, as_sets), _members(gold, as_sets))
    if not left and not right:
        return True
    if len(left) != len(right) and not as_sets:
        return False
    if all(isinstance(key, Fraction) for key, _ in (*left, *right)):
        return False
    answers, golds = [item for _, item in left], [item for _, item in right]
    for known in dict.fromkeys((unknown, expressions)):
        for item in list(answers):
            match = next((other for other in golds if _same(item, other, known)), None)
            if match is not None:
                answers.remove(item)
                golds.remove(match)
        if not answers and not golds:
            return True
        verdicts = [[_same(item, other, known) for other in golds] for item in answers]
        if _hopeless(verdicts, len(golds)):
            return False
    return None if expressions is unknown else False


def _hopeless(verdicts: list[list[bool | None]], columns: int) -> bool:
    """Whether some member has no possible partner."""
    return any(all(verdict is False for verdict in row) for row in verdicts) or any(
        all(row[column] is False for row in verdicts) for column in range(columns)
    )


def _members(shape: Shape, as_set: bool) -> list[tuple[Fraction | str, Shape]]:
    """Members with a key that equal members often share: the rational value, else the text."""
    keyed = []
    for item in shape.items:
        plain, unit = split_unit(item.text)
        value = rational(plain) if item.kind == "value" and unit is None and "%" not in plain else None
        key = squeeze(item.text) if value is None else value
        keyed.append((key, item))
    return list(dict(keyed).items()) if as_set else keyed


def _without_common(
    left: list[tuple[Fraction | str, Shape]], right: list[tuple[Fraction | str, Shape]]
) -> tuple[list[tuple[Fraction | str, Shape]], list[tuple[Fraction | str, Shape]]]:
    common = Counter(key for key, _ in left) & Counter(key for key, _ in right)
    return _drop(left, common), _drop(right, common)


def _drop(
    members: list[tuple[Fraction | str, Shape]], counts: Counter[Fraction | str]
) -> list[tuple[Fraction | str, Shape]]:
    remaining = counts.copy()
    kept = []
    for key, item in members:
        if remaining[key] > 0:
            remaining[key] -= 1
        else:
            kept.append((key, item))
    return kept


def _same_value(answer: str, gold: str, expressions: Expressions) -> bool | None:
    if squeeze(answer) == squeeze(gold):
        return True
    answer, gold = _symbols(answer), _symbols(gold)
    if (text := same_text(answer, gold)) is not None:
        return text
    if (pair := labelled(answer)) and not labelled(gold):
        return pair[0] == gold if re.fullmatch("[A-J]", gold) else _same_value(pair[1], gold, expressions)
    handled, verdict = same_equation(
        answer, gold, lambda left, right: _same_value(left, right, expressions), expressions
    )
    return verdict if handled else _same_quantity(answer, gold, expressions)


def _same_quantity(answer: str, gold: str, expressions: Expressions) -> bool | None:
    left, left_unit = split_unit(answer)
    right, right_unit = split_unit(gold)
    if "%" in gold and "%" not in answer and left_unit is None:
        # The gold says that a percentage was asked for: the bare number answers it, its hundredth equals it.
        bare = rational(right.replace("%", ""))
        if bare is not None and rational(left) == bare:
            return True
    if units_differ(left_unit, right_unit):
        return False
    if "degree" in (left_unit, right_unit) and left_unit != right_unit:
        left, right = _in_radians(left, left_unit, right), _in_radians(right, right_unit, left)
    return same_number(left, right, expressions)


def _in_radians(value: str, unit: str | None, other: str) -> str:
    return rf"\frac{{({value})\pi}}{{180}}" if unit == "degree" and r"\pi" in other else value
