"""Who is admitted: by token, session or from this machine alone; every address of the server has a decided role."""

import base64
import time
from datetime import datetime, timedelta, timezone

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from monailabel.config import settings
from starlette.websockets import WebSocketDisconnect

from lib import background
from lib.access.authenticate import Access
from lib.access.authenticate import client_of as client_address
from lib.access.locality import is_local
from lib.access.policy import PUBLIC, role_needed, rule_of
from lib.access.sessions import COOKIE
from lib.access.throttle import Throttle
from lib.endpoints.install import install
from lib.errors import InvalidRequest
from monailabel_app.access import tokens
from tests.lib.access_clients import HTML, a_store, an_app, bearer, signed_in, the_server  # noqa: F401
from tests.lib.results_app import client_of


def basic(name, token):
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{token}".encode()).decode()}


def conf(monkeypatch, **values):
    monkeypatch.setattr(settings, "MONAI_LABEL_APP_CONF", values)


# --- without tokens: this machine alone ------------------------------------------------------------------------------


def test_without_tokens_this_machine_is_served_and_others_are_told_how_to_get_in(served):
    assert served.local.get("/anomaly/studies").status_code == 200
    refused = served().get("/anomaly/studies")
    assert refused.status_code == 401
    assert "tokens create" in refused.json()["detail"]
    assert refused.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:8000"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "localhost.evil.example"},
        {"Host": "127.0.0.1@evil.example"},
        {"Host": "[::1].evil.example"},
        {"Host": ""},
        {"X-Forwarded-For": "127.0.0.1"},
        {"X-Forwarded-Host": "localhost"},
        {"X-Real-IP": "127.0.0.1"},
        {"Forwarded": "for=127.0.0.1"},
        {"Via": "1.1 proxy"},
        {"X-NginX-Proxy": "true"},
        {"X-Cluster-Client-IP": "127.0.0.1"},
        {"X-Forwarded": "for=127.0.0.1"},
    ],
)
def test_a_rebound_name_or_a_proxy_is_not_this_machine(served, headers):
    assert served.local.get("/anomaly/studies", headers=headers).status_code == 401


@pytest.mark.parametrize(
    ("address", "host", "expected"),
    [
        ("127.0.0.1", "localhost:8000", True),
        ("127.8.0.1", "127.0.0.1", True),
        ("::1", "[::1]:8000", True),
        ("::ffff:127.0.0.1", "LOCALHOST", True),
        ("10.0.0.1", "localhost", False),
        ("::1", "::1", False),
        ("127.0.0.1", "0.0.0.0:8000", False),
        ("127.0.0.1", "localhost:80x", False),
        ("testclient", "localhost", False),
        ("", "localhost", False),
    ],
)
def test_what_counts_as_this_machine(address, host, expected):
    assert is_local({"client": (address, 1), "headers": [(b"host", host.encode())]}) is expected
    assert not is_local({"client": (address, 1), "headers": [(b"host", host.encode()), (b"host", b"localhost")]})
    assert not is_local({"client": None, "headers": [(b"host", host.encode())]})


