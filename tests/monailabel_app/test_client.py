"""The client: what it sends, what it makes of answers, and that nothing half done stays behind."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from monailabel_app.client import AnomalyClient, AnomalyClientError, JobFailed


class Script(BaseHTTPRequestHandler):
    """Answers from ``server.answers[(method, path)]``, a list of (status, headers, body), the last of which stays."""

    def answer(self):
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        self.server.seen.append((self.command, path, query, body, dict(self.headers)))
        waiting = self.server.answers.get((self.command, path), [(404, {}, {"detail": "no such address"})])
        status, headers, body = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = answer

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    made = ThreadingHTTPServer(("127.0.0.1", 0), Script)
    made.answers, made.seen = {}, []
    thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def client(server):
    return AnomalyClient(f"http://127.0.0.1:{server.server_port}/", token="secret", reader="R. Reader", timeout=20)


def test_it_needs_requests_only():
    code = "import sys, monailabel_app.client; print([m for m in sys.modules if m in {'torch','numpy','monai','lib'}])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_an_address_without_a_scheme_is_refused():
    with pytest.raises(ValueError, match="http://"):
        AnomalyClient("127.0.0.1:8000")


def test_the_token_is_sent_and_ids_cannot_change_the_address(server, client):
    server.answers["GET", "/anomaly/results/a/../b?x"] = [(200, {}, {"image": "a"})]
    client.result("a/../b?x", "m_t1", threshold=3.5, score=None)
    _, path, query, _, headers = server.seen[-1]
    assert path == "/anomaly/results/a/../b?x"  # as one part: the server sees %2F and %3F
    assert query == {"model": "m_t1", "threshold": "3.5"}
    assert headers["Authorization"] == "Bearer secret"


def test_the_token_comes_from_the_environment_and_its_lack_is_told(server, monkeypatch):
    address = f"http://127.0.0.1:{server.server_port}"
    server.answers["GET", "/info/"] = [(401, {}, {"detail": "who?"}), (403, {}, {"detail": "not you"})]
    with pytest.raises(AnomalyClientError, match=r"who\?.*ANOMALY_TOKEN"):
        AnomalyClient(address, token="").info()
    assert "Authorization" not in server.seen[-1][-1]
    monkeypatch.setenv("ANOMALY_TOKEN", " from-there\n")
    with pytest.raises(AnomalyClientError, match=r"not you.*role"):
        AnomalyClient(address).info()
    assert server.seen[-1][-1]["Authorization"] == "Bearer from-there"
    with pytest.raises(ValueError, match="without spaces") as refused:
        AnomalyClient(address, token="two words")
    assert "two words" not in str(refused.value)


def test_studies_are_fetched_page_by_page(server, client):
    def page(*ids):
        return (200, {}, {"studies": [{"image": i} for i in ids], "total": 3})

    server.answers["GET", "/anomaly/studies"] = [page("a", "b"), page("c")]
    assert [study["image"] for study in client.studies(page=2, state="analysed")] == ["a", "b", "c"]
    assert [seen[2]["offset"] for seen in server.seen] == ["0", "2"]
    assert {seen[2]["state"] for seen in server.seen} == {"analysed"}


def test_a_full_line_is_waited_for_and_progress_is_told(server, client):
    job = {"id": "7", "model": "m", "state": "queued"}
    server.answers["POST", "/anomaly/jobs"] = [(503, {"Retry-After": "0"}, {"detail": "full"}), (202, {}, job)]
    running, done = {**job, "state": "running", "progress": 0.5}, {**job, "state": "done", "progress": 1.0}
    server.answers["GET", "/anomaly/jobs/7"] = [(200, {}, running), (200, {}, done)]
    server.answers["GET", "/anomaly/results/scan"] = [(200, {}, {"model": "m", "finding": {}})]
    told = []
    job = client.wait(client.submit("scan", "m", score="l1"), progress=lambda now: told.append(now["state"]), every=0)
    assert told == ["running", "done"]
    assert job["state"] == "done"
    assert json.loads(server.seen[0][3]) == {"image": "scan", "model": "m", "params": {"score": "l1"}}


def test_a_job_that_fails_says_why(server, client):
    failed = {"id": "7", "kind": "infer", "model": "m", "state": "failed", "error": "no brain was found"}
    server.answers["POST", "/anomaly/jobs"] = [(202, {}, failed)]
    server.answers["GET", "/anomaly/jobs/7"] = [(200, {}, failed)]
    with pytest.raises(JobFailed, match="no brain was found") as caught:
        client.analyse("scan", "m")
    assert caught.value.job["state"] == "failed"


def test_waiting_ends(server, client):
    server.answers["GET", "/anomaly/jobs/7"] = [(200, {}, {"id": "7", "state": "queued"})]
    with pytest.raises(TimeoutError, match="queued"):
        client.wait("7", seconds=0.05, every=0.01)


def test_a_refusal_is_an_error_with_the_server_s_words(server, client):
    server.answers["GET", "/anomaly/results/scan"] = [(404, {}, {"detail": "not analysed with m: run it first"})]
    with pytest.raises(AnomalyClientError, match="run it first") as caught:
        client.result("scan", "m")
    assert caught.value.status == 404
    server.answers["GET", "/info/"] = [(200, {"Content-Type": "text/html"}, b"<html>")]
    with pytest.raises(AnomalyClientError, match="right address"):
        client.info()


def test_nobody_there():
    with pytest.raises(AnomalyClientError, match="no answer") as caught:
        AnomalyClient("http://127.0.0.1:9", timeout=5).info()
    assert caught.value.status is None


def test_a_file_appears_when_it_is_whole(server, client, tmp_path):
    address = ("GET", "/anomaly/results/scan/anomaly_map.nii.gz")
    server.answers[address] = [(200, {"Content-Length": "100"}, b"only a part"), (200, {}, b"the map")]
    target = tmp_path / "map.nii.gz"
    target.write_bytes(b"of before")
    with pytest.raises(AnomalyClientError, match="broke off"):
        client.download("scan", "anomaly_map", target)
    assert [path.name for path in tmp_path.iterdir()] == ["map.nii.gz"]
    assert target.read_bytes() == b"of before"
    assert client.download("scan", "anomaly_map", target, operating_point="specific").read_bytes() == b"the map"
    assert server.seen[-1][2] == {"operating_point": "specific"}


@pytest.mark.parametrize(("kind", "name"), [("heat", "a.nii.gz"), ("anomaly_map", "a.png"), ("mask", "mask")])
def test_unknown_kinds_and_formats_are_told_before_anything_is_sent(client, tmp_path, kind, name, server):
    with pytest.raises(ValueError, match=r"anomaly_map.*nii\.gz"):
        client.download("scan", kind, tmp_path / name)
    assert server.seen == []


def test_mask_and_json_of_the_stock_call(server, client, tmp_path):
    body = (
        b'--XX\r\nContent-Disposition: form-data; name="params"\r\n\r\n{"anomaly_score": 4.5}\r\n'
        b'--XX\r\nContent-Disposition: form-data; name="file"; filename="m.nrrd"\r\n\r\nNRRD\r\n\x00\r\n--XX--\r\n'
    )
    server.answers["POST", "/infer/m"] = [(200, {"Content-Type": "multipart/form-data; boundary=XX"}, body)]
    scan = tmp_path / "scan.nii.gz"
    scan.write_bytes(b"voxels")
    mask, result = client.infer(scan, "m", tmp_path / "mask.nrrd", operating_point="sensitive")
    assert mask.read_bytes() == b"NRRD\r\n\x00"
    assert result == {"anomaly_score": 4.5}
    sent = server.seen[-1][3]
    assert b"voxels" in sent
    assert b'"result_extension": ".nrrd"' in sent


def test_a_review_carries_the_reader(server, client):
    server.answers["PUT", "/anomaly/reviews/scan"] = [(200, {}, {"final": True})]
    lesions = [{"peak_voxel": [1, 2, 3], "decision": "accept", "comment": ""}]
    assert client.review("scan", "m", lesions, final=True, rest="reject") == {"final": True}
    sent = json.loads(server.seen[-1][3])
    assert (sent["reader"], sent["rest"], sent["lesions"]) == ("R. Reader", "reject", lesions)


def test_all_decisions_are_listed_as_the_server_has_them(server, client):
    rows = [{"image": "scan", "decision": "accept"}]
    server.answers["GET", "/anomaly/reviews/"] = [(200, {}, {"columns": ["image", "decision"], "rows": rows})]
    assert client.reviews() == rows
