r"""Whether two answers are the same mathematics: exact, structural, and without evaluating anything.

`equal` decides whatever needs only rational arithmetic, text and shape. Where two expressions must be
compared it asks `expressions(answer, gold)`, which the worker process answers with math-verify and which
is None (unknown) elsewhere, so that one function serves as the fast path and as the judge.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from fractions import Fraction

from nemo_thinkprune.rewards.normalize import normalize, squeeze, unwrap_text
from nemo_thinkprune.rewards.rational import approximate, rational
from nemo_thinkprune.rewards.structure import Shape, shapes, split_name, split_top
from nemo_thinkprune.rewards.units import split_unit, units_differ
from nemo_thinkprune.rewards.words import number_in_words

Expressions = Callable[[str, str], bool | None]

_CHOICE = re.compile(r"\(?([A-J])\)?\.?")
_LABELLED = re.compile(r"(?:\\text\s*\{)?\s*\(([A-J])\)\s*\}?[\s:.,]*(\S.*)")
_WORDS = re.compile(r"[A-Za-z][A-Za-z' .,!-]*")
_BASE = re.compile(r"([0-9A-Za-z]+)_\{?\s*(?:\\text\s*\{)?\s*(\w+)\s*\}?\}?")
_PLAIN_WORDS = frozenset(
    [
        "yes",
        "no",
        "true",
        "false",
        "odd",
        "even",
        "all",
        "none",
        "one",
        "two",
        "six",
        "ten",
        "both",
        "east",
        "west",
    ]
)
_WORDY = re.compile(r"\\(?:text|operatorname|begin|math)")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_APPLIED = re.compile(r"(?<![\\A-Za-z])[A-Za-z]\s*\(")
_APART = 1e-4
_FUNCTION = re.compile(r"([A-Za-z])\s*\(\s*([A-Za-z])\s*\)")
_RELATION = re.compile(r"<|>|\\leq|\\geq|\\neq|\\equiv")


def unknown(answer: str, gold: str) -> None:
    """The `expressions` of the fast path: leaves every comparison of expressions open."""
    return None


def equal(answer: str, gold: str, expressions: Expressions = unknown) -> bool | None:
    """Whether `answer` is the same as `gold`; None when `expressions` would be needed and does not know.

    Both must have passed guard.too_large. Symmetric but for names and units that only one side writes.
    """
    left, right = normalize(answer), normalize(gold)
    if left and squeeze(left) == squeeze(right):
        return True
    if not left or not right:
        return False
    return _any(_same(a, g, expressions) for a in shapes(_unnamed(left)) for g in shapes(_unnamed(right)))


def _unnamed(text: str) -> str:
    r"""Drops the name of a collection: `x \in [0,1]`, `(x,y) = (1,2)`, `x = 1, 2`. A value keeps its own."""
    name, value = split_name(text)
    if name is not None and (value[:1] in ("(", "[", "{") or value[:2] == r"\{" or r"\pm" in value):
        return value
    return text


def _any(results: Iterable[bool | None]) -> bool | None:
    verdict: bool | None = False
    for result in results:
        if result:
            return True
        verdict = None if result is None else verdict
    return verdict


def _all(results: Iterable[bool | None]) -> bool | None:
    verdict: bool | None = True
    for result in results:
        if result is False:
            return False
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
        return _in_order(answer, gold, expressions) if brackets == "()" else False
    if kinds in ({"list", "value"}, {"set", "value"}):
        return _unordered(_as_collection(answer), _as_collection(gold), expressions)
    if kinds == {"union"} and _unordered(answer, gold, expressions):
        return True
    if kinds == {"ordered", "value"} and not _is_relation(answer) and not _is_relation(gold):
        return False
    if "matrix" in kinds or kinds == {"ordered", "set"}:
        return False
    return expressions(answer.text, gold.text)


def _is_relation(shape: Shape) -> bool:
    return shape.kind == "value" and _RELATION.search(shape.text) is not None


def _as_collection(shape: Shape) -> Shape:
    return Shape("list", shape.text, (shape,)) if shape.kind == "value" else shape


def _in_order(answer: Shape, gold: Shape, expressions: Expressions) -> bool | None:
    if len(answer.items) != len(gold.items):
        return False
    pairs = list(zip(answer.items, gold.items, strict=True))
    if _all(_same(a, g, unknown) for a, g in pairs) is False:
        return False  # decided without a single comparison of expressions
    return _all(_same(a, g, expressions) for a, g in pairs)


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
        value = rational(split_unit(split_name(item.text)[1])[0]) if item.kind == "value" else None
        named = "=" in item.text or "\\text" in item.text or r"\degree" in item.text or "%" in item.text
        key = squeeze(item.text) if value is None or named else value
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
    if (text := _same_text(answer, gold)) is not None:
        return text
    if (labelled := _LABELLED.fullmatch(answer)) and not _LABELLED.fullmatch(gold):
        if re.fullmatch("[A-J]", gold):
            return labelled.group(1) == gold
        return _same_value(labelled.group(2), gold, expressions)
    handled, verdict = _same_equation(answer, gold, expressions)
    if handled:
        return verdict
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
    return _same_number(left, right, expressions)


def _in_radians(value: str, unit: str | None, other: str) -> str:
    return rf"\frac{{({value})\pi}}{{180}}" if unit == "degree" and r"\pi" in other else value


def _same_number(answer: str, gold: str, expressions: Expressions) -> bool | None:
    if squeeze(answer) == squeeze(gold):
        return True
    left, right = rational(answer), rational(gold)
    if left is not None and right is not None:
        return left == right
    based = _same_in_base(answer, gold)
    if based is not None:
        return based
    if not answer or not gold or _clearly_differ(answer, gold, left, right):
        return False
    return expressions(answer, gold)


def _clearly_differ(answer: str, gold: str, left: Fraction | None, right: Fraction | None) -> bool:
    """Constants apart by more than any rounding, or a number beside an expression in a variable."""
    if (left is None) != (right is None) and _has_variable(answer if left is None else gold):
        return True
    first, second = approximate(answer), approximate(gold)
    return first is not None and second is not None and abs(first - second) > _APART


def _has_variable(text: str) -> bool:
    """Whether a letter stands for a variable: not e or i, not in a command, a word or a function's name."""
    if _WORDY.search(text) or re.search("[A-Za-z]{3}", _COMMAND.sub("", text)) or _APPLIED.search(text):
        return False
    return bool(set("".join(re.findall("[A-Za-z]", _COMMAND.sub("", text)))) - {"e", "i"})


