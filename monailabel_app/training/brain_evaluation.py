"""How well the brain extraction holds: Dice on the native grid against reference masks.

Run through ``python -m monailabel_app.training.brain_training evaluate``; the result is one JSON object.
"""

from __future__ import annotations

import csv
import json
import logging
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from monailabel_app.errors import AnomalyAppError
from monailabel_app.io.geometry import axcodes, grid_around, reorient, resample
from monailabel_app.io.images import read_volume
from monailabel_app.preprocessing.brain_mask import BrainExtractor
from monailabel_app.preprocessing.head_synthesis import filled_brain, head_from_arrays, paint
from monailabel_app.training.brain_card import brain_card
from monailabel_app.types import Volume

logger = logging.getLogger(__name__)

Case = tuple[str, Volume, np.ndarray]


def dice(a: np.ndarray | torch.Tensor, b: np.ndarray | torch.Tensor) -> float:
    """Dice overlap of two boolean arrays; 1 if both are empty."""
    total = float(a.sum() + b.sum())
    return 2 * float((a & b).sum()) / total if total else 1.0


def evaluate_brain_extraction(data: Path, folder: Path, *, card: bool = False) -> dict[str, Any]:
    """Measures the extractor in ``folder`` on everything in ``data`` and writes JSON to standard output.

    Reference masks: IXI validation, the closed and filled DLMUSE regions; BraTS 2015, its brain mask; MSLUB,
    the filled non-zero voxels. LGG and the DICOM series have none: their mask volumes are listed.
    card: also write card.md and worst_case.png into ``folder``.
    """
    extractor = BrainExtractor.load(folder)
    data, folder = Path(data), Path(folder)
    result: dict[str, Any] = {}
    worst: tuple[float, str, Volume, np.ndarray] | None = None
    groups: dict[str, Callable[[], Iterator[Case]]] = {
        "ixi_t1_val": lambda: ixi_cases(data),
        **{
            f"painted_{contrast or 'random'}": lambda contrast=contrast: painted_cases(data, contrast)
            for contrast in ("t1", "t2", "flair", "pd", "")
        },
    }
    for group, cases in groups.items():
        scores: dict[str, float] = {}
        for name, volume, reference in cases():
            mask = _mask(extractor, volume)
            scores[name] = dice(mask, reference)
            if group == "ixi_t1_val" and (worst is None or scores[name] < worst[0]):
                worst = (scores[name], name, volume, mask)
        result[group] = _summary(scores)
        logger.info("%s %s", group, result[group])
    if card and worst is not None:
        save_picture(folder / "worst_case.png", worst[2], worst[3])
    logger.info("geometry, stripped and unlabelled scans")
    result["changed_geometry"] = geometry_changes(extractor, next(ixi_cases(data))[1])
    result["stripped"] = {name: _both_ways(extractor, *case) for name, *case in stripped_cases(data)}
    result["without_reference"] = {name: _describe(extractor, volume) for name, volume in unlabelled_cases(data)}
    if card:
        (folder / "card.md").write_text(brain_card(result, extractor.config))
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    return result


def ixi_cases(data: Path) -> Iterator[Case]:
    """The validation split of IXI with its reference masks."""
    folder = data / "ixi_t1"
    with (folder / "participants.csv").open() as table:
        ids = [row["id"] for row in csv.DictReader(table) if row["split"] == "val"]
    for name in ids:
        volume = read_volume(folder / "t1" / f"{name}_T1.nii.gz")
        regions = np.asarray(nib.load(folder / "dlmuse" / f"{name}_DLMUSE.nii.gz").dataobj)
        yield name, volume, filled_brain(regions)


def painted_cases(data: Path, contrast: str) -> Iterator[Case]:
    """Every fourth IXI validation label map painted as ``contrast`` (``""``: any random one)."""
    folder = data / "ixi_t1" / "dlmuse"
    for index, (name, volume, reference) in enumerate(islice(ixi_cases(data), 0, None, 4)):
        regions = np.asarray(nib.load(folder / f"{name}_DLMUSE.nii.gz").dataobj)
        image, affine = reorient(volume.data[0], volume.affine)
        head = head_from_arrays(image, reorient(regions, volume.affine)[0])
        painted = paint(head.compartments, head.tissue, torch.Generator().manual_seed(index), contrast).numpy()
        back = reorient(painted, affine, axcodes(volume.affine))[0]
        yield name, Volume(np.ascontiguousarray(back)[None], volume.affine, name), reference


