"""The fairness record in words and tables: Markdown for people and cards, CSV for spreadsheets."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

EXPLAINED = {
    "false_ml": "mean volume marked in a healthy scan of the group at an operating point, in ml: all of it is false",
    "scan_score": "mean anomaly score of the group's healthy scans",
    "sauroc": "subgroup AUROC (Meissen et al. 2023): the chance that a scan with an anomaly, of any group, scores "
    "above a healthy scan of this group; lower means that the group's healthy scans look more abnormal to the model",
    "fpr_at_tpr95": "share of the group's healthy scans at or above the scan score that finds 95 % of all anomalies",
    "interval": "95 % bootstrap over patients, percentiles taken further out for small groups (Student's t)",
    "test": "permutation test of equal means in all groups at once; patients are exchanged, groups below the minimum "
    "and unknown values take no part; p_corrected: Holm's correction for the number of attributes and intersections",
    "gaps": "the two groups furthest apart; with more than two groups the choice makes the difference look larger",
    "resolution": "the least true difference that a test at the corrected level finds with 80 % probability, for the "
    "two groups that show least, from the spread within them; an approximation for volumes, which are skewed",
}
_AGES = "age"
_SEX = {"m": "men", "male": "men", "f": "women", "female": "women"}
_LEVEL = 0.05


def group_title(attributes: Sequence[str], group: str) -> str:
    """``women aged under 40`` for the group ``F, <40`` of sex x age."""
    if group == "unknown":
        return "unknown"
    parts = group.split(", ") if len(attributes) > 1 else [group]
    if len(parts) != len(attributes):  # a value with a comma of its own
        return group
    return ", ".join(_part_title(name, part) for name, part in zip(attributes, parts, strict=True)).replace(
        ", aged", " aged"
    )


def _part_title(attribute: str, part: str) -> str:
    if attribute.lower() == "sex":
        return _SEX.get(part.lower(), part)
    if attribute.lower() == _AGES:
        if part.startswith("<"):
            return f"aged under {part[1:]}"
        if part.startswith(">="):
            return f"aged {part[2:]} and over"
        return f"aged {part.replace('-', ' to ')}"
    return f"{attribute} {part}"


def figure_title(name: str) -> str:
    """A figure's heading."""
    if name.startswith("false_ml_"):
        point = name.removeprefix("false_ml_")
        return "healthy false volume, ml" if point == "given" else f"healthy false volume at {point}, ml"
    return {
        "scan_score": "mean healthy score",
        "sauroc": "sAUROC",
        "fpr_at_tpr95": "false-positive rate at 95 % recall",
    }.get(name, name)


def attribute_sentences(attribute: Mapping[str, Any], min_group: int) -> list[str]:
    """What the groups of one attribute show, and what they cannot show."""
    compared = [group for group in attribute["groups"] if group["compared"]]
    small = attribute["not_reported"]
    lines = []
    test = attribute["test"]
    if test is None:
        have = ", ".join(f"{group['patients']} {group['title']}" for group in [*attribute["groups"], *small])
        lines.append(
            f"By {attribute['name']}: nothing to compare. Of the groups ({have}) {_count(len(compared))} the "
            f"{min_group} people that a figure needs; that is no sign of equality."
        )
    else:
        name = test["figure"]
        parts = [f"{_value(group['figures'][name], name)} in {_people(group)}" for group in compared]
        verdict = "differs between the groups" if test["p_corrected"] < _LEVEL else "shows no clear difference"
        lines.append(
            f"By {attribute['name']}: {_plain(name)}, is {_and(parts)}; it {verdict} (p = {_p(test['p_value'])}, "
            f"{_p(test['p_corrected'])} after correction for {test['tests']} comparison{'s' * (test['tests'] > 1)})."
        )
        lines += _resolution_sentence(attribute, compared)
        if test["exact"] and test["tests"] / test["assignments"] > _LEVEL:
            lines.append("With so few people no difference, however large, could have come out as significant.")
        lines += _score_gap(attribute, compared)
        if test["left_out"]:
            lines.append(f"{test['left_out']} people with scans in several groups took no part in the test.")
        if small:
            lines.append(
                f"Not reported, fewer than {min_group} people: "
                + ", ".join(f"{group['title']} ({group['patients']})" for group in small)
                + "."
            )
    return lines


