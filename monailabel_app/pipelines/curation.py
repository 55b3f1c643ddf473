"""Failure detection and data curation: the images of a folder, ranked by how unlike healthy ones they are, and where.

Woodland et al. (Bioengineering 12(10):1106, 2025) put images that a healthy model cannot make, such as those with
needles, devices or fluid, before those who look after a data set or a downstream model. Any model of this app serves.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from monailabel_app.calibration.calibrated_map import calibrated_map, scan_score, slice_score
from monailabel_app.errors import AnomalyAppError, InvalidSettings, TrainingFailed, UnreadableVolume
from monailabel_app.io.geometry import voxel_to_mm
from monailabel_app.io.images import read_volume
from monailabel_app.metrics.imagewise import rank_p_value
from monailabel_app.reports.contact_sheet import WINDOWS, contact_sheet
from monailabel_app.scoring.wasserstein import PatchScore, StrongestPatch, strongest_patch
from monailabel_app.types import PreparedVolume, to_json

from .predict import AnomalyModel, PredictSettings, analyse, prepare
from .prepare import list_scans

RankBy = Literal["score", "patch"]
PATCH_MM = 24.0
SHEET_ROWS = 24
# Looked at one by one; what of these cannot be read is reported, other files are none of our business.
_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_MAP_WINDOW = 10.0  # healthy deviations that are shown as white
_COLUMNS = (
    "rank", "file", "status", "anomaly_score", "p_value", "patch_score", "patch_p_value", "x0", "y0", "z0", "x1", "y1",
    "z1", "centre_x_mm", "centre_y_mm", "centre_z_mm", "remark",
)  # fmt: skip


@dataclass(frozen=True)
class Curated:
    """One image. p_value: of the anomaly score among healthy ones; patch_p_value: of the strongest patch, where healthy
    images were given. low, high: the strongest patch as first voxel and the one after the last of the image's own grid;
    centre_mm: its centre, RAS. warnings: what had to be assumed or repaired.
    """

    file: str
    anomaly_score: float
    p_value: float
    patch_score: float
    patch_p_value: float | None
    low: tuple[int, int, int]
    high: tuple[int, int, int]
    centre_mm: tuple[float, float, float]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Panel:
    """What the contact sheet shows of an image, (X, Y) each, and the patch in it: (x0, y0, x1, y1)."""

    image: np.ndarray
    other: np.ndarray | None
    anomaly_map: np.ndarray
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class CurationReport:
    """rows: most anomalous first. refused: file and reason of what could not be analysed. healthy: how many healthy
    images the p-values compare with. panels: by file, of the first rows.
    """

    model: str
    model_hash: str
    rank_by: str
    healthy: int
    rows: tuple[Curated, ...]
    refused: tuple[tuple[str, str], ...]
    panels: dict[str, Panel]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, without the pictures."""
        return to_json(
            {
                "model": {"id": self.model, "hash": self.model_hash},
                "rank_by": self.rank_by,
                "healthy": self.healthy,
                "rows": [asdict(row) for row in self.rows],
                "refused": [{"file": file, "reason": reason} for file, reason in self.refused],
                "intended_use": "research use only; not a medical device",
            }
        )


