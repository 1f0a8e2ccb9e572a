r"""The outer shape of an answer: a value, a list, a set, a tuple or interval, a union, a matrix, an equation."""

import re
from dataclasses import dataclass
from typing import Literal

from nemo_thinkprune.rewards.normalize import matching_brace
from nemo_thinkprune.rewards.rational import is_thousands
from nemo_thinkprune.rewards.units import split_unit

Kind = Literal["value", "list", "set", "ordered", "union", "matrix", "ratio"]

_OPEN = {"(": ")", "[": "]", "{": "}"}
_TOKEN = re.compile(
    r"\\begin\{[a-z]*\}|\\end\{[a-z]*\}|\\text\s*\{[^{}]*\}|\\[A-Za-z]+|\\.|\s+(?:and|or)\s+|.", re.DOTALL
)
_AND = re.compile(r"\\text\s*\{\s*,?\s*(?:and|or)\s*\}|\s+(?:and|or)\s+")
_MATRIX = re.compile(
    r"(?P<scalar>[^&]*?)\s*(?:\\cdot|\\times)?\s*[(\[]?\s*\\begin\{(?P<kind>[pbB]?matrix|smallmatrix|array)\}"
    r"(?:\{[lcr| ]*\})?(?P<body>.*)\\end\{(?P=kind)\}\s*[)\]]?",
    re.DOTALL,
)
_CLOCK = re.compile(r"\s*\d{1,2}\s*:\s*[0-5]\d\s*(?:\\text\s*\{\s*[ap]m\s*\}|[ap]m)?\s*", re.IGNORECASE)
_NAME = re.compile(
    r"(?:[A-Za-z]|\\(?!text|frac|sqrt|log|sin|cos|tan|ln|binom|lfloor|lceil)[A-Za-z]+)"
    r"(?:[A-Za-z0-9\s,'{}()_]|\\[A-Za-z]+)*|\([A-Za-z](?:\s*,\s*[A-Za-z])+\)|\\text\s*\{[A-Za-z ]+\}"
)


@dataclass(frozen=True, slots=True)
class Shape:
    """An answer by its outer shape.

    `text` is the whole as written; `brackets` the kind of brackets of an ordered one ("()", "[)", ...);
    `columns` the row length of a matrix, whose items are in row order.
    """

    kind: Kind
    text: str
    items: tuple["Shape", ...] = ()
    brackets: str = ""
    columns: int = 0


def shapes(text: str) -> list[Shape]:
    """The readings of a normalized answer: one, or two for `1,234`, which is a number and a list."""
    readings = [_read(text)]
    if is_thousands(split_unit(split_name(text)[1])[0]) and readings[0].kind == "list":
        # As a list it keeps its order: `2,100` is not `100,2`.
        readings = [Shape("ordered", text, readings[0].items, brackets="()"), Shape("value", text)]
    return readings


def by_name(shape: Shape) -> Shape:
    """A list of assignments to different letters (`y=2, x=1`) in the order of the letters; else as it is."""
    names = [split_name(item.text)[0] for item in shape.items]
    if shape.kind != "list" or len({name for name in names if name and len(name) == 1}) != len(names):
        return shape
    pairs = sorted(zip(names, shape.items, strict=True), key=lambda pair: pair[0] or "")
    return Shape("list", shape.text, tuple(item for _, item in pairs))


def split_name(text: str) -> tuple[str | None, str]:
    r"""`x=5`, `f(x)=2x`, `x \in [0,1]` as (name, value); (None, text) where no plain name is assigned."""
    parts = split_top(text, {"=", r"\in", r"\approx"})
    if len(parts) < 2 or not _NAME.fullmatch(parts[0].strip()):
        return None, text
    value = parts[-1] if r"\approx" not in text else parts[1]
    return parts[0].strip(), value.strip()


def split_top(text: str, separators: set[str]) -> list[str]:
    """`text` cut at the separators that stand outside every bracket."""
    parts, start, depth = [], 0, 0
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token in ("(", "[", "{", r"\{", r"\langle") or token.startswith(r"\begin"):
            depth += 1
        elif token in (")", "]", "}", r"\}", r"\rangle") or token.startswith(r"\end{"):
            depth -= 1
        elif depth == 0 and (token in separators or ("," in separators and _AND.fullmatch(token))):
            parts.append(text[start : match.start()])
            start = match.end()
    return [*parts, text[start:]]


