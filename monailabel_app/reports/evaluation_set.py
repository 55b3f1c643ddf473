"""The report's section of one data set: what it shows in words, the table of all models, and its pictures."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from . import evaluation_rows as rows_of
from .evaluation_charts import curve_charts, healthy_charts, not_drawn
from .evaluation_tables import differences_table, main_table, point_table, points_of_focus, protocol_table, scores_table
from .markup import Markup, breakable, element, fold, is_number, number, number_cell, short_hash, table, text_cell


def set_section(entry: Mapping[str, Any], pictures: Mapping[str, bytes], used: set[str]) -> Markup:
    """Heading, facts, verdicts, main table, charts, and folded tables and cases. used: the pictures of ``pictures``."""
    name = rows_of.anchor("set", entry.get("name"))
    if not entry.get("rows"):
        empty = element("p", "No model was measured on this set.", class_="missing")
        return element("section", _heading(entry), facts(entry), empty, _skipped(entry), id=name)
    parts = [
        _heading(entry),
        facts(entry),
        _verdicts(entry),
        main_table(entry),
        _missing(entry),
        element("div", curve_charts(entry), healthy_charts(entry), class_="charts"),
        not_drawn(entry),
        points_of_focus(entry),
        fold("Every model at every operating point", point_table(entry)),
        fold("Three ways to a threshold, side by side", protocol_table(entry)),
        fold("Paired differences to the baselines and other references", differences_table(entry)),
        fold("Other scores and smoothings", scores_table(entry)) if rows_of.other_rows(entry) else None,
        *_examples(entry, pictures, used),
        _skipped(entry),
    ]
    return element("section", *parts, id=name)


def _heading(entry: Mapping[str, Any]) -> Markup:
    return element("h2", entry.get("title") or entry.get("name") or "unnamed set")


def facts(entry: Mapping[str, Any]) -> Markup:
    """What the set is: sequence, split, numbers of scans, prevalence, licence, identity."""
    known = [
        ("set", element("code", entry.get("name", ""))),
        ("sequence", str(entry["modality"]).upper() if entry.get("modality") else None),
        ("split", entry.get("split")),
        ("scans with lesions", entry.get("cases")),
        ("healthy scans", entry.get("healthy")),
        ("lesion voxels", _percent(entry.get("prevalence"))),
        ("lesions without a voxel on the model grid", _lost(entry.get("lost_on_grid") or {})),
        ("skipped", len(entry["skipped"]) if entry.get("skipped") else None),
        ("licence of the data", entry.get("licence")),
        ("content", short_hash(entry["key"]) if entry.get("key") else None),
    ]
    items = [element("div", element("dt", term), element("dd", what)) for term, what in known if what not in (None, "")]
    return element("dl", *items, class_="facts")


def _lost(lost: Mapping[str, Any]) -> str | None:
    if not lost.get("lesions"):
        return None
    whole = f"; scans without any left, and so without a Dice: {lost['cases']}" if lost.get("cases") else ""
    return f"{lost['lesions']} of {lost.get('of')}{whole}"


def _percent(share: Any) -> str | None:
    return f"{100 * share:.2f} % of brain" if is_number(share) else None


def _verdicts(entry: Mapping[str, Any]) -> Markup:
    """In sentences: the model offered first, and who does not beat a baseline."""
    first = rows_of.focus(entry)
    parts = []
    if first is not None and not rows_of.is_baseline(first):
        kind, words = rows_of.verdict_words(first)
        sentence = (first.get("verdict") or {}).get("sentence") or f"{words}."
        about = "offered first" if rows_of.default_model(entry) else "highest AP here, chosen on these same cases"
        text = [element("strong", first["model"]), f" ({about}): ", sentence, _in_short(first)]
        parts.append(element("p", *text, class_=f"verdict {kind}"))
    judged = [(row, *rows_of.verdict_words(row)) for row in rows_of.default_rows(entry)]
    for wanted, lead in (
        ("bad", "Does not beat a baseline here: "),
        ("unclear", "Not shown to be better than a baseline: "),
    ):
        by_words: dict[str, list[str]] = {}
        for row, kind, words in judged:
            if kind == wanted and _named(row) not in by_words.get(words, ()):
                by_words.setdefault(words, []).append(_named(row))
        if by_words:
            said = "; ".join(f"{', '.join(names)} ({words})" for words, names in by_words.items())
            parts.append(element("p", element("strong", lead), said, ".", class_=f"verdict {wanted}"))
    for sentence in dict.fromkeys(s for row in rows_of.default_rows(entry) for s in drift_sentences(row)):
        parts.append(element("p", sentence, class_="verdict unclear"))
    return element("div", *parts, class_="verdicts")


def _named(row: Mapping[str, Any]) -> str:
    """A model may be there twice, with two calibrations."""
    kind = rows_of.calibration_kind(row)
    return f"{row['model']} calibrated on this {kind}" if kind in ("set", "site") else str(row["model"])


def _in_short(row: Mapping[str, Any]) -> str:
    """What the balanced operating point means for a reader of scans."""
    recall, false = rows_of.value(row, "recall", "balanced"), rows_of.value(row, "false_positives_per_scan", "balanced")
    healthy = rows_of.value(row, "healthy_false_ml", "balanced")
    parts = []
    if recall is not None:
        parts.append(f"finds {100 * recall:.0f} % of the lesions")
    if false is not None:
        parts.append(f"marks {number(false, 1)} places per scan that are none")
    if healthy is not None:
        parts.append(f"marks {number(healthy, 1)} ml in a healthy scan")
    said = f" At the balanced operating point it {', '.join(parts)}." if parts else ""
    bias = rows_of.value(row, "volume_bias_ml", "balanced")
    if bias is None:
        return said
    more = "more" if bias >= 0 else "less"
    return f"{said} What it marks is {number(abs(bias), 1)} ml {more} than the lesions measure, on average."


def drift_sentences(row: Mapping[str, Any]) -> list[str]:
    """What the calibration's drift check and the row's warnings say, each with the model's name."""
    said = [row.get("drift"), *(row.get("warnings") or ())]
    found = []
    for part in said:
        for sentence in part if isinstance(part, (list, tuple)) else [part]:
            if isinstance(sentence, Mapping):
                sentence = sentence.get("sentence") if sentence.get("drifted", True) else None
            if sentence:
                text = str(sentence)
                found.append(text if str(row["model"]) in text else f"{row['model']}: {text}")
    return found


