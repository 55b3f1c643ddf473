"""What the viewer asks the archive through this server."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from monailabel.config import settings

from lib.endpoints import archive
from lib.endpoints.guard import Guard
from lib.errors import InvalidRequest


class _Archive(BaseHTTPRequestHandler):
    """Notes what it is asked and answers with a short text."""

    def do_GET(self):
        length = int(self.headers.get("content-length") or 0)
        self.server.asked.append((self.command, self.path, dict(self.headers), self.rfile.read(length)))
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
    thread.join(10)


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


@pytest.mark.parametrize("path", ["..", "../instances", "wado/../../instances", "qido/..\\instances", "./x"])
def test_addresses_that_lead_out_of_the_archives_root_are_refused(path):
    with pytest.raises(InvalidRequest, match="below the archive's DICOMweb root"):
        archive.split_operation(path)


def test_metadata_is_asked_for_where_objects_are(monkeypatch):
    monkeypatch.setattr(settings, "MONAI_LABEL_WADO_PREFIX", "wado")
    monkeypatch.setattr(settings, "MONAI_LABEL_QIDO_PREFIX", "qido")
    assert archive.split_operation("qido/studies/1/metadata") == ("wado", "wado/studies/1/metadata")
    assert archive.split_operation("qido/studies") == ("qido", "qido/studies")


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
