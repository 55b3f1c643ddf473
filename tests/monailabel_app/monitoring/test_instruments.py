"""Counted figures: bounded labels, numbers only, one registry for the life of a process."""

import subprocess
import sys

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families as parse

from monailabel_app.monitoring import instruments


@pytest.fixture
def counted(monkeypatch):
    """What a sample grew by since the test began."""
    monkeypatch.setattr(instruments, "_seen", {})

    def read(name, **labels):
        return instruments.REGISTRY.get_sample_value(name, labels) or 0.0

    return read


def test_an_analysis_is_counted_with_its_stages_score_and_p_value(counted):
    before = counted("anomaly_stage_seconds_sum", model="m1", stage="scoring")
    instruments.observe_analysis("m1", {"scoring": 1.5, "waiting": 20.0}, 3.2, 0.04, "cuda:0")
    assert counted("anomaly_analyses_total", model="m1") == 1
    assert counted("anomaly_stage_seconds_sum", model="m1", stage="scoring") == before + 1.5
    assert counted("anomaly_waited_seconds_bucket", device="cuda0", le="30.0") == 1
    assert counted("anomaly_waited_seconds_bucket", device="cuda0", le="15.0") == 0
    assert counted("anomaly_scan_score_bucket", model="m1", le="4.0") == 1
    assert counted("anomaly_scan_score_bucket", model="m1", le="3.0") == 0
    assert counted("anomaly_scan_p_value_bucket", model="m1", le="0.05") == 1


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "3", True])
def test_what_is_no_finite_number_is_no_score(counted, value):
    before = counted("anomaly_scan_score_count", model="m2")
    instruments.observe_analysis("m2", {"read": value}, value, value)
    assert counted("anomaly_scan_score_count", model="m2") == before
    assert counted("anomaly_stage_seconds_count", model="m2", stage="read") == 0


@pytest.mark.parametrize("text", ["Jane^Doe", "../../etc", "a b", "", "x" * 65, "é", '"\n'])
def test_a_text_that_could_be_a_name_is_no_label(counted, text):
    instruments.count_error(text)
    values = {sample.labels["kind"] for family in instruments.ERRORS.collect() for sample in family.samples}
    assert text not in values
    assert instruments.OTHER in values


def test_the_values_of_a_label_are_bounded(counted):
    for number in range(3 * instruments.MOST_VALUES):
        instruments.count_fallback(f"kind{number}")
    values = {sample.labels["kind"] for family in instruments.FALLBACKS.collect() for sample in family.samples}
    assert len({value for value in values if value.startswith("kind")}) == instruments.MOST_VALUES
    assert counted("anomaly_fallbacks_total", kind=instruments.OTHER) >= 2 * instruments.MOST_VALUES


def test_a_method_that_a_client_made_up_is_other(counted):
    instruments.observe_request("/info/", "PATIENT", 200, 0.1)
    assert counted("anomaly_requests_total", route="/info/", method="other", status="2xx") == 1


def test_prometheus_can_read_it(counted):
    instruments.count_job("infer", "done")
    families = {family.name: family for family in parse(generate_latest(instruments.REGISTRY).decode())}
    assert families["anomaly_jobs_ended"].type == "counter"
    assert not [name for name in families if name.endswith("_created")]


def test_figures_stay_when_the_modules_of_the_app_are_loaded_anew():
    code = (
        "import sys\n"
        "from lib import metrics\n"
        "metrics.count_error('ValueError')\n"
        "for name in [n for n in sys.modules if n == 'lib' or n.startswith('lib.')]: del sys.modules[name]\n"
        "from lib import metrics as anew\n"
        "assert anew is not metrics\n"
        "anew.count_error('ValueError')\n"
        "from monailabel_app.monitoring.instruments import REGISTRY\n"
        "print(REGISTRY.get_sample_value('anomaly_errors_total', {'kind': 'ValueError'}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert run.stdout.strip() == "2.0", run.stderr
