"""The run manifest: everything that a result depends on, and the hashes by which it is known again.

It is part of a finding's JSON and so of every result, and enough, with the scan, to make the result again
(``reproduce``). Of the scan it holds the hash of its voxels and affine, no name and no path:

{format, app {version, commit, code}, model {id, hash, result_hash, method, prepared_by, gate, members},
calibration {kind, id, hash}, settings, given_mask, input {sha256, shape}, preprocessing [steps],
environment {python, libraries, machine, cpu, threads, device, device_name, dtype, ...}, made_with [environments],
threshold, output {mask, anomaly_map, brain_mask, figures: sha256}, id}

``environment`` is where this result was put together. The network's part may have been at hand from before;
``made_with`` names the environments in which that was made, where they are others. ``id`` is a hash of all this: the
same run gives the same. A manifest that is kept alone has ``time`` and ``seconds`` {stage: s} beside it, as the result
has.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from monailabel_app import __version__
from monailabel_app.errors import CorruptModel
from monailabel_app.methods.output import computes_in
from monailabel_app.types import BrainMask, Finding, Volume, digest_of, manifest_id, to_json
from monailabel_app.weights.model_folder import SUMS, sha256_of

from .analysis_store import code_checksum
from .find_model import companion
from .input_gate import FOLDER as GATE_FOLDER

if TYPE_CHECKING:
    from .anomaly_model import AnomalyModel
    from .predict import PredictSettings

__all__ = ["FORMAT", "differences", "environment", "manifest_id", "manifest_of", "provenance"]

FORMAT = 1
COMMIT_VARIABLE = "ANOMALY_COMMIT"
_LIBRARIES = ("torch", "monai", "numpy", "scipy", "SimpleITK", "nibabel", "scikit-image", "pydicom", "safetensors")
_ROOT = Path(__file__).resolve().parents[2]


def environment(device: str = "cpu") -> dict[str, Any]:
    """What the arithmetic of an analysis on this device depends on, beside the model and the settings."""
    kind = torch.device(device)
    about = {
        "app": __version__,
        "code": code_checksum(),
        "python": platform.python_version(),
        "libraries": dict(_libraries()),
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": str(kind),
        "dtype": computes_in(kind),
    }
    if kind.type == "cuda":
        about |= {
            "device_name": torch.cuda.get_device_name(kind),
            "cuda": str(torch.version.cuda),
            "cudnn": torch.backends.cudnn.version(),
            "tf32": [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32],
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
        }
    return about


def provenance(
    volume: Volume,
    model: AnomalyModel,
    settings: PredictSettings,
    score: str,
    steps: Iterable[Mapping[str, Any]],
    made: Iterable[Mapping[str, Any]],
    brain: BrainMask | None = None,
) -> dict[str, Any]:
    """A manifest without what came out; ``Finding.manifest`` adds that. made: the environments of the analyses."""
    here = environment(settings.device)
    others = []
    for other in made:
        if other != here and other not in others:
            others.append(other)
    return to_json(
        {
            "format": FORMAT,
            "app": {"version": __version__, "commit": source_commit(), "code": code_checksum()},
            "model": {
                "id": model.id,
                "hash": model.hash,
                "result_hash": model.decides,
                "method": str(model.meta["method"]),
                "prepared_by": model.prepared_by,
                "gate": _gate_hash(model.folder),
                "members": [{"id": member.id, "result_hash": member.decides} for member in model.members],
            },
            "calibration": {key: model.calibration_id.get(key) for key in ("kind", "id", "hash")},
            "settings": {**asdict(settings), "score": score},
            "given_mask": None if brain is None else digest_of(brain.mask),
            "input": {"sha256": volume.digest.hex(), "shape": volume.shape},
            "preprocessing": list(steps),
            "environment": here,
            "made_with": others,
        }
    )


def manifest_of(finding: Finding) -> dict[str, Any]:
    """The manifest of a finding of ``predict`` to be kept alone, with what its stages took and the time of now."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {**finding.manifest, "seconds": to_json(dict(finding.seconds)), "time": now}


def differences(before: Mapping[str, Any], now: Mapping[str, Any], under: str = "") -> list[str]:
    """What differs between two mappings, in lines such as ``libraries.torch: 2.1 then, 2.2 now``."""
    lines = []
    for key in sorted({*before, *now}):
        name, old, new = f"{under}{key}", before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += differences(old, new, f"{name}.")
        elif old != new:
            lines.append(f"{name}: {_said(old)} then, {_said(new)} now")
    return lines


@cache
def source_commit() -> str | None:
    """Commit of this source tree, or what the environment says it is; None where neither is known.

    The tree may have been changed since; ``app.code`` is the checksum of the code that ran.
    """
    if os.environ.get(COMMIT_VARIABLE):
        return os.environ[COMMIT_VARIABLE][:64]
    folder = _ROOT / ".git"
    try:
        if folder.is_file():
            # A worktree of its own names its place, and that of the references it shares.
            folder = Path(folder.read_text().partition(":")[2].strip())
        head = (folder / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head[:64]
        shared = folder / "commondir"
        common = (folder / shared.read_text().strip()) if shared.is_file() else folder
        for place in (folder, common):
            if (place / head[5:]).is_file():
                return (place / head[5:]).read_text().strip()[:64]
        for line in (common / "packed-refs").read_text().splitlines():
            if line.endswith(f" {head[5:]}"):
                return line.split()[0][:64]
    except OSError:
        return None
    return None


@cache
def _libraries() -> Mapping[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _gate_hash(folder: Path) -> str | None:
    try:
        return sha256_of(companion(folder, GATE_FOLDER) / SUMS)
    except (CorruptModel, OSError):
        return None


def _said(value: Any) -> str:
    return "nothing" if value is None else str(value)
