"""The paper's rule for the checkpoint that a round hands on, and the record of what it decided."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nemo_thinkprune.recipe.errors import UserError

_TOLERANCE = 1e-9  # 0.45 must count as a fall of 10% from 0.50 whatever the rounding


@dataclass(frozen=True, slots=True)
class Measured:
    """Accuracy and length of one model on the selection set, responses generated up to ``limit`` tokens."""

    step: int
    accuracy: float
    mean_tokens: float
    limit: int | None
    share_cut: float | None
    accuracy_at_limit: float | None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Measured:
        """From a validation row of metrics.jsonl: ``{"step", "validation": {...}}`` or the same flattened."""
        values = row.get("validation", row)
        return cls(
            step=row["step"],
            accuracy=values["accuracy"],
            mean_tokens=values["mean_tokens"],
            limit=values.get("limit"),
            share_cut=values.get("share_cut"),
            accuracy_at_limit=values.get("accuracy_at_limit"),
        )


@dataclass(frozen=True, slots=True)
class Candidate:
    """A checkpoint's numbers; ``relative_drop`` is its fall of accuracy as a share of the baseline's."""

    step: int
    accuracy: float
    mean_tokens: float
    limit: int | None
    share_cut: float | None
    accuracy_at_limit: float | None
    relative_drop: float
    qualifies: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """What a round hands on and why; written as decision.json.

    ``weights`` is relative to the prune run's folder, None for the weights the whole run started from.
    """

    round: int
    limit: int
    max_relative_drop: float
    baseline: Measured
    baseline_from: str
    least_accuracy: float
    candidates: tuple[Candidate, ...]
    selected_step: int | None
    kept_start: bool
    weights: str | None
    reason: str

    def to_json(self) -> str:
        """The decision as indented JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"


def relative_drop(accuracy: float, baseline: float) -> float:
    """Fall of accuracy as a share of the baseline; negative for a gain, 0 for a baseline of 0."""
    return (baseline - accuracy) / baseline if baseline > 0 else 0.0


def candidates(
    rows: Iterable[Measured], *, baseline: Measured, checkpoints: Collection[int], max_relative_drop: float
) -> tuple[Candidate, ...]:
    """The validated steps that have a checkpoint, by step, judged against the baseline; never step 0.

    Raises:
        UserError: there is none.
    """
    found = []
    for row in sorted(rows, key=lambda r: r.step):
        if row.step == 0 or row.step not in checkpoints:
            continue
        drop = relative_drop(row.accuracy, baseline.accuracy)
        found.append(
            Candidate(**asdict(row), relative_drop=drop, qualifies=drop <= max_relative_drop + _TOLERANCE)
        )
    if not found:
        raise UserError(
            "the round has no checkpoint that was also validated: make grpo.val_period and "
            "checkpointing.save_period equal, or multiples of one another"
        )
    return tuple(found)


def select(
    rows: Iterable[Measured],
    *,
    number: int,
    limit: int,
    baseline: Measured,
    baseline_from: str,
    checkpoints: Mapping[int, str],
    start: str | None,
    max_relative_drop: float,
) -> Decision:
    """Among checkpoints that kept accuracy, the one with the shortest mean response; of equals the earliest.

    ThinkPrune (arXiv 2504.01296), rule between rounds: accuracy on the selection set may fall by at most
    ``max_relative_drop`` of the baseline's. When no checkpoint qualifies the round's start is kept.

    ``rows`` are the round's validation rows; ``checkpoints`` maps each step with a complete checkpoint to its
    weights and ``start`` is what the round began with, both relative to the prune run (None: the run's own
    start); ``baseline_from`` names the folder whose step 0 the baseline is.

    Raises:
        UserError: no step has both a validation row and a checkpoint.
    """
    judged = candidates(rows, baseline=baseline, checkpoints=checkpoints, max_relative_drop=max_relative_drop)
    good = [c for c in judged if c.qualifies]
    best = min(good, key=lambda c: (c.mean_tokens, c.step), default=None)
    return Decision(
        round=number,
        limit=limit,
        max_relative_drop=max_relative_drop,
        baseline=baseline,
        baseline_from=baseline_from,
        least_accuracy=baseline.accuracy * (1 - max_relative_drop),
        candidates=judged,
        selected_step=best.step if best else None,
        kept_start=best is None,
        weights=checkpoints[best.step] if best else start,
        reason=_reason(best, judged, baseline, max_relative_drop),
    )


def _reason(best: Candidate | None, judged: tuple[Candidate, ...], baseline: Measured, drop: float) -> str:
    least = 100 * baseline.accuracy * (1 - drop)
    rule = f"accuracy of at least {least:.1f}% ({100 * baseline.accuracy:.1f}% less {100 * drop:g}% of it)"
    if best is None:
        top = max(judged, key=lambda c: c.accuracy)
        return (
            f"None of {len(judged)} checkpoints has an {rule}; the best is step {top.step} with "
            f"{100 * top.accuracy:.1f}%. The round's start is kept."
        )
    kept = sum(c.qualifies for c in judged)
    return (
        f"{kept} of {len(judged)} checkpoints have an {rule}; of these step {best.step} has the shortest "
        f"mean response: {best.mean_tokens:.1f} tokens at {100 * best.accuracy:.1f}% (baseline: "
        f"{baseline.mean_tokens:.1f} tokens)."
    )
