"""How few healthy scans are enough: detection against the number of prototypical training scans.

    python tests/benchmarks/prototype_study.py select   --work FOLDER --cache TRAIN.safetensors
    python tests/benchmarks/prototype_study.py cases    --work FOLDER --data ../shared/data
    python tests/benchmarks/prototype_study.py train    --work FOLDER --cache TRAIN.safetensors --subset k25
    python tests/benchmarks/prototype_study.py evaluate --work FOLDER --subset k25
    python tests/benchmarks/prototype_study.py table    --work FOLDER

Every subset trains the same network from the same start for the same number of steps, so that the larger ones get
fewer looks at each scan, not more training. Calibration and evaluation are the same for all: the 20 validation heads
of IXI calibrate, and one lesion of real shape implanted into each is looked for, standardised without its own scan.
"""

from __future__ import annotations

import argparse
import datetime
import json
import pickle
import sys
import time
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from monailabel_app.calibration.calibrated_map import calibrated_map  # noqa: E402
from monailabel_app.calibration.voxel_statistics import HealthyMoments  # noqa: E402
from monailabel_app.metrics.intervals import bootstrap_interval  # noqa: E402
from monailabel_app.pipelines.analysis import Analysis  # noqa: E402
from monailabel_app.pipelines.baselines import IntensityAtlas, atlas_z, smoothed_magnitude  # noqa: E402
from monailabel_app.pipelines.calibrate import calibration_of  # noqa: E402
from monailabel_app.pipelines.detection import Row, implanted_cases  # noqa: E402
from monailabel_app.pipelines.fit import export_model  # noqa: E402
from monailabel_app.pipelines.ixi import list_ixi  # noqa: E402
from monailabel_app.pipelines.predict import (  # noqa: E402
    SHIPPED_MODELS,
    AnomalyModel,
    PredictSettings,
    analyse,
    prepare,
)
from monailabel_app.pipelines.shipped_models import SHIPPED  # noqa: E402
from monailabel_app.preprocessing.pipeline import to_native  # noqa: E402
from monailabel_app.registry import load_method  # noqa: E402
from monailabel_app.training.cache import TrainingCache  # noqa: E402
from monailabel_app.training.healthy_loop import TrainSettings, train  # noqa: E402
from monailabel_app.weights.model_folder import seal  # noqa: E402

SIZES = (5, 10, 25, 50)
RANDOM = ((25, 1), (5, 1))  # size, seed
# The average of the weights must forget the random start within the run: 0.999 would keep 40 % of it after 900 steps.
SETTINGS = TrainSettings(steps=900, warmup=100, ema=0.99, batch_size=16, seed=0, checkpoint_every=150)
SHOWN = ("steps", "batch_size", "learning_rate", "warmup", "ema", "seed", "amp")
SCORES = ("signed", "l1")
SMOOTHING = ("standard", "strong")
IMPLANT_SEED = 7


def select(work: Path, cache_file: Path) -> None:
    """Subsets by name: k5, k10, ... are heads of the ranking; all; random25_1 is 25 out of all, drawn with seed 1."""
    from monailabel_app.pipelines.prototypes import rank_cache

    cache = TrainingCache.load(cache_file)
    order = [row.id for row in rank_cache(cache).rows]
    subsets = {f"k{k}": order[:k] for k in SIZES} | {"all": list(cache.ids)}
    for size, seed in RANDOM:
        chosen = np.random.default_rng(seed).choice(len(cache), size, replace=False)
        subsets[f"random{size}_{seed}"] = [cache.ids[i] for i in sorted(chosen)]
    (work / "subsets.json").write_text(json.dumps(subsets, indent=1))


def run_training(work: Path, cache_file: Path, subset: str) -> None:
    """Train one subset and export it with the test-time settings of the shipped model."""
    whole = TrainingCache.load(cache_file)
    ids = json.loads((work / "subsets.json").read_text())[subset]
    rows = [whole.ids.index(i) for i in ids]
    cache = TrainingCache(whole.images[rows], whole.brain_masks[rows], tuple(ids), whole.modality)
    started = time.monotonic()
    state = train(
        "ddpm",
        load_method("ddpm").PRESETS["compact"],
        cache,
        None,
        SETTINGS,
        work / "runs" / subset,
        progress=lambda p: print(f"{subset} step {p.step} loss {p.loss:.4f} {p.slices_per_second:.1f}/s", flush=True),
    )
    export_model(
        work / "runs" / subset,
        work / "models" / subset,
        modality="t1",
        training_data={"name": "IXI T1", "scans": len(ids), "licence": "CC BY-SA 3.0"},
        overrides=SHIPPED["ddpm_t1"].overrides,
    )
    record = {
        "scans": len(ids),
        "steps": state.step,
        "minutes": (time.monotonic() - started) / 60,
        "history": state.history,
    }
    (work / f"train_{subset}.json").write_text(json.dumps(record))