def geometry_changes(extractor: BrainExtractor, volume: Volume) -> dict[str, Any]:
    """Dice between the mask of a scan and the masks of the same scan stored or sampled differently."""
    plain = _mask(extractor, volume)

    def compare(data: np.ndarray, affine: np.ndarray) -> float:
        mask = _mask(extractor, Volume(np.ascontiguousarray(data, dtype=np.float32)[None], affine, "changed"))
        # At 2 mm on the changed grid's box, so that coarse grids are not judged by their own voxels.
        shape, fine = grid_around(volume.shape, volume.affine, 2.0)
        inside = resample(np.ones(data.shape, np.float32), affine, shape, fine, order=0, antialias=False) > 0
        a = resample(mask.astype(np.float32), affine, shape, fine, antialias=False) > 0.5
        b = resample(plain.astype(np.float32), volume.affine, shape, fine, antialias=False) > 0.5
        return round(dice(a & inside, b & inside), 4)

    def sampled(affine: np.ndarray, spacing: tuple[float, float, float]) -> float:
        shape, grid = grid_around(volume.shape, affine, spacing)
        return compare(resample(volume.data[0], volume.affine, shape, grid), grid)

    result = {codes: compare(*reorient(volume.data[0], volume.affine, codes)) for codes in ("LPI", "SRA", "ARS")}
    result["spacing_0.4x6x0.4_mm"] = sampled(volume.affine, (0.4, 6.0, 0.4))
    result["spacing_1_mm"] = sampled(volume.affine, (1.0, 1.0, 1.0))
    result["spacing_4_mm"] = sampled(volume.affine, (4.0, 4.0, 4.0))
    centre = np.append((np.array(volume.shape) - 1) / 2, 1)
    for degrees in (10, 20, 30):
        angle = np.deg2rad(degrees)
        turn = np.eye(4)
        turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        oblique = volume.affine @ turn
        oblique[:, 3] += volume.affine @ centre - oblique @ centre
        result[f"oblique_{degrees}_degrees"] = sampled(oblique, (2.0, 2.0, 2.0))
    data, affine = reorient(volume.data[0], volume.affine)
    count = data.shape[2]
    for name, part in {
        "upper_half": slice(count // 2, None),
        "middle": slice(count // 2, count * 3 // 4),
    }.items():
        moved = affine.copy()
        moved[:3, 3] += affine[:3, 2] * part.start
        result[f"slab_{name}"] = compare(data[:, :, part], moved)
    return result


def stripped_cases(data: Path) -> Iterator[Case]:
    """Skull-stripped scans of patients and the mask they were stripped with."""
    for patient in sorted((data / "brats2015").glob("pat*")):
        reference = np.asarray(nib.load(patient / "brainmask.nii.gz").dataobj) > 0.5
        for sequence in ("Flair", "T1c"):
            yield (
                f"{patient.name} {sequence}",
                read_volume(patient / f"{sequence}_subtrMeanDivStd.nii.gz"),
                reference,
            )
    for sequence in ("T1", "T2", "FLAIR"):
        file = data / "mslub" / "patient26" / f"{sequence}.nii.gz"
        if file.is_file():
            volume = read_volume(file)
            yield f"mslub {sequence}", volume, ndimage.binary_fill_holes(volume.data[0] != 0)


def unlabelled_cases(data: Path) -> Iterator[tuple[str, Volume]]:
    """Whole heads without a reference: LGG (thick slices, placeholder voxel size) and a DICOM series."""
    for patient in sorted((data / "lgg").glob("TCGA*")):
        for sequence in ("t1", "flair"):
            yield f"{patient.name} {sequence}", read_volume(patient / f"{sequence}.nii.gz")
    archive = data / "dicom" / "studyforrest_t1.zip"
    if archive.is_file():
        with tempfile.TemporaryDirectory() as folder:
            with zipfile.ZipFile(archive) as content:
                content.extractall(folder)
            series = next(p.parent for p in sorted(Path(folder).rglob("*")) if p.is_file())
            yield "studyforrest T1 (DICOM)", read_volume(series)


def save_picture(path: Path, volume: Volume, mask: np.ndarray, *, zoom: int = 3) -> None:
    """A PNG of three planes through the mask's centre with its contour in red."""
    image, affine = reorient(volume.data[0], volume.affine)
    brain = reorient(mask, volume.affine)[0]
    shape, grid = grid_around(image.shape, affine, 2.0)
    image = resample(image, affine, shape, grid)
    brain = resample(brain.astype(np.float32), affine, shape, grid) > 0.5
    centre = [int(c) for c in ndimage.center_of_mass(brain)] if brain.any() else [n // 2 for n in shape]
    low, high = np.percentile(image, (0.5, 99.5))
    grey = np.clip((image - low) / max(high - low, 1e-6), 0, 1) * 255
    height = max(shape[1:])
    planes = []
    for axis in range(3):
        flat, inside = (np.take(a, centre[axis], axis=axis).T[::-1] for a in (grey, brain))
        flat, inside = (np.kron(a, np.ones((zoom, zoom), a.dtype)) for a in (flat, inside))
        edge = inside & ~ndimage.binary_erosion(inside)
        colour = np.repeat(flat[..., None], 3, axis=2).astype(np.uint8)
        colour[edge] = (255, 60, 40)
        planes.append(np.pad(colour, [(0, height * zoom - len(colour)), (0, 4), (0, 0)]))
    Image.fromarray(np.concatenate(planes, axis=1)).quantize(128).save(path, optimize=True)


def _mask(extractor: BrainExtractor, volume: Volume) -> np.ndarray:
    try:
        return extractor.extract(volume, recognise_stripped=False).mask
    except AnomalyAppError as error:
        logger.warning("%s: %s", volume.name, error)
        return np.zeros(volume.shape, dtype=bool)


def _both_ways(extractor: BrainExtractor, volume: Volume, reference: np.ndarray) -> dict[str, Any]:
    found = extractor.extract(volume)
    return {
        "method": found.method,
        "dice": round(dice(found.mask, reference), 4),
        "dice_network_alone": round(dice(_mask(extractor, volume), reference), 4),
    }


def _describe(extractor: BrainExtractor, volume: Volume) -> dict[str, Any]:
    try:
        found = extractor.extract(volume)
    except AnomalyAppError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    volume_ml = float(found.mask.sum()) * volume.voxel_volume_mm3 / 1000
    return {"method": found.method, "volume_ml": round(volume_ml), "warnings": list(found.warnings)}


def _summary(scores: dict[str, float]) -> dict[str, Any]:
    values = np.array(list(scores.values()))
    return {
        "scans": len(values),
        "mean": round(float(values.mean()), 4),
        "sd": round(float(values.std(ddof=1)), 4) if len(values) > 1 else 0.0,
        "min": round(float(values.min()), 4),
        "worst": min(scores, key=lambda name: scores[name]),
    }
