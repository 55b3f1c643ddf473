"""What the server's audit log holds of requests and analyses, and that nothing is answered before it is there."""

import ast
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.testclient import TestClient

from lib import audit
from lib.access.principal import Principal, acting
from lib.audit_events import noted_analysis
from lib.endpoints.audit_trail import EVENTS as REQUESTS
from lib.endpoints.audit_trail import AuditTrail, event_of
from lib.endpoints.install import install
from monailabel_app.audit.journal import EVENTS
from monailabel_app.audit.search import find
from monailabel_app.audit.verify import records, verify
from monailabel_app.errors import BrainNotFound, Cancelled, InvalidSettings, ScanRefused
from tests.lib.test_access import addresses, example

ROOT = Path(__file__).resolve().parents[2]
APP = SimpleNamespace(tasks=lambda: {"ddpm_t1": None})
ANNA = Principal("anna", "reader", "token")
RESULT = {
    "anomaly_score": 3.5,
    "p_value": 0.02,
    "lesion_count": 2,
    "anomaly_volume_ml": 4.2,
    "model": {"id": "ddpm_t1@0002", "hash": "ab" * 32},
    "settings": {"score": "signed", "seed": 0, "operating_point": "balanced", "uncertainty": False, "device": "cpu"},
    "seconds": {"read": 0.5, "reconstruction": 9.0},
    "warnings": ["Smith, John has moved"],
    "gate": {"passed": False, "p_value": 0.01, "reasons": ["Smith"]},
    "drift": {"distance": 0.1, "p_value": 0.5, "drifted": False, "background": {"ratio": 1.2, "divided_by": 1.0}},
    "calibration": {"id": "shipped"},
    "manifest": {
        "id": "m" * 32,
        "input": {"sha256": "cd" * 32},
        "output": {"mask": "ef" * 32, "anomaly_map": "01" * 32},
    },
}


@pytest.fixture
def log(tmp_path):
    """The log that is written, as a path."""
    before = audit.journal()
    audit.configure(tmp_path, {"audit": str(tmp_path / "audit.jsonl")})
    yield tmp_path / "audit.jsonl"
    audit._journal = before


@pytest.fixture
def blocked(tmp_path):
    """A log that cannot be written, and is required."""
    before, file = audit.journal(), tmp_path / "file"
    file.write_text("")
    audit.configure(tmp_path, {"audit": str(file / "audit.jsonl"), "audit_required": "true"})
    yield
    audit._journal = before


def last(log):
    return list(records(log))[-1]


def analyse(result=RESULT, **options):
    def infer(app, request, datastore=None, **given):
        if isinstance(result, Exception):
            raise result
        return {"params": result, "file": options.pop("file", "")}

    request = {"model": "ddpm_t1", "image": "Smith_John"}
    return noted_analysis(infer)(APP, request, **options)


def test_an_analysis_is_noted_with_what_it_rests_on(log):
    with acting(ANNA):
        analyse()
    record = last(log)
    facts = record["facts"]
    assert (record["event"], record["outcome"], record["who"]["name"]) == ("analysis", "ok", "anna")
    assert facts["model"] == "ddpm_t1@0002"
    assert facts["manifest"] == "m" * 32
    assert facts["input"] == "cd" * 32
    assert facts["settings"]["score"] == "signed"
    assert facts["gate"] == {"passed": False, "p_value": 0.01}
    assert facts["drift"]["background_ratio"] == 1.2
    assert facts["warnings"] == 1
    assert facts["seconds"]["reconstruction"] == 9.0
    assert "Smith" not in log.read_text()
    assert find(log, image="Smith_John") == [record]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (BrainNotFound("no brain"), "failed"),
        (InvalidSettings("no"), "refused"),
        (ScanRefused("odd"), "refused"),
        (Cancelled("stop"), "cancelled"),
        (RuntimeError("Smith"), "failed"),
    ],
)
def test_an_analysis_that_comes_to_nothing_is_noted_too(log, error, outcome):
    with pytest.raises(type(error)):
        analyse(error)
    assert last(log)["outcome"] == outcome
    assert last(log)["facts"]["kind"] == type(error).__name__
    assert "Smith" not in log.read_text()


def test_words_of_a_request_that_name_nothing_are_not_in_clear(log, client):
    def infer(app, request):
        raise InvalidSettings("no such model")

    with pytest.raises(InvalidSettings):
        noted_analysis(infer)(APP, {"model": "Smith_John", "image": "a"})
    client.delete("/anomaly/jobs/Smith_John")
    assert [record["event"] for record in list(records(log))[1:]] == ["analysis", "job_cancelled"]
    assert "Smith" not in log.read_text()


def test_an_upload_has_no_id(log):
    analyse(image_file="/tmp/Smith.nii.gz")
    assert "image" not in last(log)["facts"]
    assert "Smith" not in log.read_text()


def test_a_result_that_cannot_be_noted_is_not_handed_out_where_notes_are_required(blocked, tmp_path):
    file = tmp_path / "label.nii.gz"
    file.write_text("label")

    def infer(app, request, **given):
        return {"params": RESULT, "file": str(file)}

    with pytest.raises(Exception, match="audit log"):
        noted_analysis(infer)(APP, {"model": "a"}, image_file="x")
    assert not file.exists()


