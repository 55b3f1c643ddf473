"""What the input gate notices: wrong scans of every kind against healthy ones, by detector.

    python tests/benchmarks/gate_table.py --data ../shared/data [--scans 20] [--work runs/gate_table] [--output FILE]

Every corruption of ``preprocessing.corruptions`` goes through the whole preparation, and so do other sequences and
patients. The healthy scores are those of the 20 held-out scans, each against the other 19; a corrupted scan is judged
by the statistics without the scan it was made from. Caught: above the highest healthy score, about 5 % false alarms.
Prepared scans and what was measured of them are kept in the work folder, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from monailabel_app.errors import AnomalyAppError  # noqa: E402
from monailabel_app.metrics.imagewise import scan_auroc  # noqa: E402
from monailabel_app.pipelines import predict as pipeline  # noqa: E402
from monailabel_app.pipelines.fit import rewrite_card  # noqa: E402
from monailabel_app.pipelines.gate_features import PLAIN  # noqa: E402
from monailabel_app.pipelines.gate_statistics import Healthy, Measured  # noqa: E402
from monailabel_app.pipelines.input_gate import FOLDER as GATE  # noqa: E402
from monailabel_app.pipelines.input_gate import NETWORK_FOLDER, InputGate, WholeBrainNetwork, measured  # noqa: E402
from monailabel_app.pipelines.ixi import list_ixi  # noqa: E402
from monailabel_app.training.cache import TrainingCache  # noqa: E402
from monailabel_app.types import BrainMask, Volume, to_json  # noqa: E402
from monailabel_app.weights.model_folder import WEIGHTS  # noqa: E402
from tests.benchmarks.gate_corruptions import CORRUPTIONS, head_of, other_sequences, patients  # noqa: E402

TRANSFORMER = "latent_transformer_t1"
CARD_TEXT = """# input_gate_t1

