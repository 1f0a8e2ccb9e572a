"""Tables of results as plain text, for a terminal or a log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

DASH = "–"


def share(value: float | None, se: float | None = None) -> str:
    """A share as percent, with its standard error in percentage points where known: ``96.8 ± 0.5``."""
    if value is None:
        return DASH
    return f"{100 * value:.1f}" + (f" ± {100 * se:.1f}" if se is not None else "")


def tokens(value: float | None, se: float | None = None) -> str:
    """A length in tokens, one decimal below a thousand."""
    if value is None:
        return DASH
    if value >= 1000:
        return f"{value:,.0f}" + (f" ± {se:,.0f}" if se is not None else "")
    return f"{value:.1f}" + (f" ± {se:.1f}" if se is not None else "")


def signed(value: float | None, se: float | None = None, *, unit: str = "") -> str:
    """A change as signed percent or points: ``-51%``, ``+2.0 ± 0.4``."""
    if value is None:
        return DASH
    digits = 0 if unit == "%" else 1
    error = f" ± {100 * se:.1f}" if se is not None else ""
    return f"{100 * value:+.{digits}f}{unit}{error}".replace("-", "−")


def render(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An aligned table: first column left, the others right, a rule under the head."""
    columns = list(zip(head, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        return "  ".join([first, *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]).rstrip()

    return "\n".join([line(head), "  ".join("─" * w for w in widths), *(line(row) for row in rows)])


def results_head(long_limit: Any) -> tuple[str, ...]:
    """Column names of the result table; accuracy is that at ``long_limit`` tokens."""
    at = f" at {long_limit}" if long_limit else ""
    return ("stage", f"accuracy %{at}", "change, points", "within L %", "mean tokens", "change", "cut %")


def results_rows(summary: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row of text cells per stage: baseline, rounds, control."""
    stages = [summary.get("baseline"), *summary.get("rounds", ()), summary.get("control")]
    return [
        (
            stage["label"] + (" (start kept)" if stage.get("kept_start") else ""),
            share(stage["accuracy"], stage["accuracy_se"]),
            signed(stage["accuracy_change"], stage["accuracy_change_se"]),
            share(stage["accuracy_within_limit"]),
            tokens(stage["mean_tokens"], stage["mean_tokens_se"]),
            signed(stage["tokens_change"], unit="%"),
            share(stage["share_cut"]),
        )
        for stage in stages
        if stage
    ]


def results_table(summary: dict[str, Any]) -> str:
    """The table that a prune run ends with; a sentence where nothing has been evaluated yet."""
    rows = results_rows(summary)
    if not rows:
        return "Nothing has been evaluated yet."
    return render(results_head((summary.get("settings") or {}).get("limit")), rows)


def evaluation_table(measured: dict[str, Any]) -> str:
    """One evaluation, line by line."""
    lines = [
        ("problems × samples", f"{measured.get('problems', DASH)} × {measured.get('samples', DASH)}"),
        ("accuracy %", share(measured["accuracy"], measured.get("accuracy_se"))),
        ("mean tokens", tokens(measured["mean_tokens"], measured.get("mean_tokens_se"))),
        (f"cut at {measured.get('limit', 'the limit')} %", share(measured.get("share_cut"))),
    ]
    spread = measured.get("tokens_percentiles") or {}
    lines += [(f"tokens, {q}th percentile", tokens(v)) for q, v in spread.items() if q in ("50", "95")]
    at = measured.get("accuracy_at") or {}
    lines += [(f"accuracy within {limit} tokens %", share(v)) for limit, v in at.items()]
    lines += [(f"pass@{k} %", share(v)) for k, v in (measured.get("pass_at_k") or {}).items() if k != "1"]
    if measured.get("majority_vote") is not None:
        lines.append(("majority vote %", share(measured["majority_vote"])))
    return render(("measure", "value"), lines)
