"""The healthy scans that shipped models learn from, prepared once: T1 brains, FLAIR slices, T1 in other contrasts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from monailabel_app.errors import InvalidSettings
from monailabel_app.io.geometry import resample
from monailabel_app.preprocessing.contrast_synthesis import change_contrast
from monailabel_app.preprocessing.pipeline import Preprocessor
from monailabel_app.preprocessing.template import Template
from monailabel_app.training.cache import TrainingCache, to_cache
from monailabel_app.types import BrainMask

from .build_model import prepare_set
from .ixi import list_ixi
from .predict import SHIPPED_MODELS, AnomalyModel, prepare
from .soop import levels_of, prepare_soop

Stage = Callable[[str, int, int], None]
_TRAIN_CONTRASTS = ("flair", "flair", "t2", "pd", "any")
_HELD_OUT_CONTRASTS = ("flair", "t2")
_SEED = 20


@dataclass(frozen=True)
class ShippedData:
    """train, held_out: caches; the held-out brains were found by the app's own extraction where heads were at hand.

    record: name, number and licence, for config.yaml. config: further keys of it. description: of the models.
    """

    train: Path
    held_out: Path
    modality: str
    record: Mapping[str, Any]
    description: str
    config: Mapping[str, Any] = field(default_factory=dict)


def shipped_data(name: str, data: Path, cache: Path, *, stage: Stage | None = None) -> ShippedData:
    """Prepare one data set of shipped_models.DATA_SETS; what ``cache`` holds already is not prepared again.

    Raises InvalidSettings for an unknown name, TrainingFailed when the data folder lacks it.
    """
    makers = {"ixi_t1": _ixi, "soop_flair": _soop, "ixi_any": _any}
    if name not in makers:
        raise InvalidSettings(f"expected a data set out of {', '.join(makers)}, got {name!r}")
    return makers[name](data, cache, stage)


def _ixi(data: Path, cache: Path, stage: Stage | None) -> ShippedData:
    healthy = prepare_set(data / "ixi_t1", "t1", cache, stage=stage)
    held_out = cache / "ixi_t1_val_extracted.safetensors"
    if not held_out.is_file():
        # Thresholds have to hold for brains as the app finds them, not as region labels outline them.
        model = AnomalyModel(SHIPPED_MODELS / "ddpm_t1", calibrated=False)
        scans, prepared = list_ixi(data / "ixi_t1", "val"), []
        for scan in scans:
            prepared.append(prepare(scan.volume(), model))
            _tell(stage, "extracting held-out brains", len(prepared), len(scans))
        images, masks = [p.image for p in prepared], [p.brain_mask for p in prepared]
        to_cache(images, masks, [scan.id for scan in scans], "t1").save(held_out)
    return ShippedData(
        healthy.train_cache, held_out, "t1", healthy.data, "learnt from healthy T1 scans"
    )


def _soop(data: Path, cache: Path, stage: Stage | None) -> ShippedData:
    template = Template.load(SHIPPED_MODELS / "template")
    files = {}
    for split, part in (("train_free", "train"), ("val_free", "val")):
        files[part] = cache / f"soop_flair_{part}.safetensors"
        if not files[part].is_file():
            tell = partial(stage, f"preparing {split} slices") if stage else None
            prepare_soop(data / "soop_flair", split, template, progress=tell).save(files[part])
    first, last = levels_of(template)
    record = {
        "name": "SOOP FLAIR slices (OpenNeuro ds004889) without infarct, of stroke patients: pseudo-healthy",
        "scans": len(TrainingCache.load(files["train"])),
        "licence": "CC0",
    }
    return ShippedData(
        files["train"],
        files["val"],
        "flair",
        record,
        "learnt from pseudo-healthy FLAIR slices, mid-axial level only",
        {"levels": [first, last]},
    )


def _any(data: Path, cache: Path, stage: Stage | None) -> ShippedData:
    healthy = prepare_set(data / "ixi_t1", "t1", cache, stage=stage)
    sources = {"train": healthy.train_cache, "val": healthy.validation_cache}
    files = {part: cache / f"ixi_any_{part}.safetensors" for part in sources}
    for part, contrasts in (("train", _TRAIN_CONTRASTS), ("val", _HELD_OUT_CONTRASTS)):
        if not files[part].is_file():
            source = TrainingCache.load(sources[part])
            labels = _regions(data, cache, part, stage)
            tell = partial(_tell, stage, f"{part} scans in other contrasts")
            _in_contrasts(source, labels, contrasts, tell).save(files[part])
    record = {**healthy.data, "name": f"{healthy.data['name']}, in synthetic contrasts"}
    return ShippedData(
        files["train"],
        files["val"],
        "any",
        record,
        "learnt from healthy T1 scans in synthetic FLAIR-, T2- and PD-like contrasts",
        {"normalization": "median"},
    )


def _in_contrasts(
    source: TrainingCache, labels: np.ndarray, contrasts: tuple[str, ...], tell: Callable[[int, int], None]
) -> TrainingCache:
    images, masks, ids, patients = [], [], [], []
    for index in range(len(source)):
        image, mask = source.images[index].numpy().astype(np.float32) / 255, source.brain_masks[index].numpy()
        for number, contrast in enumerate(contrasts):
            generator = np.random.default_rng([_SEED, index, number])
            images.append(change_contrast(image, mask, labels[index], contrast, generator)[None])
            masks.append(mask)
            ids.append(f"{source.ids[index]}_{contrast}{number}")
            patients.append(source.patients[index])
        tell(index + 1, len(source))
    return to_cache(images, masks, ids, "any", patients)


def _regions(data: Path, cache: Path, part: str, stage: Stage | None) -> np.ndarray:
    """(n, X, Y, Z) uint8 region labels of the IXI scans on the model grid, in the order of the caches."""
    file = cache / f"ixi_regions_{part}.safetensors"
    if not file.is_file():
        template = Template.load(SHIPPED_MODELS / "template")
        preprocessor, found = Preprocessor(template), []
        scans = list_ixi(data / "ixi_t1", part)
        for scan in scans:
            volume = scan.volume()
            made = preprocessor.prepare(volume, brain=BrainMask(scan.brain_mask(), "given"))
            labels = resample(
                scan.region_labels().astype(np.float32),
                volume.affine,
                template.shape,
                template.affine,
                transform=made.native_to_template,
                order=0,
            )
            found.append(labels.astype(np.uint8))
            _tell(stage, f"region labels of {part} scans", len(found), len(scans))
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"regions": torch.from_numpy(np.stack(found))}, str(file))
    return load_file(str(file))["regions"].numpy()


def _tell(stage: Stage | None, name: str, done: int, total: int) -> None:
    if stage is not None:
        stage(name, done, total)