def list_images(folder: Path, pattern: str = "*") -> list[Path]:
    """Slices and scans directly in a folder, and its DICOM series, whose names match a pattern such as ``*_flair.png``.

    Raises UnreadableVolume when there are none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UnreadableVolume(f"expected a folder of images, found none at {folder}; check the path")
    found = {p for p in folder.iterdir() if p.is_file() and p.name.lower().endswith(_SUFFIXES)}
    with suppress(TrainingFailed):  # there may be pictures alone
        found.update(list_scans(folder))
    chosen = sorted(p for p in found if fnmatch(p.name, pattern) and not p.name.startswith("."))
    if not chosen:
        raise UnreadableVolume(
            f"expected slices or scans ({', '.join(_SUFFIXES[:7])} or DICOM series) named {pattern} in {folder}, found "
            "none; give the folder that holds them"
        )
    return chosen


def curate(
    folder: Path,
    model: AnomalyModel,
    *,
    healthy: Path | None = None,
    pattern: str = "*",
    rank_by: RankBy = "score",
    patch_score: PatchScore = "wasserstein",
    patch_mm: float = PATCH_MM,
    settings: PredictSettings = PredictSettings(),
    sheet_rows: int = SHEET_ROWS,
    progress: Callable[[int, int], None] | None = None,
) -> CurationReport:
    """Rank the images of ``folder`` (see ``list_images``) by anomaly score or by their strongest patch.

    healthy: a folder of healthy images from the same source, which the p-values then compare with, the patch's too;
    without one the anomaly score is compared with the model's own healthy scans. The patch compares image and
    reconstruction; for a model that makes none it is the mean of the calibrated map. An image that cannot be read or
    analysed is listed in ``refused``, the others go on. Raises InvalidSettings, UnreadableVolume for a folder without
    images.
    """
    if rank_by not in get_args(RankBy):
        raise InvalidSettings(f"expected rank_by out of {', '.join(get_args(RankBy))}, got {rank_by!r}")
    patch = round(patch_mm / 2)
    if patch < 1:
        raise InvalidSettings(f"expected a patch of at least 2 mm, got {patch_mm:g}")
    files = list_images(folder, pattern)
    references = list_images(healthy) if healthy is not None else []
    total = len(files) + len(references)
    tell = progress or (lambda done, total: None)

    normal = []
    for done, path in enumerate(references):
        with suppress(AnomalyAppError, OSError):  # what cannot be analysed is no reference
            normal.append(_look_at(path, model, settings, patch, patch_score)[0])
        tell(done + 1, total)
    if references and not normal:
        raise InvalidSettings("expected healthy images that this model can analyse, got none; check the folder")
    score = settings.score or model.scores[0]
    calibrated = model.calibration.score(score).scan_scores[settings.smoothing]
    scores = [row.anomaly_score for row in normal] or list(calibrated)

    def key(row: Curated) -> float:
        return row.patch_score if rank_by == "patch" else row.anomaly_score

    rows: list[Curated] = []
    refused: list[tuple[str, str]] = []
    panels: dict[str, Panel] = {}
    for done, path in enumerate(files):
        try:
            row, panel = _look_at(path, model, settings, patch, patch_score)
        except (AnomalyAppError, OSError) as error:
            refused.append((path.name, f"{type(error).__name__}: {error}"))
        else:
            patches = [other.patch_score for other in normal]
            rows.append(
                replace(
                    row,
                    p_value=rank_p_value(row.anomaly_score, scores),
                    patch_p_value=rank_p_value(row.patch_score, patches) if patches else None,
                )
            )
            panels[path.name] = panel
            if len(panels) > 2 * sheet_rows:
                first = {r.file for r in sorted(rows, key=key, reverse=True)[:sheet_rows]}
                panels = {name: panel for name, panel in panels.items() if name in first}
        tell(len(references) + done + 1, total)
    rows.sort(key=key, reverse=True)
    first = [row.file for row in rows[:sheet_rows]]
    return CurationReport(
        model=model.id,
        model_hash=model.hash,
        rank_by=rank_by,
        healthy=len(scores),
        rows=tuple(rows),
        refused=tuple(refused),
        panels={name: panels[name] for name in first if name in panels},
    )


def write_csv(report: CurationReport, path: Path) -> None:
    """One line per image, the most anomalous first, what could not be analysed at the end."""
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        for rank, row in enumerate(report.rows, 1):
            line = {
                "rank": rank,
                "file": row.file,
                "status": "analysed",
                "anomaly_score": f"{row.anomaly_score:.4f}",
                "p_value": f"{row.p_value:.4g}",
                "patch_score": f"{row.patch_score:.5f}",
                "patch_p_value": "" if row.patch_p_value is None else f"{row.patch_p_value:.4g}",
                "remark": "; ".join(row.warnings),
            }
            line |= dict(zip(("x0", "y0", "z0", "x1", "y1", "z1"), (*row.low, *row.high), strict=True))
            line |= {f"centre_{axis}_mm": f"{value:.1f}" for axis, value in zip("xyz", row.centre_mm, strict=True)}
            writer.writerow(line)
        for name, reason in report.refused:
            writer.writerow({"file": name, "status": "refused", "remark": reason})


def write_sheet(report: CurationReport, path: Path) -> bool:
    """The first images with the box of their strongest patch, as a PNG; False where there is none to show."""
    ranks = {row.file: (rank, row) for rank, row in enumerate(report.rows, 1)}
    lines, captions = [], []
    with_other = any(panel.other is not None for panel in report.panels.values())
    for name, panel in report.panels.items():
        rank, row = ranks[name]
        line = [("image", _boxed(panel.image, panel.box, WINDOWS["image"][1]))]
        if with_other:
            other = np.zeros_like(panel.image) if panel.other is None else panel.other
            line.append(("image", other))
        line.append(("image", _boxed(panel.anomaly_map / _MAP_WINDOW, panel.box, WINDOWS["image"][1])))
        lines.append(line)
        captions.append(
            f"{rank}. {name}  score {row.anomaly_score:.2f}  p {row.p_value:.3g}  patch {row.patch_score:.3f}"
        )
    if not lines:
        return False
    columns = ("image", "pseudo-healthy", "anomaly") if with_other else ("image", "anomaly")
    Image.fromarray(contact_sheet(lines, columns, captions)).save(path, format="PNG")
    return True


def native_box(
    prepared: PreparedVolume, low: Sequence[int], high: Sequence[int]
) -> tuple[tuple[int, int, int], tuple[int, int, int], tuple[float, float, float]]:
    """A box of the model grid on the image's own grid: first voxel, the one after the last, and its centre in RAS mm.

    The smallest box of whole voxels that holds the eight corners, cut to the image and at least a voxel wide.
    """
    edges = np.array([low, high], dtype=np.float64) - 0.5
    corners = np.stack(np.meshgrid(*edges.T, indexing="ij"), -1).reshape(-1, 3)
    to_native = np.linalg.inv(prepared.native_to_template) @ prepared.model_affine
    inside = voxel_to_mm(np.linalg.inv(prepared.native_affine) @ to_native, corners)
    limits = np.array(prepared.native_shape)
    first = np.clip(np.floor(inside.min(axis=0) + 0.5 + 1e-6).astype(int), 0, limits - 1)
    last = np.clip(np.ceil(inside.max(axis=0) + 0.5 - 1e-6).astype(int), first + 1, limits)
    centre = voxel_to_mm(to_native, edges.mean(axis=0)[None])[0]
    return tuple(first.tolist()), tuple(last.tolist()), tuple(float(value) for value in centre)


def _look_at(
    path: Path, model: AnomalyModel, settings: PredictSettings, patch: int, patch_score: PatchScore
) -> tuple[Curated, Panel]:
    volume = read_volume(path, slices=True)
    prepared = prepare(volume, model, settings.device)
    analysis = analyse(prepared, model, settings)
    score = settings.score or model.scores[0]
    mapped = calibrated_map(
        analysis.raw(score),
        prepared.brain_mask,
        model.calibration.score(score).statistics,
        score=score,
        smoothing=settings.smoothing,
        erosion_mm=model.calibration.erosion_mm,
    )
    image, made, inside = prepared.image[0], analysis.reconstruction, prepared.brain_mask
    found = _patch(image, made, mapped, inside, patch, patch_score)
    low, high, centre = native_box(prepared, found.low, found.high)
    row = Curated(
        file=path.name,
        anomaly_score=scan_score(mapped) if model.levels is None else slice_score(mapped),
        p_value=1.0,
        patch_score=found.value,
        patch_p_value=None,
        low=low,
        high=high,
        centre_mm=centre,
        warnings=(*volume.warnings, *prepared.warnings),
    )
    level = found.low[2]
    other = made[..., level].astype(np.float16) if made is not None else None
    panel = Panel(
        image[..., level].astype(np.float16),
        other,
        mapped[..., level].astype(np.float16),
        (*found.low[:2], *found.high[:2]),
    )
    return row, panel


def _patch(
    image: np.ndarray, made: np.ndarray | None, mapped: np.ndarray, inside: np.ndarray, patch: int, score: PatchScore
) -> StrongestPatch:
    if made is None:
        # Against nothing, the distance of the map is its mean.
        return strongest_patch(mapped, np.zeros_like(mapped), inside, patch=patch, score="wasserstein")
    return strongest_patch(image, made, inside, patch=patch, score=score)


def _boxed(values: np.ndarray, box: tuple[int, int, int, int], ink: float) -> np.ndarray:
    """A copy with the rim of the box drawn."""
    out = np.array(values, dtype=np.float32)
    x0, y0, x1, y1 = box
    out[x0:x1, [y0, y1 - 1]] = ink
    out[[x0, x1 - 1], y0:y1] = ink
    return out