def _resolution_sentence(attribute: Mapping[str, Any], compared: Sequence[Mapping[str, Any]]) -> list[str]:
    found = attribute["resolution"]
    if not found or found["difference"] is None or found["difference"] != found["difference"]:
        return []
    titles = {group["group"]: group["title"] for group in compared}
    (a, b), (n, m) = found["groups"], found["patients"]
    unit = " ml" if found["figure"].startswith("false_ml") else ""
    seen = f"a true difference below about {found['difference']:.2g}{unit} would probably not be seen"
    otherwise = "" if attribute["test"]["p_corrected"] < _LEVEL else ": this does not show that they are treated alike"
    return [f"With {n} {_those(titles[a])} and {m} {_those(titles[b])}, {seen}{otherwise}."]


def _score_gap(attribute: Mapping[str, Any], compared: Sequence[Mapping[str, Any]]) -> list[str]:
    gap = next((gap for gap in attribute["gaps"] if gap["figure"] == "sauroc"), None)
    if gap is None:
        return []
    titles = {group["group"]: group["title"] for group in compared}
    chosen = ", the two furthest apart" if len(compared) > 2 else ""
    limits = gap["difference"]["interval"]
    chance = "" if limits and limits[0] > 0 else "; the interval includes no difference, so this may be chance"
    return [
        f"sAUROC is lower for healthy {_those(titles[gap['low']])} than for {_those(titles[gap['high']])} by "
        f"{_value(gap['difference'], 'sauroc')}{chosen}{chance}."
    ]


def law_sentences(law: Mapping[str, Any]) -> list[str]:
    """How each group's figure goes with the training mixture, and which mixture would make two groups equal."""
    name, mixed = figure_title(law["figure"]), _those(law["share_title"])
    lines = []
    for group in law["groups"]:
        low, high = group["slope"]["interval"] or (None, None)
        unclear = "" if low is not None and (low > 0 or high < 0) else "; no dependence on the mixture is shown"
        line = f"{group['intercept']['value']:.3f} {group['slope']['value']:+.3f} p"
        lines.append(
            f"{_capital(_those(group['title']))}: {name} = {line} [{_number(low, '+.3f')}, {_number(high, '+.3f')}], "
            f"p the share of {mixed} in the training data; mean absolute error {group['mean_absolute_error']:.3f} over "
            f"{group['runs']} trainings{unclear}."
        )
    titles = {group["group"]: _those(group["title"]) for group in law["groups"]}
    for equal in law["equal_shares"]:
        low, high = (_number(limit, ".0%") for limit in equal["interval"])
        lines.append(
            f"The lines of {_and([titles[g] for g in equal['groups']])} meet at a share of {equal['value']:.0%} "
            f"{mixed} [{low}, {high}]; {equal['met']:.0%} of the resampled trainings have such a share."
        )
    if not law["equal_shares"] and len(law["groups"]) > 1:
        lines.append("No training mixture would make two of these groups equal: their lines do not meet in [0, 1].")
    return lines


def fairness_markdown(record: Mapping[str, Any]) -> str:
    """The whole record: tables and sentences per model, then the laws, then what each figure means."""
    options = record["options"]
    parts = [
        "# Fairness\n\nHealthy people of different groups under one threshold. Groups of at least "
        f"{options['min_group']} people; positives for the sAUROC: {options['positives']}."
    ]
    for entry in record["models"]:
        parts.append(_model_markdown(entry, heading="##"))
    if len(record["models"]) > 1:
        parts.append(
            f"p-values are corrected for the comparisons of one model, not for the {len(record['models'])} entries "
            "above: among many, a small one is to be expected by chance."
        )
    if record.get("left_out"):
        parts.append(f"Left out, nothing known of the people: {', '.join(record['left_out'])}.")
    for law in record["laws"]:
        where = f" on {law['set']}" if law["set"] else ""
        sentences = "\n".join(f"- {sentence}" for sentence in law["sentences"])
        parts.append(f"## Training mixtures: {law['attribute']}{where}\n\n{sentences}")
    parts.append("## What the figures mean\n\n" + "\n".join(f"- {key}: {text}" for key, text in EXPLAINED.items()))
    return "\n\n".join(parts) + "\n"


def fairness_section(record: Mapping[str, Any], model: str | None = None) -> str:
    """The part of a card: tables and sentences of a model (default: all of the record). Empty without that model."""
    entries = [entry for entry in record["models"] if model is None or entry["model"] == model]
    entries.sort(key=lambda entry: entry["kind"] != "held-out")
    if not entries:
        return ""
    options = record["options"]
    return "\n\n".join(
        [
            "## Fairness\n\nHealthy people of different groups under one threshold; intervals and tests over people, "
            f"groups below {options['min_group']} people not reported. sAUROC: chance that a scan with an anomaly, of "
            "any group, scores above a healthy scan of this group.",
            *(_model_markdown(entry, heading="###", named=model is None, short=True) for entry in entries),
        ]
    )


