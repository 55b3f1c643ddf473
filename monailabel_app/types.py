"""The values that travel between the packages. Arrays are (c, x, y, z); affines map voxel index to RAS mm."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

# Voxels that share a face, an edge or a corner are of one lesion, wherever lesions are told apart: (3, 3, 3), as the
# ``structure`` of ``scipy.ndimage``.
CONNECTIVITY_26 = np.ones((3, 3, 3), dtype=bool)


@dataclass(frozen=True)
class Volume:
    """A scalar image in its own (native) voxel order.

    data: (c, x, y, z) float32, c == 1 for everything this package analyses.
    affine: (4, 4) float64, voxel index -> RAS millimetres.
    name: a short identifier for messages; never a path or a patient name.
    warnings: what the reader had to repair or assume, in plain sentences.
    native: the file's own geometry record (``io.native.NativeGeometry``), so that a result can be written
        back into exactly that geometry; None for a volume that came from no file.
    """

    data: np.ndarray
    affine: np.ndarray
    name: str = "volume"
    warnings: tuple[str, ...] = ()
    native: Any = field(default=None, repr=False, compare=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Spatial size in voxels."""
        return tuple(int(n) for n in self.data.shape[1:])

    @cached_property
    def digest(self) -> bytes:
        """sha256 over voxels, shape and affine, found once: a volume's arrays are not changed after it was made."""
        found = hashlib.sha256(np.ascontiguousarray(self.data).reshape(-1).view(np.uint8))
        found.update(np.ascontiguousarray(self.affine, dtype=np.float64).tobytes())
        found.update(repr((self.data.shape, self.data.dtype.str)).encode())
        return found.digest()

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel edge lengths in mm, in voxel-axis order."""
        return tuple(float(v) for v in np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel in cubic mm (also right for a sheared affine)."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))


@dataclass(frozen=True)
class BrainMask:
    """A brain mask on a volume's native grid.

    mask: (x, y, z) bool. method: ``network``, ``already_stripped``, ``hd_bet`` or ``given``.
    """

    mask: np.ndarray
    method: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class PreparedVolume:
    """A brain in template (model) space, with everything needed to come back.

    image: (1, X, Y, Z) float32 in [0, 1], zero outside the brain.
    brain_mask: (X, Y, Z) bool, template grid.
    model_affine: (4, 4) template voxel -> template RAS mm.
    native_to_template: (4, 4) native RAS mm -> template RAS mm.
    native_affine, native_shape, native_brain_mask: the geometry to return to.
    steps: what was done, in order, JSON-serialisable (the record in every result).
    seconds: wall time per step.
    """

    image: np.ndarray
    brain_mask: np.ndarray
    model_affine: np.ndarray
    native_to_template: np.ndarray
    native_affine: np.ndarray
    native_shape: tuple[int, int, int]
    native_brain_mask: np.ndarray
    steps: tuple[Mapping[str, Any], ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel edge lengths of the model grid in mm."""
        return tuple(float(v) for v in np.linalg.norm(self.model_affine[:3, :3], axis=0))


@dataclass(frozen=True)
class Lesion:
    """One 26-connected component of the mask, measured on the native grid.

    uncertainty: how much its figures would change and why (``pipelines.uncertainty``); None where it was not asked.
    peak_voxel: the voxel of the highest value, the first of several; it stays while a threshold moves, so that a
    decision about a lesion is found again by it.
    """

    index: int
    volume_ml: float
    centroid_voxel: tuple[float, float, float]
    centroid_ras_mm: tuple[float, float, float]
    mean_score: float
    peak_score: float
    region: str = ""
    uncertainty: Mapping[str, Any] | None = None
    peak_voxel: tuple[int, int, int] | None = None


# What may become of a scan that the input gate does not let pass; the default first.
GATE_SETTINGS = ("warn", "refuse", "off")


