"""Two benchmarks of the same work: ratios with their spread.  Different work is refused, field by field."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from nemo_thinkprune.bench.phases import LABELS, PARTS, ROLLOUT, ROLLOUT_AND_SCORING, UPDATE
from nemo_thinkprune.bench.result import Machine, MeasuredStep, PhaseUse, Result
from nemo_thinkprune.bench.spread import FEWEST, Ratio, paired_ratio, ratio_of_medians, spread
from nemo_thinkprune.bench.summary import (
    GENERATED,
    RATES,
    STEP,
    STEP_TOKENS,
    TRAINED,
    devices_of,
    use_of_step,
)
from nemo_thinkprune.bench.table import WIDTH, seconds
from nemo_thinkprune.recipe.errors import UserError
from nemo_thinkprune.reporting.table import DASH, render

ALLOWED_TOKENS = 0.02
"""Without fixed lengths two runs may differ by this share in the tokens of a step and still be the same work."""

_WORTH_A_ROW = 0.01
_WORDS = {None: "too few steps to say", True: "differs", False: "no difference beyond the spread"}
_NAMES = {"limit": "limit (response tokens)", "problems": "problems (SHA-256 of the ids of the first step)"}

Take = Callable[[MeasuredStep], float | None]


def comparison(a: Result, b: Result) -> str:
    """Ratios of B to A as text.

    Raises:
        UserError: They measured different work; names every field in which it differs.
    """
    refuse_other_work(a, b)
    paired = same_steps(a, b)
    rows = [
        row for name, take in _quantities(a, b) if (row := _row(name, take, a, b, paired=paired)) is not None
    ]
    tested = sum(row[-1] in (_WORDS[True], _WORDS[False]) for row in rows)
    rows += [*_mfu_rows(a, b), *_memory_row(a, b)]
    head = ("B / A", "A median", "B median", "ratio", "95% interval", "")
    return "\n\n".join([_title(a, b), render(head, rows), _remarks(a, b, paired=paired, tested=tested)])


def refuse_other_work(a: Result, b: Result) -> None:
    """Refuse to compare different work.

    Raises:
        UserError: naming every field in which it differs, with both values.
    """
    problems = list(_differences(a.work, b.work))
    if not problems:
        problems = list(_other_tokens(a, b))
    if problems:
        listed = "\n".join(problems)
        raise UserError(
            f"A and B measured different work, so no ratio of their times means anything:\n{listed}\n"
            "measure both with the same recipe and data; --fixed-length makes lengths equal"
        )


def _differences(a: Any, b: Any, place: str = "") -> Iterator[str]:
    """Each field of two dataclasses that differs, as a line with both values."""
    for field in fields(a):
        one, other = getattr(a, field.name), getattr(b, field.name)
        if is_dataclass(one):
            yield from _differences(one, other, f"{place}{field.name}.")
        elif one != other:
            name = place + _NAMES.get(field.name, field.name.replace("_", " "))
            yield f"  {name}: {_shown(one)} and {_shown(other)}"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return text if len(text) <= 60 else f"{text[:12]}..."


def _other_tokens(a: Result, b: Result) -> Iterator[str]:
    """Token counts of a step that are further apart than rounding makes them."""
    counts: tuple[tuple[str, Callable[[MeasuredStep], int]], ...] = (
        ("prompt tokens of a step (mean)", lambda step: step.prompt_tokens),
        ("response tokens of a step (mean)", lambda step: step.response_tokens),
    )
    for name, count in counts:
        one, other = (sum(map(count, r.steps)) / len(r.steps) for r in (a, b))
        if not math.isclose(one, other, rel_tol=ALLOWED_TOKENS):
            yield f"  {name}: {one:,.1f} and {other:,.1f}"


def same_steps(a: Result, b: Result) -> bool:
    """Whether both measured the same steps with the very same lengths, so that they can be paired."""
    one, other = ([(step.step, step.lengths) for step in r.steps] for r in (a, b))
    return one == other


def _quantities(a: Result, b: Result) -> Iterator[tuple[str, Callable[[Result], Take]]]:
    """What is compared: a name, and how a result's step tells it."""
    phases = common_phases(a, b)
    for name, parts in phases.items():
        yield f"{LABELS[name]}, s", _same(lambda step, parts=parts: phase_seconds(step, parts))
    yield "step, s", _same(lambda step: step.seconds)
    for name, parts in phases.items():
        if max(phase_share(a, parts), phase_share(b, parts)) >= _WORTH_A_ROW:
            yield f"{LABELS[name]}, CPU s", _same(lambda step, parts=parts: phase_cpu_seconds(step, parts))
    yield "step, CPU s", _same(lambda step: use_of_step(step).cpu_seconds)
    yield "checkpoint, s", _same(lambda step: step.checkpoint.seconds if step.checkpoint else None)
    yield RATES[GENERATED], lambda r: lambda step: _generated(r, step)
    yield RATES[TRAINED], lambda r: lambda step: _per_device(r, _tokens(step), step, UPDATE)
    yield RATES[STEP_TOKENS], lambda r: lambda step: _tokens(step) / (step.seconds * r.conditions.devices)


