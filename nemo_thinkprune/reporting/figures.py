"""The figures of a report: which data goes into which chart."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nemo_thinkprune.evaluation import stats
from nemo_thinkprune.reporting import run_files
from nemo_thinkprune.reporting.charts import Axes, Mark, Sample, Series, histogram, line_chart
from nemo_thinkprune.reporting.run_files import Evaluation, Json, RunFiles, TrainFiles
from nemo_thinkprune.reporting.svg import DASHES

PRUNED, BEFORE, CONTROL = 0, 3, 1  # colours, the same in every figure
_BUDGET_POINTS = 60


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with its heading and one sentence on how to read it."""

    title: str
    chart: str
    note: str = ""
    narrow: str = ""
    """The same chart for a small screen; given for a chart that is as wide as the page."""


def result_figures(summary: Json, files: RunFiles) -> list[Figure]:
    """Accuracy and length by stage beside the control, and accuracy within a budget of tokens."""
    stages = [s for s in (summary.get("baseline"), *summary.get("rounds", ())) if s]
    if not stages:
        return []
    control = summary.get("control")
    limit = (summary.get("settings") or {}).get("limit")
    names = [s["label"] for s in stages]
    accuracy = _by_stage(stages, control, "accuracy")
    inside = [s["accuracy_within_limit"] for s in stages]
    accuracy.append(Series("within the round's own L", range(len(stages)), inside, 2, DASHES[2], points=True))
    figures = [
        Figure(
            "Mean response length",
            line_chart(
                _by_stage(stages, control, "mean_tokens"),
                Axes("Mean response length by stage", "", "tokens", from_zero=True, x_names=names),
            ),
            "Bars: ± one standard error, clustered by problem.",
        ),
        Figure(
            "Accuracy",
            line_chart(accuracy, Axes("Accuracy by stage", "", "accuracy", percent=True, x_names=names)),
            f"On the reporting set, responses of up to {limit} tokens; within L: finished inside the limit.",
        ),
    ]
    budget = budget_chart(files)
    if budget:
        figures.append(budget)
    return figures


def _by_stage(stages: Sequence[Json], control: Json | None, key: str) -> list[Series]:
    pruned = Series(
        "pruned",
        range(len(stages)),
        [s[key] for s in stages],
        PRUNED,
        errors=[s[f"{key}_se"] for s in stages],
        points=True,
    )
    if control is None or len(stages) < 2:
        return [pruned]
    end = len(stages) - 1 + 0.1  # beside the last round, whose error bar would hide it
    way = Series("control, no limit", [0, end], [stages[0][key], control[key]], CONTROL, DASHES[1])
    point = Series("", [end], [control[key]], CONTROL, errors=[control[f"{key}_se"]], points=True)
    return [way, pruned, point]


def named_evaluations(files: RunFiles) -> list[tuple[str, int, Evaluation]]:
    """(name, colour, evaluation) of before, after (the last evaluated round) and the control, if there."""
    found = []
    start = files.evaluations.get(run_files.START)
    if start:
        found.append(("before", BEFORE, start))
    done = [files.evaluations[r.name] for r in files.rounds if r.name in files.evaluations]
    if done:
        parsed = run_files.parse_round(done[-1].name)
        found.append((f"after L = {parsed[1]}" if parsed else "after", PRUNED, done[-1]))
    control = files.evaluations.get(run_files.CONTROL)
    if control:
        found.append(("control, no limit", CONTROL, control))
    return found


def budget_chart(files: RunFiles) -> Figure | None:
    """Accuracy as if every response were cut at a budget, for each budget up to the long limit."""
    series = []
    limits = [float(e.summary.get("limit") or 0) for _, _, e in named_evaluations(files)]
    most = max(limits, default=0.0)
    budgets = sorted({round(most * i / _BUDGET_POINTS) for i in range(1, _BUDGET_POINTS + 1)})
    for name, colour, evaluation in named_evaluations(files):
        rows = evaluation.rows()
        if rows and most:
            dash = DASHES[1] if colour == CONTROL else ""
            right = sorted(
                r["response_tokens"] for r in rows if stats.correct_within(r, r["response_tokens"])
            )
            shares = [bisect_right(right, b) / len(rows) for b in budgets]
            series.append(Series(name, budgets, shares, colour, dash))
    if not series:
        return None
    axes = Axes(
        "Accuracy within a budget",
        "budget, tokens",
        "accuracy",
        percent=True,
        from_zero=True,
        x_range=(0, most),
        marks=limit_marks(files.limits),
    )
    note = "A sample counts when it finished within the budget and is correct."
    return Figure("Accuracy within a budget", line_chart(series, axes), note)


