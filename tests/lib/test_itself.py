"""The server's requests to itself: with its own token, to its own address, over TLS only to its own certificate."""

import datetime
import json
import os
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from monailabel.config import settings

from lib.access import itself
from lib.app import AnomalyApp


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in (itself.TOKEN, itself.ADDRESS, itself.CERTIFICATE):
        # Put back afterwards, also where it was not there before.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed one for a hospital's name, not for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "anomaly.hospital.example")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1)).sign(key, hashes.SHA256())
    )  # fmt: skip
    folder.mkdir(exist_ok=True)
    paths = folder / "cert.pem", folder / "key.pem"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))
    return paths


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, self.headers["Authorization"], body))
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(b'{"id": 1}')

    def log_message(self, *_):
        """Keeps the tests' output free of requests."""


@pytest.fixture
def listening(monkeypatch):
    servers = []

    def start(files=None):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.seen, server.status = [], 200
        if files:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*files)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(settings, "MONAI_LABEL_SERVER_PORT", server.server_port)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_what_the_app_asks_itself_carries_the_token(listening, caplog):
    server = listening()
    itself.prepare(b"k" * 32, ["monailabel", "start_server", "--host", "0.0.0.0"])
    ask = AnomalyApp._local_request
    assert ask(None, "/train/ddpm?enqueue=True", {"epochs": 1}, "Training") == {"id": 1}
    assert server.seen == [("/train/ddpm?enqueue=True", f"Bearer {os.environ[itself.TOKEN]}", {"epochs": 1})]
    assert itself.is_itself(os.environ[itself.TOKEN])
    assert not itself.is_itself("")
    server.status = 403
    assert ask(None, "/train/ddpm", None, "Training") is None
    assert "403" in caplog.text
    assert os.environ[itself.TOKEN] not in caplog.text


def test_over_tls_only_the_servers_own_certificate_is_believed(listening, tmp_path):
    own, foreign = certificate(tmp_path / "own"), certificate(tmp_path / "foreign")
    server = listening(own)
    itself.prepare(b"k" * 32, ["start_server", "--ssl_certfile", str(own[0]), f"--ssl_keyfile={own[1]}"])
    assert os.environ[itself.ADDRESS].startswith("https://127.0.0.1:")
    assert itself.ask("/batch/infer/one", {}).json() == {"id": 1}
    assert len(server.seen) == 1
    other = listening(foreign)
    itself.prepare(b"k" * 32, ["start_server", f"--ssl_certfile={own[0]}"])
    with pytest.raises(requests.exceptions.SSLError):
        itself.ask("/batch/infer/one", {})
    assert other.seen == []


@pytest.mark.parametrize(
    ("arguments", "address"),
    [([], "http://127.0.0.1"), (["--host", "::"], "http://[::1]"), (["-i", "10.0.0.5"], "http://10.0.0.5")],
)
def test_the_address_is_the_one_that_the_server_listens_on(arguments, address):
    itself.prepare(b"k" * 32, arguments)
    assert os.environ[itself.ADDRESS] == f"{address}:{settings.MONAI_LABEL_SERVER_PORT}"


def test_without_a_token_of_its_own_nobody_is_the_server(monkeypatch):
    assert not itself.is_itself("")
    monkeypatch.setenv(itself.TOKEN, "short")
    assert not itself.is_itself("short")
