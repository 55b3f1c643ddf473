"""The figures of the stock server after real analyses, read by Prometheus' own parsers."""

import re
import time

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from tests.extras.test_monitoring import asked_for
from tests.server_fixture import ROOT, copy_studies, running_server

pytestmark = pytest.mark.slow

MODEL, NAME = "intensity_t1", "Mustermann^Erika 1956-03-02"
# There is nothing to tell of these on this machine, or not yet.
NOT_HERE = re.compile(r"up$|anomaly_(gpu|fallbacks|purged|background|audit|errors)")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    studies = copy_studies(ROOT / "tests/data/studies", folder / "studies")
    (studies / "ixi_lesion.nii.gz").rename(studies / f"{NAME}.nii.gz")
    env = {"MONAI_LABEL_SESSION_PATH": str(folder / "sessions"), "ANOMALY_TOKENS": str(folder / "none.json")}
    conf = {"models": f"{MODEL},atlas_zscore_t1", "disk_cache": str(folder / "analyses")}
    with running_server(studies, conf=conf, env=env) as running:
        running.audit = folder
        yield running


@pytest.fixture(scope="module")
def worked(server):
    """The server after an analysis by a request, one by a job, a second look, and addresses that there are not."""
    assert server.infer(MODEL, params={"image": "ixi_healthy"}).status_code == 200
    assert server.infer(MODEL, params={"image": "ixi_healthy"}, data={"params": '{"threshold": 9}'}).status_code == 200
    import requests

    job = requests.post(f"{server.url}/anomaly/jobs", json={"image": NAME, "model": MODEL}, timeout=60).json()
    deadline = time.monotonic() + 600
    while server.get(f"/anomaly/jobs/{job['id']}").json()["state"] not in {"done", "failed", "cancelled"}:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert server.get(f"/anomaly/results/{NAME}").status_code == 200
    assert server.get(f"/anomaly/results/{NAME}x").status_code == 404
    assert server.get(f"/nothing/{NAME}").status_code == 404
    assert server.get("/datastore/image?image=../../etc/passwd").status_code == 400
    # Before the tests ask for more.
    server.figures = server.get("/anomaly/metrics").text
    return server


def samples(text, reader=parse):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in reader(text)
        for sample in family.samples
    }


def value(found, name, **labels):
    return found[(name, *sorted(labels.items()))]


def test_every_analysis_is_counted_once_with_its_stages_score_and_p_value(worked):
    found = samples(worked.figures)
    # The second request only moved a threshold: no analysis, and the score is not counted twice.
    assert value(found, "anomaly_analyses_total", model=MODEL) == 2
    assert value(found, "anomaly_scan_p_value_count", model=MODEL) == 2
    assert value(found, "anomaly_scan_score_count", model=MODEL) == 2
    for stage in ("brain_extraction", "alignment", "reconstruction", "scoring", "postprocessing", "read", "waiting"):
        assert value(found, "anomaly_stage_seconds_count", model=MODEL, stage=stage) == 2
    assert value(found, "anomaly_jobs_ended_total", kind="infer", outcome="done") == 3
    assert value(found, "anomaly_queue_length", device="cpu") == 0
    assert value(found, "anomaly_cache_entries", cache="analyses") == 2
    assert value(found, "anomaly_datastore_images") == 2
    assert value(found, "anomaly_models") == 2
    assert value(found, "anomaly_model_loaded", model=MODEL, device="cpu") == 1
    assert value(found, "anomaly_scrape_faults") == 0
    assert value(found, "process_resident_memory_bytes") > 1e8


def test_requests_are_counted_by_template_and_no_name_is_in_the_figures(worked):
    text = worked.figures
    found = samples(text)
    assert value(found, "anomaly_requests_total", route="/infer/{model}", method="POST", status="2xx") == 2
    assert value(found, "anomaly_requests_total", route="/anomaly/results/{image}", method="GET", status="2xx") == 1
    assert value(found, "anomaly_requests_total", route="/anomaly/results/{image}", method="GET", status="4xx") == 1
    assert value(found, "anomaly_requests_total", route="none", method="GET", status="4xx") == 1
    for secret in ("Mustermann", "Erika", "1956", "ixi_healthy", "passwd", str(worked.audit)):
        assert secret not in text


def test_openmetrics_is_given_to_who_accepts_it(worked):
    answer = worked.get("/anomaly/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert value(samples(answer.text, parse_openmetrics), "anomaly_analyses_total", model=MODEL) == 2
    odd = worked.get("/anomaly/metrics", headers={"Accept": "application/openmetrics-text; version=one"})
    assert odd.status_code == 200


@pytest.mark.parametrize(("place", "name"), sorted(set(asked_for())))
def test_what_the_dashboard_and_the_alerts_ask_for_is_there(worked, place, name):
    if NOT_HERE.match(name):
        pytest.skip("there is nothing to tell of it here")
    assert re.search(rf"^{name}[ {{]", worked.get("/anomaly/metrics").text, re.MULTILINE), f"{place} asks for {name}"


def test_asking_often_makes_no_new_series(worked):
    before = len(samples(worked.get("/anomaly/metrics").text))
    for number in range(30):
        worked.get(f"/anomaly/results/{number}")
        worked.get(f"/{number}")
    assert len(samples(worked.get("/anomaly/metrics").text)) <= before + 40


def test_health_says_ok_and_nothing_else_and_ready_says_what_was_looked_at(worked):
    answer = worked.get("/anomaly/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    ready = worked.get("/anomaly/ready").json()
    assert ready["status"] == "ok"
    assert [check["name"] for check in ready["checks"]] == ["models", "studies", "disk", "work"]
