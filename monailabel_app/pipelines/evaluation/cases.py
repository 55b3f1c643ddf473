"""Scans with ground truth on the model grid, prepared once and kept on disk: every model meets the same ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from monailabel_app.errors import EvaluationFailed
from monailabel_app.files import replacing
from monailabel_app.io.geometry import resample
from monailabel_app.types import PreparedVolume, to_json
from monailabel_app.weights.model_folder import sha256_of

_QUICK = "-quick"
_VERSION = 2  # raised when preprocessing changes what it makes of the same scan


@dataclass(frozen=True)
class PreparedCase:
    """A brain in model space with its truth; every array on the model grid.

    prepared: its native grid is the model grid. gt_mask: (X, Y, Z) bool, empty for a healthy scan. counted: (X, Y, Z)
    bool, the voxels that metrics count: the true brain, where that is known. patient: the unit of resampling. details:
    plain values for the records: ``native_ml`` and ``native_lesions`` are the truth before it came to the model grid,
    ``lost_lesions`` of them have no voxel there. seconds: what preparing took. cut: the levels of the volume as a model
    of single levels sees them, on their own grid; None for the other models. attributes: age, sex, site, ... source:
    the id of the healthy scan that the case was made from.
    """

    id: str
    patient: str
    prepared: PreparedVolume
    gt_mask: np.ndarray
    counted: np.ndarray
    details: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    cut: PreparedVolume | None = None
    attributes: Mapping[str, str | float] = field(default_factory=dict)
    source: str = ""

    def load(self) -> PreparedCase:
        """Itself: a case at hand takes the place of one on disk."""
        return self

    @property
    def key(self) -> str:
        """Names what a model sees of the case."""
        seen = self.cut or self.prepared
        digest = hashlib.sha256(np.ascontiguousarray(seen.image, dtype=np.float32).tobytes())
        digest.update(np.packbits(seen.brain_mask).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class StoredCase:
    """A prepared case on disk, and what its data set says about it.

    key: names what a model sees of it; content: what it was made from, the same for every model. cut: the file of its
    levels, for a model of single levels.
    """

    id: str
    patient: str
    key: str
    path: Path
    cut: Path | None = None
    attributes: Mapping[str, str | float] = field(default_factory=dict)
    source: str = ""
    content: str = ""

    def load(self) -> PreparedCase:
        """Read it. Raises EvaluationFailed for a damaged file."""
        case = load_case(self.path)
        cut = load_case(self.cut).prepared if self.cut is not None else None
        about = {"id": self.id, "patient": self.patient, "attributes": self.attributes, "source": self.source}
        return replace(case, cut=cut, **about)


CaseReference = StoredCase | PreparedCase


class StoredCases(Sequence[PreparedCase]):
    """Cases on disk; one is in memory only while it is used. references: what they are read from."""

    def __init__(self, references: Sequence[StoredCase]) -> None:
        self.references = tuple(references)

    def __len__(self) -> int:
        return len(self.references)

    def __getitem__(self, index: int) -> PreparedCase:
        return self.references[index].load()


def references(cases: Sequence[PreparedCase]) -> tuple[CaseReference, ...]:
    """The cases of a set as other processes get them: by their files, where they have some."""
    return cases.references if isinstance(cases, StoredCases) else tuple(cases)


@dataclass(frozen=True)
class CaseSet:
    """A set of prepared cases. key: names its content. healthy, cases: read from disk when indexed.

    modality: the sequence of its scans. level: the axial level of the model grid that its slices lie at; None for
    volumes. title: in words, for tables. skipped: ``id``, ``stage`` and ``reason`` of scans that could not be used.
    """

    name: str
    title: str
    modality: str
    key: str
    healthy: Sequence[PreparedCase]
    cases: Sequence[PreparedCase]
    level: int | None = None
    split: str | None = None
    licence: str = ""
    skipped: tuple[Mapping[str, str], ...] = ()

    def without(self, skipped: Sequence[Mapping[str, str]]) -> CaseSet:
        """The set less the scans of these ids, and the cases made from them, which it lists as skipped."""
        gone = {item["id"] for item in skipped}
        if not gone:
            return self
        healthy, cases = (
            [ref for ref in references(scans) if ref.id not in gone and ref.source not in gone]
            for scans in (self.healthy, self.cases)
        )
        stored = StoredCases if isinstance(self.cases, StoredCases) else list
        key = set_key(healthy, cases, quick=self.key.endswith(_QUICK))
        return replace(self, key=key, healthy=stored(healthy), cases=stored(cases), skipped=(*self.skipped, *skipped))


def set_key(healthy: Sequence[CaseReference], cases: Sequence[CaseReference], *, quick: bool = False) -> str:
    """Names the content of a set, whatever a model makes of it. quick: not all of its cases were wanted."""
    contents = [
        [[getattr(case, "content", case.key), case.id, case.patient, dict(case.attributes)] for case in group]
        for group in (healthy, cases)
    ]
    return hashlib.sha256(json.dumps(to_json(contents)).encode()).hexdigest() + (_QUICK if quick else "")


def on_model_grid(mask: np.ndarray, prepared: PreparedVolume) -> np.ndarray:
    """A native (x, y, z) bool mask where it covers at least half of a model voxel, by linear interpolation."""
    share = resample(
        mask.astype(np.float32),
        prepared.native_affine,
        prepared.brain_mask.shape,
        prepared.model_affine,
        transform=prepared.native_to_template,
    )
    return share >= 0.5


def is_cut(case: PreparedCase, prepared: PreparedVolume) -> bool:
    """Whether what was analysed are single levels of the case, on a grid of their own."""
    return case.cut is not None and prepared.brain_mask.shape != case.gt_mask.shape


def on_grid_of(case: PreparedCase, values: np.ndarray, prepared: PreparedVolume) -> np.ndarray:
    """A map of what was analysed, (X, Y, levels), on the grid of its case: 0 where nothing was analysed."""
    if not is_cut(case, prepared):
        return values
    return resample(
        values.astype(np.float32),
        prepared.model_affine,
        case.gt_mask.shape,
        case.prepared.model_affine,
        transform=alignment_of(case.prepared) @ np.linalg.inv(alignment_of(prepared)),
    )


def save_case(path: Path, case: PreparedCase) -> None:
    """Write a case: the image in half precision, masks as bits."""
    prepared = case.prepared
    tensors = {"image": torch.from_numpy(prepared.image).half().contiguous()}
    for name, mask in (("brain", prepared.brain_mask), ("gt", case.gt_mask), ("counted", case.counted)):
        tensors[name] = torch.from_numpy(np.packbits(mask))
    tensors["model_affine"] = torch.from_numpy(np.asarray(prepared.model_affine, dtype=np.float64))
    tensors["native_to_template"] = torch.from_numpy(np.asarray(prepared.native_to_template, dtype=np.float64))
    about = {
        "version": _VERSION,
        "id": case.id,
        "patient": case.patient,
        "details": dict(case.details),
        "seconds": case.seconds,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        save_file(tensors, str(partial), {"about": json.dumps(to_json(about))})


def load_case(path: Path) -> PreparedCase:
    """Read a case. Raises EvaluationFailed for a damaged file."""
    try:
        with safe_open(str(path), framework="pt") as handle:
            about = json.loads((handle.metadata() or {})["about"])
            image = handle.get_tensor("image").float().numpy()
            shape = image.shape[1:]
            count = int(np.prod(shape))
            brain, truth, counted = (
                np.unpackbits(handle.get_tensor(name).numpy(), count=count).astype(bool).reshape(shape)
                for name in ("brain", "gt", "counted")
            )
            affine = handle.get_tensor("model_affine").numpy()
            alignment = handle.get_tensor("native_to_template").numpy()
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise EvaluationFailed(
            f"expected a prepared case, got {type(error).__name__} reading {path.name}; remove the folder "
            f"{path.parent.name} and run again"
        ) from error
    prepared = PreparedVolume(
        image=image,
        brain_mask=brain,
        model_affine=affine,
        native_to_template=np.eye(4),
        native_affine=affine,
        native_shape=tuple(shape),
        native_brain_mask=brain,
        steps=({"step": "read", "from": "prepared cases", "native_to_template": alignment.tolist()},),
    )
    return PreparedCase(about["id"], about["patient"], prepared, truth, counted, about["details"], about["seconds"])


def alignment_of(prepared: PreparedVolume) -> np.ndarray:
    """(4, 4) native RAS mm -> template RAS mm of the scan that a stored case was prepared from."""
    return np.array(prepared.steps[0]["native_to_template"])


def content_key(files: Sequence[tuple[str, str]], settings: Mapping[str, Any]) -> str:
    """Names a case by the (role, sha256) of the files it is made from and by what is done with them."""
    return hashlib.sha256(json.dumps([_VERSION, to_json(settings), sorted(files)], sort_keys=True).encode()).hexdigest()


def hash_files(path: Path) -> str:
    """sha256 of a file, or of all files of a folder (a DICOM series). Raises OSError for what cannot be read."""
    if not path.is_dir():
        return sha256_of(path)
    files = sorted(sha256_of(file) for file in path.rglob("*") if file.is_file())
    return hashlib.sha256("\n".join(files).encode()).hexdigest()
