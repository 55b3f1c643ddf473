"""What an audit record may say: numbers, and words of a fixed vocabulary; everything else only as a keyed hash.

Ids of scans are often names or dates of birth. They are written as HMAC-SHA256 under a key of the log's own
(``audit.key`` beside it, readable for its owner only), so that one scan's records are found by whoever has the id and
the key, and nobody else can guess ids. The same goes for any text under a name that is not in ``IN_CLEAR``. When the
key is lost, the chain can be verified all the same, but records of before it can no longer be tied to a scan; a new key
is drawn, and a record says so.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from monailabel_app.files import give_to_owner

KEY_FILE = "audit.key"
KEY_BYTES = 32
HASHED = "hmac:"
# Names of facts whose text is the server's own: of models, settings, devices, kinds of errors, hashes.
IN_CLEAR = frozenset({
    "model", "hash", "result_hash", "version", "replaced", "method", "calibration", "score", "smoothing",
    "operating_point", "gate", "device", "dtype", "kind", "reason", "manifest", "input", "output", "mask", "map",
    "job", "run", "app", "commit", "role", "path_kind", "endpoint", "request", "state", "strategy", "stage", "format",
    "key", "bind", "auth", "what", "step", "torn", "file", "token", "store",
    "decision",
})  # fmt: skip
# Of other names only these words.
KNOWN_WORDS = {"tag": frozenset({"final", "original"})}
_WORD = re.compile(r"[A-Za-z0-9_.:+,=@-]{0,96}")
_MOST_ITEMS, _MOST_DEPTH = 40, 3
_SETTINGS = (
    "score", "smoothing", "operating_point", "threshold", "min_volume_ml", "seed", "device", "gate", "uncertainty",
)  # fmt: skip


def read_key(folder: Path, *, make: bool = True) -> bytes | None:
    """The key of the logs in a folder; drawn where there is none. Raises OSError for one that cannot be read."""
    path = Path(folder) / KEY_FILE
    for _ in range(3):
        try:
            key = bytes.fromhex(path.read_text("ascii").strip())
            if len(key) == KEY_BYTES:
                return key
            raise OSError(f"expected {KEY_BYTES} bytes in hexadecimal in {KEY_FILE}, got {len(key)}")
        except ValueError as error:
            raise OSError(f"expected a key in hexadecimal in {KEY_FILE}") from error
        except FileNotFoundError:
            if not make:
                return None
        Path(folder).mkdir(parents=True, exist_ok=True)
        # Linked into its place when it is whole: of two processes that draw one at once, the first one's counts.
        partial = path.with_name(f"{KEY_FILE}.{os.getpid()}.{secrets.token_hex(4)}")
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "w", encoding="ascii") as file:
                give_to_owner(file.fileno(), path.parent)
                file.write(secrets.token_hex(KEY_BYTES) + "\n")
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):
                os.link(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    raise OSError(f"{KEY_FILE} could not be made")


def fingerprint(key: bytes) -> str:
    """What tells keys apart and gives nothing of them away."""
    return hashlib.sha256(b"audit key" + key).hexdigest()[:16]


def keyed(key: bytes, text: str) -> str:
    """A text as records have it: the same for the same text and key."""
    return HASHED + hmac.new(key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:32]


def clean(facts: Mapping[str, Any], key: bytes) -> dict[str, Any]:
    """Facts as a record has them: plain JSON types without free text; what has no such form is left out."""
    return _clean(facts, key, 0)


def analysis_facts(result: Mapping[str, Any]) -> dict[str, Any]:
    """Of a result (``Finding.to_json``) what belongs in the log: no text of it, no lesion's place."""
    manifest, model, settings = (result.get(key) or {} for key in ("manifest", "model", "settings"))
    gate, drift, calibration = (result.get(key) or {} for key in ("gate", "drift", "calibration"))
    background = drift.get("background") or {}
    output = manifest.get("output") or {}
    told = {
        "model": model.get("id"),
        "hash": model.get("hash"),
        "result_hash": (manifest.get("model") or {}).get("result_hash"),
        "manifest": manifest.get("id"),
        "input": (manifest.get("input") or {}).get("sha256"),
        "mask": output.get("mask"),
        "map": output.get("anomaly_map"),
        "calibration": calibration.get("id"),
        "healthy_scans": calibration.get("healthy_scans"),
        "settings": {key: settings.get(key) for key in _SETTINGS},
        "anomaly_score": result.get("anomaly_score"),
        "p_value": result.get("p_value"),
        "lesions": result.get("lesion_count"),
        "volume_ml": result.get("anomaly_volume_ml"),
        "warnings": len(result.get("warnings") or ()),
        "seconds": dict(result.get("seconds") or {}),
    }
    if gate:
        told["gate"] = {key: gate.get(key) for key in ("passed", "p_value")}
    if drift:
        ratios = {f"background_{key}": background.get(key) for key in ("ratio", "divided_by")}
        told["drift"] = {**{key: drift.get(key) for key in ("distance", "p_value", "drifted")}, **ratios}
    return told


def cohort_facts(record: Mapping[str, Any]) -> dict[str, Any]:
    """Of a scan's record of a cohort (cohort.jsonl) what belongs in the log: no name, no path, no sentence."""
    drift, settings = (record.get(key) or {} for key in ("drift", "settings"))
    gate = record.get("gate")
    told = {
        "image": record.get("scan"),
        "model": record.get("model_id"),
        "hash": record.get("model_hash"),
        "calibration": record.get("calibration"),
        "settings": {key: settings.get(key) for key in _SETTINGS},
        "input": record.get("input") or None,
        "manifest": record.get("manifest"),
        "device": str(record.get("worker") or "").rpartition(" ")[2],
        "anomaly_score": record.get("score"),
        "p_value": record.get("p_value"),
        "lesions": record.get("lesions"),
        "volume_ml": record.get("volume_ml"),
        "warnings": len(record.get("warnings") or ()),
        "kind": record.get("kind"),
        "tries": record.get("tries"),
        "seconds": dict(record.get("seconds") or {}),
        "gate_passed": gate.get("passed") if gate else None,
        "drifted": drift.get("drifted"),
    }
    return {name: value for name, value in told.items() if value is not None}


def _clean(facts: Mapping[str, Any], key: bytes, depth: int) -> dict[str, Any]:
    kept = {}
    for name, value in list(facts.items())[:_MOST_ITEMS]:
        name = str(name)
        if re.fullmatch(r"[a-z][a-z0-9_]{0,40}", name):
            value = _value(name, value, key, depth)
            if value is not None:
                kept[name] = value
    return kept


def _value(name: str, value: Any, key: bytes, depth: int) -> Any:
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        # Six digits: what a figure means here, and one way to write it.
        return float(f"{float(value):.6g}") if np.isfinite(value) else None
    if isinstance(value, bytes):
        value = value.hex()
    if isinstance(value, str):
        clear = (name in IN_CLEAR and _WORD.fullmatch(value)) or value in KNOWN_WORDS.get(name, ())
        return value if clear else keyed(key, value)
    if depth < _MOST_DEPTH and isinstance(value, Mapping):
        return _clean(value, key, depth + 1)
    if depth < _MOST_DEPTH and isinstance(value, (list, tuple)):
        items = [_value(name, item, key, depth + 1) for item in value[:_MOST_ITEMS]]
        return [item for item in items if item is not None]
    return None
