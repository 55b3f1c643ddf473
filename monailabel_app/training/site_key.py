"""The site's secret key, and keyed hashes: an id can be looked for in a manifest, but not read out of one.

A plain hash of a patient id is no protection: there are few ids, and all of them can be tried. HMAC-SHA256 (RFC 2104)
with a key that never leaves the site makes that impossible for whoever gets a model folder without the key.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
import unicodedata
from pathlib import Path
from typing import Literal

from monailabel_app.errors import CorruptModel
from monailabel_app.files import flush

KEY_FILE = "site.key"
FORGOTTEN_FILE = "forgotten.json"
Kind = Literal["patient", "scan", "content"]
_KINDS = ("patient", "scan", "content")
_BYTES = 32
_PATIENCE_S = 2.0


def site_key(root: Path) -> bytes:
    """The 32 bytes in ``root``/model/site.key, drawn when there is no such file yet (mode 0600).

    Processes that need the key for the first time at the same moment get the same one. Raises CorruptModel when the
    file is unreadable or holds something else, and when it is gone although a list of forgotten patients was made
    with it: a new key would let those patients be trained on again.
    """
    path = Path(root) / "model" / KEY_FILE
    if not path.exists():
        if (path.parent / FORGOTTEN_FILE).exists():
            raise CorruptModel(
                f"expected model/{KEY_FILE}, with which model/{FORGOTTEN_FILE} was made, found none; restore it from "
                "a backup, or the patients to be forgotten cannot be told any more"
            )
        _create(path)
    return _read(path)


def keyed_hash(key: bytes, kind: Kind, value: str) -> str:
    """HMAC-SHA256 of one value as 64 hex digits; the kind keeps a scan id from matching an equal patient id.

    Surrounding blanks (DICOM pads ids to even length) and the Unicode form of composed letters do not count.
    """
    if kind not in _KINDS:
        raise ValueError(f"expected a kind out of {', '.join(_KINDS)}, got {kind!r}")
    plain = unicodedata.normalize("NFC", str(value)).strip(" \t\r\n\0")
    return hmac.new(key, f"monailabel_app/{kind}\0{plain}".encode(), hashlib.sha256).hexdigest()


def fingerprint(key: bytes) -> str:
    """16 hex digits that tell whether two files were made with the same key."""
    return hmac.new(key, b"monailabel_app/fingerprint", hashlib.sha256).hexdigest()[:16]


def _create(path: Path) -> None:
    """Write the whole key beside its place and link it in: exclusive, and never seen half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = secrets.token_bytes(_BYTES).hex() + "\n"
    beside = path.with_name(f".{KEY_FILE}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        try:
            _write_new(beside, text)
            try:
                os.link(beside, path)
            except FileExistsError:
                return
            except OSError:
                # A file system without hard links: still exclusive, and readers wait for the whole line.
                _write_new(path, text)
        finally:
            beside.unlink(missing_ok=True)
        flush(path.parent)
    except FileExistsError:
        return
    except OSError as error:
        raise CorruptModel(
            f"expected to write the site key model/{KEY_FILE}, got {error.strerror}; make the app's model folder "
            "writable and its disk not full"
        ) from error


def _write_new(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())


def _read(path: Path) -> bytes:
    give_up = time.monotonic() + _PATIENCE_S
    while True:
        try:
            text = path.read_text(encoding="ascii").strip()
            key = bytes.fromhex(text)
        except OSError as error:
            raise CorruptModel(
                f"expected a readable site key model/{KEY_FILE}, got {error.strerror}; give the user of the server "
                "read access to it"
            ) from error
        except ValueError:
            text, key = "?", b""
        if len(key) == _BYTES:
            return key
        if time.monotonic() > give_up:
            raise CorruptModel(
                f"expected {2 * _BYTES} hex digits in model/{KEY_FILE}, got something else; restore it from a backup: "
                "without it no training manifest of this site can be searched for a patient"
            )
        time.sleep(0.05)