def _same_in_base(answer: str, gold: str) -> bool | None:
    r"""`52_8` and `52` have the same digits, and only one names the base; None when neither has a base."""
    left, right = _digits_and_base(answer), _digits_and_base(gold)
    if left is None or right is None or not (left[1] or right[1]):
        return None
    return left[0] == right[0] and (not left[1] or not right[1] or left[1] == right[1])


def _digits_and_base(text: str) -> tuple[str, str] | None:
    if match := _BASE.fullmatch(squeeze(text)):
        base = number_in_words(match.group(2))
        if match.group(1)[0].isdigit():
            return match.group(1), str(base) if base is not None else match.group(2)
    return (text, "") if re.fullmatch(r"[0-9A-Z]+", text) else None


def _same_equation(answer: str, gold: str, expressions: Expressions) -> tuple[bool, bool | None]:
    r"""(handled, verdict) of equations: `x=5` is 5, `m+n=25` is 25 to a gold that is a value.

    Not handled: two relations, or two values. Two equations with different names are left to `expressions`.
    """
    left, right = split_top(answer, {"=", r"\approx"}), split_top(gold, {"=", r"\approx"})
    relations = bool(_RELATION.search(answer)), bool(_RELATION.search(gold))
    if len(left) == 1 and len(right) == 1:
        return relations[0] != relations[1], False
    left_name, left_value = split_name(answer)
    right_name, right_value = split_name(gold)
    if left_name and right_name:
        left_name, left_value = _with_argument_of(right_name, left_name, left_value)
        if squeeze(left_name) == squeeze(right_name):
            return True, _same_value(left_value, right_value, expressions)
        return True, expressions(answer, gold)
    if len(right) == 1 and not relations[1]:
        return True, _value_of_chain(left, answer, gold, expressions)
    if len(left) == 1 and not relations[0]:
        return True, _same_value(answer, right_value, expressions) if right_name else False
    return True, expressions(answer, gold)


