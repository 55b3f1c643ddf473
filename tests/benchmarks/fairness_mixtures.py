"""The law over training mixtures, measured: how the training share of a group changes what the model makes of it.

    python tests/benchmarks/fairness_mixtures.py --data ../shared/data [--seeds 5]

Hundreds of trainings are affordable with one method only: the voxel-wise atlas, whose training is a mean and a
deviation. Each seed deals the people of IXI anew into a training pool, calibration people and test people of equal
number per group; for every share the same number of people trains. Positives are the test people's own heads with one
real lesion shape implanted (10 to 40 % contrast, either sign), one each. Three readings of the same maps, the product's
smoothing and erosion in all:

    raw         the atlas' z-scores as they are
    balanced    standardised voxel by voxel on calibration people of both groups in equal parts
    same        standardised on calibration people mixed as the training people are

The healthy false volume is taken at the threshold above which 1 % of the brain voxels of all healthy test people lie.
Writes results/fairness_mixtures.json and .md beside itself.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import sys
import time
from math import ceil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from scipy import ndimage, stats  # noqa: E402

from monailabel_app.calibration.calibrated_map import analysed_mask, calibrated_map, scan_score  # noqa: E402
from monailabel_app.calibration.voxel_statistics import HealthyMoments, VoxelStatistics  # noqa: E402
from monailabel_app.methods import atlas_zscore  # noqa: E402
from monailabel_app.metrics.subgroup import subgroup_auroc  # noqa: E402
from monailabel_app.pipelines.evaluation.fairness_laws import law_of  # noqa: E402
from monailabel_app.pipelines.implants import (  # noqa: E402
    implant,
    list_shapes,
    plan_implants,
    shape_on_grid,
    standard_to_template,
)
from monailabel_app.preprocessing.template import Template  # noqa: E402
from monailabel_app.training.cache import TrainingCache  # noqa: E402
from monailabel_app.types import to_json  # noqa: E402

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
READINGS = ("raw", "balanced", "same")
NOTES = """Slopes: mean over seeds of the slope within a seed, 95 % limits by Student's t over seeds; each deals other
people to training, calibration and test, but out of the same 152 whose age and sex are known, so that the limits are
somewhat too narrow. Gap: the varied group less the other one. Exploratory: 12 slopes of gaps are looked at together,
none is corrected for that. In this set the men are younger than the women (means 44 and 50 years): sex and age are not
told apart.

`raw`: the atlas' own z-scores. `balanced`: standardised voxel by voxel, as the product does it, on calibration people
of both groups in equal parts. `same`: on calibration people mixed as the training people are. Positives: the test
people's heads with one implanted lesion each. `false_ml`: at the threshold that 1 % of the brain voxels of all healthy
test people exceed."""
SIGMA = 2.0  # voxels of 2 mm: the standard smoothing
EROSION_MM = 2.0
RATE = 0.01
VOXEL_ML = 0.008
_UNITS = 32767
# attribute: the group whose share is varied, the other one, people who train, calibrate (20 % to spare for a mixture of
# one group only) and, of each group, test.
PLANS = {"sex": ("M", "F", 30, 20, 25), "age": (">=60", "<40", 16, 12, 15)}


class People:
    """Prepared heads with one implanted lesion each; everything on the model grid, intensities in [0, 1]."""

    def __init__(self, caches: list[TrainingCache], data: Path, seed: int) -> None:
        self.images = torch.cat([cache.images for cache in caches])
        self.masks = torch.cat([cache.brain_masks for cache in caches])
        self.ids = [i for cache in caches for i in cache.ids]
        with (data / "ixi_t1" / "participants.csv").open(newline="") as handle:
            rows = {row["id"]: row for row in csv.DictReader(handle)}
        self.sex = [rows[i]["sex"] for i in self.ids]
        ages = [float(rows[i]["age"] or "nan") for i in self.ids]
        self.age = ["<40" if age < 40 else ">=60" if age >= 60 else "" for age in ages]
        template = Template.load(ROOT / "model_weights" / "template")
        to_template = standard_to_template(template.brain_mask, template.affine)
        shapes = list_shapes(data / "lesion_shapes")
        self.lesions = [
            self._implanted(index, plan, shapes, to_template, template.affine)
            for index, plan in enumerate(plan_implants(len(self.ids), len(shapes), 1, seed=seed))
        ]
        self.inside = [analysed_mask(mask.numpy(), EROSION_MM) for mask in self.masks]
        self.share = [_smooth(mask.numpy().astype(np.float32)) for mask in self.masks]

    def image(self, index: int) -> np.ndarray:
        """(X, Y, Z) float32."""
        return self.images[index].numpy().astype(np.float32) / 255

    def _implanted(self, index, plan, shapes, to_template, affine):
        """The box in which the lesion changes the head, and the head's intensities there, as 8 bits keep them."""
        image, mask = self.image(index), self.masks[index].numpy()
        for offset in range(len(shapes)):
            lesion = shape_on_grid(shapes[(plan.shape + offset) % len(shapes)], to_template, image.shape, affine, mask)
            if lesion is not None:
                break
        changed, _ = implant(image, lesion, mask, plan, (2.0, 2.0, 2.0))
        changed = np.round(np.clip(changed, 0, 1) * 255).astype(np.float32) / 255
        where = np.argwhere(changed != image)
        box = tuple(slice(low, high + 1) for low, high in zip(where.min(0), where.max(0), strict=True))
        return box, changed[box]


