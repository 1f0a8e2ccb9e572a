"""The picture of benchmarks/memory_truth.py: planned against measured bytes, both axes logarithmic."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import Protocol

from nemo_thinkprune.reporting.svg import STYLE

WIDTH, HEIGHT, LEFT, TOP, SIZE = 520.0, 470.0, 64.0, 24.0, 380.0
GIB = 2**30
SHAPES = ("load", "generate", "log-probs", "forward/backward", "optimizer", "save")


class Point(Protocol):
    """What is drawn of a comparison."""

    @property
    def case(self) -> str:
        """Name of the run."""
        ...

    @property
    def phase(self) -> str:
        """One of SHAPES."""
        ...

    @property
    def planned(self) -> int:
        """Bytes."""
        ...

    @property
    def measured(self) -> int:
        """Bytes."""
        ...


def picture(points: Sequence[Point]) -> str:
    """An SVG with a dot for each phase of each rank, the diagonal, and 10% to both sides of it."""
    sizes = [size / GIB for point in points for size in (point.planned, point.measured)]
    low, high = math.log2(min(sizes)) - 0.1, math.log2(max(sizes)) + 0.1
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" '
        'aria-label="Planned against measured resident memory">',
        f"<style>{STYLE}</style>",
        *_frame(low, high),
        *(_dot(point, low, high) for point in points),
        *_legend(),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _x(value: float, low: float, high: float) -> float:
    return LEFT + (value - low) / (high - low) * SIZE


def _y(value: float, low: float, high: float) -> float:
    return TOP + SIZE - (value - low) / (high - low) * SIZE


def _frame(low: float, high: float) -> Iterator[str]:
    tenth = math.log2(1.1)
    for shift, kind in ((0.0, "axis"), (tenth, "mark"), (-tenth, "mark")):
        start, end = max(low, low - shift), min(high, high - shift)
        yield (
            f'<line class="{kind}" x1="{_x(start, low, high):.1f}" y1="{_y(start + shift, low, high):.1f}" '
            f'x2="{_x(end, low, high):.1f}" y2="{_y(end + shift, low, high):.1f}"/>'
        )
    for power in range(math.ceil(low), math.floor(high) + 1):
        x, y, label = _x(power, low, high), _y(power, low, high), f"{2.0**power:g}"
        yield f'<line class="grid" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{TOP + SIZE}"/>'
        yield f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{LEFT + SIZE}" y2="{y:.1f}"/>'
        yield f'<text x="{x:.1f}" y="{TOP + SIZE + 16}" text-anchor="middle">{label}</text>'
        yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
    yield (
        f'<text class="name" x="{LEFT + SIZE / 2}" y="{TOP + SIZE + 36}" text-anchor="middle">'
        "measured peak of resident memory, GiB (VmHWM)</text>"
    )
    yield (
        f'<text class="name" x="16" y="{TOP + SIZE / 2}" text-anchor="middle" '
        f'transform="rotate(-90 16 {TOP + SIZE / 2})">planned, GiB</text>'
    )


def _dot(point: Point, low: float, high: float) -> str:
    x = _x(math.log2(point.measured / GIB), low, high)
    y = _y(math.log2(point.planned / GIB), low, high)
    return _mark(SHAPES.index(point.phase), x, y, f"{point.case}, {point.phase}")


def _mark(kind: int, x: float, y: float, title: str = "") -> str:
    """A circle, square or diamond in one of two colours, with a title for the pointer."""
    colour, said = f"var(--c{kind % 2})", f"<title>{escape(title)}</title>" if title else ""
    if kind // 2 == 0:
        place = f'cx="{x:.1f}" cy="{y:.1f}" r="3.5"'
        return f'<circle {place} fill="none" stroke="{colour}" stroke-width="1.5">{said}</circle>'
    turn = f' transform="rotate(45 {x:.1f} {y:.1f})"' if kind // 2 == 2 else ""
    return (
        f'<rect x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6" fill="none" stroke="{colour}" '
        f'stroke-width="1.5"{turn}>{said}</rect>'
    )


def _legend() -> Iterator[str]:
    for number, name in enumerate(SHAPES):
        x, y = LEFT + 14, TOP + 16 + 16 * number
        yield _mark(number, x, y)
        yield f'<text x="{x + 12}" y="{y + 4}">{escape(name)}</text>'
    yield (
        f'<text x="{LEFT + SIZE}" y="{TOP + SIZE - 10}" text-anchor="end">line: equal; dashed: 10% more and less</text>'
    )