def _same(take: Any) -> Callable[[Result], Take]:
    return lambda result: take


def common_phases(a: Result, b: Result) -> dict[str, tuple[str, ...]]:
    """Phases that both can tell, each with its parts: what one measured as several is put together for the other."""
    names = set(a.summary.phases) | set(b.summary.phases)
    groups = {}
    for whole, parts in PARTS.items():
        found = [set(r.summary.phases).intersection({whole, *parts}) for r in (a, b)]
        if whole in names and found[0] != found[1]:
            groups[whole] = (whole, *(part for part in parts if part != whole))
            names = names.difference(parts) | {whole}
    return {name: groups.get(name, (name,)) for name in LABELS if name in names}


def phase_seconds(step: MeasuredStep, parts: Sequence[str]) -> float:
    """Seconds of a phase, of those of its parts that the step has."""
    return sum(use.seconds for use in _uses(step, parts))


def phase_cpu_seconds(step: MeasuredStep, parts: Sequence[str]) -> float | None:
    """Processor seconds of a phase in the same way; None where the engine does not tell them."""
    values = [use.cpu_seconds for use in _uses(step, parts)]
    return None if None in values else sum(value for value in values if value is not None)


def phase_share(result: Result, parts: Sequence[str]) -> float:
    """Share of a phase in the time of all steps."""
    return sum(phase_seconds(s, parts) for s in result.steps) / sum(s.seconds for s in result.steps)


def _uses(step: MeasuredStep, parts: Sequence[str]) -> list[PhaseUse]:
    return [step.phases[part] for part in parts if part in step.phases]


def _tokens(step: MeasuredStep) -> int:
    return step.prompt_tokens + step.response_tokens


def _generated(result: Result, step: MeasuredStep) -> float | None:
    if GENERATED not in result.summary.rates:
        return None
    name = next(n for n in (ROLLOUT, ROLLOUT_AND_SCORING) if n in step.phases)
    return _per_device(result, step.response_tokens, step, name)


def _per_device(result: Result, tokens: int, step: MeasuredStep, name: str) -> float:
    return tokens / (step.phases[name].seconds * devices_of(name, result.conditions))


def _row(
    name: str, take: Callable[[Result], Take], a: Result, b: Result, *, paired: bool
) -> tuple[str, ...] | None:
    one, other = ([take(r)(step) for step in r.steps] for r in (a, b))
    first = [value for value in one if value is not None]
    second = [value for value in other if value is not None]
    if len(first) < len(one) or len(second) < len(other):
        return None  # one of the engines does not tell it
    medians = spread(first).median, spread(second).median
    form = seconds if name.endswith(" s") else (lambda value: f"{value:,.1f}")
    if min(first) <= 0 or min(second) <= 0:
        note = "not in A" if not any(first) else "not in B" if not any(second) else "too short to compare"
        return (name, form(medians[0]), form(medians[1]), DASH, DASH, note)
    ratio = (paired_ratio if paired else ratio_of_medians)(first, second)
    return (name, form(medians[0]), form(medians[1]), f"{ratio.value:.3f}", _interval(ratio), verdict(ratio))


