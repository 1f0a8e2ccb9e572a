"""Two train runs held against each other: the same responses, verdicts and ledger, numbers to rounding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

KEYS = ("problem_id", "response", "response_tokens", "stop_reason", "reward", "reason", "answer")


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def responses(run: Path, step: int) -> list[tuple[Any, ...]]:
    """Every response of a step with its verdict."""
    return [tuple(row[key] for key in KEYS) for row in rows(run / "rollouts" / f"step_{step}.jsonl")]


def steps(run: Path) -> dict[int, dict[str, Any]]:
    """The rows of metrics.jsonl that tell of training, by step."""
    return {row["step"]: row for row in rows(run / "metrics.jsonl") if "loss" in row}


def assert_same_run(run: Path, other: Path, until: int, first: int = 1) -> None:
    """The same responses, verdicts and ledger; loss and gradient to rounding."""
    for step in range(first, until + 1):
        assert responses(run, step) == responses(other, step)
        mine, theirs = steps(run)[step], steps(other)[step]
        for key in ("loss", "grad_norm", "kl"):
            assert mine[key] == pytest.approx(theirs[key], rel=2e-4, abs=2e-6), (step, key)
        assert mine["reasons"] == theirs["reasons"]
    ours, its = rows(run / "ledger.jsonl"), rows(other / "ledger.jsonl")
    assert ours[first - 1 : until] == its[first - 1 : until]
