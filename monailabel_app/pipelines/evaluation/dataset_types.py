"""What a data set is once its description was read: scans, their labels and what is known about them. No image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EXTRACT, NONZERO = "extract", "nonzero"


@dataclass(frozen=True)
class DatasetScan:
    """One scan.

    patient: the unit of resampling. image: a file, or the folder of a DICOM series. labels: none for a healthy scan;
    several are joined. healthy: explicitly healthy, counts as a negative. brain: ``extract`` (the app's own brain
    extraction), ``nonzero`` (the scan is skull-stripped: where it is not zero), or a file. regions: that file holds
    region labels; the brain is where they are above 0, closed and filled, and it says which voxels are counted while
    the app extracts the brain that it analyses. attributes: age, sex, site, ...; unknown values are left out.

    A label may turn out to be empty when it is read; such a scan has nothing to find. Neither id, patient nor path
    appears in its ``repr``, which may be logged.
    """

    id: str = field(repr=False)
    patient: str = field(repr=False)
    image: Path = field(repr=False)
    labels: tuple[Path, ...] = field(default=(), repr=False)
    healthy: bool = False
    brain: str | Path = field(default=EXTRACT, repr=False)
    attributes: Mapping[str, str | float] = field(default_factory=dict, repr=False)
    regions: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything that is read of this scan, the image first."""
        return (self.image, *self.labels, *([self.brain] if isinstance(self.brain, Path) else []))


@dataclass(frozen=True)
class ImplantRule:
    """Cases made from healthy scans: lesion shapes (*.nii.gz, standard space) of real patients, drawn by ``seed``.

    contrast: least and greatest share of the local intensity, of either sign.
    """

    shapes: Path
    per_scan: int = 2
    contrast: tuple[float, float] = (0.10, 0.40)
    seed: int = 7


@dataclass(frozen=True)
class Picture:
    """How PNG pictures of single axial slices lie: front is up. pixel_mm: None takes what the file states, else 1.

    left_is_left: the picture's left is the patient's left; radiologists look at it the other way round.
    """

    pixel_mm: float | None = None
    left_is_left: bool = False


@dataclass(frozen=True)
class Dataset:
    """The scans of one split of a data set; ``split`` None is all of them.

    modality: their sequence, a short word as models have it. slices: single slices, which lie at the height
    ``level_mm`` (mm) of the template; picture: where they are pictures. implants: cases are made from the healthy
    scans. tune_split: the split on which the label-tuned threshold is chosen; None chooses it by halves of the
    patients. splits: number of scans in each split that there is. notes: what was left out and why, in sentences
    without ids. citation, description: for reports.
    """

    name: str
    title: str
    modality: str
    licence: str
    root: Path = field(repr=False)
    split: str | None
    scans: tuple[DatasetScan, ...] = field(repr=False)
    slices: bool = False
    level_mm: float | None = None
    implants: ImplantRule | None = None
    tune_split: str | None = None
    picture: Picture | None = None
    splits: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    description: str = ""
    citation: str = ""

    @property
    def cases(self) -> tuple[DatasetScan, ...]:
        """The scans with labels; with ``implants``, cases are made from the healthy scans instead."""
        return tuple(scan for scan in self.scans if scan.labels)

    @property
    def healthy(self) -> tuple[DatasetScan, ...]:
        """The scans that are explicitly healthy."""
        return tuple(scan for scan in self.scans if scan.healthy)


def describe(dataset: Dataset) -> dict[str, Any]:
    """What a page or a table says about a data set: plain JSON types, no ids, no paths."""
    implants = dataset.implants
    names = Counter(name for scan in dataset.scans for name in scan.attributes)
    return {
        "name": dataset.name,
        "title": dataset.title,
        "description": dataset.description,
        "modality": dataset.modality,
        "licence": dataset.licence,
        "citation": dataset.citation,
        "split": dataset.split,
        "splits": dict(dataset.splits),
        "tune_split": dataset.tune_split,
        "scans": len(dataset.scans),
        "patients": len({scan.patient for scan in dataset.scans}),
        "cases": len(dataset.healthy) * implants.per_scan if implants else len(dataset.cases),
        "healthy": len(dataset.healthy),
        "slices": dataset.slices,
        "level_mm": dataset.level_mm,
        "implants": {"per_scan": implants.per_scan, "contrast": list(implants.contrast), "seed": implants.seed}
        if implants
        else None,
        "attributes": {name: names[name] for name in sorted(names)},
        "notes": list(dataset.notes),
    }