def _mfu_rows(a: Result, b: Result) -> Iterator[tuple[str, ...]]:
    """MFU of phases and step: without interval, since the peak it goes by is one number of each benchmark."""
    peaks = [r.peak.flops_per_s for r in (a, b)]
    text = " and ".join(f"{(peak or 0) / 1e12:.3g}" for peak in peaks)
    note = "" if peaks[0] == peaks[1] else f"peaks {text} TFLOP/s"
    one, other = ({**r.summary.phases, STEP: r.summary.step} for r in (a, b))
    for name in (*LABELS, STEP):
        uses = [phases[name].mfu for phases in (one, other) if name in phases]
        medians = [use.median for use in uses if use is not None]
        if len(medians) == 2:
            shown = [f"{100 * median:.1f}%" for median in medians]
            yield (f"{LABELS.get(name, name)}, MFU", *shown, f"{medians[1] / medians[0]:.3f}", DASH, note)


def _memory_row(a: Result, b: Result) -> list[tuple[str, ...]]:
    """The most memory that any rank held in any step: a number each and no sample, so a ratio without interval."""
    one, other = (r.summary.step.peak_bytes_max for r in (a, b))
    if not one or not other:
        return []
    shown = [f"{value / 2**20:,.0f}" for value in (one, other)]
    return [("peak memory of a rank, MiB", *shown, f"{other / one:.3f}", DASH, "the most of all steps")]


def _interval(ratio: Ratio) -> str:
    return DASH if ratio.low is None or ratio.high is None else f"{ratio.low:.3f} .. {ratio.high:.3f}"


def verdict(ratio: Ratio) -> str:
    """What the ratio says, in words."""
    return _WORDS[ratio.beyond_spread]


def _title(a: Result, b: Result) -> str:
    return "\n".join(
        f"{name}: {r.recipe} on {r.conditions.engine}, {len(r.steps)} steps, measured {r.made}"
        for name, r in (("A", a), ("B", b))
    )


def _remarks(a: Result, b: Result, *, paired: bool, tested: int) -> str:
    how = (
        "Ratios are medians of B / A step by step, as both did the very same steps (equal lengths)."
        if paired
        else "Ratios are those of the medians: lengths differ a little between A and B, or their numbers of steps do."
    )
    lines = [
        f"{how} Intervals: percentile bootstrap over steps. Below 1 B takes less time; above 1 a rate or MFU of B is "
        "higher.",
        *_by_chance(tested),
        "Where other programs share the machine, CPU s says more than s.",
        *_listed("What differs in how it was done", _differences(a.conditions, b.conditions)),
        *_listed("WARNING, the machine or its software differs", _machine(a.machine, b.machine)),
    ]
    if a.recipe_sha256 != b.recipe_sha256:
        lines.append("The recipes are not the same in every setting.")
    if min(len(a.steps), len(b.steps)) < FEWEST:
        lines.append(f"With fewer than {FEWEST} steps there is no interval: measure more.")
    for name, result in (("A", a), ("B", b)):
        lines += [f"ERROR in the measurement of {name}: {error}" for error in result.errors]
    return "\n".join(_filled(line) for line in lines)


def _by_chance(tested: int) -> list[str]:
    """How many rows of equal things "differ": each is tested by itself."""
    if not tested:
        return []
    return [
        f'{tested} rows, each tested at 95%: of equal things one in 20 "differs"; measure a lone one again.'
    ]


def _listed(title: str, lines: Iterator[str]) -> list[str]:
    found = [line.strip() for line in lines]
    return [f"{title}: {'; '.join(found)}."] if found else []


def _machine(a: Machine, b: Machine) -> Iterator[str]:
    for field in fields(a):
        if field.name != "packages" and (one := getattr(a, field.name)) != (other := getattr(b, field.name)):
            yield f"{field.name}: {_shown(one)} and {_shown(other)}"
    for name in sorted({*a.packages, *b.packages}):
        one, other = a.packages.get(name, "none"), b.packages.get(name, "none")
        if one != other:
            yield f"{name} {one} and {other}"


def _filled(text: str) -> str:
    return textwrap.fill(
        text, WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
