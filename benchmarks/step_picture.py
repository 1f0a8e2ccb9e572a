"""The step benchmark as a picture: each trainer's step as a bar of its phases, in CPU seconds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from nemo_thinkprune.reporting import svg

_WIDTH, _LEFT, _RIGHT, _TOP, _BAR, _SLOT = 760.0, 130.0, 90.0, 62.0, 34.0, 58.0
_STYLE = ".chart .title{font-size:13px;fill:var(--ink)}.chart .whisker{stroke:var(--ink);stroke-width:1.2}"


def bars(parts: Mapping[str, Mapping[str, float]], whole: Mapping[str, Sequence[float]]) -> str:
    """One bar for each trainer: medians of its phases side by side, and the quartiles of its steps as a whisker."""
    names = list(next(iter(parts.values())))
    top = max(sum(phases.values()) for phases in parts.values()) * 1.08
    x = svg.Scale(0.0, top, _LEFT, _WIDTH - _RIGHT)
    bottom = _TOP + _SLOT * len(parts)
    values = svg.ticks(0.0, top, count=6)
    drawn = [
        svg.line(x(v), _TOP, x(v), bottom, css="grid")
        + svg.text(x(v), bottom + 15, svg.number(v), anchor="middle")
        for v in values
    ]
    drawn.append(svg.text(12, 20, "One GRPO step on the same work, float32, one thread", css="title"))
    drawn.append(
        svg.text((x.start + x.end) / 2, bottom + 34, "CPU seconds a step, medians by phase", anchor="middle")
    )
    for place, name in enumerate(names):
        left = _LEFT + 150 * place
        drawn.append(f'<rect x="{svg.px(left)}" y="34" width="10" height="10" fill="var(--c{place})"/>')
        drawn.append(svg.text(left + 15, 43, name))
    for number, (trainer, phases) in enumerate(parts.items()):
        y = _TOP + _SLOT * number + (_SLOT - _BAR) / 2
        drawn += [svg.text(_LEFT - 8, y + _BAR / 2 + 4, trainer, anchor="end", css="name")]
        drawn += _bar(x, y, phases) + _whisker(x, y, whole[trainer])
    title = "CPU seconds of a step by phase: " + ", ".join(parts)
    chart = svg.wrap("".join(drawn), width=_WIDTH, height=bottom + 46, title=title)
    return svg.standalone(chart).replace("<style>", f"<style>{_STYLE}", 1)


def _bar(x: svg.Scale, y: float, phases: Mapping[str, float]) -> list[str]:
    drawn, start = [], 0.0
    for colour, (name, value) in enumerate(phases.items()):
        left, right = x(start), x(start + value)
        drawn.append(
            f'<rect x="{svg.px(left)}" y="{svg.px(y)}" width="{svg.px(max(right - left, 0))}" height="{svg.px(_BAR)}" '
            f'fill="var(--c{colour})"><title>{name}: {value:.2f} s</title></rect>'
        )
        if right - left > 34:
            label = svg.text((left + right) / 2, y + _BAR / 2 + 4, f"{value:.2f}", anchor="middle")
            drawn.append(label.replace("<text ", '<text style="fill:#fff" ', 1))
        start += value
    return drawn


def _whisker(x: svg.Scale, y: float, steps: Sequence[float]) -> list[str]:
    median = statistics.median(steps)
    low, _, high = statistics.quantiles(steps, n=4, method="inclusive") if len(steps) > 1 else [median] * 3
    middle = y + _BAR + 6
    return [
        svg.line(x(low), middle, x(high), middle, css="whisker"),
        svg.line(x(median), middle - 4, x(median), middle + 4, css="whisker"),
        svg.text(x.end + 8, y + _BAR / 2 + 4, f"{median:.2f} s", css="name"),
    ]
