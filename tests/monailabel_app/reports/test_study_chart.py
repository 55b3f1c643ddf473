"""The chart of a scan among healthy ones: a dot for each, this scan's line between those below and above it."""

import re

import pytest

from monailabel_app.reports import study_sections
from monailabel_app.reports.study_chart import distribution_chart


def dots(chart: str) -> list[float]:
    return [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', chart)]


def line(chart: str) -> float:
    return float(re.search(r'<line x1="([\d.]+)"[^>]*stroke="#b34e00"', chart)[1])


@pytest.mark.parametrize("own", [0.5, 2.0, 40.0])
def test_the_line_stands_between_the_scans_below_and_those_above(own):
    healthy = [0.4, 0.8, 1.1, 1.2, 1.9, 2.1, 3.0]
    chart = distribution_chart(healthy, own, title="t", x_label="x")
    assert len(dots(chart)) == len(healthy)
    assert sum(x < line(chart) for x in dots(chart)) == sum(value < own for value in healthy)
    assert f"higher than {sum(v < own for v in healthy)} of 7 healthy scans" in chart


def test_dots_of_equal_values_do_not_cover_each_other():
    chart = distribution_chart([1.0] * 40, 2.0, title="t", x_label="x")
    heights = re.findall(r'cy="([\d.]+)"', chart)
    assert len(set(heights)) == 40
    assert all(0 < float(y) < 132 for y in heights)


def test_many_zeros_are_a_bar_with_their_number():
    chart = distribution_chart([0.0] * 30 + [1.0, 2.0], 1.5, title="t", x_label="x")
    assert "30 of 32 with 0" in chart
    assert len(dots(chart)) == 2


def test_words_are_escaped():
    assert "<b>" not in distribution_chart([1.0], 1.0, title="<b>", x_label="<b>", unit="<b>")


def test_a_deviation_in_another_unit_than_the_score_is_not_put_beside_it():
    members = {"score_unit": "-log10 of the healthy share", "anomaly_score_std": 1.1}
    alone = {"score_unit": "healthy standard deviations", "anomaly_score_std": 1.1}
    assert study_sections._of_score(alone, alone, "anomaly_score") == "± 1.10"
    assert study_sections._of_score(members, members, "anomaly_score") is None
    assert study_sections._of_score({}, {}, "anomaly_score") is None
