"""Small pure pieces of an SVG chart: ticks, scales, text, and the frame around a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

FONT_PX = 11.0
_CHAR_PX = 6.0  # mean advance of a sans-serif character at FONT_PX; only legends and margins rely on it

STYLE = """
.chart{--ink:#1c2430;--soft:#5d6878;--grid:#e3e7ec;--mark:#8b95a3;
--c0:#0b63b0;--c1:#c8500a;--c2:#00795a;--c3:#8a4fa3}
@media (prefers-color-scheme:dark){.chart{--ink:#e7ebf0;--soft:#a3aebc;--grid:#2f3844;--mark:#7d8896;
--c0:#6cb6ff;--c1:#ff9a52;--c2:#4fd1a5;--c3:#d3a4ee}}
.chart{font:11px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
.chart text{fill:var(--soft)}.chart .name{fill:var(--ink)}.chart .grid{stroke:var(--grid)}
.chart .axis{stroke:var(--mark)}.chart .mark{stroke:var(--mark);stroke-dasharray:2 3}
.chart .line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.chart .error{stroke-width:1.5}
"""
"""Chart style in both schemes: blue, orange, green and purple that stay apart for colour-blind readers."""

DASHES = ("", "6 4", "2 3", "8 3 2 3")


@dataclass(frozen=True, slots=True)
class Scale:
    """Linear map from data (``low``..``high``) to pixels (``start``..``end``)."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Pixel position of a data value."""
        span = self.high - self.low
        return self.start + (value - self.low) / (span if span else 1.0) * (self.end - self.start)


def nice_step(span: float, count: int) -> float:
    """The 1, 2, 2.5 or 5 times a power of ten that cuts ``span`` into about ``count`` parts."""
    raw = max(span, 1e-12) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    return next(step * power for step in (1.0, 2.0, 2.5, 5.0, 10.0) if raw <= step * power * (1 + 1e-9))


def ticks(low: float, high: float, *, count: int = 5, whole: bool = False) -> list[float]:
    """Round tick values inside ``low``..``high``; with ``whole`` only integers (steps, tokens)."""
    step = nice_step(high - low, count)
    if whole:
        step = max(1.0, float(math.ceil(step)))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [0.0 if i == 0 else i * step for i in range(first, last + 1)]


def number(value: float, *, step: float | None = None) -> str:
    """A number for people: 12k for thousands, no needless digits; ``step`` of the ticks sets the decimals."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    if step is not None and step > 0:
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        if abs(step * 10**decimals - round(step * 10**decimals)) > 1e-6:
            decimals += 1  # a step of 2.5 or 0.25 needs one digit more
        return f"{value:.{decimals}f}" if decimals <= 4 else f"{value:.1e}"
    return f"{value:.3g}" if size < 100 else f"{value:,.0f}"


def percent(value: float, *, step: float | None = None) -> str:
    """A share as a percentage with the decimals that ``step`` (also a share) needs."""
    return number(100 * value, step=None if step is None else 100 * step) + "%"


def px(value: float) -> str:
    """A pixel coordinate with one decimal."""
    return f"{value:.1f}".removesuffix(".0")


def text(
    x: float, y: float, content: str, *, anchor: str = "start", css: str = "", turn: bool = False
) -> str:
    """An escaped text element; ``turn`` writes it upwards (y-axis titles)."""
    rotate = f' transform="rotate(-90 {px(x)} {px(y)})"' if turn else ""
    name = f' class="{css}"' if css else ""
    return f'<text x="{px(x)}" y="{px(y)}" text-anchor="{anchor}"{name}{rotate}>{escape(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, *, css: str, colour: int | None = None) -> str:
    """A straight line of class ``css``, optionally in series colour ``colour``."""
    stroke = "" if colour is None else f' stroke="var(--c{colour})"'
    return f'<line x1="{px(x1)}" y1="{px(y1)}" x2="{px(x2)}" y2="{px(y2)}" class="{css}"{stroke}/>'


def marker(x: float, y: float, *, colour: int, label: str = "") -> str:
    """A data point: circle, square, diamond or triangle by colour, so that shape repeats what colour says."""
    fill = f'fill="var(--c{colour})"'
    tip = f"<title>{escape(label)}</title>" if label else ""
    r = 4.0
    if colour == 0:
        return f'<circle cx="{px(x)}" cy="{px(y)}" r="{px(r)}" {fill}>{tip}</circle>'
    corners = {
        1: [(-r, -r), (r, -r), (r, r), (-r, r)],
        2: [(0, -r - 1.5), (r + 1.5, 0), (0, r + 1.5), (-r - 1.5, 0)],
    }.get(colour, [(0, -r - 1), (r + 1, r), (-r - 1, r)])
    points = " ".join(f"{px(x + dx)},{px(y + dy)}" for dx, dy in corners)
    return f'<polygon points="{points}" {fill}>{tip}</polygon>'


def polyline(points: Sequence[tuple[float, float]], *, colour: int, dash: str = "") -> str:
    """A line through pixel points; nothing for fewer than two."""
    if len(points) < 2:
        return ""
    path = " ".join(f"{px(x)},{px(y)}" for x, y in points)
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<polyline points="{path}" class="line" stroke="var(--c{colour})"{dashes}/>'


def band(upper: Sequence[tuple[float, float]], lower: Sequence[tuple[float, float]], *, colour: int) -> str:
    """The filled area between two pixel lines."""
    path = " ".join(f"{px(x)},{px(y)}" for x, y in [*upper, *reversed(lower)])
    return f'<polygon points="{path}" fill="var(--c{colour})" opacity="0.16" stroke="none"/>'


def text_width(content: str) -> float:
    """Estimated width of a label in pixels."""
    return len(content) * _CHAR_PX


def legend(names: Sequence[tuple[str, int, str]], *, x: float, y: float, width: float) -> tuple[str, float]:
    """Swatch and name of each (name, colour, dash), wrapped to ``width``; returns (svg, height used)."""
    parts, left, top = [], x, y
    for name, colour, dash in names:
        need = 24 + text_width(name) + 14
        if left > x and left + need > x + width:
            left, top = x, top + 16
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        parts.append(
            f'<line x1="{px(left)}" y1="{px(top - 4)}" x2="{px(left + 18)}" y2="{px(top - 4)}" '
            f'class="line" stroke="var(--c{colour})"{dashes}/>' + text(left + 24, top, name, css="name")
        )
        left += need
    return "".join(parts), (top - y + 20) if names else 0.0


def wrap(body: str, *, width: float, height: float, title: str) -> str:
    """A complete, responsive and accessible ``<svg>`` element around ``body``."""
    return (
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {px(width)} {px(height)}" '
        f'role="img" aria-label="{escape(title, quote=True)}">{body}</svg>'
    )


def standalone(chart: str) -> str:
    """A chart as a file of its own: the same SVG with its style inside."""
    opening, rest = chart.split(">", 1)
    return f"{opening}><style>{STYLE}</style>{rest}\n"
