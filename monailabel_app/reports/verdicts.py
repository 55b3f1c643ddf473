"""What is said out loud about a model: whether it beats the baselines, on which sequence, and what it cannot see.

``measured.json`` lies beside the weights of a model; its keys:

- version, model, result_hash (of configuration, weights and calibration: measurements of another model are not shown)
- evaluated: time and app_version of the evaluation
- sets: per data set name, title, modality, split, cases, patients, healthy, score, calibration; figures: value and
  interval by name (those of operating points at ``balanced``); baselines: ``intensity`` and ``atlas`` with model, beats
  (yes, no, unclear) and the difference of the AP; verdict: beats_intensity, beats_atlas, sentence
- sequences: per sequence modality, answer (yes, no, unclear, undecided), baselines (those it does not beat), compared
  (those it was compared with), set (the largest), its patients and pooled_ap, sentence
- warnings: the sentences of those sequences on which a baseline is not beaten
- blind_spots: per self-test data, scans, point, sentences
- fairness: min_group and per data set its name, split, kind and sentences; None where it was not measured
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

VERSION = 1
BASELINES = {"intensity": "the intensity baseline", "atlas": "the atlas z-score baseline"}
_BASELINE_METHODS = ("intensity", "atlas_zscore")
_FIGURES = ("pooled_ap", "prevalence", "best_dice_oracle", "scan_auroc")
_AT_POINT = (
    "dice", "recall", "false_positives_per_scan", "volume_error_ml", "volume_bias_ml", "rodeo", "healthy_false_ml",
    "healthy_false_positives_per_scan",
)  # fmt: skip
_POINT = "balanced"
_SITE = "site"  # of a calibration
_FEWEST = 5


def measured_record(
    model_id: str,
    result_hash: str,
    evaluation: Mapping[str, Any],
    *,
    selftests: Sequence[Mapping[str, Any]] = (),
    fairness: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """measured.json of a model from the records of ``evaluate``, ``selftest`` and ``fairness``.

    Rows and self-tests of another model, of the model with other weights, or with the calibration of a site, are left
    out. A fairness record names its models, not their weights.
    """
    sets = [entry for table in evaluation["sets"] if (entry := _set(model_id, result_hash, table))]
    method = next((entry.pop("method") for entry in sets), "")
    for entry in sets:
        entry.pop("method", None)
    sequences = [] if method in _BASELINE_METHODS else _sequences(sets)
    made = evaluation.get("made", {})
    return {
        "version": VERSION,
        "model": model_id,
        "result_hash": result_hash,
        "baseline": method in _BASELINE_METHODS,
        "evaluated": {key: made.get(key) for key in ("time", "app_version")},
        "sets": sets,
        "sequences": sequences,
        "warnings": [entry["sentence"] for entry in sequences if entry["answer"] != "yes"],
        "blind_spots": [_blind_spots(r) for r in selftests if _same(r["model"], model_id, result_hash)],
        "fairness": _fairness(model_id, fairness),
    }


def row_of(model_id: str, table: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The row of a model's default score on a set, with its own calibration where there are two; none of a site's."""
    rows = [row for row in table["rows"] if row["default"] and row["model"] == model_id]
    rows = [row for row in rows if row["calibration"]["kind"] != _SITE]
    rows.sort(key=lambda row: row["calibration"]["kind"] == "set")
    return rows[0] if rows else None


def verdict_sentence(measured: Mapping[str, Any] | None) -> str:
    """One short sentence per sequence, for a description; empty where nothing was measured."""
    if not measured or not measured.get("sets"):
        return ""
    if measured.get("baseline"):
        return "A baseline that other models have to beat."
    return " ".join(_short(entry) for entry in measured["sequences"])


def _set(model_id: str, result_hash: str, table: Mapping[str, Any]) -> dict[str, Any] | None:
    row = row_of(model_id, table)
    if row is None or row.get("result_hash") not in (None, result_hash):
        return None
    at_point = row["points"].get(_POINT, {}).get("figures", {})
    baselines = {}
    for key in BASELINES:
        found, beats = row["differences"].get(key), row["verdict"].get(f"beats_{key}")
        if found is not None and beats is not None:
            baselines[key] = {"model": found["reference"], "beats": beats, "difference": found["pooled_ap"]}
    return {
        "name": table["name"],
        "title": table["title"],
        "modality": table["modality"],
        "split": table.get("split"),
        "cases": table["cases"],
        "patients": table.get("patients", table["cases"]),
        "healthy": table["healthy"],
        "method": row["method"],
        "score": row["score"],
        "calibration": row["calibration"]["kind"],
        "figures": {
            key: source[key] for source, keys in ((row["figures"], _FIGURES), (at_point, _AT_POINT)) for key in keys
            if key in source
        },
        "baselines": baselines,
        "verdict": dict(row["verdict"]),
    }  # fmt: skip


