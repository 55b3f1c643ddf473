import os

import pytest

from monailabel_app.access.tokens import TokenStore
from monailabel_app.audit.log import AuditLog
from monailabel_app.files import open_own

SERVER = 65534
WHO = {"name": "somebody", "role": "admin", "how": "command"}

pytestmark = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root makes files for others"
)


@pytest.fixture
def folder(tmp_path):
    os.chown(tmp_path, SERVER, SERVER)
    return tmp_path


def owners(folder):
    return {path.name: path.stat().st_uid for path in folder.iterdir()}


def test_tokens_made_by_root_can_be_read_by_the_server(folder):
    store = TokenStore(folder / "tokens.json")
    store.create("one", "reader")
    store.create("two", "admin")
    store.revoke("one")
    assert owners(folder) == {"tokens.json": SERVER, ".tokens.json.lock": SERVER}
    assert store.path.stat().st_mode & 0o777 == 0o600


def test_the_server_goes_on_with_a_log_that_root_began(folder):
    log = AuditLog(folder / "audit.jsonl")
    log.append("purge", WHO)
    log.close()
    found = owners(folder)
    assert {"audit.jsonl", "audit.jsonl.head", "audit.jsonl.lock", "audit.key"} <= set(found)
    assert set(found.values()) == {SERVER}


def test_a_file_that_was_there_keeps_its_owner(folder, tmp_path_factory):
    theirs = tmp_path_factory.mktemp("elsewhere") / "of_root"
    theirs.write_text("x")
    (folder / "link").symlink_to(theirs)
    os.close(open_own(folder / "link"))
    assert theirs.stat().st_uid == 0
