"""Scan-level results of shipped T1 models on all prepared heads of IXI, as a table for ``main.py fairness``.

    python tests/benchmarks/fairness_scans.py --models cold_diffusion_t1,atlas_zscore_t1 --out runs/fairness/scans.csv
    python main.py fairness --table runs/fairness/scans.csv

The training heads are those the networks learnt from: what comes out is exploratory. They are read with the model's own
calibration, which has not seen them; the 20 validation heads, which calibrated it, with statistics and thresholds that
leave each out. Positives are the validation heads with two lesions of real shape implanted in turn. A model that is in
the table already is not run again.
"""

from __future__ import annotations

import argparse
import csv
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from monailabel_app.calibration.calibrated_map import calibrated_map, scan_score  # noqa: E402
from monailabel_app.pipelines.calibrate import analyse_cache  # noqa: E402
from monailabel_app.pipelines.healthy_reference import HealthyReference  # noqa: E402
from monailabel_app.pipelines.implants import (  # noqa: E402
    implant,
    list_shapes,
    plan_implants,
    shape_on_grid,
    standard_to_template,
)
from monailabel_app.pipelines.predict import AnomalyModel, PredictSettings, analyse, find_model  # noqa: E402
from monailabel_app.postprocessing.components import find_lesions  # noqa: E402
from monailabel_app.postprocessing.delineate import delineated  # noqa: E402
from monailabel_app.training.cache import TrainingCache  # noqa: E402

POINTS = ("sensitive", "balanced", "specific")
PER_SCAN, SEED = 2, 7
MIN_VOLUME_MM3 = 100.0
COLUMNS = (
    "model", "set", "split", "id", "patient", "healthy", "scan_score", *(f"false_ml_{p}" for p in POINTS), "age", "sex",
)  # fmt: skip


def rows_of(model: AnomalyModel, caches: dict[str, TrainingCache], shapes: list[Path], people: dict[str, dict]):
    """The lines of one model."""
    score, smoothing, erosion = model.scores[0], "standard", model.calibration.erosion_mm
    own = model.calibration.score(score)
    val = analyse_cache(caches["val"], model)
    reference = HealthyReference(model, val)
    assert reference.same_scans(score), "the model was calibrated on other scans than ixi_t1 val"

    def row(name, healthy, values, prepared=None, thresholds=None):
        found = {}
        outlined = delineated(values, (2.0, 2.0, 2.0))
        for point, threshold in (thresholds or {}).items():
            mask, _ = find_lesions(
                outlined, prepared.brain_mask, prepared.model_affine, threshold=threshold, min_volume_mm3=MIN_VOLUME_MM3
            )
            found[f"false_ml_{point}"] = round(float((mask > 0).sum()) * 0.008, 4)
        about = {"model": model.id, "set": "ixi_t1", "split": "train+val", "id": name, "patient": name.split("#")[0]}
        person = people[about["patient"]]
        attributes = {"age": person["age"], "sex": person["sex"]}
        return {**about, "healthy": healthy, "scan_score": round(scan_score(values), 5), **found, **attributes}

    for index, scan in enumerate(val):
        limits = {p: reference.threshold(score, smoothing, point=p, without=index) for p in POINTS}
        values = reference.maps(score, smoothing)[index]
        yield row(caches["val"].ids[index], 1, values, scan.prepared, limits)
    limits = {p: own.points[smoothing][p].threshold for p in POINTS}
    for index, name in enumerate(caches["train"].ids):
        scan = analyse_cache(caches["train"], model, [index])[0]
        options = {"score": score, "smoothing": smoothing, "erosion_mm": erosion}
        raw = scan.raw(score)
        values = calibrated_map(raw, scan.prepared.brain_mask, own.statistics, **options)
        yield row(name, 1, values, scan.prepared, limits)
    to_template = standard_to_template(model.template.brain_mask, model.template.affine)
    for number, plan in enumerate(plan_implants(len(val), len(shapes), PER_SCAN, seed=SEED)):
        prepared = val[plan.scan].prepared
        image, mask = prepared.image[0], prepared.brain_mask
        for offset in range(len(shapes)):
            shape = shapes[(plan.shape + offset) % len(shapes)]
            lesion = shape_on_grid(shape, to_template, mask.shape, prepared.model_affine, mask)
            if lesion is not None:
                break
        ill, _ = implant(image, lesion, mask, plan, (2.0, 2.0, 2.0))
        changed = replace(prepared, image=np.clip(ill, 0, 1)[None])
        scan = analyse(changed, model, PredictSettings())
        name = f"{caches['val'].ids[plan.scan]}#{number % PER_SCAN}"
        yield row(name, 0, reference.map_of(scan, score, smoothing, without=plan.scan))


def main() -> None:
    """Run the models that the table does not have yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", required=True)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--cache", type=Path, default=ROOT / "cache")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    caches = {split: TrainingCache.load(options.cache / f"ixi_t1_{split}.safetensors") for split in ("train", "val")}
    with (options.data / "ixi_t1" / "participants.csv").open(newline="") as handle:
        people = {row["id"]: row for row in csv.DictReader(handle)}
    shapes = list_shapes(options.data / "lesion_shapes")
    rows = []
    if options.out.is_file():
        with options.out.open(newline="") as handle:
            rows = list(csv.DictReader(handle))
    for name in options.models.split(","):
        if any(row["model"] == name for row in rows):
            continue
        rows += rows_of(AnomalyModel(find_model(name, ROOT)), caches, shapes, people)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.open("w", newline="") as handle:
            writer = csv.DictWriter(handle, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        print(name, flush=True)


if __name__ == "__main__":
    main()
