import hashlib
import hmac
import multiprocessing
import os
import stat

import pytest

from monailabel_app.errors import CorruptModel
from monailabel_app.training import site_key as module
from monailabel_app.training.site_key import FORGOTTEN_FILE, KEY_FILE, fingerprint, keyed_hash, site_key


def test_the_key_is_made_once_and_only_its_owner_can_read_it(tmp_path):
    key = site_key(tmp_path)
    file = tmp_path / "model" / KEY_FILE
    assert len(key) == 32
    assert bytes.fromhex(file.read_text().strip()) == key
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert site_key(tmp_path) == key
    assert [path.name for path in (tmp_path / "model").iterdir()] == [KEY_FILE]


def test_two_sites_have_different_keys(tmp_path):
    assert site_key(tmp_path / "a") != site_key(tmp_path / "b")


def _take(root, barrier, answers):
    barrier.wait()
    answers.put(site_key(root).hex())


def test_processes_that_need_it_at_the_same_moment_get_the_same_key(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(6), context.Queue()
    workers = [context.Process(target=_take, args=(tmp_path, barrier, answers)) for _ in range(6)]
    for worker in workers:
        worker.start()
    found = {answers.get(timeout=300) for _ in workers}
    for worker in workers:
        worker.join(300)
    assert len(found) == 1
    assert found == {site_key(tmp_path).hex()}


def test_it_is_made_exclusively_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(module.os, "link", refuse)
    key = site_key(tmp_path)
    assert site_key(tmp_path) == key
    assert stat.S_IMODE((tmp_path / "model" / KEY_FILE).stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ["", "zz" * 32, "ab" * 31, "é" * 64])
def test_a_damaged_key_is_refused_by_name_and_never_replaced(tmp_path, monkeypatch, text):
    monkeypatch.setattr(module, "_PATIENCE_S", 0.1)
    file = tmp_path / "model" / KEY_FILE
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(CorruptModel, match=r"site\.key"):
        site_key(tmp_path)
    assert file.read_text() == text


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser can read every file")
def test_an_unreadable_key_is_a_named_error(tmp_path):
    site_key(tmp_path)
    (tmp_path / "model" / KEY_FILE).chmod(0)
    with pytest.raises(CorruptModel, match="read access"):
        site_key(tmp_path)


def test_a_folder_in_the_keys_place_is_a_named_error(tmp_path):
    (tmp_path / "model" / KEY_FILE).mkdir(parents=True)
    with pytest.raises(CorruptModel, match="readable site key"):
        site_key(tmp_path)


def test_no_new_key_is_drawn_while_forgotten_patients_depend_on_the_lost_one(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / FORGOTTEN_FILE).write_text("{}")
    with pytest.raises(CorruptModel, match="restore it"):
        site_key(tmp_path)
    assert not (tmp_path / "model" / KEY_FILE).exists()


def test_the_hash_is_hmac_sha256_of_the_kind_and_the_value():
    key = bytes(range(32))
    wanted = hmac.new(key, b"monailabel_app/patient\x00P-1", hashlib.sha256).hexdigest()
    assert keyed_hash(key, "patient", "P-1") == wanted


def test_kind_key_and_value_each_change_the_hash():
    key, other = bytes(32), bytes([1] * 32)
    hashes = {
        keyed_hash(key, "patient", "1"),
        keyed_hash(key, "scan", "1"),
        keyed_hash(key, "content", "1"),
        keyed_hash(other, "patient", "1"),
        keyed_hash(key, "patient", "2"),
    }
    assert len(hashes) == 5
    assert fingerprint(key) != fingerprint(other)


def test_padding_and_composed_letters_do_not_make_another_patient():
    key = bytes(32)
    assert keyed_hash(key, "patient", "M\u00fcller ") == keyed_hash(key, "patient", "Mu\u0308ller")
    assert keyed_hash(key, "patient", "A1\0") == keyed_hash(key, "patient", " A1")


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="patient, scan, content"):
        keyed_hash(bytes(32), "name", "x")
