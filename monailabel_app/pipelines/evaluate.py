"""The developers' tables: implanted lesions in held-out healthy heads, and real lesions, beside both baselines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from monailabel_app.errors import EvaluationFailed
from monailabel_app.reports.model_card import detection_table, model_card
from monailabel_app.types import to_json

from .baselines import IntensityAtlas
from .calibrate import analyse_healthy
from .detection import Case, evaluate_detection, implanted_cases, stored_case
from .fit import rewrite_card
from .ixi import list_ixi
from .predict import SHIPPED_MODELS, load_model

Stage = Callable[[str, int, int], None]
_SEED = 7


def evaluate_shipped(
    folder: Path,
    data: Path,
    output: Path,
    *,
    per_scan: int = 2,
    device: str = "cpu",
    write_card: bool = False,
    stage: Stage | None = None,
) -> str:
    """Measure a T1 model on (a) implanted lesions in ``ixi_t1`` val and (b) ``mslub`` T1; JSON files and a text table.

    Raw heads go in and every step of the product runs. The model's calibration scans are those of (a): each case
    is standardised without its own scan. With ``write_card`` the model's card.md is written from the result, which
    changes the folder's hash but neither weights nor calibration.
    """
    model, atlas = load_model(folder), IntensityAtlas.load(SHIPPED_MODELS / "template")
    scans = list_ixi(data / "ixi_t1", "val")
    tell = (lambda name, total: lambda *now: stage(name, now[0], total)) if stage else (lambda name, total: None)
    healthy = analyse_healthy(
        [scan.volume for scan in scans], model, device=device, progress=tell("healthy scans", len(scans))
    )
    if len(healthy) != len(scans):
        raise EvaluationFailed(
            f"expected all {len(scans)} validation scans to be usable, got {len(healthy)}; see the warnings above"
        )
    implanted = implanted_cases(
        scans,
        healthy,
        data / "lesion_shapes",
        model.template.brain_mask,
        model.template.affine,
        per_scan=per_scan,
        seed=_SEED,
    )
    mslub = data / "mslub" / "patient26"
    tables = {
        "implanted": evaluate_detection(
            model,
            atlas,
            implanted,
            healthy=healthy,
            device=device,
            progress=tell("implanted lesions", per_scan * len(scans)),
        ),
        "mslub_t1": evaluate_detection(
            model, atlas, _one(partial(stored_case, mslub / "T1.nii.gz", mslub / "GOLD_STANDARD.nii.gz")), device=device
        ),
    }
    output.mkdir(parents=True, exist_ok=True)
    record = to_json({"model": {"id": model.id, "hash": model.hash}, "seed": _SEED, **tables})
    (output / f"{model.id}.json").write_text(json.dumps(record, indent=1) + "\n")
    if write_card:
        titles = {
            "implanted": "Lesions of real shape implanted into raw IXI heads of the validation split",
            "mslub_t1": "Multiple sclerosis, one patient (mslub patient26, T1)",
        }
        rows = {titles[name]: table["rows"] for name, table in tables.items()}
        calibration = json.loads((folder / "calibration.json").read_text())
        rewrite_card(folder, model_card(model.id, model.meta, calibration, rows))
    return "\n\n".join(f"{name}\n{detection_table(table['rows'])}" for name, table in tables.items())


def _one(load: Callable[[], Case]) -> Iterator[Case]:
    yield load()