@pytest.mark.parametrize(
    ("headers", "version", "expected"),
    [
        ({}, "1.1", True),
        # nginx's proxy_pass without any other line
        ({"connection": "close"}, "1.0", False),
        # a page that was opened at another name, behind a proxy that rewrites Host
        ({"origin": "https://anomaly.hospital"}, "1.1", False),
        ({"origin": "null"}, "1.1", False),
        ({"origin": "http://localhost:8000"}, "1.1", True),
        ({"origin": "http://[::1]:8000"}, "1.1", True),
        ({"origin": "http://viewer.hospital:3000"}, "1.1", True),
        # a browser says where a request comes from if it asks for a loopback name, or by TLS
        ({"user-agent": "Mozilla/5.0 (X11) Firefox/140", "accept-language": "de"}, "1.1", False),
        ({"user-agent": "Mozilla/5.0", "accept-language": "de", "sec-fetch-site": "none"}, "1.1", True),
        ({"user-agent": "Mozilla/5.0 (Windows NT) PowerShell/7.4"}, "1.1", True),
        ({"user-agent": "curl/8.5.0", "accept-language": "de"}, "1.1", True),
    ],
)
def test_a_silent_proxy_on_this_machine_is_told_by_what_it_cannot_hide(monkeypatch, headers, version, expected):
    conf(monkeypatch, cors_origins="http://viewer.hospital:3000")
    said = [(b"host", b"127.0.0.1:8000"), *((name.encode(), value.encode()) for name, value in headers.items())]
    assert is_local({"client": ("127.0.0.1", 1), "headers": said, "http_version": version}) is expected


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_from_the_first_token_on_everybody_is_asked(served, store):
    reader, _ = store.create("ward", "reader")
    assert served.local.get("/anomaly/studies").status_code == 401
    for client in (served.local, served()):
        assert client.get("/anomaly/studies", headers=bearer(reader)).status_code == 200
        assert client.get("/anomaly/studies", headers=basic("ward", reader)).status_code == 200
        assert client.get("/anomaly/studies", headers=basic("other", reader)).status_code == 401
        assert client.get("/anomaly/studies", headers=bearer(reader + "x")).status_code == 401
        assert client.get("/anomaly/studies", headers={"Authorization": "Basic %%%"}).status_code == 401
        assert client.get("/anomaly/studies", headers={"Authorization": f"Digest {reader}"}).status_code == 401


def test_roles_are_kept_apart(served, store):
    tokens = {role: store.create(role, role)[0] for role in ("reader", "admin", "monitor")}

    def status(role, method, path):
        return served().request(method, path, headers=bearer(tokens[role])).status_code

    assert status("reader", "DELETE", "/datastore/label?id=a&tag=final") == 403
    assert status("admin", "DELETE", "/datastore/label?id=a&tag=final") != 403
    assert status("monitor", "GET", "/anomaly/metrics") == 200
    assert status("admin", "GET", "/anomaly/metrics") == 200
    assert status("reader", "GET", "/anomaly/metrics") == 403
    assert status("monitor", "GET", "/anomaly/studies") == 403
    assert status("reader", "GET", "/no/such/address") == 403
    assert status("admin", "GET", "/no/such/address") == 404


def test_a_refusal_names_the_role_that_is_needed(served, store):
    reader, _ = store.create("ward", "reader")
    refused = served().request("DELETE", "/datastore/label?id=a&tag=final", headers=bearer(reader))
    assert refused.json()["detail"] == "this needs the role admin; ward has the role reader"


def test_a_revoked_token_is_dead_at_once(served, store):
    store.create("other", "reader")
    reader, _ = store.create("ward", "reader")
    assert served().get("/anomaly/studies", headers=bearer(reader)).status_code == 200
    store.revoke("ward")
    assert served().get("/anomaly/studies", headers=bearer(reader)).status_code == 401


def test_an_expired_last_token_does_not_open_the_server(served, store, monkeypatch):
    reader, _ = store.create("ward", "reader", days=1)
    later = datetime.now(timezone.utc) + timedelta(days=1, seconds=1)
    monkeypatch.setattr(tokens, "_now", lambda: later)
    assert store.find(reader) is None
    assert served.local.get("/anomaly/studies").status_code == 401


def test_a_damaged_file_of_tokens_closes_the_server_and_says_why(served, store):
    reader, _ = store.create("ward", "reader")
    store.path.write_text("{")
    for client, headers in ((served.local, {}), (served.local, bearer(reader)), (served(), {})):
        answer = client.get("/anomaly/studies", headers=headers)
        assert answer.status_code == 503
        assert "tokens.json" in answer.json()["detail"]
    assert served().get("/anomaly/login", headers=HTML).status_code == 200


def test_open_and_token_are_what_the_setting_says(app, monkeypatch, caplog):
    conf(monkeypatch, auth="open")
    everyone = client_of(app, monkeypatch)
    assert "ASKS NOBODY" in caplog.text
    for headers in ({}, bearer("of another server"), {"Cookie": f"{COOKIE}=x"}):
        assert TestClient(everyone.app).get("/anomaly/studies", headers=headers).status_code == 200
    assert TestClient(everyone.app).get("/auth/").json()["enabled"] is False
    conf(monkeypatch, auth="token")
    assert client_of(app, monkeypatch).get("/anomaly/studies").status_code == 401


