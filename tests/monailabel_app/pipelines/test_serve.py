"""How the server is started: its arguments, its environment, what is refused, and what is printed."""

import os
import socket
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from monailabel_app import cli
from monailabel_app.errors import InvalidSettings, UnknownModel
from monailabel_app.pipelines import serve

INFO = '{"models": {"ddpm": {}, "other": {}}}'
# Stands in for the server: answers the two addresses that are asked, then ends by itself.
SERVER = f"""
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        images = b'{{"objects": {{"scan_1": {{}}}}}}'
        body = {{"/info/": b'{INFO}', "/datastore/?output=all": images}}[self.path]
        self.send_response(200); self.end_headers(); self.wfile.write(body)
    def log_message(self, *arguments): pass
server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
for _ in range(2): server.handle_request()
sys.exit(7)
"""


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_stock_command_is_run_with_whole_paths():
    words = serve.command(Path("/my app"), "/my scans", host="::1", port=8001, models="a,b", extra=["--dryrun"])
    assert words == [
        *(
            sys.executable,
            "-m",
            "monailabel.main",
            "start_server",
            "--app",
            "/my app",
            "--studies",
            "/my scans",
        ),
        *("--host", "::1", "--port", "8001", "--conf", "models", "a,b", "--dryrun"),
    ]


def test_what_the_user_has_set_is_kept():
    mine = {"MONAI_LABEL_DICOMWEB_SEARCH_FILTER": "{}", "PATH": "/usr/bin"}
    result = serve.environment(mine)
    assert result["MONAI_LABEL_DICOMWEB_SEARCH_FILTER"] == "{}"
    assert result["MONAI_LABEL_TRACKING_ENABLED"] == "false"


def test_the_environments_programs_come_first_on_the_path():
    assert serve.environment({"PATH": "/usr/bin"})["PATH"].split(os.pathsep) == [
        str(Path(sys.executable).parent),
        "/usr/bin",
    ]


def test_a_folder_that_is_not_there_is_refused_and_not_made(tmp_path, port, monkeypatch):
    monkeypatch.setattr(serve, "find_spec", lambda name: True)
    with pytest.raises(InvalidSettings, match="make it or name another"):
        serve.check(str(tmp_path / "nothing"), "127.0.0.1", port)
    assert list(tmp_path.iterdir()) == []


def test_a_dicomweb_address_is_no_folder(port, monkeypatch):
    monkeypatch.setattr(serve, "find_spec", lambda name: True)
    serve.check("http://127.0.0.1:8042/dicom-web", "127.0.0.1", port)


def test_a_port_in_use_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(serve, "find_spec", lambda name: True)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(InvalidSettings, match="choose another"):
            serve.check(str(tmp_path), "127.0.0.1", other.getsockname()[1])


@pytest.mark.parametrize("port", [-1, 70_000])
def test_a_port_outside_its_range_has_a_fault(port):
    assert serve.port_fault("127.0.0.1", port)


def test_without_monai_label_the_way_to_it_is_named(tmp_path, port, monkeypatch):
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    with pytest.raises(InvalidSettings, match="make setup"):
        serve.check(str(tmp_path), "127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("::1", "http://[::1]:80"),
        ("scanner.local", "http://scanner.local:80"),
    ],
)
def test_the_address_is_one_a_viewer_can_open(host, url):
    assert serve.address(host, 80) == url


def test_nothing_listening_is_no_answer(port):
    assert serve.ask(f"http://127.0.0.1:{port}/info/") is None


def test_the_next_steps_name_a_model_and_a_scan_that_are_there(tmp_path, port, monkeypatch, capfd):
    monkeypatch.setattr(serve, "check", lambda *arguments: None)
    monkeypatch.setattr(serve, "command", lambda *_, port, **__: [sys.executable, "-c", SERVER, str(port)])
    assert serve.run(tmp_path, str(tmp_path), port=port) == 7
    printed = capfd.readouterr().out
    assert f"http://127.0.0.1:{port}/infer/ddpm?image=scan_1" in printed
    assert "Research use only" in printed


def test_ohif_is_explained_for_a_folder_and_linked_for_an_archive():
    folder = serve.next_steps("http://x:1", "/scans", {}, None)
    archive = serve.next_steps("http://x:1", "http://pacs/dicom-web", {}, None)
    assert "http://x:1/ohif/" not in folder
    assert "needs a DICOMweb server" in folder
    assert "http://x:1/ohif/" in archive


def test_a_server_that_dies_at_once_gives_its_exit_code(tmp_path, port, monkeypatch):
    monkeypatch.setattr(serve, "check", lambda *arguments: None)
    monkeypatch.setattr(serve, "command", lambda *_, **__: [sys.executable, "-c", "raise SystemExit(3)"])
    assert serve.run(tmp_path, str(tmp_path), port=port) == 3


def test_the_command_line_hands_unknown_options_on(monkeypatch):
    seen = {}
    monkeypatch.setattr(serve, "run", lambda root, studies, **rest: seen.update(rest, studies=studies) or 0)
    result = CliRunner().invoke(cli.app, ["serve", "--port", "81", "--log_level", "debug"])
    assert result.exit_code == 0
    assert seen == {
        "studies": None,
        "host": "127.0.0.1",
        "port": 81,
        "models": "all",
        "extra": ["--log_level", "debug"],
        "tls_cert": None,
        "tls_key": None,
        "ask_nobody": False,
    }


def test_a_refusal_is_one_line_and_exit_code_two(monkeypatch):
    def refuse(*arguments, **rest):
        raise InvalidSettings("expected a free port, got one in use: choose another")

    monkeypatch.setattr(serve, "run", refuse)
    result = CliRunner().invoke(cli.app, ["serve"])
    assert result.exit_code == 2
    assert "InvalidSettings: expected a free port" in result.output
    assert "Traceback" not in result.output


def test_a_model_that_is_not_there_ends_it_before_the_server_is_started(tmp_path, port, monkeypatch):
    monkeypatch.setattr(serve, "command", lambda *_, **__: pytest.fail("the server was started"))
    with pytest.raises(UnknownModel, match="got 'cold_difusion_t1'"):
        serve.run(tmp_path, str(tmp_path), port=port, models="cold_difusion_t1")


def test_the_first_words_name_the_page():
    assert "http://x:1/anomaly/ " in serve.next_steps("http://x:1", "/scans", {}, None)
