"""What the viewer asks the archive through this server."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from monailabel.config import settings

from lib import archive_passage
from lib.access.principal import ADMIN, READER, Principal, acting
from lib.endpoints import archive
from lib.endpoints.guard import Guard
from lib.errors import InvalidRequest


class _Archive(BaseHTTPRequestHandler):
    """Notes what it is asked and answers with a short text."""

    def do_GET(self):
        length = int(self.headers.get("content-length") or 0)
        self.server.asked.append((self.command, self.path, dict(self.headers), self.rfile.read(length)))
        behave = getattr(self.server, "behave", None)
        if behave is not None:
            behave(self)
            return
        self.send_response(206)
        self.send_header("Content-Type", "application/dicom+json")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"[]")

    do_POST = do_GET

    def log_message(self, *_):
        """Keeps the tests' output free of requests."""


@pytest.fixture
def stored():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Archive)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(120)


@pytest.fixture
def client(stored, monkeypatch):
    monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", f"http://127.0.0.1:{stored.server_port}/dicom-web/")
    server = FastAPI()
    server.include_router(archive.router)
    server.router.middleware_stack = Guard(server.router.middleware_stack)
    return TestClient(server)


def test_the_query_goes_along(client, stored):
    reply = client.get("/proxy/dicom/qido/studies?PatientID=A%20B&limit=5")
    assert (reply.status_code, reply.content) == (206, b"[]")
    assert reply.headers["content-type"] == "application/dicom+json"
    assert [item[:2] for item in stored.asked] == [("GET", "/dicom-web/studies?PatientID=A%20B&limit=5")]


def test_what_the_viewer_accepts_goes_along_but_its_cookies_do_not(client, stored):
    client.get("/proxy/dicom/wado/studies/1", headers={"Accept": "multipart/related", "Cookie": "a=b"})
    headers = stored.asked[0][2]
    assert headers["accept"] == "multipart/related"
    assert "cookie" not in {name.lower() for name in headers}


def test_stored_objects_are_passed_on(client, stored):
    client.post("/proxy/dicom/stow/studies", content=b"dicom", headers={"Content-Type": "multipart/related"})
    method, path, headers, body = stored.asked[0]
    assert (method, path, body) == ("POST", "/dicom-web/studies", b"dicom")
    assert headers["content-type"] == "multipart/related"


_OUTSIDE = [
    "..", "../instances", "wado/../../instances", "qido/..\\instances", "./x", "%2e%2e/instances", "/instances",
    "wado//instances", "//evil.example/x", "http://evil.example/", "wado/http://evil.example", "studies;x", "a\r\nb",
    "studies/\x00", "st\u00fcdies", "studies?x", "studies#x", "user@host", "",
]  # fmt: skip


@pytest.mark.parametrize("path", _OUTSIDE)
def test_addresses_that_lead_out_of_the_archives_root_are_refused(path):
    with pytest.raises(InvalidRequest, match="below the archive's DICOMweb root"):
        archive_passage.split_operation(path)


def test_metadata_is_asked_for_where_objects_are(monkeypatch):
    monkeypatch.setattr(settings, "MONAI_LABEL_WADO_PREFIX", "wado")
    monkeypatch.setattr(settings, "MONAI_LABEL_QIDO_PREFIX", "qido")
    assert archive_passage.split_operation("qido/studies/1/metadata") == ("wado", "wado/studies/1/metadata")
    assert archive_passage.split_operation("qido/studies") == ("qido", "qido/studies")


def test_a_server_with_a_folder_of_files_says_so(client, monkeypatch, tmp_path):
    monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", str(tmp_path))
    reply = client.get("/proxy/dicom/qido/studies")
    assert reply.status_code == 400
    assert "started with a folder" in reply.json()["detail"]


def test_an_archive_that_does_not_answer_is_a_502(client, stored, monkeypatch):
    stored.shutdown()
    stored.server_close()
    reply = client.get("/proxy/dicom/qido/studies")
    assert reply.status_code == 502
    assert "did not answer" in reply.json()["detail"]


def behave(status, headers=(), body=b""):
    """An archive that answers this to everything."""

    def answer(handler):
        handler.send_response(status)
        for name, value in headers:
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def test_nothing_that_says_who_asks_reaches_the_archive(client, stored):
    said = {
        "Authorization": "Bearer secret", "Cookie": "session=secret", "X-Forwarded-For": "10.0.0.1",
        "Host": "evil.example", "Proxy-Authorization": "Basic secret", "Forwarded": "for=1.2.3.4",
        "X-Api-Key": "secret",
        "TE": "trailers",
    }  # fmt: skip
    client.get("/proxy/dicom/qido/studies", headers=said)
    client.post("/proxy/dicom/stow/studies", content=b"x", headers=said)
    for _, _, headers, _ in stored.asked:
        names = {name.lower() for name in headers}
        assert not names & {name.lower() for name in said} - {"host"}
        assert headers["Host"] == f"127.0.0.1:{stored.server_port}"
        assert "secret" not in str(headers)


