"""Does a model treat people alike: healthy false-positive volume and sAUROC per sex, age band, site, intersection.

Reads scan-level results (``score_table``), never a scan. ``fairness.json``, by keys (a figure is {value, interval:
[low, high] or null}; shares and areas in [0, 1], volumes in ml, ages in years):

    version, made {time, app_version, table}
    options {by, bands, min_group, point, resamples, permutations, intersections, together, positives}
    explained {figure: sentence}
    models [ one per model, set and split of the table
      model, set, split; kind: exploratory (a split of training scans is among them) | held-out (none of that name)
      scans, patients (healthy ones); positives, positive_patients
      threshold: score that finds 95 % of the positives, or null
      figures [names, those of the tested point first]; tested: the figure that groups are tested for
      overall {figure: ...}
      attributes [
        name (sex, age, sex x age), of [names], intersection: bool
        groups [ {group, title, scans, patients, compared: bool, figures {name: figure}} ]   compared: not "unknown"
        not_reported [ {group, title, scans, patients} ]   below the minimum
        test {figure, p_value, p_corrected, tests, exact, assignments, left_out} or null (fewer than two groups)
        gaps [ {figure, high, low (groups), difference} ]   the two groups furthest apart
        resolution {figure, groups [two], patients [two], difference, power, level} or null
        sentences [what this says, in words] ] ]
    left_out [sets without any of the attributes]
    laws [ per set, attribute and mixed group: set, attribute, figure, share_of, models, groups [ {group, title,
      intercept, slope, mean_absolute_error, runs, points [[share, value]]} ], equal_shares [ {groups [two], value,
      interval, met} ], sentences ]
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from monailabel_app import __version__
from monailabel_app.errors import EvaluationFailed, InvalidSettings
from monailabel_app.files import replace_file
from monailabel_app.metrics.subgroup import (
    FPR_AT_TPR95,
    SAUROC,
    SCORE,
    GroupFigures,
    HealthyScans,
    Positives,
    intersect,
)
from monailabel_app.reports.fairness_table import (
    EXPLAINED,
    attribute_sentences,
    fairness_csv,
    fairness_markdown,
)
from monailabel_app.types import to_json

from .fairness_groups import compare_groups, figure_of, labels_of, said
from .fairness_laws import mixture_laws
from .score_table import FALSE_ML, ScanResult, read_results

VERSION = 1
BY = ("sex", "age", "site")
SMALLEST_GROUP = 3  # of patients: below it there is no spread to speak of
_TRAINING = {"train", "training"}


@dataclass(frozen=True)
class FairnessOptions:
    """by: attributes, by default those of sex, age and site that the table has. bands: limits of the age bands.

    min_group: patients that a group must have to be reported. point: the operating point whose volume is tested, by
    default balanced, or the first in the table. together: join the splits of a set.
    """

    by: tuple[str, ...] = ()
    bands: tuple[float, ...] = (40, 60)
    min_group: int = 10
    point: str = ""
    intersections: bool = True
    together: bool = False
    resamples: int = 2000
    permutations: int = 10_000
    seed: int = 0


def fairness(
    tables: Path | Sequence[Path],
    options: FairnessOptions = FairnessOptions(),
    *,
    columns: Mapping[str, str] | None = None,
    positives: str | None = None,
    mixtures: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """The record of a table, or of several together.

    positives: a table of scans with anomalies, or a column of these that marks them; without it they are a set's own
    scans that are not healthy, where it has any. mixtures: a table with the columns model, attribute, group, share that
    says what share of a group each model was trained on. progress(done, total): of the models and sets. Raises
    EvaluationFailed for a table that cannot be used and InvalidSettings for impossible options.
    """
    if options.min_group < SMALLEST_GROUP:
        raise InvalidSettings(
            f"expected groups of {SMALLEST_GROUP} patients or more, got min_group={options.min_group}"
        )
    column = positives if positives and not Path(positives).is_file() else None
    files = [Path(tables)] if isinstance(tables, (str, Path)) else [Path(table) for table in tables]
    names = ", ".join(dict.fromkeys(file.name for file in files))
    rows = [row for file in files for row in read_results(file, columns, positives=column)]
    other = read_results(Path(positives), columns) if positives and column is None else None
    by = _attributes(rows, options)
    point = _point(rows, options.point)
    units: dict[tuple[str, str, str], list[ScanResult]] = {}
    for row in rows:
        units.setdefault((row.model, row.set, "" if options.together else row.split), []).append(row)
    models, left_out = [], []
    for number, ((model, name, _), members) in enumerate(units.items()):
        if progress is not None:
            progress(number, len(units))
        if not any(_known(row, by) for row in members if row.healthy):
            left_out += [name or model] if any(row.healthy for row in members) else []
        else:
            ill = other if other is not None else members
            ill = [row for row in ill if not row.healthy and (row.model == model or ill is members)]
            models.append(_unit(model, name, members, ill, by, point, options))
    if progress is not None:
        progress(len(units), len(units))
    if not models:
        raise EvaluationFailed(
            f"expected healthy scans with {' or '.join(by)} in {names}, found none: false positives are theirs"
        )
    if positives and not any(entry["positives"] for entry in models):
        raise EvaluationFailed(
            f"expected scans with anomalies, of the same models and with a {SCORE}, in {Path(positives).name}; "
            "found none"
        )
    record = {
        "version": VERSION,
        "made": {
            "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "app_version": __version__,
            "table": names,
        },
        "options": {
            "by": list(by),
            "bands": list(options.bands),
            "min_group": options.min_group,
            "point": point,
            "resamples": options.resamples,
            "permutations": options.permutations,
            "intersections": options.intersections,
            "together": options.together,
            "positives": "none" if not any(m["positives"] for m in models) else Path(positives or names).name,
        },
        "explained": EXPLAINED,
        "models": models,
        "left_out": sorted(set(left_out)),
        "laws": mixture_laws(models, mixtures) if mixtures is not None else [],
    }
    return to_json(record)


def write_fairness(record: Mapping[str, Any], out: Path) -> list[Path]:
    """fairness.json, fairness.csv and fairness.md in a folder; each is there only when it is whole."""
    out.mkdir(parents=True, exist_ok=True)
    texts = {
        "fairness.json": json.dumps(record, indent=1) + "\n",
        "fairness.csv": fairness_csv(record),
        "fairness.md": fairness_markdown(record),
    }
    for name, text in texts.items():
        replace_file(out / name, text)
    return [out / name for name in texts]


def _attributes(rows: Sequence[ScanResult], options: FairnessOptions) -> tuple[str, ...]:
    shared = set.intersection(*(set(row.cells) for row in rows))
    by = tuple(dict.fromkeys(options.by)) or tuple(name for name in BY if name in shared)
    missing = [name for name in by if name not in shared]
    if missing or not by:
        raise EvaluationFailed(
            f"expected the columns {', '.join(missing) or ' or '.join(BY)} to group the scans by, found "
            f"{', '.join(name for name in rows[0].cells if name in shared)}; name others with --by"
        )
    return by


def _known(row: ScanResult, by: Sequence[str]) -> bool:
    return any(said(row.cells[name]) for name in by)


def _point(rows: Sequence[ScanResult], wanted: str) -> str:
    names = dict.fromkeys(name for row in rows for name in row.values if name.startswith(FALSE_ML))
    points = [name.removeprefix(FALSE_ML) for name in names]
    if wanted and wanted not in points:
        known = ", ".join(points) or "none in this table"
        raise InvalidSettings(f"expected an operating point out of {known}, got {wanted!r}")
    return wanted or ("balanced" if "balanced" in points else next(iter(points), ""))


def _unit(
    model: str,
    name: str,
    members: Sequence[ScanResult],
    ill: Sequence[ScanResult],
    by: Sequence[str],
    point: str,
    options: FairnessOptions,
) -> dict[str, Any]:
    """One model on the scans of one set."""
    healthy = [row for row in members if row.healthy]
    values = _values(healthy, model)
    tested = f"{FALSE_ML}{point}" if f"{FALSE_ML}{point}" in values else next(iter(values))
    patients = [row.patient for row in healthy]
    positives = None
    if SCORE in values and ill:
        missing = [row.line for row in ill if SCORE not in row.values]
        if missing:
            raise EvaluationFailed(f"{missing[0]}: expected a {SCORE} for every scan with an anomaly, it is empty")
        positives = Positives([row.patient for row in ill], np.array([row.values[SCORE] for row in ill]))
    figures = GroupFigures(HealthyScans(patients, values), positives, resamples=options.resamples, seed=options.seed)
    order = sorted(figures.names, key=lambda n: (n != tested, n == SCORE, n not in (SAUROC, FPR_AT_TPR95)))
    labels = {attribute: labels_of(healthy, attribute, options.bands) for attribute in by}
    kinds = [(attribute,) for attribute in by]
    if options.intersections:
        kinds += [pair for size in range(2, len(by) + 1) for pair in combinations(by, size)]
    attributes = compare_groups(
        {kind: intersect(*(labels[name] for name in kind)) for kind in kinds},
        figures,
        order,
        values[tested],
        patients,
        min_group=options.min_group,
        permutations=options.permutations,
        seed=options.seed,
    )
    splits = list(dict.fromkeys(row.split for row in healthy if row.split))
    entry = {
        "model": model,
        "set": name,
        "split": "+".join(splits),
        "kind": "exploratory" if _TRAINING & set("+".join(splits).lower().split("+")) else "held-out",
        "scans": len(healthy),
        "patients": len(set(patients)),
        "positives": len(positives.patients) if positives else 0,
        "positive_patients": len(set(positives.patients)) if positives else 0,
        "threshold": figures.threshold,
        "figures": order,
        "tested": tested,
        "overall": {n: figure_of(figures.of(n, np.ones(len(healthy), bool))) for n in order},
        "attributes": attributes,
    }
    for attribute in attributes:
        attribute["sentences"] = attribute_sentences(attribute, options.min_group)
    return entry


def _values(healthy: Sequence[ScanResult], model: str) -> dict[str, np.ndarray]:
    """Every figure that the healthy scans have; one that only some of them have is an error."""
    found = {}
    for name in dict.fromkeys(name for row in healthy for name in row.values):
        missing = [row.line for row in healthy if name not in row.values]
        if missing:
            raise EvaluationFailed(
                f"{missing[0]}: expected a number in {name}, which other healthy scans of {model} have; it is empty"
            )
        found[name] = np.array([row.values[name] for row in healthy])
    if not found:
        raise EvaluationFailed(f"expected {SCORE} or {FALSE_ML}<point> for the healthy scans of {model}, all are empty")
    names = [(row.cells.get("id"), row.split) for row in healthy]
    if names[0][0] and len(set(names)) < len(names):
        line = next(row.line for i, row in enumerate(healthy) if names[i] in names[:i])
        raise EvaluationFailed(f"{line}: expected every healthy scan of {model} once, got its id again")
    return found
