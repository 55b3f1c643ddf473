"""The file of tokens: what it keeps, whom it admits, and that nobody is admitted when it cannot be trusted."""

import json
import os
import stat
import subprocess
import sys
import threading
from datetime import datetime, timedelta, timezone

import pytest
from typer.testing import CliRunner

from monailabel_app.access import tokens as module
from monailabel_app.access.tokens import InvalidToken, TokenStore, TokensUnreadable, default_file, digest_of
from monailabel_app.cli import app

posix = pytest.mark.skipif(os.name != "posix", reason="file modes are those of POSIX")


@pytest.fixture
def store(tmp_path):
    return TokenStore(tmp_path / "model" / "tokens.json")


def test_a_token_is_found_by_itself_and_never_kept(store):
    secret, made = store.create("slicer-room-2", "reader", days=30)
    assert store.find(secret) == made
    assert store.find(secret[:-1]) is None
    assert store.find("") is None
    assert store.find("é" * 10) is None
    assert secret not in store.path.read_text()
    assert made.sha256 == digest_of(secret)
    assert made.expires - made.created == timedelta(days=30)
    assert len(secret) > 43


@posix
def test_the_file_is_its_owners_alone(store):
    previous = os.umask(0)
    try:
        store.create("a", "admin")
    finally:
        os.umask(previous)
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600


def test_several_tokens_are_valid_at_once_and_a_revoked_one_is_dead_in_every_reader(store):
    other = TokenStore(store.path)
    old, _ = store.create("old", "reader")
    new, _ = store.create("new", "reader")
    assert other.find(old)
    assert other.find(new)
    store.revoke("old")
    assert other.find(old) is None
    assert other.find(new)
    assert other.by_hash(digest_of(old)) is None


def test_an_expired_token_is_refused_and_its_name_is_free_again(store, monkeypatch):
    secret, _ = store.create("a", "reader", days=1)
    later = datetime.now(timezone.utc) + timedelta(days=1, seconds=1)
    monkeypatch.setattr(module, "_now", lambda: later)
    assert store.find(secret) is None
    assert store.by_hash(digest_of(secret)) is None
    again, _ = store.create("a", "reader")
    assert store.find(again).name == "a"
    assert len(store.tokens()) == 1


@pytest.mark.parametrize(
    ("name", "role", "days"),
    [("a b", "reader", 1), ("", "reader", 1), ("../a", "reader", 1), ("a", "root", 1), ("a", "reader", 0),
     ("a", "reader", -1), ("a", "reader", float("nan")), ("a", "reader", 1e9)],
)  # fmt: skip
def test_what_no_token_can_be_made_of_is_said(store, name, role, days):
    with pytest.raises(InvalidToken, match="expected"):
        store.create(name, role, days)
    assert not store.path.exists()


def test_a_name_is_taken_only_once(store):
    store.create("a", "reader")
    with pytest.raises(InvalidToken, match="already"):
        store.create("a", "admin")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: "{}",
        lambda text: text.replace('"format": 1', '"format": 2'),
        lambda text: text.replace('"reader"', '"root"'),
        lambda text: text.replace('"sha256": "', '"sha256": "x'),
        lambda text: text.replace("+00:00", ""),
        lambda text: text.replace('"created"', '"made"'),
        lambda text: "[" * 100_000,
        lambda text: '{"format": 1, "tokens": [1]}',
        lambda text: json.dumps({"format": 1, "tokens": json.loads(text)["tokens"] * 2}),
    ],
)
def test_a_damaged_file_admits_nobody_and_is_named(store, damage):
    secret, _ = store.create("a", "reader")
    assert store.find(secret)
    store.path.write_text(damage(store.path.read_text()))
    for _ in range(2):
        with pytest.raises(TokensUnreadable, match="file of tokens"):
            store.find(secret)
    with pytest.raises(TokensUnreadable):
        store.create("b", "admin")


@posix
@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_admits_nobody(store, mode):
    secret, _ = store.create("a", "reader")
    store.path.chmod(mode)
    with pytest.raises(TokensUnreadable, match="chmod 600"):
        store.find(secret)


def test_a_mended_file_is_believed_again(store):
    secret, _ = store.create("a", "reader")
    good = store.path.read_text()
    store.path.write_text("x")
    with pytest.raises(TokensUnreadable):
        store.find(secret)
    store.path.write_text(good)
    assert store.find(secret)


def test_tokens_made_at_the_same_time_are_all_kept(store):
    names = [f"n{i}" for i in range(12)]
    threads = [threading.Thread(target=TokenStore(store.path).create, args=(name, "reader")) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {token.name for token in store.tokens()} == set(names)


def test_the_place_of_the_file_can_be_chosen(tmp_path, monkeypatch):
    monkeypatch.delenv("ANOMALY_TOKENS", raising=False)
    assert default_file(tmp_path) == tmp_path / "model" / "tokens.json"
    monkeypatch.setenv("ANOMALY_TOKENS", str(tmp_path / "e.json"))
    assert default_file(tmp_path) == tmp_path / "e.json"
    assert default_file(tmp_path, {"tokens": str(tmp_path / "c.json")}) == tmp_path / "c.json"


def test_the_commands_make_list_and_revoke(tmp_path, monkeypatch):
    path = tmp_path / "tokens.json"
    monkeypatch.setenv("ANOMALY_TOKENS", str(path))
    made = CliRunner().invoke(app, ["tokens", "create", "--name", "ward", "--role", "reader", "--days", "90"])
    assert made.exit_code == 0, made.output
    secret = made.stdout.strip().splitlines()[-1]
    assert TokenStore(path).find(secret).name == "ward"
    shown = CliRunner().invoke(app, ["tokens", "list"])
    assert "ward" in shown.output
    assert secret not in shown.output
    assert digest_of(secret) not in shown.output
    assert json.loads(CliRunner().invoke(app, ["tokens", "list", "--json"]).stdout)[0]["state"] == "valid"
    gone = CliRunner().invoke(app, ["tokens", "revoke", "ward"])
    assert gone.exit_code == 0
    assert TokenStore(path).tokens() == ()
    wrong = CliRunner().invoke(app, ["tokens", "revoke", "ward"])
    assert wrong.exit_code == 2
    assert "no token named 'ward'" in wrong.output


def test_tokens_need_neither_torch_nor_monai_label():
    code = "import sys, monailabel_app.access.tokens; print({'torch', 'monailabel', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