def _smooth(values: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(values, SIGMA, mode="constant", truncate=4.0)


class Reader:
    """|smoothed (x - mean) / deviation|: every reading of the atlas is of this form, and smoothing is linear."""

    def __init__(self, people: People, mean: np.ndarray, deviation: np.ndarray) -> None:
        self._people, self._mean, self._deviation = people, mean, deviation

    def maps(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The calibrated map of a head, and of the same head with its lesion."""
        people = self._people
        mask, share, inside = people.masks[index].numpy(), people.share[index], people.inside[index]
        image = people.image(index)
        total = _smooth(np.where(mask, (image - self._mean) / self._deviation, 0).astype(np.float32))
        box, changed = people.lesions[index]
        reach = ceil(4 * SIGMA)
        around = tuple(slice(max(0, s.start - reach), s.stop + reach) for s in box)
        difference = np.zeros(image.shape, np.float32)
        difference[box] = np.where(mask[box], (changed - image[box]) / self._deviation[box], 0)
        with_lesion = total.copy()
        with_lesion[around] += _smooth(difference[around])
        divide = np.maximum(share, 1e-6)
        return np.where(inside, np.abs(total) / divide, 0), np.where(inside, np.abs(with_lesion) / divide, 0)


def one_training(people: People, attribute: str, train, calibrations: dict[str, list[int]], test: dict[str, list[int]]):
    """The figures of one atlas: {reading: {group: {sauroc, false_ml, score}}}."""
    state = atlas_zscore.fit_cache(atlas_zscore.Config(), people.images[train], people.masks[train])
    mean, deviation = (state[name].numpy().astype(np.float32) / _UNITS for name in ("mean", "deviation"))
    found = {}
    for reading in READINGS:
        m, d = mean, deviation
        if reading != "raw":
            chosen = calibrations[reading]
            masks = [people.masks[i].numpy() for i in chosen]
            raws = [np.where(k, (people.image(i) - mean) / deviation, 0) for i, k in zip(chosen, masks, strict=True)]
            healthy = HealthyMoments(raws, masks).statistics()
            m, d = mean + deviation * healthy.mean, deviation * healthy.std
        found[reading] = _read(people, Reader(people, m, d), test)
    return found


def _read(people: People, reader: Reader, test: dict[str, list[int]]) -> dict[str, dict[str, float]]:
    well: dict[str, list[float]] = {group: [] for group in test}
    ill, kept = [], {group: [] for group in test}
    edges = np.linspace(0, 30, 6001)
    for group, members in test.items():
        for index in members:
            plain, lesioned = reader.maps(index)
            well[group].append(scan_score(plain))
            ill.append(scan_score(lesioned))
            inside = people.inside[index]
            counts = np.histogram(np.minimum(plain[inside], 29.9), edges)[0]
            kept[group].append(counts[::-1].cumsum()[::-1])
    rates = np.mean([above / above[0] for rows in kept.values() for above in rows], axis=0)
    at = int(np.argmax(rates <= RATE))
    return {
        group: {
            "sauroc": subgroup_auroc(ill, well[group]),
            "false_ml": float(np.mean([above[at] for above in kept[group]]) * VOXEL_ML),
            "score": float(np.mean(well[group])),
        }
        for group in test
    }


def check_reader(people: People) -> float:
    """The largest difference between this file's short cut and the product's own calibrated map."""
    index = 0
    state = atlas_zscore.fit_cache(atlas_zscore.Config(), people.images[1:9], people.masks[1:9])
    mean, deviation = (state[name].numpy().astype(np.float32) / _UNITS for name in ("mean", "deviation"))
    image, mask = people.image(index), people.masks[index].numpy()
    box, changed = people.lesions[index]
    image[box] = changed
    raw = np.where(mask, (image - mean) / deviation, 0).astype(np.float32)
    none = VoxelStatistics(np.zeros_like(raw), np.ones_like(raw))
    expected = calibrated_map(raw, mask, none, score="atlas_z", smoothing="standard", erosion_mm=EROSION_MM)
    return float(np.abs(Reader(people, mean, deviation).maps(index)[1] - expected).max())


def deal(generator: np.random.Generator, members: dict[str, list[int]], varied: str, other: str, plan):
    """People for one seed: (train by share, calibration by share and reading, test)."""
    train, calibrate, test = plan
    pools = {group: generator.permutation(indices).tolist() for group, indices in members.items()}
    tested = {group: pool[:test] for group, pool in pools.items()}
    own = {group: pool[test : test + calibrate] for group, pool in pools.items()}
    rest = {group: pool[test + calibrate :] for group, pool in pools.items()}
    trains, calibrations = {}, {}

    def mixed(source, size, share):
        first = round(size * share)
        return source[varied][:first] + source[other][: size - first]

    for share in SHARES:
        trains[share] = mixed(rest, train, share)
        calibrations[share] = {"balanced": mixed(own, calibrate, 0.5), "same": mixed(own, calibrate, share)}
        assert len(trains[share]) == train, (len(trains[share]), {g: len(r) for g, r in rest.items()})
    return trains, calibrations, tested


def measure(people: People, attribute: str, seeds: int) -> list[dict]:
    """Every training of an attribute."""
    varied, other, *plan = PLANS[attribute]
    labels = getattr(people, attribute)
    members = {g: [i for i, label in enumerate(labels) if label == g] for g in (varied, other)}
    runs = []
    for seed in range(seeds):
        trains, calibrations, test = deal(np.random.default_rng(seed), members, varied, other, plan)
        for share in SHARES:
            found = one_training(people, attribute, trains[share], calibrations[share], test)
            runs.append({"seed": seed, "share": share, "found": found})
            print(
                attribute, seed, share, {r: {g: round(v["sauroc"], 3) for g, v in f.items()} for r, f in found.items()}
            )
    return runs


def laws(runs: list[dict], attribute: str) -> dict[str, dict]:
    """Per reading: the lines, and how steep the gap between the groups is in every seed by itself."""
    varied, other, *_ = PLANS[attribute]
    shares = [run["share"] for run in runs]
    entries = {}
    for reading in READINGS:
        for figure in ("sauroc", "false_ml"):
            values = {g: [run["found"][reading][g][figure] for run in runs] for g in (varied, other)}
            law = law_of(shares, values, attribute=attribute, group=varied, figure=figure)
            gaps = np.array(values[varied]) - np.array(values[other])
            law["slopes"] = {name: _over_seeds(runs, np.array(y)) for name, y in [*values.items(), ("gap", gaps)]}
            law["gap_at_half"] = _mean([g for g, run in zip(gaps, runs, strict=True) if run["share"] == 0.5])
            entries[f"{reading}/{figure}"] = law
    return entries


def _over_seeds(runs: list[dict], values: np.ndarray) -> dict:
    """Mean over seeds of the slope within each seed: other people train, calibrate and are tested in each."""
    slopes = []
    for seed in sorted({run["seed"] for run in runs}):
        chosen = [i for i, run in enumerate(runs) if run["seed"] == seed]
        slopes.append(stats.linregress([runs[i]["share"] for i in chosen], values[chosen]).slope)
    return _mean(slopes)


def _mean(values) -> dict:
    values = np.asarray(values)
    reach = (
        stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    )
    return {"value": values.mean(), "interval": [values.mean() - reach, values.mean() + reach]}


def in_words(varied: str, other: str, entries: dict[str, dict]) -> str:
    """What the mixture does to the gap between the groups, and what the calibration people undo of it."""
    parts = []
    for figure, unit, digits in (("sauroc", "", 3), ("false_ml", " ml", 1)):
        slopes = [
            f"{entries[f'{reading}/{figure}']['slopes']['gap']['value']:+.{digits}f}{unit}" for reading in READINGS
        ]
        name = "the sAUROC" if figure == "sauroc" else "the healthy false volume"
        parts.append(
            f"From {other} only to {varied} only in the training data, the gap in {name} ({varied} less {other}) moves "
            f"by {slopes[0]} as the atlas gives it, by {slopes[1]} when people of both groups calibrate, and by "
            f"{slopes[2]} when the calibration people are mixed as the training people are."
        )
    return " ".join(parts)


def markdown(record: dict) -> str:
    """The tables."""

    def cell(figure, digits=3):
        low, high = figure["interval"]
        if low is None:
            return f"{figure['value']:+.{digits}f}"
        return f"{figure['value']:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"

    parts = [
        "# Training mixtures and fairness\n\nMeasured with `tests/benchmarks/fairness_mixtures.py` on IXI T1 "
        f"({record['people']} people, one scanner), method `atlas_zscore`, {record['seeds']} seeds, "
        f"{record['trainings']} trainings, {record['processor_seconds']} processor seconds. p: share of the varied "
        f"group in the training data.\n\n{NOTES}"
    ]
    for attribute, about in record["attributes"].items():
        varied, other = about["groups"]
        parts.append(
            f"## {attribute}: share of {varied} (the others {other})\n\n{about['train']} people train, "
            f"{about['calibrate']} calibrate, {about['test']} of each group are tested. "
            f"{in_words(varied, other, about['laws'])}\n\n"
            f"| reading | figure | {varied} at p = 0, 0.5, 1 | {other} at p = 0, 0.5, 1 | slope {varied} | "
            f"slope {other} | slope of the gap | gap at p = 0.5 | error of the lines |\n" + "|" + "---|" * 9
        )
        lines = []
        for key, law in about["laws"].items():
            reading, figure = key.split("/")
            digits = 3 if figure == "sauroc" else 1
            means = {
                g["group"]: ", ".join(
                    f"{np.mean([v for p, v in g['points'] if p == share]):.{digits}f}" for share in (0.0, 0.5, 1.0)
                )
                for g in law["groups"]
            }
            error = max(g["mean_absolute_error"] for g in law["groups"])
            lines.append(
                f"| {reading} | {figure} | {means[varied]} | {means[other]} | "
                f"{cell(law['slopes'][varied], digits)} | {cell(law['slopes'][other], digits)} | "
                f"{cell(law['slopes']['gap'], digits)} | {cell(law['gap_at_half'], digits)} | {error:.{digits}f} |"
            )
        parts[-1] += "\n" + "\n".join(lines)
        for reading in READINGS:
            sentences = "\n".join(f"- {s}" for s in about["laws"][f"{reading}/sauroc"]["sentences"])
            parts.append(f"Lines, {reading} (all trainings, limits over trainings):\n\n{sentences}")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--cache", type=Path, default=ROOT / "cache")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    caches = [TrainingCache.load(options.cache / f"ixi_t1_{split}.safetensors") for split in ("train", "val")]
    people = People(caches, options.data, seed=7)
    error = check_reader(people)
    print("prepared", round(time.process_time() - started), "s; short cut differs by", error)
    assert error < 1e-3, error
    attributes, trainings = {}, 0
    for attribute, (varied, other, train, calibrate, test) in PLANS.items():
        runs = measure(people, attribute, options.seeds)
        trainings += len(runs)
        attributes[attribute] = {
            "groups": [varied, other],
            "train": train,
            "calibrate": calibrate,
            "test": test,
            "laws": laws(runs, attribute),
            "runs": runs,
        }
    record = {
        "date": datetime.date.today().isoformat(),
        "people": len(people.ids),
        "seeds": options.seeds,
        "trainings": trainings,
        "processor_seconds": round(time.process_time() - started),
        "attributes": attributes,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    record = to_json(record)
    (options.out / "fairness_mixtures.json").write_text(json.dumps(record, indent=1) + "\n")
    (options.out / "fairness_mixtures.md").write_text(markdown(record))
    print(markdown(record))


if __name__ == "__main__":
    main()
