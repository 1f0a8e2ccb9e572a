"""Markdown made of values from elsewhere: whatever they hold, they stay within their place on the page."""

from __future__ import annotations

import json
import re
import textwrap
import unicodedata
from collections.abc import Sequence

DASH = "–"
_SPECIAL = re.compile(r"([\\`*_\[\]<>|~$&#!])")


def one_line(value: str, longest: int = 120) -> str:
    """The text without control and format characters (line ends, reversed writing), cut to `longest`."""
    kept = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in value)
    kept = " ".join(kept.split())
    return kept if len(kept) <= longest else kept[: longest - 1] + "…"


def text(value: str) -> str:
    """A value as running text: nothing in it is markup or HTML."""
    return _SPECIAL.sub(r"\\\1", one_line(value))


def code(value: str) -> str:
    """A value as code within a line or a table; a backtick or bar in it becomes an apostrophe or blank."""
    return f"`{one_line(value).replace('`', chr(39)).replace('|', ' ').strip() or DASH}`"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right_from: int = 1) -> list[str]:
    """A table of cells that are Markdown already; columns from `right_from` on are aligned right."""
    rule = ["---" if i < right_from else "---:" for i in range(len(head))]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]


def python_string(value: str, indent: int) -> list[str]:
    """A Python literal on one line, or broken into several adjacent ones in parentheses."""
    literal = json.dumps(value)
    if len(literal) + indent <= 92:
        return [literal]
    # Keeping all blanks: the pieces must be, end to end, the very text.
    wrapper = textwrap.TextWrapper(84 - indent, drop_whitespace=False, replace_whitespace=False,
                                   expand_tabs=False, break_on_hyphens=False)  # fmt: skip
    pieces = wrapper.wrap(value)
    return ["(", *(" " * (indent + 4) + json.dumps(piece) for piece in pieces), " " * indent + ")"]


def share(value: float | None, se: float | None = None) -> str:
    """A share of 1 as percent, with its standard error where known: `96.8 ± 0.5`."""
    if value is None:
        return DASH
    return f"{100 * value:.1f}" + (f" ± {100 * se:.1f}" if se is not None else "")


def points(value: float | None, se: float | None = None) -> str:
    """A change of a share in percentage points: `+2.0 ± 0.4`."""
    if value is None:
        return DASH
    return f"{100 * value:+.1f}".replace("-", "−") + (f" ± {100 * se:.1f}" if se is not None else "")


def percent(value: float | None) -> str:
    """A relative change: `−51%`."""
    return DASH if value is None else f"{100 * value:+.0f}%".replace("-", "−")


def length(value: float | None, se: float | None = None) -> str:
    """A length in tokens, one decimal below a thousand."""
    if value is None:
        return DASH
    digits = 0 if value >= 1000 else 1
    return f"{value:,.{digits}f}" + (f" ± {se:,.{digits}f}" if se is not None else "")
