import itertools
import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_thinkprune.reporting import charts, svg
from nemo_thinkprune.reporting.charts import Axes, Mark, Sample, Series, histogram, line_chart

NS = "{http://www.w3.org/2000/svg}"


def texts(chart: str) -> list[str]:
    return [element.text for element in ET.fromstring(chart).iter(f"{NS}text")]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (0.91, 0.99, [0.92, 0.94, 0.96, 0.98]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round_numbers(low, high, expected):
    assert svg.ticks(low, high) == pytest.approx(expected)


def test_whole_ticks_never_split_a_step():
    assert svg.ticks(1, 3, count=6, whole=True) == [1, 2, 3]


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_lie_inside_and_are_evenly_spaced(low, span):
    values = svg.ticks(low, low + span)
    assert 1 <= len(values) <= 12
    assert all(low - span * 1e-6 <= v <= low + span * (1 + 1e-6) for v in values)
    gaps = [b - a for a, b in itertools.pairwise(values)]
    assert all(math.isclose(gap, gaps[0], rel_tol=1e-6, abs_tol=1e-9 * abs(low)) for gap in gaps)


@pytest.mark.parametrize(
    ("value", "step", "expected"),
    [(0.5, 0.25, "0.50"), (2.5, 2.5, "2.5"), (100, 20, "100"), (12000, 4000, "12k"), (0.001, 0.001, "0.001"),
     (2_500_000, None, "2.5M"), (0.0000012, 0.0000002, "1.2e-06"), (47.66, None, "47.7")],
)  # fmt: skip
def test_numbers_are_written_for_people(value, step, expected):
    assert svg.number(value, step=step) == expected


def test_percent_keeps_the_decimals_its_ticks_need():
    assert [svg.percent(v, step=0.005) for v in (0.965, 0.97)] == ["96.5%", "97.0%"]


def test_scale_maps_ends_to_ends():
    scale = svg.Scale(10, 20, 100, 0)
    assert (scale(10), scale(15), scale(20)) == (100, 50, 0)


def test_a_line_passes_through_its_points_in_pixels():
    axes = Axes("t", "step", "y", from_zero=True, x_range=(0, 10))
    chart = line_chart([Series("", [0, 10], [0.0, 8.0])], axes)
    line = ET.fromstring(chart).find(f"{NS}polyline").get("points").split()
    (x1, y1), (x2, y2) = [tuple(map(float, p.split(","))) for p in line]
    assert (x1, x2) == (58, axes.width - 12)
    assert y1 == axes.height - 40 and 14 < y2 < y1


def test_error_bars_reach_one_standard_error_both_ways():
    axes = Axes("t", "", "y", x_names=["a", "b"])
    chart = line_chart([Series("s", [0, 1], [10.0, 20.0], errors=[2.0, None], points=True)], axes)
    bars = [e for e in ET.fromstring(chart).iter(f"{NS}line") if e.get("class") == "error"]
    assert len(bars) == 3  # stem and two caps of the first point; the second has no error
    first = [float(e.get("cy")) for e in ET.fromstring(chart).iter(f"{NS}circle")]
    per_unit = (first[0] - first[1]) / 10
    stem = bars[0]
    assert float(stem.get("y2")) - float(stem.get("y1")) == pytest.approx(4 * per_unit, abs=0.3)


def test_missing_and_infinite_values_are_left_out():
    series = Series("s", [1, 2, 3, 4], [1.0, None, math.nan, math.inf])
    assert charts.clean(series).xs == [1]
    chart = line_chart([series], Axes("t", "x", "y"))
    assert len(list(ET.fromstring(chart).iter(f"{NS}circle"))) == 1  # one point is drawn as a point


def test_a_chart_without_data_says_so():
    assert "no data yet" in texts(line_chart([Series("s", [], [])], Axes("t", "x", "y")))
    assert "no data yet" in texts(histogram([Sample("s", [])], Axes("t", "x", "y")))


def test_every_text_is_escaped():
    bad = '</svg><script>alert(1)</script>&"'
    axes = Axes(bad, bad, bad, marks=[Mark(1.5, bad)])
    for chart in (
        line_chart([Series(bad, [1, 2], [1.0, 2.0], points=True), Series("b", [1, 2], [1.0, 2.0])], axes),
        histogram([Sample(bad, [1.0, 2.0])], axes),
        line_chart([Series("s", [0], [1.0])], Axes("t", "x", "y", x_names=[bad])),
    ):
        assert "<script" not in chart
        ET.fromstring(chart)


def test_long_series_are_averaged_not_dropped():
    series = charts.thin(Series("s", list(range(1000)), [float(i % 2) for i in range(1000)]), most=100)
    assert len(series.xs) == 100 and series.ys[:3] == [0.5, 0.5, 0.5] and series.xs[0] == 4.5


def test_a_share_axis_stays_a_share():
    chart = line_chart([Series("s", [1, 2], [0.99, 1.0])], Axes("t", "x", "y", percent=True))
    labels = [t for t in texts(chart) if t and t.endswith("%")]
    assert labels and all(float(label[:-1]) <= 100 for label in labels)


def test_flat_series_still_get_an_axis():
    chart = line_chart([Series("s", [1, 2, 3], [0.0, 0.0, 0.0])], Axes("t", "x", "y", from_zero=True))
    assert len([t for t in texts(chart) if re.fullmatch(r"[\d.]+", t or "")]) > 3


def test_overlapping_mark_labels_are_dropped_but_their_lines_stay():
    axes = Axes(
        "t", "x", "y", marks=[Mark(50.0, "L=50"), Mark(51.0, "L=51"), Mark(90.0, "L=90"), Mark(500, "no")]
    )
    chart = line_chart([Series("s", [0, 100], [0.0, 1.0])], axes)
    assert [t for t in texts(chart) if t.startswith("L=")] == ["L=50", "L=90"]
    assert sum(e.get("class") == "mark" for e in ET.fromstring(chart).iter(f"{NS}line")) == 3


def test_histogram_bins_count_every_value_once():
    shares = charts.bin_shares([0, 4.9, 5, 9.9, 10, 14], low=0, width=5, count=3)
    assert shares == pytest.approx([1 / 3, 1 / 3, 1 / 3])


@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=60))
def test_histogram_bins_cover_all_lengths(lengths):
    low, width = charts.bin_edges(min(lengths), max(lengths), 40)
    count = math.floor((max(lengths) - low) / width) + 1
    assert low <= min(lengths) and low + count * width > max(lengths)
    assert count <= 43
    assert sum(charts.bin_shares(lengths, low, width, count)) == pytest.approx(1)
    ET.fromstring(histogram([Sample("s", lengths)], Axes("t", "x", "y")))


def test_markers_differ_in_shape_as_well_as_colour():
    shapes = [svg.marker(0, 0, colour=c).replace(f"--c{c}", "") for c in range(4)]
    assert len(set(shapes)) == 4


def test_a_standalone_chart_carries_its_style():
    chart = svg.standalone(line_chart([Series("s", [1, 2], [1.0, 2.0])], Axes("t", "x", "y")))
    assert "--c0" in ET.fromstring(chart).find(f"{NS}style").text
