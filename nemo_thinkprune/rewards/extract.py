"""Finds the answer in a response: the last box after the last `</think>`. Linear in the text's length.

The rules, in order (docs/rewards.md has an example of each):

1. Only the text after the last `</think>` counts; the whole text where there is no such tag.
2. The box that starts last decides. Inside a closed box, the outermost closed box around it is taken.
3. A box that is never closed is no answer, even if an earlier box was closed.
4. Boxes with nothing but commas, semicolons, "and", "or", spaces or math delimiters between them are the
   parts of one answer, joined with ", ". A blank line ends the run.
5. `\\boxed 5` and `\\boxed5` (no brace) run up to the next space or `$`. Without a brace only something that
   looks like mathematics counts, so that prose about "the \\boxed command" is not an answer.
6. An empty box is not an answer and hides no earlier one.
"""

import re
from dataclasses import dataclass

THINK_END = "</think>"

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}
_TOKEN = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])[ \t\r\n]*\{?|\\\\(?=[{}])|\\[{}]|[{}]")
_SEPARATORS = re.compile(
    r"(?:[\s,;$&、，~]|\\[()\[\],;:! ]|\\q?quad|\\(?:text|mathrm|mbox)\s*\{\s*,?\s*(?:and|or)?\s*,?\s*\}"
    r"|\b(?:and|or)\b|\*\*)*"
)
_BARE = re.compile(r"[-+]?(?:[0-9.\\(\[]|[A-Za-z](?![A-Za-z]))")
_BARE_END = re.compile(r"[\s$]|\\[)\]]|<[|｜/]|\*\*")
_INNER = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_BRACE = re.compile(r"\\[{}\\]|[{}]")
_NOT_BLANK = re.compile(r"\S")
_BARE_LIMIT = 400
_GAP_LIMIT = 80
_CONTENT_LIMIT = 4_000  # longer than any answer that is judged, so that nested boxes stay linear


@dataclass(slots=True)
class _Box:
    start: int  # of the command
    opening: int  # where its content begins
    closing: int | None  # where its content ends; None: unknown for a bare box, never closed for a braced one
    bare: bool = False


def answer_text(response: str) -> str:
    """The part of a response that may hold its answer: all after the last `</think>`, or the whole."""
    return response.rpartition(THINK_END)[2]


def extract_answer(response: str) -> str | None:
    """The final answer in `response` as written in its last box, or None.

    Full-width characters in it are returned as ASCII; the parts of a multi-part answer are joined with ", ".
    """
    text = answer_text(response)
    if not text.isascii():
        text = text.translate(_FULL_WIDTH)
    parts: list[_Box] = []
    for box in reversed(_outermost_boxes(text)):
        if _is_empty(text, box):
            continue
        _find_end(text, box)
        if parts and not _adjacent(text, box, parts[-1]):
            break
        if box.closing is None:
            return None
        parts.append(box)
    if not parts:
        return None
    contents = dict.fromkeys(
        text[box.opening : box.closing].strip()[: _CONTENT_LIMIT + 1] for box in reversed(parts)
    )
    return ", ".join(dict.fromkeys(map(_clean, contents)))


def _outermost_boxes(text: str) -> list[_Box]:
    """Boxes that lie in no closed box, in the order in which they start; one pass with a stack of open braces."""
    boxes: list[_Box] = []
    stack: list[int | None] = []  # index in boxes of the box a brace opened, None for another brace
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token == "}":
            opened = stack.pop() if stack else None
            if opened is not None:
                boxes[opened].closing = match.start()
                del boxes[opened + 1 :]
        elif token == "{":
            stack.append(None)
        elif token[1:5] in ("boxe", "fbox"):
            if token[-1] == "{":
                stack.append(len(boxes))
                boxes.append(_Box(match.start(), match.end(), None))
            elif _BARE.match(text, match.end()):
                boxes.append(_Box(match.start(), match.end(), None, bare=True))
    return boxes


def _is_empty(text: str, box: _Box) -> bool:
    return box.closing is not None and _NOT_BLANK.search(text, box.opening, box.closing) is None


def _find_end(text: str, box: _Box) -> None:
    """A bare box ends at the next space, `$` or closing delimiter outside braces; a braced one stays as it is."""
    if not box.bare:
        return
    window = text[box.opening : box.opening + _BARE_LIMIT]
    end, depth = len(window), 0
    for index, char in enumerate(window):
        depth += (char == "{") - (char == "}")
        if depth < 0 or (depth == 0 and _BARE_END.match(window, index)):
            end = index
            break
    if depth <= 0:
        box.closing = box.opening + len(window[:end].rstrip(".,;:"))


def _adjacent(text: str, left: _Box, right: _Box) -> bool:
    if left.closing is None:
        return False
    end = left.closing + (not left.bare)
    if not 0 <= right.start - end <= _GAP_LIMIT:
        return False
    gap = text[end : right.start]
    return "\n\n" not in gap.replace("\r", "").replace(" ", "") and bool(_SEPARATORS.fullmatch(gap))


def _clean(content: str) -> str:
    """A box's content on one line, without the boxes inside it."""
    content = " ".join(_INNER.sub("", content).split())
    while content.startswith("{") and _closes_at_end(content):
        content = content[1:-1].strip()
    return content


def _closes_at_end(text: str) -> bool:
    depth = 0
    for match in _BRACE.finditer(text):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return match.end() == len(text)
    return False