def fairness_csv(record: Mapping[str, Any]) -> str:
    """One line per model, attribute and group; figures with their limits."""
    about = ("model", "set", "split", "kind", "attribute", "group", "scans", "patients", "reported")
    lines = []
    for entry in record["models"]:
        head = {key: entry[key] for key in about[:4]}
        whole = {"attribute": "all", "group": "all", "scans": entry["scans"], "patients": entry["patients"]}
        lines.append({**head, **whole, "reported": 1, **_flat(entry["overall"])})
        for attribute in entry["attributes"]:
            test = attribute["test"] or {}
            tested = {"p_value": test.get("p_value"), "p_corrected": test.get("p_corrected")}
            for group in [*attribute["groups"], *attribute["not_reported"]]:
                own = {key: group[key] for key in ("group", "scans", "patients")}
                shown = {"reported": int("figures" in group), **_flat(group.get("figures", {}))}
                lines.append({**head, "attribute": attribute["name"], **own, **shown, **tested})
    names = [*about, *(key for key in dict.fromkeys(key for line in lines for key in line) if key not in about)]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()


def _model_markdown(entry: Mapping[str, Any], *, heading: str, named: bool = True, short: bool = False) -> str:
    """short: one volume only, and no sentences about intersections."""
    where = " ".join(filter(None, (entry["set"], entry["split"])))
    title = " on ".join(filter(None, (entry["model"] if named else "", where))) or entry["model"]
    warning = (
        "\n\n**Exploratory**: scans that the networks were trained on are among these; others may fare otherwise."
        if entry["kind"] == "exploratory"
        else ""
    )
    positives = ""
    if entry["positives"]:
        positives = f", {entry['positives']} scans with anomalies of {entry['positive_patients']} people"
    names = [name for name in entry["figures"] if not short or name in (entry["tested"], "sauroc", "fpr_at_tpr95")]
    lines = [
        "| group | people | " + " | ".join(figure_title(name) for name in names) + " |",
        "|" + "---|" * (len(names) + 2),
        _row("all", entry["patients"], entry["overall"], names),
    ]
    for attribute in entry["attributes"]:
        for group in attribute["groups"]:
            label = f"{attribute['name']} unknown" if group["group"] == "unknown" else group["title"]
            lines.append(_row(label, group["patients"], group["figures"], names))
    told = [attribute for attribute in entry["attributes"] if not (short and attribute["intersection"])]
    sentences = [sentence for attribute in told for sentence in attribute["sentences"]]
    return (
        f"{heading} {title}{warning}\n\n{entry['patients']} healthy people ({entry['scans']} scans){positives}.\n\n"
        + "\n".join(lines)
        + "\n\n"
        + "\n".join(f"- {sentence}" for sentence in sentences)
    )


def _row(label: str, people: int, figures: Mapping[str, Any], names: Sequence[str]) -> str:
    return f"| {label} | {people} | " + " | ".join(_value(figures[name], name) for name in names) + " |"


def _flat(figures: Mapping[str, Any]) -> dict[str, Any]:
    flat = {}
    for name, figure in figures.items():
        low, high = figure["interval"] or (None, None)
        flat |= {name: figure["value"], f"{name}_low": low, f"{name}_high": high}
    return flat


def _value(figure: Mapping[str, Any], name: str) -> str:
    """``9.1 [4.0, 15.2]``, with a unit of no more digits than it carries."""
    digits = 1 if name.startswith("false_ml") else 3 if name == "sauroc" else 2
    if figure["value"] is None:
        return "-"
    text = f"{figure['value']:.{digits}f}"
    limits = figure["interval"]
    return text if not limits else f"{text} [{limits[0]:.{digits}f}, {limits[1]:.{digits}f}]"


def _plain(name: str) -> str:
    return figure_title(name).replace(", ml", ", in ml")


def _people(group: Mapping[str, Any]) -> str:
    return f"{_those(group['title'])} ({group['patients']})"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _those(title: str) -> str:
    return f"people {title}" if title.startswith("aged") else title


def _count(number: int) -> str:
    return {0: "none has", 1: "only one has"}.get(number, f"{number} have")


def _number(value: float | None, form: str) -> str:
    return "?" if value is None or value != value else format(value, form)


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1g}"


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
