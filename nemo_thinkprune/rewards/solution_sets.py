r"""Sets of real numbers in their many spellings, rewritten as intervals and unions.

`x<1 \text{ or } x>3`, `\mathbb{R}\setminus\{0\}`, `x \neq 0`, `\{x \mid x>3\}`, `\text{all real numbers}` and
`]1,2[` all say something that interval notation says too. What is not one of these stays as it is.
"""

import re
from itertools import pairwise

from nemo_thinkprune.rewards.normalize import unwrap_text
from nemo_thinkprune.rewards.rational import approximate
from nemo_thinkprune.rewards.structure import split_top

REALS = r"(-\infty,\infty)"
_PHRASES = {
    r"\emptyset": (
        "no solution", "no solutions", "no real solution", "no real solutions", "no such solution", "empty set",
        "the empty set", "there is no solution", "there are no solutions", "no solution exists",
    ),
    REALS: (
        "all real numbers", "all reals", "the set of all real numbers", "the set of real numbers", "real numbers",
        "all real values", "the real numbers", "the reals", "any real number", "all real number",
    ),
    r"\text{does not exist}": ("dne", "does not exist", "doesn't exist"),
}  # fmt: skip
_MEANING = {phrase: meaning for meaning, phrases in _PHRASES.items() for phrase in phrases}
_REAL_LINE = re.compile(r"(?:[A-Za-z]\s*\\in\s*)?\\mathbb\s*(?:\{\s*R\s*\}|R)")
_WITHOUT = re.compile(
    r"(?:[A-Za-z]\s*\\in\s*)?\\mathbb\s*(?:\{\s*R\s*\}|R)\s*(?:\\setminus|\\backslash|\\smallsetminus|-)\s*"
    r"\\\{([^{}\\]|\\(?!\{|\})|\{[^{}]*\})*\\\}"
)
_BUILDER = re.compile(
    r"\\\{\s*([A-Za-z])\s*(?:\\in\s*\\mathbb\s*(?:\{\s*R\s*\}|R)\s*)?(?:\\mid(?![a-z])|\\vert(?![a-z])|\||:)\s*(.+)\\\}"
)
_OR = re.compile(r"\s*(?:\\text\s*\{\s*,?\s*or\s*\}|(?<=[\s\d})])or(?=[\s\\])|\\(?:lor|vee)(?![a-z]))\s*")
_AND = re.compile(
    r"\s*(?:,|\\text\s*\{\s*,?\s*and\s*\}|(?<=[\s\d})])and(?=[\s\\])|\\(?:land|wedge)(?![a-z]))\s*"
)
_RELATION = re.compile(r"(<|>|\\leq(?![a-z])|\\geq(?![a-z])|=)")
_INEQUALITY = re.compile(r"<|>|\\[lg]eq(?![a-z])")
_REVERSED = re.compile(
    r"(?P<before>^|\\cup\s*|\\in\s*)(?P<opening>[\](\[])(?P<inside>[^\[\]]*,[^\[\]]*)(?P<closing>[\[\])])(?=\s*(?:$|\\cup))"
)


def meaning_of_phrase(text: str) -> str:
    """What an English phrase that is the whole answer says in symbols; other text as it is."""
    return _MEANING.get(" ".join(unwrap_text(text).casefold().strip(" .!").split()), text)


def alike(answer: str, gold: str) -> tuple[str, str]:
    """Both texts in interval notation where they are sets of reals, unless they speak of different variables."""
    (name, left), (other, right) = in_intervals(answer), in_intervals(gold)
    return (left, right) if not name or not other or name == other else (answer, gold)


