"""A benchmark as a picture: every measured step as a stack of its phases, and every phase with its spread."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from types import MappingProxyType

from nemo_thinkprune.bench.phases import (
    CHECKPOINT,
    LABELS,
    LOGPROBS,
    OLD,
    OTHER,
    RECORDS,
    REFERENCE,
    REFIT,
    ROLLOUT,
    ROLLOUT_AND_SCORING,
    SCORING,
    UPDATE,
    WAIT,
)
from nemo_thinkprune.bench.result import PhaseSummary, Result
from nemo_thinkprune.bench.table import seconds
from nemo_thinkprune.reporting import svg

_WIDTH, _LEFT, _MIDDLE, _LABELS, _RIGHT = 860.0, 58.0, 400.0, 590.0, 14.0
_TOP, _ROW = 66.0, 26.0
_STYLE = """
.chart{--p0:#7a6a00;--p1:#b0457b;--p2:#4a7f96;--p3:#8b95a3;--p4:#1f5c66;--bad:#b00020}
@media (prefers-color-scheme:dark){
.chart{--p0:#d9c64a;--p1:#f28ab8;--p2:#8cc4dc;--p3:#7d8896;--p4:#6fb3bd;--bad:#ff8a80}}
.chart .title{font-size:13px;fill:var(--ink)}.chart .bad{fill:var(--bad)}
.chart .whisker{stroke:var(--ink);stroke-width:1.2}.chart .median{stroke:var(--ink);stroke-width:2}
"""
_COLOURS: Mapping[str, str] = MappingProxyType(
    {
        ROLLOUT: "--c0",
        ROLLOUT_AND_SCORING: "--c0",
        SCORING: "--p0",
        WAIT: "--p0",
        OLD: "--p1",
        REFERENCE: "--c3",
        LOGPROBS: "--c3",
        UPDATE: "--c1",
        REFIT: "--p2",
        RECORDS: "--c2",
        OTHER: "--p3",
        CHECKPOINT: "--p4",
    }
)


def picture(result: Result) -> str:
    """The picture as an SVG file."""
    phases = dict(result.summary.phases)
    if result.summary.checkpoint is not None:
        phases[CHECKPOINT] = result.summary.checkpoint
    bottom = _TOP + max(len(phases) * _ROW, 200.0)
    height = bottom + 46 + 16 * len(result.errors)
    parts = [_title(result), _stacks(result, bottom), _spreads(phases, bottom)]
    parts += [
        svg.text(_LEFT, bottom + 56 + 16 * i, f"ERROR in the measurement: {_shortened(error)}", css="bad")
        for i, error in enumerate(result.errors)
    ]
    chart = svg.wrap("".join(parts), width=_WIDTH, height=height, title=f"Benchmark of {result.recipe}")
    return svg.standalone(chart).replace("<style>", f"<style>{_STYLE}", 1)


def _shortened(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:97]}..."


def _title(result: Result) -> str:
    how, work = result.conditions, result.work
    layout = f"TP{how.tensor_parallel} PP{how.pipeline_parallel} DP{how.data_parallel}"
    first = f"{result.recipe} on {how.engine}: {len(result.steps)} steps"
    second = (
        f"{work.model.parameters:,} parameters, {work.prompts} x {work.samples} responses of at most {work.limit} "
        f"tokens, {layout}, {how.precision}, {how.device}"
    )
    return svg.text(12, 18, first, css="title") + svg.text(12, 34, second)


def _stacks(result: Result, bottom: float) -> str:
    """One column for each step."""
    top = max(step.seconds for step in result.steps)
    y = svg.Scale(0.0, top * 1.04, bottom, _TOP)
    values = svg.ticks(0.0, top * 1.04, count=6)
    gap = values[1] - values[0] if len(values) > 1 else None
    parts = [
        svg.line(_LEFT, y(v), _MIDDLE, y(v), css="grid")
        + svg.text(_LEFT - 6, y(v) + 3.5, svg.number(v, step=gap), anchor="end")
        for v in values
    ]
    slot = (_MIDDLE - _LEFT) / len(result.steps)
    width = min(0.7 * slot, 60.0)
    for index, step in enumerate(result.steps):
        left, below = _LEFT + slot * (index + 0.5) - width / 2, 0.0
        for name, use in step.phases.items():
            above = below + use.seconds
            tip = f"step {step.step}, {LABELS[name]}: {seconds(use.seconds)} s"
            parts.append(_box(left, y(above), width, y(below) - y(above), name, tip))
            below = above
        if len(result.steps) <= 20 or index % (len(result.steps) // 10) == 0:
            parts.append(svg.text(left + width / 2, bottom + 15, str(step.step), anchor="middle"))
    parts.append(svg.line(_LEFT, bottom, _MIDDLE, bottom, css="axis"))
    parts.append(svg.text((_LEFT + _MIDDLE) / 2, bottom + 34, "step", anchor="middle"))
    parts.append(svg.text(_LEFT, _TOP - 12, "seconds of each step, by phase", css="name"))
    return "".join(parts)


def _spreads(phases: Mapping[str, PhaseSummary], bottom: float) -> str:
    """One row for each phase: its median as a bar, quartiles as a box, least and most as a whisker."""
    x = svg.Scale(0.0, max(one.seconds.max for one in phases.values()) * 1.04, _LABELS, _WIDTH - _RIGHT)
    values = svg.ticks(x.low, x.high, count=4)
    gap = values[1] - values[0] if len(values) > 1 else None
    parts = [
        svg.line(x(v), _TOP, x(v), bottom, css="grid")
        + svg.text(x(v), bottom + 15, svg.number(v, step=gap), anchor="middle")
        for v in values
    ]
    for index, (name, one) in enumerate(phases.items()):
        middle = _TOP + _ROW * (index + 0.5)
        time = one.seconds
        label = LABELS[name] + (" (beside the step)" if name == CHECKPOINT else "")
        tip = f"{label}: median {seconds(time.median)} s, {seconds(time.min)} to {seconds(time.max)}"
        parts += [
            svg.text(_LABELS - 8, middle + 4, label, anchor="end", css="name"),
            _box(x(0), middle - 7, x(time.median) - x(0), 14, name, tip),
            svg.line(x(time.min), middle, x(time.max), middle, css="whisker"),
            *(svg.line(x(v), middle - 4, x(v), middle + 4, css="whisker") for v in (time.lower, time.upper)),
        ]
    count = next(iter(phases.values())).seconds.n
    parts.append(svg.text(_LABELS, bottom + 34, f"seconds; n = {count}"))
    heading = "each phase: median (bar), quartiles (ticks), least to most (line)"
    return "".join(parts) + svg.text(_WIDTH - _RIGHT, _TOP - 12, heading, anchor="end", css="name")


def _box(x: float, y: float, width: float, height: float, name: str, tip: str) -> str:
    return (
        f'<rect x="{svg.px(x)}" y="{y:.2f}" width="{svg.px(max(width, 0.0))}" height="{max(height, 0.0):.2f}" '
        f'fill="var({_COLOURS[name]})"><title>{escape(tip)}</title></rect>'
    )
