"""Where the versions of a model lie, and which of them serves; nothing is written here.

``root`` is the app folder. A model named ``ddpm_t1`` lives in::

    model/ddpm_t1/versions/0001/   sealed model folders, never changed after publishing
    model/ddpm_t1/CURRENT          one line: the version that serves, or ``shipped``
    model/ddpm_t1/history.jsonl    one line per change: time, action, version, hash, reason
    model/ddpm_t1/site_calibrations/   see ``site_calibrations``; also for a shipped model

Without CURRENT, a flat folder (``model/ddpm_t1/config.yaml``, copied in by hand) serves, else the shipped namesake in
``model_weights/``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monailabel_app.errors import CorruptModel, InvalidSettings, UnknownModel

from .model_folder import CONFIG, SUMS, VERSIONS, is_version

TRAINED, SHIPPED = "model", "model_weights"
CURRENT, HISTORY = "CURRENT", "history.jsonl"
SHIPPED_VERSION, FLAT_VERSION = "shipped", "flat"
SITE_CALIBRATIONS = "site_calibrations"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RESERVED = {"template", "brain_extraction", "input_gate_t1", VERSIONS}


@dataclass(frozen=True)
class Version:
    """A published version. hash: of its checksum list, as recorded (not verified here); serving: whether it serves."""

    name: str
    version: str
    folder: Path
    hash: str
    serving: bool

    @property
    def id(self) -> str:
        """``ddpm_t1@0002``, the model id in every result."""
        return f"{self.name}@{self.version}"


def is_model_name(name: str) -> bool:
    """Whether a folder of this name can be a model."""
    return bool(_NAME.fullmatch(name))


def check_name(name: str) -> None:
    """Raises InvalidSettings for a name that cannot be a model's folder."""
    if not is_model_name(name) or name in _RESERVED:
        raise InvalidSettings(
            f"expected a model name of at most 64 letters, digits, '.', '_' or '-', and none of "
            f"{', '.join(sorted(_RESERVED))}; got {name[:80]!r}"
        )


def pointer(root: Path, name: str) -> str | None:
    """The text of CURRENT: a version, ``shipped``, or something else when it is damaged; None where there is none."""
    try:
        return (home(root, name) / CURRENT).read_text(encoding="ascii", errors="replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None


def current(root: Path, name: str) -> Path | None:
    """The folder that serves under ``name``: a version, a flat folder, or the shipped one; None when there is none.

    Raises CorruptModel when CURRENT names a version that is not there: another model is never served in its place.
    """
    base, text = home(root, name), pointer(root, name)
    if text is not None and text != SHIPPED_VERSION:
        folder = base / VERSIONS / text
        if not is_version(text) or not (folder / CONFIG).is_file():
            raise CorruptModel(
                f"expected {CURRENT} of model {name} to name one of its versions or '{SHIPPED_VERSION}', got "
                f"{text[:20]!r}; choose one: python main.py models promote {name} VERSION "
                f"(there is: {', '.join(numbers(base)) or 'none'})"
            )
        return folder
    if text is None and (base / CONFIG).is_file():
        return base
    return shipped_folder(root, name)


def serving_version(root: Path, name: str) -> str | None:
    """``0002``, ``shipped``, ``""`` for a flat folder, None when nothing serves. Raises CorruptModel as ``current``."""
    folder = current(root, name)
    return None if folder is None else version_of(root, name, folder)


def version_of(root: Path, name: str, folder: Path) -> str:
    """What a folder given by ``current`` is: ``0002``, ``shipped``, or ``""`` for a flat folder."""
    base = home(root, name)
    return "" if folder == base else folder.name if folder.parent == base / VERSIONS else SHIPPED_VERSION


def versions(root: Path, name: str) -> list[Version]:
    """The published versions, oldest first; promoted or not."""
    base, serving = home(root, name), pointer(root, name)
    return [
        Version(name, number, base / VERSIONS / number, recorded_hash(base / VERSIONS / number), number == serving)
        for number in numbers(base)
    ]


def locate(root: Path, name: str, version: str | None = None) -> Path:
    """The folder of a version (``0002``, ``2`` or ``shipped``), or of what serves.

    Raises UnknownModel that lists what there is, and CorruptModel as ``current``.
    """
    if version is None:
        folder = current(root, name) if is_model_name(name) else None
        if folder is None:
            raise UnknownModel(f"expected a model that serves, got {name[:80]!r}; see: python main.py models list")
        return folder
    version = normalised(version)
    base = home(root, name)
    folder = shipped_folder(root, name) if version == SHIPPED_VERSION else base / VERSIONS / version
    if not is_model_name(name) or folder is None or not (folder / CONFIG).is_file():
        there_is = available(root, name) if is_model_name(name) else []
        raise UnknownModel(
            f"expected a version of model {name[:80]!r} out of {', '.join(there_is) or 'none (nothing is published)'}, "
            f"got {version[:20]!r}; see: python main.py models list"
        )
    return folder


def normalised(version: str) -> str:
    """``2`` as ``0002``; anything else unchanged."""
    return f"{int(version):04d}" if version.isascii() and version.isdigit() and len(version) < 9 else version


def split_id(model: str) -> tuple[str, str | None]:
    """``ddpm_t1@0002`` -> name and version; version None where none is given."""
    name, at, version = model.partition("@")
    return name, (version if at else None)


def history(root: Path, name: str) -> list[dict[str, Any]]:
    """The recorded changes, oldest first; a line that a power cut has torn is left out."""
    try:
        lines = (home(root, name) / HISTORY).read_text(encoding="utf-8", errors="replace").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []
    entries = []
    for line in lines:
        with suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict):
                entries.append(entry)
    return entries


def recorded_hash(folder: Path) -> str:
    """The folder's hash as its checksum list gives it, without reading the files; empty when there is no list."""
    try:
        return hashlib.sha256((folder / SUMS).read_bytes()).hexdigest()
    except OSError:
        return ""


def use_file(site: Path, version: str) -> Path:
    """The file that names the site calibration used with a version, ``shipped`` or ``flat``."""
    return site / f"USED-{version}"


def home(root: Path, name: str) -> Path:
    """``model/NAME``."""
    return Path(root) / TRAINED / name


def shipped_folder(root: Path, name: str) -> Path | None:
    """``model_weights/NAME``, when there is such a model."""
    folder = Path(root) / SHIPPED / name
    return folder if (folder / CONFIG).is_file() else None


def numbers(base: Path) -> list[str]:
    """The versions in a model's home, oldest first."""
    try:
        names = os.listdir(base / VERSIONS)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted((n for n in names if is_version(n) and (base / VERSIONS / n / CONFIG).is_file()), key=int)


def available(root: Path, name: str) -> list[str]:
    """What can serve under a name: versions, oldest first, and ``shipped``."""
    return [*numbers(home(root, name)), *([SHIPPED_VERSION] if shipped_folder(root, name) else [])]