def _missing(entry: Mapping[str, Any]) -> Markup | None:
    rows = rows_of.default_rows(entry)
    said = []
    if not entry.get("healthy"):
        said.append(
            "No healthy scans in this set: scan AUROC, healthy false volume and score distributions cannot be given."
        )
    if rows and not any((rows_of.figure(row, "pooled_ap") or {}).get("interval") for row in rows):
        said.append("Too few patients for intervals: every number here could be quite another on other patients.")
    names = {row.get("method") for row in rows}
    said += [f"No {words} baseline was measured here." for key, words in rows_of.BASELINES.items() if key not in names]
    return element("ul", *(element("li", text) for text in said), class_="missing") if said else None


def _examples(entry: Mapping[str, Any], pictures: Mapping[str, bytes], used: set[str]) -> list[Markup]:
    """One fold per model with its best and worst cases; the summed-up model's first, and unfolded."""
    by_model: dict[str, list[Mapping[str, Any]]] = {}
    for example in entry.get("examples") or ():
        by_model.setdefault(str(example.get("model")), []).append(example)
    first = (rows_of.focus(entry) or {}).get("model")
    if not by_model:
        return [element("p", "No pictures of cases were made for this set.", class_="missing")]
    folds, without = [], []
    for model in sorted(by_model, key=lambda name: (name != first, name)):
        if not any(example.get("picture") in pictures for example in by_model[model]):
            without += by_model[model]
            continue
        ordered = sorted(by_model[model], key=lambda e: (e.get("kind") != "best", -(e.get("dice") or 0)))
        shown = [_example(example, pictures, used) for example in ordered]
        title = f"Best and worst cases of {model}"
        folds.append(fold(title, element("div", *shown, class_="cases"), open_=model == first))
    if without:
        folds.append(fold("Best and worst cases without pictures", _case_table(without)))
    return folds


def _case_table(examples: Sequence[Mapping[str, Any]]) -> Markup:
    lines = [
        element(
            "tr",
            element("th", breakable(example.get("model", "?")), scope="row"),
            text_cell(str(example.get("kind", "–"))),
            text_cell(element("code", example.get("id", "?"))),
            number_cell(example.get("dice")),
            number_cell(example.get("volume_ml"), 1),
        )
        for example in examples
    ]
    heads = ["model", "case", "scan", "Dice at balanced", "lesion ml"]
    return table(heads, lines, caption="Cases of the highest and lowest Dice; no pictures were made of them")


def _example(example: Mapping[str, Any], pictures: Mapping[str, bytes], used: set[str]) -> Markup:
    kind = {"best": "Best", "worst": "Worst"}.get(str(example.get("kind")), str(example.get("kind") or "Case"))
    words = [f"{kind}: ", element("code", example.get("id", ""))]
    if is_number(example.get("dice")):
        words.append(f", Dice {number(example['dice'])}")
        if example.get("point"):
            words.append(f" at {example['point']}")
    if is_number(example.get("volume_ml")):
        words.append(f", lesion {number(example['volume_ml'], 1)} ml")
    name = example.get("picture")
    data = pictures.get(name) if isinstance(name, str) else None
    if data is None:
        inside = element("p", "Picture not at hand.", class_="missing")
    else:
        used.add(name)
        alt = (
            f"{kind} case of {example.get('model')}, scan {example.get('id')}: the scan in planes through the lesion, "
            "alone and with the map's colours, the true lesion and the marked region outlined"
        )
        source = f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"
        inside = element("img", src=source, alt=alt)
    return element("figure", inside, element("figcaption", *words), class_=f"case {kind.lower()}")


def _skipped(entry: Mapping[str, Any]) -> Markup | None:
    skipped = entry.get("skipped") or ()
    if not skipped:
        return None
    items = []
    for scan in skipped:
        if isinstance(scan, Mapping):
            name = scan.get("id", scan.get("scan", "?"))
            reason = scan.get("reason") or scan.get("error") or "no reason given"
            by = f" ({scan['model']})" if scan.get("model") else ""
            items.append(element("li", element("code", name), f"{by}: {reason}"))
        else:
            items.append(element("li", str(scan)))
    count = f"{len(items)} scan{'s' if len(items) != 1 else ''} skipped, for every model"
    return fold(count, element("ul", *items))
