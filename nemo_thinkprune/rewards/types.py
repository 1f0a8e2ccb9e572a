"""What goes into a scorer and what comes out of it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Truncation = Literal["zero", "score_cut_text"]


class Reason(StrEnum):
    """Why a response got its reward. Only `correct` earns 1."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    TRUNCATED = "truncated"
    TIMEOUT = "timeout"
    TOO_LARGE = "too_large"


@dataclass(frozen=True, slots=True)
class Item:
    """One response to score.

    `response` is the generated text (with or without the thinking tags), `gold` the reference answer in
    LaTeX or plain text, `finished` False where generation was cut at the token limit.
    """

    response: str
    gold: str
    finished: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """The score of one response: reward 0.0 or 1.0, its reason, and the answer that was judged.

    `answer` is None where none was looked for (`truncated`) or none was found (`no_answer`); an answer
    longer than 200 characters is shown cut.
    """

    reward: float
    reason: Reason
    answer: str | None