def length_figure(files: RunFiles) -> Figure | None:
    """Histogram of response lengths before and after, beside the control, with the limits marked."""
    samples = [
        Sample(name, [float(r["response_tokens"]) for r in evaluation.rows()], colour, colour == CONTROL)
        for name, colour, evaluation in named_evaluations(files)
    ]
    if not files.evaluations and files.rounds:
        samples = _rollout_samples(files.rounds[0])
    samples = [s for s in samples if s.values]
    if not samples:
        return None
    marks = limit_marks(files.limits) if files.kind == "prune" else ()
    axes = Axes("Response lengths", "response tokens", "share of responses", percent=True, marks=marks)
    wide = replace(axes, width=1060.0, height=300.0)
    return Figure("", histogram(samples, wide, bins=60), narrow=histogram(samples, axes, bins=30))


def _rollout_samples(train: TrainFiles) -> list[Sample]:
    first, before = run_files.rollout_rows(train.folder, last=False)
    last, after = run_files.rollout_rows(train.folder, last=True)
    samples = [Sample(f"step {first}", [float(r["response_tokens"]) for r in before], BEFORE)]
    if last != first:
        samples.append(Sample(f"step {last}", [float(r["response_tokens"]) for r in after], PRUNED))
    return samples


def limit_marks(limits: Sequence[int]) -> tuple[Mark, ...]:
    """A vertical mark per limit."""
    return tuple(Mark(float(limit), f"L={limit}") for limit in limits)


_CURVES = (
    ("Reward", "reward_mean", "mean reward", False, False),
    ("Response tokens", "response_tokens_mean", "tokens", False, True),
    ("Truncated share", "truncated_share", "share of responses", True, True),
    ("Groups with mixed rewards", "mixed_group_share", "share of groups", True, True),
    ("KL to the reference", "kl", "KL per token", False, True),
    ("Gradient norm", "grad_norm", "L2 norm", False, True),
    ("Entropy", "entropy", "nats per token", False, True),
    ("Speed", "tokens_per_s", "tokens / s", False, True),
)


def warmup_figures(warmup: TrainFiles | None) -> list[Figure]:
    """Loss of the supervised warm-up, and the accuracy of its checks."""
    if warmup is None:
        return []
    figures = []
    steps = [row["step"] for row in warmup.steps]
    loss = Series("", steps, [_metric(row, "loss") for row in warmup.steps], PRUNED)
    if any(y is not None for y in loss.ys):
        axes = Axes("Warm-up: loss", "step", "nats per token", from_zero=True)
        figures.append(
            Figure("Warm-up: loss", line_chart([loss], axes), "Supervised, on the teacher's traces.")
        )
    checks = [(row["step"], _metric(row, "accuracy")) for row in warmup.validation]
    if len(checks) > 1:
        series = Series("", [s for s, _ in checks], [y for _, y in checks], PRUNED, points=True)
        axes = Axes("Warm-up: accuracy", "step", "accuracy", percent=True)
        figures.append(Figure("Warm-up: accuracy", line_chart([series], axes), "On the selection set."))
    return figures


def training_figures(files: RunFiles) -> list[Figure]:
    """One small chart per training metric, rounds joined end to end, the control dashed on the same steps."""
    joined, marks = join_rounds(files.rounds)
    control = files.control.steps if files.control else ()
    figures = []
    for title, key, label, is_percent, from_zero in _CURVES:
        series = [_curve(joined, key, "pruned" if files.kind == "prune" else "mean", PRUNED, "")]
        if key == "response_tokens_mean":
            xs, ys = [x for x, _ in joined], [_metric(r, "response_tokens_p90") for _, r in joined]
            series.append(Series("90th percentile", xs, ys, 2, DASHES[2]))
        series.append(_curve([(r["step"], r) for r in control], key, "control, no limit", CONTROL, DASHES[1]))
        if not any(y is not None for one in series for y in one.ys):
            continue
        axes = Axes(title, "step", label, percent=is_percent, from_zero=from_zero, marks=marks)
        figures.append(Figure(title, line_chart(series, axes)))
    return figures


def _curve(rows: Sequence[tuple[int, Json]], key: str, name: str, colour: int, dash: str) -> Series:
    return Series(name, [x for x, _ in rows], [_metric(row, key) for _, row in rows], colour, dash)


def _metric(row: Json, key: str) -> float | None:
    value = row.get(key, run_files.dig(row, "timing", key))
    return float(value) if isinstance(value, int | float) else None


def join_rounds(rounds: Sequence[TrainFiles]) -> tuple[list[tuple[int, Json]], tuple[Mark, ...]]:
    """Steps of all rounds on one axis (each starts where the previous ended), and where rounds begin."""
    joined: list[tuple[int, Json]] = []
    marks: list[Mark] = []
    offset = 0
    for train in rounds:
        if not train.steps:
            continue
        if train.limit is not None:
            marks.append(Mark(offset + train.steps[0]["step"] - 0.5 * bool(offset), f"L={train.limit}"))
        joined += [(offset + row["step"], row) for row in train.steps]
        offset += train.steps[-1]["step"]
    return joined, tuple(marks)
