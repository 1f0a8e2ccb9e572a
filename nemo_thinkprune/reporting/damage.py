"""What a damaged run file still says: values of the expected kind are kept, all others count as missing.

A run folder is plain text that people edit, merge and copy, and a report must come out of whatever is there.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

_LARGEST = 1e15  # beyond, integers lose digits as floats and axes have no sensible ticks
_DECIDED_NUMBERS = ("round", "limit", "selected_step", "max_relative_drop", "least_accuracy")
_EVALUATED_NUMBERS = (
    "accuracy", "accuracy_se", "mean_tokens", "mean_tokens_se", "share_cut", "limit", "samples", "problems",
    "temperature", "top_p", "top_k", "majority_vote",
)  # fmt: skip
_EVALUATED_TABLES = ("accuracy_at", "accuracy_at_se", "pass_at_k", "tokens_percentiles")


def number(value: Any) -> Any:
    """Return a finite number of sensible size as it is, None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if -_LARGEST <= value <= _LARGEST else None


def numbers(value: Any) -> Json:
    """Return the entries of a mapping that are numbers, and of mappings in it likewise; {} for anything else."""
    if not isinstance(value, dict):
        return {}
    inner = {key: numbers(item) if isinstance(item, dict) else number(item) for key, item in value.items()}
    return {key: item for key, item in inner.items() if item is not None}


def measured(value: Any) -> Json | None:
    """Return a validation row's numbers; None without accuracy and length."""
    found = _flat(numbers(value))
    return found if "accuracy" in found and "mean_tokens" in found else None


def evaluation(summary: Json) -> Json | None:
    """Return an evaluation's summary with None for damaged numbers; None without accuracy and length."""
    if number(summary.get("accuracy")) is None or number(summary.get("mean_tokens")) is None:
        return None
    fixed = {key: number(summary[key]) for key in _EVALUATED_NUMBERS if key in summary}
    tables = {key: _flat(numbers(summary[key])) for key in _EVALUATED_TABLES if key in summary}
    named = {key: summary[key] for key in ("model", "data") if isinstance(summary.get(key), str)}
    return named | fixed | tables


def decision(found: Json) -> Json:
    """Return a round's decision with None for what is damaged."""
    candidates = found.get("candidates")
    rows = [row for row in candidates if isinstance(row, dict)] if isinstance(candidates, list) else []
    return {
        **{key: number(found.get(key)) for key in _DECIDED_NUMBERS},
        **{key: _text(found.get(key)) for key in ("weights", "baseline_from", "reason")},
        "kept_start": found.get("kept_start") is True,
        "baseline": _flat(numbers(found.get("baseline"))),
        "candidates": [{**_flat(numbers(row)), "qualifies": row.get("qualifies") is True} for row in rows],
    }


def sample(row: Json) -> Json | None:
    """Return a sampled response's row; None without length, stop reason or verdict."""
    length = number(row.get("response_tokens"))
    if not isinstance(length, int) or length < 0 or number(row.get("sample", 0)) is None:
        return None
    told = all(isinstance(row.get(key), str) for key in ("stop_reason", "reason"))
    return row if told and isinstance(row.get("problem_id"), str | int) else None


def environment(found: Any) -> Json:
    """Return a recorded environment with all its keys; {} when nothing was recorded."""
    if not isinstance(found, dict) or not found:
        return {}
    packages = found.get("packages")
    return {
        **{key: found.get(key) for key in ("python", "system", "processor", "cores")},
        "packages": packages if isinstance(packages, dict) else {},
    }


def step_of(row: Json) -> int | None:
    """Return the step of a row, a whole number from 0; None for anything else."""
    step = number(row.get("step"))
    return step if isinstance(step, int) and step >= 0 else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _flat(table: Json) -> Json:
    return {key: value for key, value in table.items() if not isinstance(value, dict)}
