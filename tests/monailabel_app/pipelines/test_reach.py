"""A server that others can reach does not start open by oversight."""

import subprocess
from datetime import datetime, timedelta, timezone

import pytest

from lib.reach import host_of, warn_if_open_to_others
from monailabel_app.access import tokens
from monailabel_app.access.tokens import TokenStore
from monailabel_app.errors import InvalidSettings
from monailabel_app.pipelines import serve
from monailabel_app.pipelines.reach import asks_everybody, check_reach, check_tls, conf_of, is_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.5.0.1", "localhost", "::1", "[::1]"])
def test_this_machine_alone_needs_no_token(host, tmp_path):
    assert is_loopback(host)
    assert check_reach(tmp_path, host, {}, {}) == ""


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "scanner.example", ""])
def test_beyond_it_a_server_without_a_token_is_not_started(host, tmp_path):
    with pytest.raises(InvalidSettings, match="tokens create"):
        check_reach(tmp_path, host, {}, {})
    assert check_reach(tmp_path, host, {}, {"MONAI_LABEL_AUTH_ENABLE": "true"}) == ""
    assert check_reach(tmp_path, host, {"auth": "open"}, {}).startswith("WARNING: nobody is asked")
    TokenStore(tmp_path / "model" / "tokens.json").create("somebody", "reader", days=1)
    assert check_reach(tmp_path, host, {}, {}) == ""


def test_a_token_that_is_over_lets_nobody_in_but_does_not_open_the_server_either(tmp_path, monkeypatch):
    TokenStore(tmp_path / "model" / "tokens.json").create("somebody", "reader", days=1)
    monkeypatch.setattr(tokens, "_now", lambda: datetime.now(timezone.utc) + timedelta(days=2))
    with pytest.raises(InvalidSettings, match="tokens create"):
        check_reach(tmp_path, "0.0.0.0", {}, {})
    assert asks_everybody(tmp_path, {}, {})


def test_run_refuses_before_anything_is_started(tmp_path, monkeypatch):
    monkeypatch.setattr(serve.subprocess, "Popen", lambda *_, **__: pytest.fail("started"))
    monkeypatch.delenv("ANOMALY_TOKENS", raising=False)
    with pytest.raises(InvalidSettings, match="--open"):
        serve.run(tmp_path, str(tmp_path), host="0.0.0.0", port=0)
    with pytest.raises(InvalidSettings, match="together"):
        serve.run(tmp_path, str(tmp_path), port=0, tls_cert=tmp_path / "cert.pem")


def test_the_last_of_equal_confs_counts():
    assert conf_of(["--conf", "auth", "open", "-c", "auth", "token", "--conf", "x"]) == {"auth": "token"}


def test_origins_of_the_environment_are_told_in_the_way_that_works(monkeypatch):
    given = {"MONAI_LABEL_CORS_ORIGINS": '["http://a:3000", "http://b"]'}
    assert serve.named_origins(given) == ["--conf", "cors_origins", "http://a:3000,http://b"]
    assert "MONAI_LABEL_CORS_ORIGINS" not in serve.environment(given)
    assert serve.named_origins({}) == []
    with pytest.raises(InvalidSettings, match="http://host:3000"):
        serve.named_origins({"MONAI_LABEL_CORS_ORIGINS": "http://a:3000"})


def make_certificate(folder, name="a"):
    key, cert = folder / f"{name}.key", folder / f"{name}.pem"
    words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    words += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    try:
        subprocess.run(["openssl", *words, "-keyout", key, "-out", cert], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs openssl")
    return cert, key


def test_a_certificate_becomes_the_stock_servers_arguments_and_a_wrong_one_is_told(tmp_path):
    cert, key = make_certificate(tmp_path)
    assert check_tls(cert, key) == ["--ssl_certfile", str(cert), "--ssl_keyfile", str(key)]
    assert check_tls(None, None) == []
    _, other = make_certificate(tmp_path, "b")
    (tmp_path / "no.pem").write_text("nothing")
    for wrong in ((cert, other), (tmp_path / "no.pem", key), (tmp_path / "missing.pem", key)):
        with pytest.raises(InvalidSettings, match="expected a certificate and its key"):
            check_tls(*wrong)
    with pytest.raises(InvalidSettings, match="together"):
        check_tls(cert, None)


def test_the_text_for_the_terminal_fits_the_server():
    text = serve.next_steps("https://h:8000", "/scans", {"models": {"one": {}}}, "scan", token=True)
    assert "https://h:8000/anomaly/login" in text
    assert "Authorization: Bearer" in text
    assert "--cacert" in text
    plain = serve.next_steps("http://h:8000", "/scans", {"models": {"one": {}}}, "scan")
    assert "login" not in plain
    assert "Bearer" not in plain


def test_the_stock_command_warns_where_nobody_could_sign_in(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("ANOMALY_TOKENS", raising=False)
    monkeypatch.delenv("MONAI_LABEL_AUTH_ENABLE", raising=False)
    stock = ["monailabel", "start_server", "--app", "."]
    assert host_of(stock) == "0.0.0.0"
    assert host_of([*stock, "--host=10.0.0.1"]) == "10.0.0.1"
    assert host_of(["pytest"]) is None
    assert warn_if_open_to_others(str(tmp_path), {}, stock)
    assert "tokens create" in caplog.text
    for conf, words in (({}, [*stock, "-i", "127.0.0.1"]), ({"auth": "open"}, stock), ({}, ["pytest"])):
        assert not warn_if_open_to_others(str(tmp_path), conf, words)
    TokenStore(tmp_path / "model" / "tokens.json").create("somebody", "reader")
    assert not warn_if_open_to_others(str(tmp_path), {}, stock)