def _with_argument_of(wanted: str, name: str, value: str) -> tuple[str, str]:
    """`f(n)=2n` written with the argument of `f(x)=2x`."""
    target, source = _FUNCTION.fullmatch(wanted), _FUNCTION.fullmatch(name)
    if not target or not source or target.group(1) != source.group(1) or target.group(2) in value:
        return name, value
    return wanted, re.sub(rf"(?<![A-Za-z\\]){source.group(2)}(?![A-Za-z])", target.group(2), value)


def _value_of_chain(parts: list[str], answer: str, gold: str, expressions: Expressions) -> bool | None:
    r"""`10+15=25` and `\sqrt2 \approx 1.41` to a gold that is a value; a false chain of numbers is wrong."""
    if r"\approx" in answer and "=" not in answer and not split_name(answer)[0]:
        return _same_value(parts[0].strip(), gold, expressions)
    if rational(parts[-1]) == 0 and not split_name(answer)[0] and re.search("[A-Za-z]", parts[0]):
        return False  # `2x-y=0` states an equation, not the value 0
    values = [rational(split_unit(part.strip())[0]) for part in parts]
    if len({value for value in values if value is not None}) > 1:
        return False
    return _same_value(parts[-1].strip(), gold, expressions)


def _same_text(answer: str, gold: str) -> bool | None:
    """Words and choice letters; None when neither side is text."""
    left, right = _words(answer), _words(gold)
    if _is_choice(gold) or _is_choice(answer):
        return _same_choice(answer, gold)
    if left is None and right is None:
        return None
    if left is not None and right is not None:
        return left.casefold() == right.casefold() or _same_number_in_words(left, right)
    words, other = (left, gold) if left is not None else (right, answer)
    value = number_in_words(words or "")
    return value is not None and value == rational(split_unit(other)[0])


def _same_number_in_words(left: str, right: str) -> bool:
    value = number_in_words(left)
    return value is not None and value == number_in_words(right)


def _words(text: str) -> str | None:
    r"""The words of a text answer: in \text, or plain letters too long to be a product of variables."""
    bare = unwrap_text(text)
    if not _WORDS.fullmatch(bare) or len(bare) < 2:
        return None
    letters = bare.strip(" .,!'")
    in_text = r"\text" in text and not re.fullmatch(r"[A-Za-z]", letters)
    if in_text or re.search(r"[A-Za-z]{4,}", letters) or letters.lower() in _PLAIN_WORDS:
        return " ".join(letters.replace("-", " ").split())
    return None


def _is_choice(text: str) -> bool:
    r"""`\text{(C)}`, `(C)`, `C`: a letter that names a choice (a bare letter only beside another one)."""
    return bool(_CHOICE.fullmatch(unwrap_text(text))) and ("(" in text or r"\text" in text)


def _same_choice(answer: str, gold: str) -> bool | None:
    left, right = (_CHOICE.fullmatch(unwrap_text(text).upper()) for text in (answer, gold))
    if left and right:
        return left.group(1) == right.group(1)
    labelled = _LABELLED.fullmatch(answer if right else gold)
    choice = right or left
    return bool(labelled and choice and labelled.group(1) == choice.group(1))