def in_intervals(text: str) -> tuple[str, str]:
    """(variable, text): the variable that was left out of the rewritten text, "" where none was."""
    name, condition = "", text
    if (built := _BUILDER.fullmatch(text)) and _only_variable(built.group(2)) == built.group(1):
        name, condition = built.group(1), built.group(2).strip()
    if _REAL_LINE.fullmatch(condition):
        return name, REALS
    if _WITHOUT.fullmatch(condition):
        inside = condition[condition.index(r"\{") + 2 : -2]
        return name, _punctured(split_top(inside, {",", ";"})) or text
    excluded = [re.split(r"\\neq(?![a-z])", part) for part in _AND.split(condition)]
    names = {sides[0].strip() for sides in excluded}
    if (
        all(len(sides) == 2 for sides in excluded)
        and len(names) == 1
        and re.fullmatch("[A-Za-z]", min(names))
    ):
        union = _punctured([sides[1] for sides in excluded])
        return (min(names), union) if union else ("", text)
    parts = _OR.split(condition)
    variable = _only_variable(condition)
    if len(parts) > 1 and variable and _INEQUALITY.search(condition):
        pieces = [_interval(part.strip(), variable) for part in parts]
        return (variable, r"\cup ".join(filter(None, pieces))) if all(pieces) else ("", text)
    return name, _REVERSED.sub(_in_round_brackets, condition)


def _in_round_brackets(match: re.Match[str]) -> str:
    opening = "(" if match["opening"] == "]" else match["opening"]
    closing = ")" if match["closing"] == "[" else match["closing"]
    return f"{match['before']}{opening}{match['inside']}{closing}"


def _only_variable(condition: str) -> str | None:
    """The one letter in a condition that stands for a variable, or None."""
    bare = re.sub(r"\\text\s*\{[^{}]*\}|\\[A-Za-z]+|(?<=\s)or(?=\s)|(?<=\s)and(?=\s)", " ", condition)
    letters = set(re.findall("[A-Za-z]", bare)) - {"e"}
    return letters.pop() if len(letters) == 1 else None


def _punctured(points: list[str]) -> str | None:
    """The real line without `points`, as a union of open intervals; None where their order is unknown."""
    values = [approximate(point.strip()) for point in points]
    if any(value is None for value in values) or len(set(values)) != len(values):
        return None
    ordered = [
        point.strip() for _, point in sorted(zip(values, points, strict=True), key=lambda pair: pair[0] or 0)
    ]
    ends = [r"-\infty", *ordered, r"\infty"]
    return r"\cup ".join(f"({left},{right})" for left, right in pairwise(ends))


def _interval(relation: str, variable: str) -> str | None:
    r"""`x<1`, `2 \leq x<5`, `x=3` as an interval or a set with one member; None for any other relation."""
    sides = [side.strip() for side in _RELATION.split(relation)]
    if len(sides) == 5:
        if (
            sides[2] != variable
            or variable in sides[0] + sides[4]
            or len({_rises(sides[1]), _rises(sides[3])}) != 1
        ):
            return None
        if not _rises(sides[1]):
            sides = [sides[4], _turned(sides[3]), variable, _turned(sides[1]), sides[0]]
        return f"{_bracket('([', sides[1])}{sides[0]},{sides[4]}{_bracket(')]', sides[3])}"
    if len(sides) != 3 or variable not in (sides[0], sides[2]):
        return None
    if sides[2] == variable:
        sides = [variable, _turned(sides[1]), sides[0]]
    if re.search(rf"(?<![\\A-Za-z]){variable}(?![A-Za-z])", sides[2]):
        return None
    if sides[1] == "=":
        return rf"\{{{sides[2]}\}}"
    if _rises(sides[1]):
        return rf"(-\infty,{sides[2]}{_bracket(')]', sides[1])}"
    return rf"{_bracket('([', sides[1])}{sides[2]},\infty)"


def _rises(sign: str) -> bool:
    return sign in ("<", r"\leq")


def _turned(sign: str) -> str:
    return {"<": ">", ">": "<", r"\leq": r"\geq", r"\geq": r"\leq"}.get(sign, sign)


def _bracket(kinds: str, sign: str) -> str:
    return kinds[sign in (r"\leq", r"\geq")]