def _sequences(sets: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per sequence the answer of its sets with patients enough; without such a set it is undecided."""
    found = []
    for modality in dict.fromkeys(entry["modality"] for entry in sets):
        own = [entry for entry in sets if entry["modality"] == modality and entry["baselines"]]
        if not own:
            continue
        decided = [entry for entry in own if entry["patients"] >= _FEWEST]
        told = [(baseline["beats"], key, entry) for entry in decided for key, baseline in entry["baselines"].items()]
        answer = next((a for a in ("no", "unclear") if any(a == item[0] for item in told)), "yes")
        if not decided:
            answer = "undecided"
        against = list(dict.fromkeys(key for beats, key, _ in told if beats == answer != "yes"))
        largest = max(own, key=lambda entry: entry["patients"])
        entry = {
            "modality": modality,
            "answer": answer,
            "baselines": against,
            "compared": list(dict.fromkeys(key for item in decided or own for key in item["baselines"])),
            "set": largest["name"],
            "patients": largest["patients"],
            "pooled_ap": largest["figures"]["pooled_ap"]["value"],
        }
        entry["sentence"] = _long(entry, [item for item in told if item[0] == answer], largest)
        found.append(entry)
    return found


def _long(entry: Mapping[str, Any], told: Sequence[tuple[str, str, Any]], largest: Mapping[str, Any]) -> str:
    """With the numbers, for the card."""
    sequence = entry["modality"].upper()
    if entry["answer"] == "undecided":
        gaps = ", ".join(_gap(b) for b in largest["baselines"].values())
        return (
            f"{sequence}: not shown to beat the baselines, {_patients(entry['patients'])} only "
            f"({largest['title']}: AP {_number(entry['pooled_ap'])}; {gaps})."
        )
    if entry["answer"] == "yes":
        return f"{sequence}: beats {_and([BASELINES[key] for key in entry['compared']])}."
    word = "does NOT beat" if entry["answer"] == "no" else "not shown to beat"
    parts = []
    for table in {item["name"]: item for _, _, item in told}.values():
        gaps = ", ".join(_gap(table["baselines"][key]) for _, key, item in told if item["name"] == table["name"])
        parts.append(f"{table['title']}: AP {_number(table['figures']['pooled_ap']['value'])}, {gaps}")
    return f"{sequence}: {word} {_and([BASELINES[key] for key in entry['baselines']])} ({'; '.join(parts)})."


def _short(entry: Mapping[str, Any]) -> str:
    sequence, people = entry["modality"].upper(), _patients(entry["patients"])
    figures = f"{entry['set']}: AP {_number(entry['pooled_ap'], 2)}, {people}"
    if entry["answer"] == "undecided":
        return f"{sequence}: not shown to beat simple baselines ({figures})."
    if entry["answer"] == "yes":
        which = "both simple baselines" if len(entry["compared"]) > 1 else f"the {entry['compared'][0]} baseline"
        return f"{sequence}: beats {which} ({figures})."
    many = "s" if len(entry["baselines"]) > 1 else ""
    word = "does NOT beat" if entry["answer"] == "no" else "not shown to beat"
    return f"{sequence}: {word} the {_and(entry['baselines'])} baseline{many} ({figures})."


def _gap(baseline: Mapping[str, Any]) -> str:
    gap = baseline["difference"]
    limits = gap.get("interval")
    spread = f" [{limits[0]:+.3f}, {limits[1]:+.3f}]" if limits else ""
    return f"{_number(gap['value'], 3, '+')}{spread} against {baseline['model']}"


def _blind_spots(record: Mapping[str, Any]) -> dict[str, Any]:
    data = record.get("data", {})
    return {
        "data": data.get("name"),
        "scans": data.get("scans"),
        "point": record.get("default_point"),
        "time": record.get("made", {}).get("time"),
        "sentences": list(record["sentences"]),
    }


def _fairness(model_id: str, record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    entries = [entry for entry in (record or {}).get("models", ()) if entry["model"] == model_id]
    if not entries:
        return None
    return {
        "min_group": record["options"]["min_group"],
        "sets": [
            {
                "name": entry["set"],
                "split": entry["split"],
                "kind": entry["kind"],
                "scans": entry["scans"],
                "sentences": [
                    sentence
                    for attribute in entry["attributes"]
                    if not attribute["intersection"]
                    for sentence in attribute["sentences"]
                ],
            }
            for entry in entries
        ],
    }


def _same(model: Mapping[str, Any], model_id: str, result_hash: str) -> bool:
    if (model.get("calibration") or {}).get("kind") == _SITE:
        return False
    return model["id"] == model_id and model.get("result_hash") in (None, result_hash)


def _number(value: float | None, digits: int = 3, sign: str = "") -> str:
    return "-" if value is None or value != value else f"{value:{sign}.{digits}f}"


def _patients(count: int) -> str:
    return "1 patient" if count == 1 else f"{count} patients"


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
