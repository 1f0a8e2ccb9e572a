"""A few thoughts before and after, chosen by rule and split where a limit cuts them; all plain text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_thinkprune.evaluation.stats import is_correct, is_cut

Row = dict[str, Any]
_MOST_CHARS = 8000


@dataclass(frozen=True, slots=True)
class Thought:
    """One response: the text up to the cut, the text after it, and what the cut is (empty: none)."""

    prompt: str
    gold: str
    kept: str
    lost: str
    cut: str
    tokens: int
    reason: str
    correct: bool


@dataclass(frozen=True, slots=True)
class Pair:
    """Two responses, to the same prompt unless ``same_prompt`` is False, and why they were chosen."""

    why: str
    before: Thought
    after: Thought
    same_prompt: bool = True


def choose_pairs(before: Sequence[Row], after: Sequence[Row], *, limit: int | None) -> list[Pair]:
    """Up to four pairs chosen by rule, not by taste; the lowest sample number of each problem stands for it.

    The typical saving (median) and a large one (90th percentile) among problems solved both times, the first
    problem lost and the first one gained. ``limit`` marks where the shortest limit cuts a longer response.
    """
    first, second = _one_each(before), _one_each(after)
    shared = [(first[key], second[key]) for key in first if key in second]
    both = sorted((p for p in shared if is_correct(p[0]) and is_correct(p[1])), key=_saving)
    picked: list[tuple[str, tuple[Row, Row]]] = []
    if both:
        picked.append(("typical saving (median)", both[len(both) // 2]))
    if len(both) > 1:
        picked.append(("large saving (90th percentile)", both[min(len(both) - 1, len(both) * 9 // 10)]))
    lost = [p for p in shared if is_correct(p[0]) and not is_correct(p[1])]
    gained = [p for p in shared if not is_correct(p[0]) and is_correct(p[1])]
    picked += [("right before, wrong after", p) for p in lost[:1]]
    picked += [("wrong before, right after", p) for p in gained[:1]]
    if not picked:
        picked = [("both wrong", p) for p in shared[:2]]
    return [Pair(why, thought(a, limit=limit), thought(b, limit=limit)) for why, (a, b) in picked]


def unrelated_pairs(before: Sequence[Row], after: Sequence[Row], *, limit: int | None) -> list[Pair]:
    """Two pairs of responses to different prompts, for a run that never saw one prompt twice."""
    first, second = list(_one_each(before).values()), list(_one_each(after).values())
    return [
        Pair(
            "from the first and the last step, different prompts",
            thought(a, limit=limit),
            thought(b, limit=limit),
            same_prompt=False,
        )
        for a, b in list(zip(first, second, strict=False))[:2]
    ]


def thought(row: Row, *, limit: int | None) -> Thought:
    """The row's response, split where generation was cut or where ``limit`` would have cut it."""
    response, tokens = str(row.get("response", "")), int(row["response_tokens"])
    kept, lost, cut = response, "", ""
    if is_cut(row):
        cut = f"cut by the limit after {tokens} tokens"
    elif limit is not None and tokens > limit:
        at, exact = cut_position(response, tokens=tokens, limit=limit)
        kept, lost = response[:at], response[at:]
        cut = f"a limit of {limit} cuts {'' if exact else 'about '}here"
    return Thought(
        prompt=_shorten(str(row.get("question") or row.get("prompt") or row["problem_id"]), 1200),
        gold=str(row.get("gold", "")),
        kept=_shorten(kept, _MOST_CHARS),
        lost=_shorten(lost, _MOST_CHARS),
        cut=cut,
        tokens=tokens,
        reason=str(row.get("reason", "")),
        correct=is_correct(row),
    )


def cut_position(response: str, *, tokens: int, limit: int) -> tuple[int, bool]:
    """Character index after the first ``limit`` tokens, and whether it is exact.

    Rows hold no token boundaries. Where the words are the tokens (a word-level vocabulary, with or without a
    hidden end token) the index is exact; otherwise it is the proportional place, moved to a word's end.
    """
    ends = [match.end() for match in re.finditer(r"\S+", response)]
    if len(ends) in (tokens, tokens - 1):
        return (ends[limit - 1] if limit <= len(ends) else len(response)), True
    guess = round(len(response) * limit / tokens)
    return next((end for end in ends if end >= guess), len(response)), False


def _one_each(rows: Iterable[Row]) -> dict[str, Row]:
    chosen: dict[str, Row] = {}
    for row in rows:
        key = str(row["problem_id"])
        if key not in chosen or row.get("sample", 0) < chosen[key].get("sample", 0):
            chosen[key] = row
    return chosen


def _saving(pair: tuple[Row, Row]) -> float:
    return pair[0]["response_tokens"] - pair[1]["response_tokens"]


def _shorten(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters left out …]\n{text[-half:]}"
