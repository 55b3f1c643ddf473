"""Operating points in a card: rates with intervals, volumes where they are bounded."""

from monailabel_app.reports.point_table import operating_point_table

POINT = {"target_fpr": 0.01, "threshold": 1.5, "measured_fpr": 0.0101, "interval": [0.005, 0.02], "worst_fpr": 0.03}


def table(**points):
    return operating_point_table({"scores": {"signed": {"points": {"standard": points}}}})


def test_thresholds_come_with_their_measured_rate_and_interval():
    text = table(balanced=POINT)
    assert "| signed | balanced (1 %) | 1.50 | 1.01 % [0.50, 2.00] | 3.00 % |" in text
    assert "marked by at most" not in text


def test_a_point_that_bounds_a_volume_says_which_and_in_how_many_scans():
    bounded = {**POINT, "target_fpr": None, "target_ml": 2.0, "bound_ml": 1.94, "bound_level": 0.95}
    lines = table(balanced={**POINT, "bound_ml": None}, bounded=bounded).splitlines()
    assert lines[0].endswith("a healthy scan is marked by at most |")
    assert lines[2].endswith("| - |")
    assert "bounded (at most 2 ml)" in lines[3]
    assert lines[3].endswith("1.9 ml in 95.0 % of scans |")
