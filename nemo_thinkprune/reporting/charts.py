"""The charts of a report as pure functions: data in, one inline SVG string out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nemo_thinkprune.reporting import svg

_LEFT, _RIGHT, _BOTTOM, _TOP = 58.0, 12.0, 40.0, 14.0
_MOST_POINTS = 400


@dataclass(frozen=True, slots=True)
class Series:
    """One line: points, optional error bars (``errors``, same unit as ys) or a band (``low``/``high``)."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float | None]
    colour: int = 0
    dash: str = ""
    errors: Sequence[float | None] = ()
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    points: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line at ``x`` with a short label at its top (a limit, the start of a round)."""

    x: float
    label: str


@dataclass(frozen=True, slots=True)
class Axes:
    """What the axes say and how far they reach."""

    title: str
    x_label: str
    y_label: str
    percent: bool = False
    from_zero: bool = False
    x_names: Sequence[str] = ()
    x_range: tuple[float, float] | None = None
    width: float = 360.0
    height: float = 232.0
    whole_x: bool = True
    marks: Sequence[Mark] = field(default_factory=tuple)


def line_chart(series: Sequence[Series], axes: Axes) -> str:
    """Lines over a numeric or named x axis, with error bars, bands and vertical marks.

    Points whose y is None or not finite are left out; a chart without any point says "no data yet".
    """
    drawn = [thin(clean(one)) for one in series]
    drawn = [one for one in drawn if one.xs]
    if not drawn:
        return _empty(axes)
    names = [(one.name, one.colour, one.dash) for one in drawn if one.name]
    x, y, plot = _frame(axes, names if len(names) > 1 else [], _x_range(drawn, axes), _y_range(drawn, axes))
    body = "".join(_draw(one, x, y, axes) for one in drawn)
    return svg.wrap(plot + body, width=axes.width, height=axes.height, title=axes.title)


def clean(one: Series) -> Series:
    """The series without the points that have no finite y."""
    keep = [i for i, y in enumerate(one.ys) if y is not None and math.isfinite(y)]
    return Series(
        name=one.name,
        xs=[one.xs[i] for i in keep],
        ys=[one.ys[i] for i in keep],
        colour=one.colour,
        dash=one.dash,
        errors=[one.errors[i] for i in keep] if one.errors else (),
        low=[one.low[i] for i in keep] if one.low else (),
        high=[one.high[i] for i in keep] if one.high else (),
        points=one.points,
    )


def thin(one: Series, most: int = _MOST_POINTS) -> Series:
    """The series with neighbouring points averaged until at most ``most`` remain."""
    if len(one.xs) <= most:
        return one
    size = math.ceil(len(one.xs) / most)

    def means(values: Sequence[float | None]) -> list[float | None]:
        chunks = [[v for v in values[i : i + size] if v is not None] for i in range(0, len(values), size)]
        return [sum(chunk) / len(chunk) if chunk else None for chunk in chunks]

    return Series(
        name=one.name,
        xs=[x for x in means(one.xs) if x is not None],
        ys=means(one.ys),
        colour=one.colour,
        dash=one.dash,
        low=means(one.low),
        high=means(one.high),
        points=one.points,
    )


def _x_range(series: Sequence[Series], axes: Axes) -> tuple[float, float]:
    if axes.x_range:
        return axes.x_range
    if axes.x_names:
        return -0.35, len(axes.x_names) - 0.65
    low = min(min(one.xs) for one in series)
    high = max(max(one.xs) for one in series)
    return (low, high) if high > low else (low - 1, high + 1)


def _y_range(series: Sequence[Series], axes: Axes) -> tuple[float, float]:
    values: list[float] = []
    for one in series:
        spread = [e or 0.0 for e in one.errors] or [0.0] * len(one.ys)
        values += [y + e * s for y, e in zip(one.ys, spread, strict=True) if y is not None for s in (-1, 1)]
        values += [v for v in (*one.low, *one.high) if v is not None and math.isfinite(v)]
    low, high = min(values), max(values)
    if axes.from_zero:
        low = min(low, 0.0)
    least = 0.02 if axes.percent else max(abs(high), abs(low)) * 0.05 or 1.0
    if high - low < least:
        middle, low_is_zero = (high + low) / 2, axes.from_zero and low >= 0
        low, high = (0.0, high + least) if low_is_zero else (middle - least / 2, middle + least / 2)
    pad = (high - low) * 0.06
    low_padded = low if axes.from_zero and low == 0 else low - pad
    high_padded = high + pad
    if axes.percent and min(values) >= 0 and max(values) <= 1:  # a share's axis stays a share
        low_padded, high_padded = max(low_padded, 0.0), min(high_padded, 1.0 + pad / 3)
    return low_padded, high_padded


def _frame(
    axes: Axes, names: Sequence[tuple[str, int, str]], xs: tuple[float, float], ys: tuple[float, float]
) -> tuple[svg.Scale, svg.Scale, str]:
    key, used = svg.legend(names, x=_LEFT, y=14, width=axes.width - _LEFT - _RIGHT)
    top = _TOP + used + (10 if axes.marks else 0)
    x = svg.Scale(*xs, _LEFT, axes.width - _RIGHT)
    y = svg.Scale(*ys, axes.height - _BOTTOM, top)
    return x, y, key + _y_axis(axes, x, y) + _x_axis(axes, x, y) + _marks(axes, x, y)


def _y_axis(axes: Axes, x: svg.Scale, y: svg.Scale) -> str:
    values = svg.ticks(y.low, y.high, count=6)
    step = values[1] - values[0] if len(values) > 1 else None
    say: Callable[..., str] = svg.percent if axes.percent else svg.number
    parts = [
        svg.line(x.start, y(v), x.end, y(v), css="grid")
        + svg.text(x.start - 6, y(v) + 3.5, say(v, step=step), anchor="end")
        for v in values
    ]
    middle = (y.start + y.end) / 2
    return "".join(parts) + svg.text(12, middle, axes.y_label, anchor="middle", turn=True)


def _x_axis(axes: Axes, x: svg.Scale, y: svg.Scale) -> str:
    base = y.start
    parts = [svg.line(x.start, base, x.end, base, css="axis")]
    if axes.x_names:
        parts += [svg.text(x(i), base + 15, name, anchor="middle") for i, name in enumerate(axes.x_names)]
    else:
        values = svg.ticks(x.low, x.high, count=6, whole=axes.whole_x)
        step = values[1] - values[0] if len(values) > 1 else None
        parts += [
            svg.line(x(v), base, x(v), base + 4, css="axis")
            + svg.text(x(v), base + 15, svg.number(v, step=step), anchor="middle")
            for v in values
        ]
    parts.append(svg.text((x.start + x.end) / 2, axes.height - 6, axes.x_label, anchor="middle"))
    return "".join(parts)


def _marks(axes: Axes, x: svg.Scale, y: svg.Scale) -> str:
    parts: list[str] = []
    free = -math.inf
    for mark in sorted((m for m in axes.marks if x.low <= m.x <= x.high), key=lambda m: m.x):
        at = x(mark.x)
        parts.append(svg.line(at, y.end - 4, at, y.start, css="mark"))
        if at + 2 >= free:  # a label that would overlap its neighbour is left out; the line stays
            parts.append(svg.text(at + 2, y.end - 6, mark.label))
            free = at + 2 + svg.text_width(mark.label) + 4
    return "".join(parts)


def _draw(one: Series, x: svg.Scale, y: svg.Scale, axes: Axes) -> str:
    values = [v for v in one.ys if v is not None]
    points = [(x(a), y(b)) for a, b in zip(one.xs, values, strict=True)]
    parts = []
    if one.low and one.high:
        parts.append(_band(one, x, y))
    parts.append(svg.polyline(points, colour=one.colour, dash=one.dash))
    for (px_x, _), value, error in zip(points, values, one.errors or [None] * len(points), strict=True):
        if error:
            top, bottom = y(value + error), y(value - error)
            parts += [
                svg.line(px_x, top, px_x, bottom, css="error", colour=one.colour),
                svg.line(px_x - 4, top, px_x + 4, top, css="error", colour=one.colour),
                svg.line(px_x - 4, bottom, px_x + 4, bottom, css="error", colour=one.colour),
            ]
    if one.points or len(points) == 1:
        say = svg.percent if axes.percent else svg.number
        parts += [
            svg.marker(px_x, px_y, colour=one.colour, label=f"{one.name}: {say(v)}" if one.name else say(v))
            for (px_x, px_y), v in zip(points, values, strict=True)
        ]
    return "".join(parts)


def _band(one: Series, x: svg.Scale, y: svg.Scale) -> str:
    rows = [
        (a, lo, hi)
        for a, lo, hi in zip(one.xs, one.low, one.high, strict=True)
        if lo is not None and hi is not None
    ]
    upper = [(x(a), y(hi)) for a, _, hi in rows]
    return svg.band(upper, [(x(a), y(lo)) for a, lo, _ in rows], colour=one.colour)


@dataclass(frozen=True, slots=True)
class Sample:
    """A named set of lengths for the histogram; ``outline`` draws it dashed and unfilled."""

    name: str
    values: Sequence[float]
    colour: int = 0
    outline: bool = False


def histogram(samples: Sequence[Sample], axes: Axes, *, bins: int = 40) -> str:
    """Overlaid histograms as filled steps, each normalised to its own number of values (y is a share)."""
    filled = [one for one in samples if one.values]
    if not filled:
        return _empty(axes)
    high = max(max(one.values) for one in filled)
    low, width = bin_edges(min(min(one.values) for one in filled), high, bins)
    count = max(1, math.floor((high - low) / width + 1e-9) + 1)
    shares = {id(one): bin_shares(one.values, low, width, count) for one in filled}
    most = max(max(share) for share in shares.values())
    names = [(one.name, one.colour, svg.DASHES[1] if one.outline else "") for one in filled]
    x_range = axes.x_range or (low, low + count * width)
    x, y, plot = _frame(axes, names, x_range, (0.0, most * 1.08))
    body = "".join(_steps(shares[id(one)], one, x, y, low, width) for one in filled)
    return svg.wrap(plot + body, width=axes.width, height=axes.height, title=axes.title)


def bin_edges(low: float, high: float, bins: int) -> tuple[float, float]:
    """First edge and width of about ``bins`` bins of a round width that cover ``low``..``high``."""
    width = max(1.0, math.ceil(svg.nice_step(max(high - low, 1.0), bins)))
    return math.floor(low / width) * width, width


def bin_shares(values: Sequence[float], low: float, width: float, count: int) -> list[float]:
    """Share of values in each of ``count`` bins [low + i * width, low + (i + 1) * width)."""
    counts = [0] * count
    for value in values:
        counts[min(count - 1, max(0, math.floor((value - low) / width)))] += 1
    return [c / len(values) for c in counts]


def _steps(shares: Sequence[float], one: Sample, x: svg.Scale, y: svg.Scale, low: float, width: float) -> str:
    corners = [(x(low), y(0))]
    for i, share in enumerate(shares):
        corners += [(x(low + i * width), y(share)), (x(low + (i + 1) * width), y(share))]
    corners.append((x(low + len(shares) * width), y(0)))
    path = " ".join(f"{svg.px(a)},{svg.px(b)}" for a, b in corners)
    colour = f"var(--c{one.colour})"
    if one.outline:
        return (
            f'<polyline points="{path}" class="line" stroke="{colour}" stroke-dasharray="{svg.DASHES[1]}"/>'
        )
    return (
        f'<polygon points="{path}" fill="{colour}" fill-opacity="0.25" stroke="{colour}" stroke-width="1.5"/>'
    )


def _empty(axes: Axes) -> str:
    note = svg.text(axes.width / 2, axes.height / 2, "no data yet", anchor="middle")
    return svg.wrap(note, width=axes.width, height=axes.height, title=f"{axes.title}: no data yet")