@dataclass(frozen=True)
class GateReport:
    """Whether a scan is one of those that the models were made for, judged before any mask is shown.

    score: of the oddest feature, in healthy standard deviations; threshold: the highest of the held-out healthy scans;
    p_value: its rank among theirs. reasons: plain sentences, empty when it passed. figures: the
    features, and as ``<name>_z`` how odd each is. judged_by: ``full``, ``plain`` (without the network) or ``outline``
    (of the brain mask only, for other sequences than T1).
    """

    score: float
    p_value: float
    threshold: float
    passed: bool
    reasons: tuple[str, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    judged_by: str = "full"
    seconds: float = 0.0

    def sentence(self) -> str:
        """The verdict in one line; empty when the scan passed."""
        if self.passed:
            return ""
        why = "; ".join(self.reasons) or "several features together are unusual"
        return f"this scan is unlike what the model was trained on, so its result may mean nothing: {why}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return to_json(asdict(self))


@dataclass(frozen=True)
class Finding:
    """What a prediction returns, all arrays on the native grid of the input.

    mask: (x, y, z) uint8, 1 = anomaly. anomaly_map: (x, y, z) float32, calibrated (healthy standard deviations).
    anomaly_score: scan-level score; p_value: its rank among the held-out healthy scans. gate: whether the scan is one
    that the model was made for; None where that was not asked.
    analysed: how much of the scan a model of single levels looked at; None where all of it was analysed.
    uncertainty: of the scan's figures, and what it rests on; None where it was not asked.
    calibration: which one the thresholds come from, and what the operating point promises about healthy scans.
    drift: how far the scan's bulk is from the calibration's scans; None for a calibration of an earlier version.
    reconstructs: whether there is a reconstruction to ask for.
    provenance: what the result depends on (``pipelines.manifest``); None where it was not made by ``predict``.

    Made only where images are asked for: reconstruction, (x, y, z) float32, the pseudo-healthy brain in the scan's own
    grey values, 0 outside the brain; None for methods that make none. uncertainty_map, (x, y, z) float32, the
    deviation of anomaly_map over the repeats, in its unit; None where uncertainty was not asked.
    """

    mask: np.ndarray
    anomaly_map: np.ndarray
    brain_mask: np.ndarray
    affine: np.ndarray
    lesions: tuple[Lesion, ...]
    anomaly_score: float
    p_value: float
    threshold: float
    model_id: str
    model_hash: str
    settings: Mapping[str, Any]
    seconds: Mapping[str, float]
    steps: tuple[Mapping[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()
    reconstruction: np.ndarray | None = None
    analysed: Mapping[str, Any] | None = None
    gate: GateReport | None = None
    uncertainty: Mapping[str, Any] | None = None
    calibration: Mapping[str, Any] | None = None
    drift: Mapping[str, Any] | None = None
    uncertainty_map: np.ndarray | None = None
    reconstructs: bool = True
    provenance: Mapping[str, Any] | None = None

    @cached_property
    def manifest(self) -> dict[str, Any] | None:
        """The run manifest (``pipelines.manifest``): what the result depends on, and hashes of what came out.

        Found once, since the arrays are not changed afterwards. The same for the same run: times are not in it.
        """
        if self.provenance is None:
            return None
        figures = {
            "anomaly_score": self.anomaly_score,
            "p_value": self.p_value,
            "lesions": [asdict(lesion) for lesion in self.lesions],
            "uncertainty": self.uncertainty,
        }
        told = {
            **self.provenance,
            "threshold": to_json(self.threshold),
            "output": {
                "mask": digest_of(self.mask),
                "anomaly_map": digest_of(self.anomaly_map),
                "brain_mask": digest_of(self.brain_mask),
                "figures": hashlib.sha256(json.dumps(to_json(figures), sort_keys=True).encode()).hexdigest(),
            },
        }
        return {**told, "id": manifest_id(told)}

    def to_json(self) -> dict[str, Any]:
        """Everything but the arrays, as plain JSON types (no numpy scalars, no NaN)."""
        return to_json(
            {
                "anomaly_score": self.anomaly_score,
                "p_value": self.p_value,
                "threshold": self.threshold,
                "lesion_count": len(self.lesions),
                "anomaly_volume_ml": sum(lesion.volume_ml for lesion in self.lesions),
                "lesions": [asdict(lesion) for lesion in self.lesions],
                "model": {"id": self.model_id, "hash": self.model_hash},
                "analysed": None if self.analysed is None else dict(self.analysed),
                "settings": dict(self.settings),
                "seconds": dict(self.seconds),
                "preprocessing": list(self.steps),
                "warnings": list(self.warnings),
                "gate": self.gate.to_json() if self.gate is not None else None,
                "uncertainty": self.uncertainty,
                "calibration": self.calibration,
                "drift": self.drift,
                "manifest": self.manifest,
                "intended_use": "research use only; not a medical device",
            }
        )


def digest_of(array: np.ndarray) -> str:
    """sha256 over an array's values, shape and type, in hexadecimal; booleans count as bytes."""
    plain = np.ascontiguousarray(array)
    found = hashlib.sha256(plain.reshape(-1).view(np.uint8))
    found.update(repr((plain.shape, plain.dtype.str)).encode())
    return found.hexdigest()


def manifest_id(manifest: Mapping[str, Any]) -> str:
    """32 hexadecimal digits over all of a run manifest but its id and times: the same for the same run."""
    lasting = {key: value for key, value in manifest.items() if key not in {"id", "time", "seconds"}}
    return hashlib.sha256(json.dumps(to_json(lasting), sort_keys=True).encode()).hexdigest()[:32]


def to_json(value: Any) -> Any:
    """``value`` with numpy scalars and arrays as plain Python and non-finite numbers as None.

    MONAI Label answers 500 to every client when a NaN or a numpy scalar reaches its JSON, so everything that
    leaves the package goes through here. Raises TypeError for what has no JSON form.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (np.bool_,)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        number = float(value)
        return number if np.isfinite(number) else None
    if isinstance(value, np.ndarray):
        return to_json(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_json(item) for item in value]
    raise TypeError(f"expected a JSON-like value, got {type(value).__name__}: convert it before it is reported")
