"""Browsers sign in on a page, get a cookie that is worth no more than their token, and are sent back to this site."""

import base64
import os
import threading
import time

import jwt
import pytest

from lib.access import ended as ended_module
from lib.access.ended import EndedSessions
from lib.access.return_path import return_path
from lib.access.sessions import COOKIE, Sessions
from tests.lib.access_clients import HTML, a_store, an_app, signed_in, the_server  # noqa: F401


def test_a_browser_is_sent_to_the_login_and_back(served, store):
    reader, _ = store.create("ward", "reader")
    browser = served()
    for path in ("/anomaly/", "/ohif/monai-label?StudyInstanceUIDs=1.2.3", "/", "/docs", "/anomaly/results/a"):
        sent = browser.get(path, headers=HTML)
        assert sent.status_code == 303, path
        assert sent.headers["location"].startswith("/anomaly/login?next=%2F")
        assert "next" in sent.headers["location"]
    sent = browser.get("/ohif/monai-label?StudyInstanceUIDs=1.2.3", headers=HTML)
    page = browser.get(sent.headers["location"], headers=HTML)
    assert page.status_code == 200
    assert 'value="/ohif/monai-label?StudyInstanceUIDs=1.2.3"' in page.text
    back = signed_in(browser, "ward", reader, next="/ohif/monai-label?StudyInstanceUIDs=1.2.3")
    assert back.headers["location"] == "/ohif/monai-label?StudyInstanceUIDs=1.2.3"
    assert browser.get("/anomaly/studies").status_code == 200
    assert browser.get("/anomaly/", headers=HTML).status_code == 200


def test_the_cookie_is_for_this_site_and_out_of_reach_of_scripts(served, store):
    reader, _ = store.create("ward", "reader")
    plain = signed_in(served(), "ward", reader).headers["set-cookie"]
    assert {"HttpOnly", "Path=/", "SameSite=lax"} <= set(plain.split("; "))
    assert "Secure" not in plain
    assert reader not in plain
    assert "Secure" in signed_in(served(scheme="https"), "ward", reader).headers["set-cookie"]


def test_a_session_ends_with_its_token_with_its_time_and_at_sign_out(served, store, monkeypatch):
    store.create("other", "reader")
    reader, _ = store.create("ward", "reader")
    first, second, third = served(), served(), served()
    for browser in (first, second, third):
        signed_in(browser, "ward", reader)
    copy = first.cookies[COOKIE]
    assert first.post("/anomaly/logout").status_code == 204
    assert COOKIE not in first.cookies
    assert first.get("/anomaly/studies").status_code == 401
    assert first.get("/anomaly/studies", headers={"Cookie": f"{COOKIE}={copy}"}).status_code == 401
    assert second.get("/anomaly/studies").status_code == 200
    store.revoke("ward")
    assert second.get("/anomaly/studies").status_code == 401
    assert third.get("/anomaly/studies").status_code == 401


def test_a_forged_stale_or_foreign_cookie_is_worth_nothing(served, store, tmp_path):
    _, token = store.create("ward", "admin")
    own = Sessions(store.path.parent / "session.key")
    good, _ = own.for_token("ward", token.sha256)
    assert served().get("/anomaly/studies", headers={"Cookie": f"{COOKIE}={good}"}).status_code == 200
    foreign, _ = Sessions(tmp_path / "other.key").for_token("ward", token.sha256)
    stale, _ = Sessions(store.path.parent / "session.key", hours=-1).for_token("ward", token.sha256)
    unsigned = ".".join([base64.urlsafe_b64encode(b'{"alg":"none"}').decode(), good.split(".")[1], ""])
    account, _ = own.for_account("ward", ["monailabel-admin"])
    for cookie in (foreign, stale, unsigned, account, good[:-3], "x"):
        assert served().get("/anomaly/studies", headers={"Cookie": f"{COOKIE}={cookie}"}).status_code == 401


def test_a_session_that_was_signed_out_of_stays_ended_in_every_process_and_after_a_restart(tmp_path):
    key = tmp_path / "model" / "session.key"
    one, worker = Sessions(key), Sessions(key)
    gone, _ = one.for_token("a", "0" * 64)
    kept, _ = one.for_token("a", "0" * 64)
    one.end(gone)
    for server in (one, worker, Sessions(key)):
        assert server.read(gone) is None
        assert server.read(kept)["sub"] == "a"
    (name,) = [path.name for path in (key.parent / ".ended_sessions").iterdir()]
    assert jwt.decode(gone, options={"verify_signature": False})["jti"] not in name