@pytest.mark.parametrize("values", [{"auth": "off"}, {"session_hours": "x"}, {"session_hours": "0"}])
def test_an_unknown_setting_stops_the_start(tmp_path, values):
    with pytest.raises(InvalidRequest, match="expected --conf"):
        Access(tmp_path, values)


# --- guessing --------------------------------------------------------------------------------------------------------


def test_who_guesses_is_slowed_down_and_others_behind_the_same_address_are_not(served, store):
    reader, _ = store.create("ward", "reader")
    answers = [served().get("/info/", headers=bearer(f"guess{i}")).status_code for i in range(30)]
    assert answers[0] == 401
    assert answers[-1] == 429
    last = served().get("/info/", headers=bearer("guess"))
    assert int(last.headers["retry-after"]) > 0
    assert served().get("/anomaly/studies", headers=bearer(reader)).status_code == 200
    assert served().post("/anomaly/login", data={"username": "ward", "password": reader}).status_code == 200


def test_guesses_at_the_login_are_slowed_down(served, store):
    store.create("ward", "reader")
    form = {"username": "ward", "password": "x"}
    answers = [served().post("/auth/token", data=form).status_code for _ in range(12)]
    assert answers[:10] == [401] * 10
    assert answers[-1] == 429


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("2001:db8::1", "2001:db8:0:0:ffff::2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
        ("10.0.0.1", "10.0.0.1", True),
        ("fe80::1%eth0", "fe80::2%eth0", True),
    ],
)
def test_addresses_of_one_client_are_counted_together(first, second, same):
    assert (client_address({"client": (first, 1)}) == client_address({"client": (second, 2)})) is same


def test_memory_for_failures_is_bounded_and_windows_end(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    throttle = Throttle(2, 60.0, most=100)
    for key in range(1000):
        throttle.failed(key)
    assert len(throttle) == 100
    assert [throttle.failed("a") > 0 for _ in range(3)] == [False, False, True]
    assert throttle.waiting("a") == 60
    now[0] = 61
    assert throttle.waiting("a") == 0
    assert throttle.failed("a") == 0


# --- every address ---------------------------------------------------------------------------------------------------


def test_every_route_of_the_real_server_has_a_decided_role():
    from monailabel.app import app as stock

    install(stock)
    found = sorted(addresses(stock.router.routes))
    assert len(found) > 80
    undecided = [f"{method} {path}" for method, path in found if rule_of(method, example(path)) is None]
    assert undecided == [], "decide in lib/access/policy.py who may use them"
    public = {f"{method} {path}" for method, path in found if role_needed(method, example(path)) is PUBLIC}
    assert public == {
        "GET /anomaly/login", "POST /anomaly/login", "GET /anomaly/login/{name}", "POST /anomaly/logout",
        "GET /anomaly/assets/{name}", "HEAD /anomaly/assets/{name}", "GET /anomaly/THIRD-PARTY-LICENSES.txt",
        "HEAD /anomaly/THIRD-PARTY-LICENSES.txt",
        "GET /auth/", "POST /auth/token", "GET /anomaly/health", "GET /favicon.ico", "HEAD /favicon.ico",
    } & public  # fmt: skip
    assert {"GET /anomaly/login", "GET /auth/", "GET /anomaly/health"} <= public


def addresses(routes):
    for route in routes:
        if hasattr(route, "effective_route_contexts"):
            for context in route.effective_route_contexts():
                yield from ((method, context.path_format) for method in context.methods)
        elif getattr(route, "methods", None):
            yield from ((method, route.path) for method in route.methods)
        else:
            yield "GET", f"{route.path}/{{path:path}}"


def example(path):
    return "/".join("x/y" if ":path}" in part else "x" if "{" in part else part for part in path.split("/"))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/train/"), ("POST", "/train/ddpm"), ("POST", "//train/"), ("GET", "/datastore/dataset"),
        ("GET", "/datastore//dataset"), ("DELETE", "/datastore/"), ("GET", "/logs"), ("GET", "/logs/"),
        ("GET", "/logs/gpu"), ("PATCH", "/info/"), ("GET", "/model/x"), ("PUT", "/model/x"), ("TRACE", "/"),
        ("POST", "/reload"), ("POST", "/batch/infer/x"), ("GET", "/infer/x/../../logs"), ("GET", "/anomaly/audit"),
        ("POST", "/anomaly/login/x"), ("GET", "/auth/x"), ("GET", "/Anomaly/login/../studies"),
    ],
)  # fmt: skip
def test_what_is_for_administrators_or_unknown(method, path):
    assert role_needed(method, path) == {"admin"}


