"""The picture of scaling.py: a panel a sweep on logarithmic axes, expected slopes dashed beside what was measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from nemo_thinkprune.reporting import svg

WIDTH, HEIGHT, GAP = 300.0, 300.0, 16.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 10.0, 64.0, 42.0
EXPECTED, BOUND = svg.DASHES[1], svg.DASHES[2]
BOUND_COLOUR = 3
BESIDE = (0.0, -8.0, 8.0)  # where step, rollout and update of a named place stand


@dataclass(frozen=True, slots=True)
class Place:
    """One point of a sweep: seconds of every step by phase, the expected seconds, and the bound of the cores."""

    name: str
    x: float
    seconds: Mapping[str, Sequence[float]]
    expected: Mapping[str, float]
    bound: float | None = None


@dataclass(frozen=True, slots=True)
class Panel:
    """A sweep; with `named` its places stand side by side under their names, else at x on a logarithmic axis."""

    title: str
    x_label: str
    named: bool
    places: tuple[Place, ...]
    note: str


def picture(panels: Sequence[Panel]) -> str:
    """All panels side by side, as an SVG file."""
    lines = [
        ("step", 0, ""),
        ("rollout", 1, ""),
        ("update", 2, ""),
        ("expected: model FLOPs / ranks", 0, EXPECTED),
    ]
    if any(place.bound is not None for panel in panels for place in panel.places):
        lines.append(("what the cores allow", BOUND_COLOUR, BOUND))
    width = len(panels) * (WIDTH + GAP) - GAP
    key, used = svg.legend(lines, x=LEFT, y=16, width=width - LEFT)
    body = key + "".join(
        f'<g transform="translate({svg.px(index * (WIDTH + GAP))} {svg.px(used)})">{_panel(panel)}</g>'
        for index, panel in enumerate(panels)
    )
    title = "Seconds of a step as the work grows: " + ", ".join(panel.title for panel in panels)
    return svg.standalone(svg.wrap(body, width=width, height=HEIGHT + used, title=title))


def _panel(panel: Panel) -> str:
    x, y = _x_scale(panel), _y_scale(panel)
    head = svg.text(LEFT, 18, panel.title, css="name") + svg.text(LEFT, 34, panel.note)
    return head + "".join([*_axes(panel, x, y), *_lines(panel, x, y)])


def _x_scale(panel: Panel) -> svg.Scale:
    if panel.named:
        return svg.Scale(-0.4, len(panel.places) - 0.6, LEFT, WIDTH - RIGHT)
    at = [math.log2(place.x) for place in panel.places]
    return svg.Scale(min(at) - 0.15, max(at) + 0.15, LEFT, WIDTH - RIGHT)


def _y_scale(panel: Panel) -> svg.Scale:
    values = [v for place in panel.places for steps in place.seconds.values() for v in steps]
    values += [v for place in panel.places for v in (*place.expected.values(), *_known(place.bound))]
    positive = [v for v in values if v > 0]
    return svg.Scale(math.log10(min(positive)) - 0.05, math.log10(max(positive)) + 0.05, HEIGHT - BOTTOM, TOP)


def _known(value: float | None) -> list[float]:
    return [] if value is None else [value]


def _axes(panel: Panel, x: svg.Scale, y: svg.Scale) -> Iterator[str]:
    for value in _decimal_ticks(10**y.low, 10**y.high):
        at = y(math.log10(value))
        yield svg.line(x.start, at, x.end, at, css="grid")
        yield svg.text(x.start - 6, at + 3.5, f"{value:g}", anchor="end")
    yield svg.line(x.start, y.start, x.end, y.start, css="axis")
    for index, place in enumerate(panel.places):
        at = _across(panel, index, x)
        yield svg.line(at, y.start, at, y.start + 4, css="axis")
        yield svg.text(at, y.start + 15, place.name if panel.named else f"{place.x:g}", anchor="middle")
    yield svg.text((x.start + x.end) / 2, HEIGHT - 8, panel.x_label, anchor="middle")
    yield svg.text(12, (y.start + y.end) / 2, "seconds", anchor="middle", turn=True)


def _lines(panel: Panel, x: svg.Scale, y: svg.Scale) -> Iterator[str]:
    for colour, name in enumerate(panel.places[0].seconds):
        ends = [_across(panel, index, x) for index in range(len(panel.places))]
        expected = [place.expected.get(name) for place in panel.places]
        slope = [(at, y(math.log10(v))) for at, v in zip(ends, expected, strict=True) if v]
        yield svg.polyline(slope, colour=colour, dash=EXPECTED)
        medians = [statistics.median(place.seconds[name]) for place in panel.places]
        measured = [(at, y(math.log10(v))) for at, v in zip(ends, medians, strict=True) if v > 0]
        yield "" if panel.named else svg.polyline(measured, colour=colour)
        for (at, middle), place, value in zip(measured, panel.places, medians, strict=True):
            steps = place.seconds[name]
            low, high = (y(math.log10(edge(steps))) for edge in (min, max))
            beside = at + BESIDE[colour] if panel.named else at
            yield svg.line(beside, low, beside, high, css="error", colour=colour)
            yield svg.marker(beside, middle, colour=colour, label=f"{place.name}, {name}: {value:.3g} s")
    bound = [
        (_across(panel, index, x), y(math.log10(place.bound)))
        for index, place in enumerate(panel.places)
        if place.bound is not None
    ]
    yield svg.polyline(bound, colour=BOUND_COLOUR, dash=BOUND)


def _across(panel: Panel, index: int, x: svg.Scale) -> float:
    return x(index if panel.named else math.log2(panel.places[index].x))


def _decimal_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between the ends."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    return [value for value in values if low <= value <= high]
