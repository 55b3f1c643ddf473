"""Prepared synthetic cases at hand, and a data set of synthetic files for the whole way."""

from pathlib import Path

import numpy as np

from monailabel_app.io.images import write_labelmap, write_map
from monailabel_app.pipelines.evaluation.cases import CaseSet, PreparedCase, on_model_grid
from monailabel_app.pipelines.evaluation.dataset_types import Dataset, DatasetScan
from monailabel_app.preprocessing.pipeline import Preprocessor
from tests.monailabel_app.synthetic import person, scan, template

LESIONED = 4


def prepared_case(seed: int, *, lesion: bool = True, attributes=None) -> PreparedCase:
    """Somebody's brain on the model grid; the person of a seed is the same with and without lesion."""
    volume, brain, truth = scan(person(seed), lesion_mm=(-12, 12, 6) if lesion else None, contrast=0.7)
    made = Preprocessor(template()).prepare(volume, brain=brain)
    name = f"person{seed}"
    details = {"native_lesions": int(lesion), "native_ml": float(truth.sum()) * 0.008, "lost_lesions": 0}
    return PreparedCase(
        f"{name}-lesion" if lesion else name,
        name,
        made,
        on_model_grid(truth, made),
        made.brain_mask,
        details if lesion else {},
        0.5,
        None,
        attributes or {},
    )


def own_set(made) -> CaseSet:
    """The calibration scans of a tiny model (``make_model``), and lesions in some of the same people."""
    healthy = []
    for index, found in enumerate(made.healthy):
        prepared, name = found.prepared, f"person{100 + index}"
        nothing = np.zeros_like(prepared.brain_mask)
        healthy.append(PreparedCase(name, name, prepared, nothing, prepared.brain_mask, attributes={"age": 30 + index}))
    cases = [prepared_case(100 + index) for index in range(LESIONED)]
    return CaseSet("ixi_implanted", "synthetic", "t1", "k" * 64, healthy, cases)


def write_dataset(folder: Path, *, healthy: int = 0, lesioned: int = 2, broken: int = 0, empty: int = 0) -> Dataset:
    """Scans as files with brain masks and labels; broken ones are no images, empty ones have labels without lesion."""
    folder.mkdir(parents=True, exist_ok=True)
    scans = []
    for index in range(healthy + lesioned + broken + empty):
        kind = "healthy" if index < healthy else "lesioned" if index < healthy + lesioned else "other"
        is_broken = index >= healthy + lesioned + empty
        volume, brain, truth = scan(person(300 + index), lesion_mm=(-12, 12, 6) if kind == "lesioned" else None)
        image, mask, label = (folder / f"s{index}_{name}.nii.gz" for name in ("image", "brain", "label"))
        write_map(image, volume.data[0], volume)
        write_labelmap(mask, brain.mask.astype(np.uint8), volume)
        write_labelmap(label, truth.astype(np.uint8), volume)
        if is_broken:
            image.write_bytes(b"no image")
        labels = () if kind == "healthy" else (label,)
        scans.append(
            DatasetScan(
                f"s{index}", f"p{index}", image, labels, kind == "healthy", mask, {"sex": "F" if index % 2 else "M"}
            )
        )
    return Dataset("files", "Synthetic files", "t1", "CC0", folder, None, tuple(scans))