def test_what_is_kept_of_ended_sessions_goes_when_their_cookies_are_over(tmp_path):
    ended = EndedSessions(tmp_path / "ended")
    ended.add("over soon", time.time() + 60)
    ended.add("long", time.time() + 7200)
    (soon,) = [path for path in ended.folder.iterdir() if path.stat().st_mtime < time.time() + 3600]
    os.utime(soon, (time.time() - 1, time.time() - 1))
    ended.add("another", time.time() + 7200)
    assert not soon.exists()
    assert all(session in EndedSessions(ended.folder) for session in ("long", "another"))


def test_nobody_waits_for_the_disk_while_somebody_signs_out(tmp_path, monkeypatch):
    ended = EndedSessions(tmp_path / "ended")
    writing, leave, told = threading.Event(), threading.Event(), []

    def slow(folder):
        writing.set()
        leave.wait(120)

    monkeypatch.setattr("lib.access.ended.flush", slow)
    signing_out = threading.Thread(target=ended.add, args=("one", time.time() + 60))
    signing_out.start()
    try:
        assert writing.wait(120)
        asking = threading.Thread(target=lambda: told.extend(["one" in ended, "other" in ended]), daemon=True)
        asking.start()
        asking.join(60)
        assert told == [True, False]
    finally:
        leave.set()
        signing_out.join(120)


def test_another_process_that_tidies_up_leaves_an_end_that_is_being_noted(tmp_path, monkeypatch):
    ended, worker = EndedSessions(tmp_path / "ended"), EndedSessions(tmp_path / "ended")
    worker.add("other", time.time() + 60)
    opened = ended_module.open_own

    def meanwhile(path, *given):
        handle = opened(path, *given)
        worker._forget()
        return handle

    monkeypatch.setattr(ended_module, "open_own", meanwhile)
    ended.add("one", time.time() + 7200)
    monkeypatch.undo()
    assert all(session in EndedSessions(ended.folder) for session in ("one", "other"))


def test_where_the_end_of_a_session_cannot_be_kept_this_process_knows_and_the_log_says_so(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    ended = EndedSessions(tmp_path / "file" / "ended")
    ended.add("one", time.time() + 60)
    assert "one" in ended
    assert "other" not in ended
    assert "is not kept" in caplog.text


def test_the_key_of_sessions_is_its_owners_alone(tmp_path, caplog):
    path = tmp_path / "model" / "session.key"
    cookie, _ = Sessions(path).for_token("a", "0" * 64)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Sessions(path).read(cookie)["sub"] == "a"
    path.chmod(0o644)
    assert Sessions(path).read(cookie) is None
    assert "chmod 600" in caplog.text


def test_a_wrong_sign_in_is_said_on_the_page_and_keeps_what_was_typed(served, store):
    store.create("ward", "reader")
    answer = served().post(
        "/anomaly/login", data={"username": '"><script>', "password": "x", "next": "/ohif/"}, headers=HTML
    )
    assert answer.status_code == 401
    assert "<script>" not in answer.text.replace('<script src="/anomaly/login/login.js" defer>', "")
    assert 'value="&quot;&gt;&lt;script&gt;"' in answer.text
    assert 'value="/ohif/"' in answer.text
    assert 'role="alert"' in answer.text


def test_the_login_page_runs_no_foreign_script_and_its_files_are_there(served, store):
    store.create("ward", "reader")
    page = served().get("/anomaly/login")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert page.headers["cache-control"] == "no-store"
    for name, kind in (("login.css", "text/css"), ("login.js", "text/javascript")):
        assert f"/anomaly/login/{name}" in page.text
        assert served().get(f"/anomaly/login/{name}").headers["content-type"].startswith(kind)
    assert served().get("/anomaly/login/page.py").status_code == 404


@pytest.mark.parametrize(
    "wanted",
    [
        "//evil.example", "/\\evil.example", "https://evil.example/", "javascript:alert(1)", "evil", "", None,
        "/\t/evil.example", "/\n/evil", " /a", "/a b", "http:/evil", "///evil", "/a\\b", "/é", "/" + "a" * 5000,
    ],
)  # fmt: skip
def test_the_way_back_leads_to_this_site_only(served, store, wanted):
    assert return_path(wanted, "/anomaly/") == "/anomaly/"
    reader, _ = store.create("ward", "reader")
    back = signed_in(served(), "ward", reader, **({"next": wanted} if wanted is not None else {}))
    assert back.headers["location"] == "/anomaly/"


@pytest.mark.parametrize("wanted", ["/", "/anomaly/#/study/a?x=1", "/ohif/viewer?Study=1.2&a=%20b", "/a//b"])
def test_paths_of_this_site_are_gone_back_to(wanted):
    assert return_path(wanted, "/x") == wanted
