"""Runs of one recipe on several engines, side by side: a picture of their curves, and how equal they are.

    python benchmarks/engines.py 'RUN=LABEL' 'RUN=LABEL' ... --out docs/images/engines.svg

The first run is the one that the others are compared with. For each the table printed says how many responses
have the same text, and by how much numbers of the same step differ, relative to the largest of the first run.
docs/cluster.md says how its runs were made.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_thinkprune.recipe.files import write_atomic
from nemo_thinkprune.reporting import svg
from nemo_thinkprune.reporting.charts import Axes, Series, line_chart
from nemo_thinkprune.reporting.run_files import read_jsonl, read_train

PANELS = (
    ("Response length", "response_tokens_mean", "mean response tokens", False),
    ("Reward", "reward_mean", "mean reward", True),
)
COMPARED = ("loss", "grad_norm", "kl")
WIDTH, HEIGHT = 420.0, 270.0


@dataclass(frozen=True, slots=True)
class Run:
    """A train run: its label, the rows of its steps, and its folder."""

    label: str
    folder: Path
    rows: dict[int, dict[str, Any]]

    @classmethod
    def of(cls, argument: str) -> Run:
        """Read the run of RUN=LABEL."""
        folder, _, label = argument.partition("=")
        rows = {row["step"]: row for row in read_train(Path(folder)).steps if row["step"] > 0}
        if not rows:
            raise SystemExit(f"{folder} has no steps in metrics.jsonl")
        return cls(label or folder, Path(folder), rows)

    def responses(self, step: int) -> list[tuple[str, str]]:
        """(problem, response) of a step, in the order in which they were trained."""
        rows = read_jsonl(self.folder / "rollouts" / f"step_{step}.jsonl")
        return [(row["problem_id"], row["response"]) for row in rows]


def picture(runs: Sequence[Run]) -> str:
    """The curves of all runs, length beside reward; points and dashes keep lines apart that lie on one another."""
    charts = [_chart(runs, *panel) for panel in PANELS]
    placed = [
        chart.replace("<svg ", f'<svg x="{svg.px(i * WIDTH)}" width="{WIDTH}" height="{HEIGHT}" ', 1)
        for i, chart in enumerate(charts)
    ]
    title = "Response length and reward by step: " + ", ".join(run.label for run in runs)
    return svg.standalone(svg.wrap("".join(placed), width=WIDTH * len(charts), height=HEIGHT, title=title))


def _chart(runs: Sequence[Run], title: str, key: str, label: str, from_zero: bool) -> str:
    series = [
        Series(
            run.label,
            list(run.rows),
            [row[key] for row in run.rows.values()],
            number,
            svg.DASHES[number],
            points=number == 0,
        )
        for number, run in enumerate(runs)
    ]
    return line_chart(series, Axes(title, "step", label, from_zero=from_zero, width=WIDTH, height=HEIGHT))


def table(runs: Sequence[Run]) -> Iterator[str]:
    """The comparison as Markdown, a row for each run but the first."""
    first = runs[0]
    yield f"| against {first.label} | steps | same responses | " + " | ".join(COMPARED) + " |"
    yield "|---" * (3 + len(COMPARED)) + "|"
    for run in runs[1:]:
        steps = sorted(first.rows.keys() & run.rows.keys())
        pairs = [pair for step in steps for pair in _pairs(first, run, step)]
        same = sum(a == b for a, b in pairs)
        worst = (f"{_worst(first, run, key, steps):.0e}" for key in COMPARED)
        yield f"| {run.label} | {len(steps)} | {same} of {len(pairs)} | " + " | ".join(worst) + " |"


def _pairs(first: Run, other: Run, step: int) -> Iterator[tuple[object, object]]:
    ours, theirs = first.responses(step), other.responses(step)
    if len(ours) != len(theirs):
        raise SystemExit(
            f"step {step} has {len(ours)} responses in {first.label}, {len(theirs)} in {other.label}"
        )
    return zip(ours, theirs, strict=True)


def _worst(first: Run, other: Run, key: str, steps: Sequence[int]) -> float:
    """The largest difference of a number, relative to its largest size in the first run."""
    size = max(abs(first.rows[step][key]) for step in steps)
    return max(abs(first.rows[step][key] - other.rows[step][key]) for step in steps) / size


def main() -> None:
    """Draw and compare the runs that are named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN=LABEL", help="folder of a train run, and its name")
    parser.add_argument("--out", type=Path, required=True, help="file of the picture (.svg)")
    given = parser.parse_args()
    if len(given.runs) > len(svg.DASHES):
        raise SystemExit(f"at most {len(svg.DASHES)} runs can be told apart")
    runs = [Run.of(argument) for argument in given.runs]
    write_atomic(given.out, picture(runs))
    print(*table(runs), sep="\n")


if __name__ == "__main__":
    main()