def test_this_servers_own_credentials_are_used_and_no_file_netrc(client, stored, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password secret")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    client.get("/proxy/dicom/qido/studies")
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_USERNAME", "a")
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_PASSWORD", "b")
    client.get("/proxy/dicom/qido/studies")
    assert [headers.get("Authorization") for _, _, headers, _ in stored.asked] == [None, "Basic YTpi"]


def test_of_the_archives_headers_only_harmless_ones_come_back(client, stored):
    said = [
        ("Set-Cookie", "a=b"), ("Access-Control-Allow-Origin", "*"), ("Keep-Alive", "timeout=9"),
        ("X-Internal", "10.0.0.7"),
        ("Content-Type", "text/html"), ("ETag", '"1"'), ("Connection", "close"), ("Content-Location", "http://pacs/"),
    ]  # fmt: skip
    stored.behave = behave(200, said, b"<script>alert(1)</script>")
    reply = client.get("/proxy/dicom/wado/studies/1")
    assert reply.content == b"<script>alert(1)</script>"
    ours = {"content-security-policy", "cache-control"}
    assert set(reply.headers) == {"content-type", "etag", "content-length", *ours}
    assert reply.headers["cache-control"] == "no-store"
    assert "sandbox" in reply.headers["content-security-policy"]
    assert "script-src" not in reply.headers["content-security-policy"]


def test_redirects_lead_nowhere_else(client, stored):
    for place in (
        "http://evil.example/x",
        "/other/x",
        "//evil.example/dicom-web/x",
        "/dicom-web/../x",
        "file:///etc/passwd",
    ):
        stored.behave = behave(302, [("Location", place)])
        reply = client.get("/proxy/dicom/qido/studies")
        assert reply.status_code == 502, place
        assert "redirects to another place" in reply.json()["detail"]
        assert "location" not in reply.headers
    assert {path for _, path, _, _ in stored.asked} == {"/dicom-web/studies"}


def test_redirects_inside_the_archive_are_followed_but_not_in_a_circle(client, stored):
    def once(handler):
        behave(200, [], b"[1]")(handler) if handler.path.endswith("/") else behave(
            301, [("Location", "/dicom-web/studies/")]
        )(handler)

    stored.behave = once
    assert client.get("/proxy/dicom/qido/studies").json() == [1]
    stored.behave = behave(302, [("Location", "/dicom-web/studies")])
    reply = client.get("/proxy/dicom/qido/studies")
    assert (reply.status_code, "circle" in reply.json()["detail"]) == (502, True)


def test_a_slow_archive_is_a_504_after_the_settings_time(client, stored, monkeypatch):
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT", 0.3)
    told = threading.Event()
    stored.behave = lambda handler: told.wait(120)
    try:
        reply = client.get("/proxy/dicom/qido/studies")
    finally:
        told.set()
    assert reply.status_code == 504
    assert "MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT" in reply.json()["detail"]


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_password_is_this_servers_fault_and_nobody_is_asked_for_one(client, stored, status):
    stored.behave = behave(status, [("WWW-Authenticate", "Basic")])
    reply = client.get("/proxy/dicom/qido/studies")
    assert reply.status_code == 502
    assert "www-authenticate" not in reply.headers


def test_only_storing_is_posted(client, stored):
    for path in (
        "qido/studies",
        "wado/studies/1",
        "stow/instances",
        "stow/studies/1/series",
        "instances",
        "tools/reset",
    ):
        assert client.post(f"/proxy/dicom/{path}", content=b"x").status_code == 400
    assert stored.asked == []
    for path in ("stow/studies", "studies", "stow/studies/1.2.3"):
        assert client.post(f"/proxy/dicom/{path}", content=b"x").status_code == 206


def test_readers_store_nothing_unless_the_server_was_told_so(monkeypatch):
    with acting(Principal("r", READER, "token")):
        with pytest.raises(archive.NotAllowed):
            archive.check_may_store()
        monkeypatch.setattr(settings, "MONAI_LABEL_APP_CONF", {"viewer_stores": "true"})
        archive.check_may_store()
    monkeypatch.setattr(settings, "MONAI_LABEL_APP_CONF", {})
    with acting(Principal("a", ADMIN, "token")):
        archive.check_may_store()


def test_a_large_object_passes_both_ways_unchanged(client, stored):
    large = bytes(range(256)) * 16384
    assert client.post("/proxy/dicom/stow/studies", content=large).status_code == 206
    assert stored.asked[0][3] == large
    stored.behave = behave(200, [("Content-Type", "application/dicom")], large)
    assert client.get("/proxy/dicom/wado/studies/1").content == large
