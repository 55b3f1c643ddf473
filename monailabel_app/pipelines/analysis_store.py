"""Analyses on the disk: what a batch analysed opens at once, also after a restart. The second level of ``MapCache``.

One safetensors file per analysis, with everything that is no array as JSON in its header; nothing that is read is ever
executed. A file appears whole or not at all, and several processes may share a folder. It holds patients' brains: the
folder is its owner's only, files leave after some days whether they are used or not, and the least recently used
leave first when there is no room.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import threading
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

import monailabel_app
from monailabel_app.files import WRITING, replace_file
from monailabel_app.types import GateReport, PreparedVolume, to_json

from .analysis import Analysis, Evidence
from .members import EnsembleEvidence

logger = logging.getLogger(__name__)

FORMAT = 1
_SUFFIX = ".safetensors"
_KEY = re.compile(r"[0-9a-f]{16,128}")
_MATRICES = ("model_affine", "native_to_template", "native_affine")
_DAMAGED = (SafetensorError, KeyError, ValueError, TypeError, IndexError, AttributeError)
_PURGE_SECONDS, _ABANDONED_SECONDS = 600.0, 3600.0


@cache
def code_checksum() -> str:
    """A short checksum of the code of this package as it was when this process first asked."""
    package = Path(monailabel_app.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(str(file.relative_to(package)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def code_version() -> str:
    """Version and checksum of this package and version of torch: an analysis of other code is not taken for its own."""
    return f"{monailabel_app.__version__} {code_checksum()} torch {torch.__version__}"


class AnalysisStore:
    """A bounded folder of analyses; safe to share between threads and processes.

    max_days: how long an analysis is kept at most. A folder that cannot be used is said once in the log, and then
    nothing is kept.
    """

    def __init__(self, folder: str | Path, max_bytes: int = 4096 * 2**20, max_days: float = 7.0) -> None:
        self._folder = Path(folder)
        self._max_bytes, self._max_seconds = max_bytes, max_days * 86400
        self._complained = False
        self._purged = -_PURGE_SECONDS
        self._purging = threading.Lock()

    def get(self, key: str) -> Analysis | None:
        """The analysis, now the most recently used one; None for none, and for a damaged file, which is removed."""
        path = self._path(key)
        try:
            status = path.stat()
            if time.time() - status.st_mtime > self._max_seconds:
                _remove(path)
                return None
            analysis = _read(path)
            # The time of use; that of making stays, by which it will leave. The folder may be for reading only, and
            # another process may have removed the file by now: what was read is good all the same.
            with suppress(OSError):
                os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))
            return analysis
        except FileNotFoundError:
            return None
        except OSError as error:
            self._complain(error)
            return None
        except _DAMAGED as error:
            logger.warning(
                "an analysis on the disk is damaged or of another version (%s): removed", type(error).__name__
            )
            _remove(path)
            return None

    def put(self, key: str, analysis: Analysis) -> None:
        """Keep an analysis, if there is room for it at all; older ones leave for it."""
        path = self._path(key)
        try:
            arrays, record = _flattened(analysis)
            size = sum(array.nbytes for array in arrays.values())
            if size > self._max_bytes or self._max_seconds <= 0:
                return
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if all(map(_is_ours, self._folder.iterdir())):
                # Not of a folder that somebody shares with other things; the files are their owner's only anyway.
                self._folder.chmod(0o700)
            content = save(arrays, metadata={"analysis": json.dumps(record)})
            replace_file(path, content, private=True)
            self.purge()
        except OSError as error:
            self._complain(error)

    def purge(self, *, now_and_then: bool = False) -> None:
        """Remove what is too old, and the least recently used beyond the bound. now_and_then: not at every call."""
        if now_and_then and time.monotonic() - self._purged < _PURGE_SECONDS:
            return
        with self._purging:
            self._purged = time.monotonic()
            now, total = time.time(), 0
            for _, made, size, path in sorted(self._listed(), reverse=True):
                partial = path.name.startswith(WRITING)
                # Of a process that was killed; one that is being written is younger.
                age = _ABANDONED_SECONDS if partial else self._max_seconds
                total += 0 if partial else size
                if now - made > age or (total > self._max_bytes and not partial):
                    total -= 0 if partial else size
                    _remove(path)

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self._folder

    def held(self) -> tuple[int, int]:
        """How many files there are, and their bytes."""
        sizes = [size for _, _, size, _ in self._listed()]
        return len(sizes), sum(sizes)

    def clear(self) -> int:
        """Remove everything. Returns how many files there were."""
        listed = self._listed()
        for _, _, _, path in listed:
            _remove(path)
        return len(listed)

    def _listed(self) -> list[tuple[float, float, int, Path]]:
        """Time of use, time of making, bytes and path of every file of ours."""
        found = []
        try:
            paths = list(self._folder.iterdir())
        except OSError:
            return []
        for path in paths:
            if _is_ours(path):
                try:
                    status = path.stat()
                except OSError:
                    continue  # Another process was faster.
                found.append((max(status.st_atime, status.st_mtime), status.st_mtime, status.st_size, path))
        return found

    def _path(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise ValueError("expected a hexadecimal key of an analysis")
        return self._folder / f"{key}{_SUFFIX}"

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            logger.warning("analyses cannot be kept on the disk (%s): they stay in memory only", error.strerror)


def _is_ours(path: Path) -> bool:
    """By its name: another safetensors file, such as a model's, is nothing to be removed."""
    return path.name.startswith(WRITING) or (path.suffix == _SUFFIX and _KEY.fullmatch(path.stem) is not None)


