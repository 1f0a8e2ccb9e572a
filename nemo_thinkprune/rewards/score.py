"""Scores responses: the one implementation for training, evaluation, NeMo-RL and `thinkprune score`.

Example::

    with Scorer(workers=2, deadline_s=5.0, memory_mb=1024, truncation="zero") as scorer:
        verdicts = scorer.score([Item(response, gold="25", finished=True)])
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import get_args

from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.rewards.equality import equal
from nemo_thinkprune.rewards.extract import extract_answer
from nemo_thinkprune.rewards.guard import too_large
from nemo_thinkprune.rewards.pool import Outcome, Pool
from nemo_thinkprune.rewards.types import Item, Reason, Truncation, Verdict

_SHOWN = 200  # characters of an answer that a verdict keeps
_MEMO = 65_536
_REASONS = {
    Outcome.EQUAL: Reason.CORRECT,
    Outcome.DIFFERENT: Reason.WRONG,
    Outcome.TIMEOUT: Reason.TIMEOUT,
    Outcome.TOO_LARGE: Reason.TOO_LARGE,
}


class Scorer:
    """Scores responses with a pool of at most `workers` processes, started only when an answer needs them.

    `deadline_s` and `memory_mb` (MiB) bound one comparison of expressions. `truncation` says what a response
    cut at the limit earns: "zero", or "score_cut_text" to score the text that there is like a finished one.
    Verdicts of the last 65,536 distinct (answer, gold) pairs are kept, timeouts excepted: those are tried
    again in the next call, since they may say more about the machine than about the answer. Use it as a
    context manager, or call `close`.

    Raises UserError for settings out of range.
    """

    def __init__(self, *, workers: int, deadline_s: float, memory_mb: int, truncation: Truncation = "zero"):
        if workers < 1 or deadline_s <= 0 or memory_mb < 256:
            raise UserError(
                "scoring needs workers >= 1, deadline_s > 0 and memory_mb >= 256 (sympy alone takes 200), "
                f"not workers={workers}, deadline_s={deadline_s}, memory_mb={memory_mb}"
            )
        if truncation not in get_args(Truncation):
            raise UserError(
                f"truncation must be one of {', '.join(get_args(Truncation))}, not {truncation!r}"
            )
        self._truncation: Truncation = truncation
        self._pool = Pool(workers=workers, deadline_s=deadline_s, memory_mb=memory_mb)
        self._memo: OrderedDict[tuple[str, str], Reason] = OrderedDict()

    def __enter__(self) -> "Scorer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the worker processes. A later `score` starts new ones."""
        self._pool.close()

    def forget(self) -> None:
        """Drops the remembered verdicts."""
        self._memo.clear()

    @property
    def processes(self) -> list[int]:
        """Process ids of the living workers; empty until an answer needed one."""
        return self._pool.processes

    def score(self, items: Sequence[Item], on_judged: Callable[[], None] | None = None) -> list[Verdict]:
        """The verdicts, in order. `on_judged` is called after each comparison in a worker.

        Never raises for what a response says; raises pool.WorkerStartError where no worker can start.
        """
        answers = [find_answer(item, self._truncation) for item in items]
        found = [
            (answer, item.gold)
            for answer, item in zip(answers, items, strict=True)
            if not isinstance(answer, Reason)
        ]
        reasons = self._judge(list(dict.fromkeys(found)), on_judged)
        return [
            Verdict(0.0, answer, None)
            if isinstance(answer, Reason)
            else _verdict(reasons[answer, item.gold], answer)
            for answer, item in zip(answers, items, strict=True)
        ]

    def _judge(
        self, pairs: list[tuple[str, str]], on_judged: Callable[[], None] | None
    ) -> dict[tuple[str, str], Reason]:
        reasons: dict[tuple[str, str], Reason] = {}
        open_pairs: list[tuple[str, str]] = []
        for pair in pairs:
            reason = self._memo.get(pair) or compare_quickly(*pair)
            if reason is None:
                open_pairs.append(pair)
            else:
                reasons[pair] = reason
        for pair, outcome in zip(open_pairs, self._pool.run(open_pairs, on_judged), strict=True):
            reasons[pair] = _REASONS[outcome]
        for pair, reason in reasons.items():
            if reason is Reason.TIMEOUT:
                continue
            self._memo[pair] = reason
            self._memo.move_to_end(pair)
        while len(self._memo) > _MEMO:
            self._memo.popitem(last=False)
        return reasons


def find_answer(item: Item, truncation: Truncation) -> str | Reason:
    """The answer of a response, or the reason (truncated, no_answer) why there is none to judge."""
    if not item.finished and truncation == "zero":
        return Reason.TRUNCATED
    answer = extract_answer(item.response)
    return Reason.NO_ANSWER if answer is None else answer


def compare_quickly(answer: str, gold: str) -> Reason | None:
    """The reason for a pair that needs no worker process, else None."""
    if len(answer) <= _SHOWN and answer.strip() == gold.strip():
        return Reason.CORRECT
    if too_large(answer) or too_large(gold):
        return Reason.TOO_LARGE
    verdict = equal(answer, gold)
    if verdict is None:
        return None
    return Reason.CORRECT if verdict else Reason.WRONG


def _verdict(reason: Reason, answer: str) -> Verdict:
    shown = answer if len(answer) <= _SHOWN else answer[: _SHOWN - 1] + "…"
    return Verdict(1.0 if reason is Reason.CORRECT else 0.0, reason, shown)