Says before a mask is shown that a scan is unlike the healthy T1 scans that the models were trained on, and why. It uses
the 3-D latent diffusion `latent_ddpm_3d_t1` (Graham et al., MICCAI 2023; mean z-score over its noise levels of squared
error and of the distance of its encoder's features) beside plain features of the prepared scan: brain volume, outline
and coverage against the template, correlation with it as given and flipped, distribution of grey values, noise,
sharpness, regions outside the healthy range. The score is the oddest feature's, in deviations of 20 held-out healthy
scans; above {limit} (the highest of these scans, each judged by the other 19) a scan does not pass: about 5 % false
alarms among scans of the same kind. Research use only.

For models of other sequences than T1 only the outline of the brain is judged. Single slices are not judged.

## Measured

Corrupted held-out scans, through the whole preparation, and scans of other data sets, by
`tests/benchmarks/gate_table.py`. Each cell: AUROC against the 20 healthy scans, share caught. n: scans; refused:
those that preparation itself answered with an error.

{table}

## Limits

- The healthy scans come from one scanner (IXI, 3 T, 2 mm): scans of other scanners and sequences, and patients with
  large changes, are told apart too. The gate says "unlike the training scans", not "bad". That is why it warns by
  default and refuses only where asked to.
- With 20 healthy scans no p-value is below 1/21, and the threshold is as uncertain as their highest score.
- A left-right flip is told from the small asymmetry of the average brain: weak evidence in a single scan.
- Few scans stand behind a row (column n): a share of 100 % of three scans says little more than "mostly". The thick
  glioma scans carry a placeholder of their voxel size, so they are misaligned, and rightly stopped.
- Blur and noise escape the latent diffusion, which sees 4 mm voxels; plain features notice them.
"""
DETECTORS = ("gate", "plain features", "latent_ddpm_3d", "latent_transformer")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--scans", type=int, default=20, help="healthy scans that are corrupted")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "gate_table")
    parser.add_argument("--output", type=Path, default=ROOT / "tests" / "benchmarks" / "results" / "gate_table.json")
    parser.add_argument("--weights", type=Path, default=ROOT / "model_weights")
    parser.add_argument("--measure-only", action="store_true", help="take what is prepared, prepare nothing more")
    parser.add_argument("--write-card", action="store_true", help="write the gate's card from the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    model = pipeline.load_model(ROOT / "model_weights" / "ddpm_t1")
    if not options.measure_only:
        for name, key, load in cases(options.data, options.scans):
            prepare_case(options.work / f"{slug(name)}--{key}.npz", load, model)
    bench = Bench(options.weights, model)
    rows, listed = bench.table(options.work)
    result = {"healthy_scans": 20, "detectors": DETECTORS, "rows": rows, "cases": listed}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(to_json(result), indent=1) + "\n")
    text = "\n".join(markdown(rows))
    print(text)
    if options.write_card:
        rewrite_card(options.weights / GATE, CARD_TEXT.format(limit=rows[0]["gate limit"], table=text))


def slug(name: str) -> str:
    """A file name of a corruption's name."""
    return re.sub(r"[^\w.%:,-]+", "_", name)


def cases(data: Path, scans: int) -> Iterator[tuple[str, str, Callable[[], tuple[Volume, BrainMask | None]]]]:
    """Name, key and loader of everything that is judged; keys of corrupted healthy scans are their numbers."""
    for index, scan in enumerate(list_ixi(data / "ixi_t1", "val")[:scans]):
        for name, corrupt in CORRUPTIONS.items():
            yield name, f"{index:02d}", lambda c=corrupt, s=scan, i=index: c(head_of(s, 1000 + i))
    for kind, listed in (("o", other_sequences(data)), ("p", patients(data))):
        for index, (name, volume, brain) in enumerate(listed):
            yield name, f"{kind}{index:02d}", lambda v=volume, b=brain: (v, b)


def prepare_case(file: Path, load: Callable[[], tuple[Volume, BrainMask | None]], model: pipeline.AnomalyModel) -> None:
    """One scan in template space, or the error that preparation answered with."""
    if file.is_file():
        return
    volume, brain = load()
    try:
        made = pipeline.prepare(volume, model, brain=brain)
        voxel_mm3 = abs(np.linalg.det(made.native_affine[:3, :3]))
        values = {
            "image": made.image.astype(np.float16),
            "mask": made.brain_mask,
            "ml": made.native_brain_mask.sum() * voxel_mm3 / 1000,
            "error": "",
        }
    except AnomalyAppError as error:
        values = {"error": type(error).__name__}
    partial = file.with_suffix(".partial.npz")
    np.savez_compressed(partial, **values)
    partial.replace(file)
    print(f"prepared {file.stem}", flush=True)


class Bench:
    """The detectors and what healthy scans measure with each."""

    def __init__(self, weights: Path, model: pipeline.AnomalyModel) -> None:
        self.template = model.template
        self.look = InputGate(weights / GATE).look
        self.network = WholeBrainNetwork(weights / NETWORK_FOLDER)
        has = (weights / TRANSFORMER / WEIGHTS).is_file()
        self.transformer = pipeline.load_model(weights / TRANSFORMER) if has else None
        cache = TrainingCache.load(ROOT / "cache" / "ixi_t1_val_extracted.safetensors")
        volumes = InputGate(weights / GATE).volumes_ml
        self.healthy = [
            self.measure(cache.images[i].numpy() / np.float32(255), cache.brain_masks[i].numpy(), volumes[i])
            for i in range(len(cache))
        ]

    def measure(self, image: np.ndarray, mask: np.ndarray, ml: float) -> tuple[Measured, float]:
        """Features and distances, and the transformer's surprise."""
        scan = measured(image, mask, ml, self.template, self.look, self.network)
        surprise = float("nan")
        if self.transformer is not None:
            figures = self.transformer.method.analyse(
                self.transformer.network,
                self.transformer.config,
                torch.from_numpy(image),
                torch.from_numpy(mask),
                torch.Generator().manual_seed(0),
            ).figures
            surprise = figures["surprise"]
        return scan, surprise

    def scores(self, case: tuple[Measured, float], without: int | None) -> dict[str, float]:
        """Every detector's score of a case, by the healthy scans without one."""
        others = [scan for index, scan in enumerate(self.healthy) if index != without]
        z = Healthy.moments([scan for scan, _ in others]).deviations(case[0])
        surprises = np.array([surprise for _, surprise in others])
        return {
            "gate": max(z.values()),
            "plain features": max(z[name] for name in PLAIN),
            "latent_ddpm_3d": z["network_error"] + z["network_perceptual"],
            "latent_transformer": (case[1] - surprises.mean()) / surprises.std(ddof=1),
        } | {f"z {name}": value for name, value in z.items()}

    def table(self, work: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """One row per kind of scan, and every case."""
        healthy = [self.scores(scan, index) for index, scan in enumerate(self.healthy)]
        limits = {name: max(scan[name] for scan in healthy) for name in DETECTORS}
        found, refused, listed = defaultdict(list), defaultdict(int), []
        for file in sorted(work.glob("*--*.npz")):
            slugged, key = file.stem.rsplit("--", 1)
            name = slugged.replace("_", " ")
            with np.load(file) as held:
                if str(held["error"]):
                    refused[name] += 1
                    found[name] += []
                    listed.append({"name": name, "key": key, "error": str(held["error"])})
                    continue
                image, mask, ml = held["image"][0].astype(np.float32), held["mask"], float(held["ml"])
            scores = self.scores(self.measure(image, mask, ml), int(key) if key.isdigit() else None)
            found[name].append(scores)
            listed.append({"name": name, "key": key, **{n: round(v, 3) for n, v in scores.items()}})
        rows = []
        for name, cases_ in found.items():
            row: dict[str, Any] = {"name": name, "scans": len(cases_) + refused[name], "refused": refused[name]}
            for detector in DETECTORS:
                values = [case[detector] for case in cases_]
                if values and np.isfinite(values).all():
                    row[f"{detector} auroc"] = round(scan_auroc([scan[detector] for scan in healthy], values), 3)
                    row[f"{detector} caught"] = round(float(np.mean(np.array(values) > limits[detector])), 3)
            rows.append(row)
        healthy_row = {f"{detector} limit": round(limits[detector], 2) for detector in DETECTORS}
        return [{"name": "held-out healthy", "scans": len(healthy), "refused": 0, **healthy_row}, *rows], listed


def markdown(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The table; refused: preparation answered with an error, so that no mask was made either."""
    yield "| scan | n | refused | " + " | ".join(f"{d}: AUROC, caught" for d in DETECTORS) + " |"
    yield "|---|---|---|" + "---|" * len(DETECTORS)
    for row in rows[1:]:
        cells = []
        for detector in DETECTORS:
            auroc, caught = row.get(f"{detector} auroc"), row.get(f"{detector} caught")
            cells.append("" if auroc is None else f"{auroc:.2f}, {caught:.0%}")
        yield f"| {row['name']} | {row['scans']} | {row['refused']} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