def make_cases(work: Path, data: Path) -> None:
    """Prepare the validation heads and the implanted ones once: no model of the study has a part in it."""
    model = AnomalyModel(SHIPPED_MODELS / "ddpm_t1")
    scans = list_ixi(data / "ixi_t1", "val")
    healthy = [Analysis(prepare(scan.volume(), model), None) for scan in scans]
    planned = implanted_cases(
        scans,
        healthy,
        data / "lesion_shapes",
        model.template.brain_mask,
        model.template.affine,
        per_scan=1,
        seed=IMPLANT_SEED,
    )
    cases = [(case, prepare(case.volume, model)) for case in planned]
    # Files of this script's own making, in its own folder, and for the minutes of the study only.
    (work / "cases.partial").write_bytes(pickle.dumps(([scan.prepared for scan in healthy], cases)))
    (work / "cases.partial").replace(work / "cases.pickle")


def evaluate(work: Path, subset: str) -> None:
    """Calibrate and measure one subset's model; ``shipped`` and ``baselines`` are subsets, too."""
    prepared, cases = pickle.loads((work / "cases.pickle").read_bytes())
    folder = SHIPPED_MODELS / "ddpm_t1" if subset == "shipped" else work / "models" / subset
    if subset == "baselines":
        return _baselines(work, cases)
    model = AnomalyModel(folder, calibrated=False)
    settings = PredictSettings()
    healthy = [analyse(p, model, settings) for p in prepared]
    erosion = float(model.meta["erosion_mm"])
    calibration = calibration_of(healthy, SCORES, erosion_mm=erosion, healthy={"scans": len(healthy)})
    if subset != "shipped":
        calibration.save(folder)
        seal(folder)
    masks = [scan.prepared.brain_mask for scan in healthy]
    moments = {score: HealthyMoments([scan.raw(score) for scan in healthy], masks) for score in SCORES}
    rows = {(score, smoothing): Row(f"{score} {smoothing}") for score in SCORES for smoothing in SMOOTHING}
    for case, brain in cases:
        scan = analyse(brain, model, settings)
        for (score, smoothing), row in rows.items():
            made = calibrated_map(
                scan.raw(score),
                brain.brain_mask,
                moments[score].statistics(without=case.scan),
                score=score,
                smoothing=smoothing,
                erosion_mm=erosion,
            )
            threshold = calibration.score(score).points[smoothing]["balanced"].threshold
            row.add(to_native(made, brain), case, threshold)
    _write(work, subset, rows.values())


def _baselines(work: Path, cases: list) -> None:
    atlas = IntensityAtlas.load(SHIPPED_MODELS / "template")
    row = Row("atlas z, 2 mm")
    for case, brain in cases:
        row.add(to_native(smoothed_magnitude(atlas_z(brain, atlas), brain, 2.0, 2.0), brain), case, None)
    _write(work, "baselines", [row])


def _write(work: Path, subset: str, rows) -> None:
    found = {row.name: row.summary() | {"per_case_ap": row.per_case_ap} for row in rows}
    (work / f"result_{subset}.json").write_text(json.dumps(found, indent=1))
    print(subset, {name: round(row["average_precision"], 3) for name, row in found.items()}, flush=True)


def table(work: Path) -> None:
    """prototype_study.json in ``work`` and the table's rows on standard output, from what has been evaluated.

    Differences are between the case-wise AP of a subset and of all scans, on the same cases, with a bootstrap interval
    over cases; the chance of the training itself (one seed) is in none of the intervals.
    """
    settings = {key: value for key, value in asdict(SETTINGS).items() if key in SHOWN}
    results: dict[str, dict] = {}
    for file in sorted(work.glob("result_*.json")):
        name = file.stem.removeprefix("result_")
        trained = work / f"train_{name}.json"
        training = json.loads(trained.read_text()) if trained.is_file() else None
        results[name] = {"training": training, "detection": json.loads(file.read_text())}
    for name, result in results.items():
        for score, row in result["detection"].items():
            whole = results.get("all", {}).get("detection", {}).get(score)
            if whole is not None and name != "all":
                gaps = np.array(row["per_case_ap"]) - np.array(whole["per_case_ap"])
                interval = bootstrap_interval(
                    lambda values: float(np.mean(values)), gaps, generator=np.random.default_rng(0)
                )
                row["difference_to_all"] = [float(gaps.mean()), interval.low, interval.high]
            print(_table_row(name, row))
    record = {"date": datetime.date.today().isoformat(), "settings": settings, "results": results}
    (work / "prototype_study.json").write_text(json.dumps(record, indent=1) + "\n")


def _table_row(name: str, row: dict) -> str:
    low, high = row["mean_case_ap_interval"]
    balanced = "-" if row["dice_at_balanced"] is None else f"{row['dice_at_balanced']:.3f}"
    difference = "-"
    if "difference_to_all" in row:
        difference = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*row["difference_to_all"])
    return (
        f"| {name} | {row['name']} | {row['average_precision']:.3f} | {row['best_dice_oracle']:.3f} | "
        f"{row['mean_case_ap']:.3f} [{low:.3f}, {high:.3f}] | {difference} | {balanced} |"
    )


def main() -> None:
    """One step of the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("select", "cases", "train", "evaluate", "table"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--subset")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if options.step == "select":
        select(options.work, options.cache)
    elif options.step == "cases":
        make_cases(options.work, options.data)
    elif options.step == "train":
        run_training(options.work, options.cache, options.subset)
    elif options.step == "evaluate":
        evaluate(options.work, options.subset)
    else:
        table(options.work)


if __name__ == "__main__":
    main()