def _remove(path: Path) -> None:
    """Gone already, or in a folder that cannot be written: said elsewhere."""
    with suppress(OSError):
        path.unlink()


class _Arrays:
    """Arrays by short names, as lines of numbers; equal ones are kept once, truth values as bits."""

    def __init__(self) -> None:
        self.named: dict[str, np.ndarray] = {}
        self._names: dict[tuple[int, int, str], str] = {}

    def add(self, array: np.ndarray | None) -> dict[str, Any] | None:
        """What the record says of an array."""
        if array is None:
            return None
        plain = np.packbits(array) if array.dtype == bool else np.ascontiguousarray(array).reshape(-1)
        check = zlib.crc32(plain.view(np.uint8))
        about = (check, array.size, array.dtype.str)
        name = self._names.get(about)
        if name is None or not np.array_equal(self.named[name], plain):
            name = f"a{len(self.named)}"
            self._names[about] = name
            self.named[name] = plain
        return {"at": name, "shape": list(array.shape), "bits": array.dtype == bool, "check": check}


def _flattened(analysis: Analysis) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    arrays, prepared = _Arrays(), analysis.prepared
    record = {
        "format": FORMAT,
        "version": code_version(),
        "prepared": {
            "image": arrays.add(prepared.image),
            "brain_mask": arrays.add(prepared.brain_mask),
            "native_brain_mask": arrays.add(prepared.native_brain_mask),
            **{name: arrays.add(np.asarray(getattr(prepared, name), dtype=np.float64)) for name in _MATRICES},
            "native_shape": list(prepared.native_shape),
            "steps": to_json(prepared.steps),
            "seconds": to_json(prepared.seconds),
            "warnings": list(prepared.warnings),
        },
        "evidence": _flat_evidence(analysis.evidence, arrays),
        "gate": None if analysis.gate is None else _gate_record(analysis.gate),
        "judged": analysis.judged,
        "made": to_json(list(analysis.made)),
    }
    return arrays.named, record


def _flat_evidence(evidence: Evidence, arrays: _Arrays) -> dict[str, Any]:
    members = getattr(evidence, "members", None)
    return {
        "image": arrays.add(evidence.image),
        "brain_mask": arrays.add(evidence.brain_mask),
        "reconstruction": arrays.add(evidence.reconstruction),
        "variance": arrays.add(evidence.variance),
        "maps": {name: arrays.add(values) for name, values in evidence.maps.items()},
        "figures": {name: float(value) for name, value in evidence.figures.items()},
        "members": None if members is None else [_flat_evidence(member, arrays) for member in members],
    }


def _gate_record(gate: GateReport) -> dict[str, Any]:
    # Not its to_json, which has no place for numbers that are not finite; JSON of Python has.
    return {
        "score": float(gate.score),
        "p_value": float(gate.p_value),
        "threshold": float(gate.threshold),
        "passed": bool(gate.passed),
        "reasons": list(gate.reasons),
        "figures": {name: float(value) for name, value in gate.figures.items()},
        "judged_by": gate.judged_by,
        "seconds": float(gate.seconds),
    }


def _read(path: Path) -> Analysis:
    with safe_open(str(path), framework="numpy") as file:
        record = json.loads((file.metadata() or {})["analysis"])
        if (record["format"], record["version"]) != (FORMAT, code_version()):
            raise ValueError("made by another version")
        held: dict[str, np.ndarray] = {}

        def array(about: Mapping[str, Any] | None) -> np.ndarray | None:
            if about is None:
                return None
            name, shape = str(about["at"]), tuple(int(n) for n in about["shape"])
            if name not in held:
                values = file.get_tensor(name)
                if zlib.crc32(values.view(np.uint8)) != about["check"]:
                    raise ValueError("another checksum")
                held[name] = np.unpackbits(values, count=int(np.prod(shape))).astype(bool) if about["bits"] else values
            return held[name].reshape(shape)

        about = record["prepared"]
        prepared = PreparedVolume(
            image=array(about["image"]),
            brain_mask=array(about["brain_mask"]),
            native_brain_mask=array(about["native_brain_mask"]),
            **{name: array(about[name]) for name in _MATRICES},
            native_shape=tuple(int(n) for n in about["native_shape"]),
            steps=tuple(about["steps"]),
            seconds=dict(about["seconds"]),
            warnings=tuple(about["warnings"]),
        )
        gate = record["gate"]
        return Analysis(
            prepared,
            _evidence(record["evidence"], array),
            None if gate is None else GateReport(**{**gate, "reasons": tuple(gate["reasons"])}),
            bool(record["judged"]),
            tuple(record["made"]),
        )


def _evidence(about: Mapping[str, Any], array: Any) -> Evidence:
    parts = {
        **{name: array(about[name]) for name in ("image", "brain_mask", "reconstruction", "variance")},
        "maps": {name: array(values) for name, values in about["maps"].items()},
        "figures": dict(about["figures"]),
    }
    if about["members"] is None:
        return Evidence(**parts)
    return EnsembleEvidence(**parts, members=tuple(_evidence(member, array) for member in about["members"]))