@pytest.fixture
def client():
    server = FastAPI()

    @server.put("/datastore/label")
    def label(image: str, tag: str = "final"):
        if image == "missing":
            return JSONResponse({"detail": "none"}, status_code=404)
        if image == "raised":
            raise HTTPException(422, "no")
        return {"image": image, "label": image}

    @server.put("/datastore/image")
    def image(image: str = ""):
        audit.about(replaced=image == "known")
        return {"image": image or "given_by_server"}

    @server.get("/datastore/dataset")
    def dataset():
        return StreamingResponse((b"x" * 1000 for _ in range(50)), media_type="application/zip")

    @server.put("/anomaly/reviews/{image}")
    def review(image: str):
        return {"image": image, "final": True}

    @server.get("/datastore/label")
    def get_label():
        return {}

    inner = server.router.middleware_stack
    server.router.middleware_stack = AuditTrail(inner)
    with TestClient(server, raise_server_exceptions=False) as made:
        yield made


def test_requests_that_change_something_are_noted(log, client):
    assert client.put("/datastore/label?image=Smith&tag=final").json() == {"image": "Smith", "label": "Smith"}
    assert client.put("/datastore/image?image=new").json() == {"image": "new"}
    client.put("/datastore/image?image=known")
    client.put("/datastore/image")
    client.put("/anomaly/reviews/Smith")
    found = list(records(log))[1:]
    assert [record["event"] for record in found] == [
        "label_saved", "scan_uploaded", "scan_replaced", "scan_uploaded", "review",
    ]  # fmt: skip
    assert {record["outcome"] for record in found} == {"ok"}
    assert found[0]["facts"]["image"] == found[4]["facts"]["image"]
    assert found[3]["facts"]["image"].startswith("hmac:")
    assert found[4]["facts"]["final"] is True
    assert "Smith" not in log.read_text()
    assert verify(log).whole


def test_every_address_that_changes_something_is_noted_or_known_not_to_be():
    from monailabel.app import app as stock

    install(stock)
    changing = [(method, path) for method, path in addresses(stock.router.routes) if method not in {"GET", "HEAD"}]
    assert len(changing) > 20
    found = {
        f"{method} {path}": event_of({"method": method, "path": example(path), "query_string": b""})
        for method, path in changing
    }
    # Noted where they happen, or nothing that anybody would look for later.
    assert {address for address, event in found.items() if event is None} <= {
        "POST /infer/{model}", "POST /infer/wsi/{model}", "POST /infer/wsi_v2/{model}", "POST /anomaly/jobs",
        "POST /auth/token", "POST /anomaly/login", "POST /anomaly/logout", "PUT /model/{model}", "POST /reload",
        "POST /activelearning/{strategy}", "POST /anomaly/studies/{image}/lease",
        "DELETE /anomaly/studies/{image}/lease",
    }  # fmt: skip
    assert found["DELETE /scoring/"] == ("scoring_stopped", {})
    assert found["DELETE /session/{session_id}"] == ("scan_removed", {"kind": "session"})


def test_refused_and_failed_requests_are_noted_as_such(log, client):
    assert client.put("/datastore/label?image=missing").status_code == 404
    assert client.put("/datastore/label?image=raised").status_code == 422
    assert [(record["outcome"], record["facts"]["status"]) for record in list(records(log))[1:]] == [
        ("refused", 404),
        ("refused", 422),
    ]


def test_what_only_looks_leaves_no_record(log, client):
    client.get("/datastore/label")
    assert not log.exists()


def test_a_long_answer_is_passed_on_as_it_comes(log, client):
    assert len(client.get("/datastore/dataset").content) == 50000
    assert last(log)["event"] == "dataset_downloaded"


def test_what_cannot_be_noted_is_refused_only_where_notes_are_required(blocked, client):
    answer = client.put("/datastore/label?image=a")
    assert answer.status_code == 503
    assert "audit log" in answer.json()["detail"]
    audit.journal().required = False
    assert client.put("/datastore/label?image=a").status_code == 200


def test_switching_the_log_off_is_said(tmp_path, caplog):
    before = audit.journal()
    try:
        audit.configure(tmp_path, {"audit": "off"})
        assert "no audit log is written" in caplog.text
        audit.note("review")
    finally:
        audit._journal = before
    assert not (tmp_path / "logs").exists()


def test_every_event_that_is_noted_is_a_known_one():
    noted = {event for _, _, event, _, _ in REQUESTS}
    for file in [*(ROOT / "lib").rglob("*.py"), *(ROOT / "monailabel_app").glob("cli_*.py")]:
        for call in (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)):
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            texts = [arg.value for arg in call.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            if name in {"note", "note_command", "command_noted"} and texts:
                noted.add(texts[0])
    assert len(noted) > 20
    assert noted <= EVENTS


def test_answers_are_json_that_the_trail_does_not_change(log, client):
    plain = client.put("/datastore/label?image=a")
    assert plain.headers["content-length"] == str(len(plain.content))
    assert json.loads(plain.content) == {"image": "a", "label": "a"}