def _read(text: str) -> Shape:
    text = text.strip()
    if text.startswith(r"\{") and text.endswith(r"\}") and _wraps(text, r"\{", r"\}"):
        return _collection("set", text, text[2:-2])
    if text.startswith("{") and matching_brace(text, 0) == len(text) - 1:
        return _collection("set", text, text[1:-1])
    if text == r"\emptyset" or text == r"\text{empty set}":
        return Shape("set", text)
    if match := _MATRIX.fullmatch(text):
        return _matrix(text, match["body"], match["scalar"])
    parts = [part for part in split_top(text, {",", ";"}) if part.strip()]  # "a, and b" has an empty one
    if len(parts) > 1:
        return Shape("list", text, tuple(item for part in parts for item in _expanded(_named(part))))
    if bracketed := _bracketed(text):
        return bracketed
    union = split_top(text, {r"\cup"})
    if len(union) > 1:
        return Shape("union", text, tuple(_read(part) for part in union))
    if (ratio := _ratio(text)) is not None:
        return ratio
    expanded = _expanded(Shape("value", text))
    return Shape("list", text, tuple(expanded)) if len(expanded) > 1 else Shape("value", text)


def _named(part: str) -> Shape:
    """An item of a list; its name (`x=`) stays in its text, its shape is that of what is assigned."""
    shape = _read(part)
    return shape if shape.kind != "list" else Shape("value", part.strip())


def _collection(kind: Kind, text: str, inside: str) -> Shape:
    parts = [part for part in split_top(inside, {",", ";"}) if part.strip()]
    return Shape(kind, text, tuple(item for part in parts for item in _expanded(_named(part))))


def _bracketed(text: str) -> Shape | None:
    r"""A tuple, point or interval: `(1,2)`, `[0,1)`, `\langle 1,2 \rangle`; None for anything else."""
    opening, closing = text[:1], text[-1:]
    if text.startswith(r"\langle") and text.endswith(r"\rangle"):
        opening, closing, inside = "(", ")", text[7:-7]
    elif opening in ("(", "[") and closing in (")", "]") and _closes_last(text):
        inside = text[1:-1]
    else:
        return None
    parts = split_top(inside, {",", ";"})
    if len(parts) < 2 or not all(part.strip() for part in parts):
        return None
    return Shape("ordered", text, tuple(_named(part) for part in parts), brackets=opening + closing)


def _closes_last(text: str) -> bool:
    depth = 0
    for index, char in enumerate(text):
        depth += (char in "([") - (char in ")]")
        if depth == 0:
            return index == len(text) - 1
    return False


def _wraps(text: str, opening: str, closing: str) -> bool:
    depth, index = 0, 0
    while index < len(text):
        pair = text[index : index + 2]
        depth += (pair == opening) - (pair == closing)
        if depth == 0:
            return index == len(text) - 2
        index += 2 if pair in (opening, closing) else 1
    return False


def _ratio(text: str) -> Shape | None:
    """`2:3`, `1:2:3`; None for anything else, also for a time of day (`3:45`)."""
    parts = [part.strip() for part in split_top(text, {":", r"\colon"})]
    if len(parts) < 2 or _CLOCK.fullmatch(text) or r"\text" in text or not all(parts):
        return None
    return Shape("ratio", text, tuple(Shape("value", part) for part in parts))


def _matrix(text: str, body: str, scalar: str) -> Shape:
    rows = [row for row in re.split(r"\\\\", body) if row.strip()]
    cells = [[cell.strip() for cell in row.split("&")] for row in rows]
    columns = len(cells[0]) if cells else 0
    terms = split_top(scalar.strip().lstrip("+-"), {"+", "-", ",", ";", "=", "<", ">"})
    if (
        not columns
        or len(terms) > 1
        or any(len(row) != columns for row in cells)
        or r"\begin" in scalar + body
    ):
        return Shape("value", text)
    factor = {"": "", "+": "", "-": "-1"}.get(scalar.strip(), scalar.strip())
    written = [rf"({factor})\cdot ({cell})" if factor else cell for row in cells for cell in row]
    return Shape("matrix", text, tuple(Shape("value", cell) for cell in written), columns=columns)


def _expanded(shape: Shape) -> list[Shape]:
    r"""`a \pm b` as the two values it stands for; anything else as it is."""
    if shape.kind != "value" or (r"\pm" not in shape.text and r"\mp" not in shape.text):
        return [shape]
    upper = re.sub(r"\\pm(?![a-z])", "+", re.sub(r"\\mp(?![a-z])", "-", shape.text))
    lower = re.sub(r"\\pm(?![a-z])", "-", re.sub(r"\\mp(?![a-z])", "+", shape.text))
    return [Shape("value", re.sub(r"(^|=)\s*\+\s*", r"\1", text).strip()) for text in (upper, lower)]