def test_an_api_prefix_changes_nothing(monkeypatch):
    monkeypatch.setattr(settings, "MONAI_LABEL_API_STR", "/api")
    assert role_needed("GET", "/api/anomaly/login") is PUBLIC
    assert role_needed("POST", "/api/train/x") == {"admin"}
    assert "reader" in role_needed("GET", "/")


def test_the_principal_is_known_to_endpoints_and_to_monai_labels_own(served, store, monkeypatch):
    from fastapi import Depends
    from monailabel.endpoints.user.auth import User, get_current_user

    from lib.access.principal import current

    seen = []

    @served.local.app.get("/static/who")
    def who(user: User = Depends(get_current_user)):
        seen.append((current().name, current().role, current().how, user.username, len(user.roles)))

    tokens = {role: store.create(f"the-{role}", role)[0] for role in ("reader", "admin")}
    for role in tokens:
        assert served().get("/static/who", headers=bearer(tokens[role])).status_code == 200
    browser = served()
    signed_in(browser, "the-reader", tokens["reader"])
    browser.get("/static/who")
    assert seen == [
        ("the-reader", "reader", "token", "the-reader", 3),
        ("the-admin", "admin", "token", "the-admin", 4),
        ("the-reader", "reader", "cookie", "the-reader", 3),
    ]


def test_a_websocket_is_not_a_way_around(served):
    with pytest.raises(WebSocketDisconnect), served.local.websocket_connect("/anomaly/studies"):
        pass


def test_tokens_and_names_of_patients_are_in_no_log_line(served, store, caplog):
    caplog.set_level("DEBUG")
    reader, _ = store.create("ward", "reader")
    served().get("/anomaly/results/DOE_JOHN", headers=bearer("secret-guess"))
    served().request("DELETE", "/datastore/label?id=DOE_JOHN&tag=final", headers=bearer(reader))
    served().post("/auth/token", data={"username": "ward", "password": "secret-guess"})
    logged = "\n".join(record.getMessage() for record in caplog.records if record.name.split(".")[0] != "httpx")
    for secret in (reader, "secret-guess", "DOE_JOHN"):
        assert secret not in logged


def test_an_install_without_an_app_folder_is_closed_to_others(monkeypatch):
    monkeypatch.setattr(settings, "MONAI_LABEL_APP_DIR", "")
    server = FastAPI()
    install(server)
    assert TestClient(server, client=("10.0.0.1", 1)).get("/info/").status_code == 401


def test_a_reader_cannot_stop_a_training_by_its_job(served, store, monkeypatch):
    """The address is a reader's, for jobs of their own; what stands behind this one is an administrator's."""
    task = {"id": "train-1", "status": "RUNNING", "request": {"model": "ddpm"}, "details": []}
    monkeypatch.setattr(background, "find", lambda job: ("train", task) if job == "train-1" else None)
    monkeypatch.setattr(background, "get", lambda app, job: {"id": job})
    stopped = []
    monkeypatch.setattr(background, "cancel", stopped.append)
    reader, admin = store.create("reader", "reader")[0], store.create("admin", "admin")[0]
    assert served().delete("/anomaly/jobs/train-1", headers=bearer(reader)).status_code == 403
    assert not stopped
    assert served().delete("/anomaly/jobs/train-1", headers=bearer(admin)).status_code == 200
    assert stopped == ["train-1"]
