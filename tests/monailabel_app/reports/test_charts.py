"""Charts put values where their axes say, and keep every name readable."""

import math
import re
from itertools import pairwise

import pytest

from monailabel_app.reports.charts import Line, Strip, line_chart, log_of_one_more, power_of_two_ticks, strip_chart
from monailabel_app.reports.evaluation_charts import curve_charts
from monailabel_app.reports.markup import element

AXES = {"title": "t", "description": "d", "x_label": "x", "y_label": "y"}


def polylines(chart: str) -> list[list[tuple[float, float]]]:
    found = re.findall(r'<polyline points="([^"]*)"', chart)
    return [[tuple(map(float, pair.split(","))) for pair in points.split()] for points in found]


def text_places(chart: str, text: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(rf'<text x="([\d.]+)" y="([\d.]+)"[^>]*>{text}<', chart)]


def test_points_lie_where_the_axes_say():
    line = Line("model", "#0072b2", [(0, 0), (3, 0.5), (8, 1.0)])
    chart = line_chart([line], x_ticks=power_of_two_ticks(8), scale=log_of_one_more, **AXES)
    ((start, middle, end),) = polylines(chart)
    share = (middle[0] - start[0]) / (end[0] - start[0])
    assert share == pytest.approx(math.log(4) / math.log(9), abs=0.002)
    assert middle[1] == pytest.approx((start[1] + end[1]) / 2, abs=0.1)


def test_points_beyond_the_axis_or_without_a_number_are_not_drawn():
    line = Line("model", "#0072b2", [(0, 0.1), (0.5, math.nan), (0.7, 0.4), (5, 0.9)])
    assert [len(points) for points in polylines(line_chart([line], x_ticks=(0, 1), **AXES))] == [2]


@pytest.mark.parametrize("height", [0.0, 0.5, 1.0])
def test_names_of_curves_that_end_together_do_not_lie_on_each_other(height):
    lines = [Line(f"model {i}", "#0072b2", [(0, 0), (1, height)]) for i in range(8)]
    chart = line_chart(lines, x_ticks=(0, 1), **AXES)
    heights = sorted(text_places(chart, f"model {i}")[0][1] for i in range(8))
    assert min(b - a for a, b in pairwise(heights)) >= 13.9
    total = float(re.search(r'viewBox="0 0 \d+ (\d+)"', chart)[1])
    assert heights[0] > 8
    assert heights[-1] < total


def test_a_strip_shows_every_value_and_its_median():
    strips = [Strip("model", "#0072b2", {"healthy scans": [0.0, 1.0, 3.0]})]
    chart = strip_chart(strips, title="t", description="d", x_label="ml", ticks=[0, 1, 2, 4])
    places = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', chart)]
    assert places[1] - places[0] == pytest.approx((places[2] - places[0]) / 3, abs=0.2)
    assert "median 1.00 of 3" in chart


def test_rows_without_a_common_scale_fill_the_width():
    strips = [Strip(str(i), "#000000", {"healthy": [i, i + 0.1], "ill": [i + 0.2]}) for i in (1, 100)]
    chart = strip_chart(strips, title="t", description="d", x_label="score", ticks=None)
    places = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', chart)]
    assert places[0] == places[3]
    assert places[2] == places[5]


def froc_of(points: list[list[float]]) -> str:
    entry = {
        "rows": [{"model": "m", "method": "ddpm", "figures": {"pooled_ap": {"value": 0.3}}, "points": {}}],
        "curves": {"m": {"froc": points}},
    }
    return str(curve_charts(entry)[0])


def test_a_froc_curve_ends_before_regions_merge_into_one():
    rising = [[0.0, 0.1], [1.0, 0.4], [6.0, 0.7]]
    merged = [[2.0, 1.0], [0.0, 1.0]]
    faint, drawn = polylines(froc_of(rising + merged))
    assert len(drawn) == 3
    assert faint[0] == drawn[-1]
    assert len(faint) == 3
    assert [len(points) for points in polylines(froc_of(rising))] == [3]


def test_attributes_that_would_need_inline_code_are_refused():
    for name in ("style", "onclick"):
        with pytest.raises(ValueError, match="inline code"):
            element("p", **{name: "x"})
