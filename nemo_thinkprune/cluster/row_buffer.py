"""Rows of scored responses between two reports, and what they come to."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

from nemo_thinkprune.evaluation.stats import percentile
from nemo_thinkprune.rewards.types import Reason

KEPT_CHARACTERS = 512 << 20
"""Bound on the kept responses: about fifteen steps of 2,048 responses of 4,000 tokens."""
_LOG = logging.getLogger(__name__)


class RowBuffer:
    """Rows in the order of scoring, kept until drained; past `limit` characters of response the oldest go."""

    def __init__(self, limit: int = KEPT_CHARACTERS) -> None:
        self._limit = limit
        self._rows: deque[dict[str, Any]] = deque()
        self._characters = self._scored = self._dropped = 0

    @property
    def kept(self) -> list[dict[str, Any]]:
        """The rows that the next `drain` gives."""
        return list(self._rows)

    def extend(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add rows; drop the oldest ones where all together are too large."""
        self._rows.extend(rows)
        self._scored += len(rows)
        self._characters += sum(len(row["response"]) for row in rows)
        if self._characters > self._limit and not self._dropped:
            _LOG.warning(
                "the rows of scored responses have outgrown %d characters since nobody takes them (drain): "
                "the oldest are dropped, and counted",
                self._limit,
            )
        while self._characters > self._limit:
            self._characters -= len(self._rows.popleft()["response"])
            self._dropped += 1

    def drain(self) -> list[dict[str, Any]]:
        """Hand the rows over."""
        rows = self.kept
        self._rows.clear()
        self._characters = 0
        return rows

    def tally(self) -> dict[str, int]:
        """How many rows were `scored` in all, are `kept` now, and were `dropped`."""
        return {"scored": self._scored, "kept": len(self._rows), "dropped": self._dropped}


def scored_metrics(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Share of each reason, mean reward, and response length in tokens where it is known; {} for no rows."""
    if not rows:
        return {}
    reasons = Counter(row["reason"] for row in rows)
    lengths = [row["response_tokens"] for row in rows if row["response_tokens"] is not None]
    metrics = {f"reason/{reason}": reasons[reason] / len(rows) for reason in Reason}
    metrics["reward_mean"] = sum(row["reward"] for row in rows) / len(rows)
    if lengths:
        metrics["response_tokens_mean"] = sum(lengths) / len(lengths)
        metrics |= {f"response_tokens_p{q}": percentile(lengths, q) for q in (50, 90, 99)}
    return metrics
