"""Every model on every set that it applies to, as one table: measured once per model, then only read."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from monailabel_app.errors import AnomalyAppError
from monailabel_app.reports.comparison import comparison_csv, comparison_markdown
from monailabel_app.types import to_json
from monailabel_app.weights.model_folder import result_hash

from ..predict import AnomalyModel, load_model
from .cases import CaseSet
from .figures import set_rows
from .measure import Measurement, measure
from .sets import SETS, SetBuilder, SetInfo, sets_for

_LOG = logging.getLogger(__name__)
Stage = Callable[[str, int, int], None]
RESAMPLES = 2000


def compare(
    folders: Sequence[Path],
    data: Path,
    output: Path,
    cache: Path,
    *,
    sets: Sequence[str] = (),
    quick: bool = False,
    per_scan: int = 2,
    again: bool = False,
    all_scores: bool = False,
    all_smoothings: bool = False,
    device: str = "cpu",
    stage: Stage | None = None,
) -> dict[str, Any]:
    """Measure the models in ``folders`` and write the table to ``output`` as JSON, CSV and Markdown; returns it.

    What was measured before with the same model and cases is read again, whatever its card says now, so that an
    interrupted comparison goes on where it stopped and a new model is added to the others. A model that fails on a set
    is reported and left out there. sets: names out of SETS, by default all that apply. again: measure anew.
    all_scores, all_smoothings: not only the model's default score and the standard smoothing; the rows beside the
    default ones are in the JSON and the CSV only.
    """

    def readings(model: AnomalyModel) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return (
            model.scores if all_scores else model.scores[:1],
            ("standard", "none", "strong") if all_smoothings else ("standard",),
        )

    builder = SetBuilder(data, cache, per_scan=per_scan, quick=quick, device=device, stage=stage)
    results, failed, built = [], [], _Sets(builder)
    for folder in folders:
        try:
            model = load_model(folder)
        except AnomalyAppError as error:
            failed.append({"model": folder.name, "set": "all", "error": str(error)})
            continue
        for info in sets_for(model.modality):
            if sets and info.name not in sets:
                continue
            try:
                results.append(_measured(model, info, built, output, again, readings(model), device, stage))
            except Exception as error:  # one model's fault is no reason to lose the others' hours
                unexpected = not isinstance(error, AnomalyAppError)
                _LOG.warning("%s on %s is left out", model.id, info.name, exc_info=unexpected)
                failed.append({"model": model.id, "set": info.name, "error": f"{type(error).__name__}: {error}"})
        del model
    record = to_json(
        {
            "quick": quick,
            "resamples": RESAMPLES,
            "sets": [_table(info, results) for info in SETS.values()],
            "failed": failed,
        }
    )
    output.mkdir(parents=True, exist_ok=True)
    (output / "methods_table.json").write_text(json.dumps(record, indent=1) + "\n")
    (output / "methods_table.csv").write_text(comparison_csv(record))
    (output / "methods_table.md").write_text(comparison_markdown(record))
    return record


class _Sets:
    """The sets as they are asked for; each is prepared at its first use."""

    def __init__(self, builder: SetBuilder) -> None:
        self._builder = builder
        self._made: dict[tuple[Any, ...], CaseSet] = {}

    def of(self, info: SetInfo, model: AnomalyModel) -> CaseSet:
        """The set as this model wants it prepared."""
        key = info.name, model.prepare_settings, model.levels
        if key not in self._made:
            self._made[key] = self._builder.build(info.name, model.prepare_settings, model.levels)
        return self._made[key]


def _measured(
    model: AnomalyModel,
    info: SetInfo,
    sets: _Sets,
    output: Path,
    again: bool,
    readings: tuple[tuple[str, ...], tuple[str, ...]],
    device: str,
    stage: Stage | None,
) -> Measurement:
    cases = sets.of(info, model)
    digest = result_hash(model.folder)
    name = f"{info.name}-{cases.key[:8]}{'-quick' if cases.key.endswith('quick') else ''}"
    path = output / "measured" / f"{model.id}-{digest[:12]}" / name
    kept = None if again else Measurement.load(path)
    scores, smoothings = readings
    wanted = {f"{score}/{smoothing}/own" for score in scores for smoothing in smoothings}
    if kept is not None and wanted <= set(kept.record["protocols"]):
        return kept
    tell = (lambda done, total: stage(f"{model.id} on {info.name}", done, total)) if stage else None
    made = measure(model, cases, scores=scores, smoothings=smoothings, device=device, progress=tell)
    made.save(path)
    return made


def _table(info: SetInfo, results: Sequence[Measurement]) -> dict[str, Any]:
    own = [result for result in results if result.record["set"]["name"] == info.name]
    rows = set_rows(own, info.modality, resamples=RESAMPLES)
    return {"name": info.name, "title": info.title, "modality": info.modality, "rows": rows}
