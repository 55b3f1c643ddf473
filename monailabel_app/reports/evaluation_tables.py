"""The report's tables of one data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import evaluation_rows as rows_of
from .markup import (
    MISSING,
    Markup,
    breakable,
    element,
    figure_cell,
    is_number,
    number_cell,
    p_words,
    table,
    text_cell,
)

_CALIBRATIONS = {
    "set": "calibrated on this set's healthy scans",
    "site": "calibrated on the site's healthy scans",
}
_POINT_FIGURES = (
    ("dice", "Dice", 3, "mean over cases"),
    ("recall", "lesion recall", 2, "share of lesions that the mask touches"),
    (
        "false_positives_per_scan",
        "false positives per scan",
        1,
        "marked regions without a lesion, per scan with lesions",
    ),
    ("healthy_false_ml", "healthy false ml", 1, "volume marked in a healthy scan"),
    ("volume_error_ml", "volume error ml", 1, "mean absolute difference of marked and true volume"),
    ("volume_bias_ml", "volume bias ml", 1, "mean of marked minus true volume"),
    ("rodeo", "RoDeO", 3, "harmonic mean of its three parts"),
    ("rodeo_localisation", "RoDeO localisation", 3, "whether boxes lie where the lesions are"),
    ("rodeo_shape", "RoDeO shape", 3, "whether boxes have the lesions' size and form"),
    ("rodeo_classification", "RoDeO classification", 3, "share of boxes with a partner, there being one class"),
)
_METRICS = (("pooled_ap", "AP, pooled"), ("mean_case_ap", "AP, mean of cases"), ("dice", "Dice at balanced"),
            ("scan_auroc", "scan AUROC"))  # fmt: skip


def main_table(entry: Mapping[str, Any]) -> Markup:
    """Every model at its default score: the figures that rank it, against the better baseline, and the verdict."""
    rows = rows_of.default_rows(entry)
    columns: list[tuple[Any, Any]] = [
        (("AP", "average precision over brain voxels of all cases together; what chance gives is the prevalence"),
         lambda row: figure_cell(rows_of.figure(row, "pooled_ap"))),
        (("AP minus best baseline", "of the pooled AP; the same patients resampled for both"), _baseline_cell),
        (("p", "of the mean case AP against the best baseline, by exchanging both within patients"), _p_cell),
        (("against the baselines", "in words"), _verdict_cell),
        (("Dice", "at the balanced operating point, mean over cases"),
         lambda row: figure_cell(_at_balanced(row, "dice"))),
        (("lesion recall", "at balanced: share of lesions that the mask touches"),
         lambda row: figure_cell(_at_balanced(row, "recall"), 2)),
        (("false positives per scan", "at balanced"),
         lambda row: figure_cell(_at_balanced(row, "false_positives_per_scan"), 1)),
        (("volume error ml", "at balanced: mean absolute difference of marked and true volume"),
         lambda row: figure_cell(_at_balanced(row, "volume_error_ml"), 1)),
        (("healthy false ml", "at balanced: volume marked in a healthy scan"),
         lambda row: figure_cell(_at_balanced(row, "healthy_false_ml"), 1)),
        (("scan AUROC", "scans with lesions against healthy scans"),
         lambda row: figure_cell(rows_of.figure(row, "scan_auroc"))),
        (("best Dice (oracle)", "knows the labels: of one threshold for the whole map, not a result"),
         lambda row: figure_cell(rows_of.figure(row, "best_dice_oracle"), class_="oracle")),
        (("mean case AP", "mean over the cases of each one's own average precision"),
         lambda row: figure_cell(rows_of.figure(row, "mean_case_ap"))),
        (("lesions looked at", "share of the lesions' voxels that the model analyses at all"),
         lambda row: figure_cell(rows_of.figure(row, "analysed_share"), 2)),
        (("seconds", "median time to analyse a scan; ranks models on the machine that measured, no more"),
         lambda row: number_cell(row.get("seconds_to_analyse"), 2)),
        (("peak MB", "memory of the process at most"), lambda row: number_cell(row.get("peak_memory_mb"), 0)),
    ]  # fmt: skip
    written = [[cell(row) for _, cell in columns] for row in rows]
    # A column without a single number says nothing.
    kept = [i for i in range(len(columns)) if any('data-value=""' not in cells[i] for cells in written)]
    lines = [_line(row, entry, *(cells[i] for i in kept)) for row, cells in zip(rows, written, strict=True)]
    caption = f"All models, default score, {entry.get('title') or entry.get('name')}"
    return table(["model", *(columns[i][0] for i in kept)], lines, caption=caption, class_="main")


def points_of_focus(entry: Mapping[str, Any]) -> Markup | None:
    """The operating points of the model the set is summed up by."""
    row = rows_of.focus(entry)
    if row is None or not row.get("points"):
        return None
    names = rows_of.points_of(entry)
    lines = [_point_line(row, name, element("th", name, scope="row")) for name in names if name in row["points"]]
    caption = f"Operating points of {row['model']}: what moving the threshold costs and gains"
    return table(["operating point", *_point_heads([row])], lines, caption=caption, sortable=False)


def point_table(entry: Mapping[str, Any]) -> Markup:
    """Every model at every operating point; buttons choose one point."""
    rows = rows_of.default_rows(entry)
    names = rows_of.points_of(entry)
    buttons = [
        element("button", name, type="button", class_="filter", data_point=key, aria_pressed="false")
        for key, name in (("", "all points"), *((n, n) for n in names))
    ]
    lines = [
        _point_line(row, name, _model_cell(row, entry), text_cell(name), all_rows=rows)
        for name in names
        for row in rows
        if name in (row.get("points") or {})
    ]
    heads = ["model", "operating point", *_point_heads(rows)]
    shown = table(heads, lines, caption="Every model at every operating point")
    return element("div", element("div", "Show: ", *buttons, class_="filters"), shown, class_="filtered")


def _point_heads(rows: list[rows_of.Row]) -> list[Any]:
    about = "share of healthy voxels (or volume in healthy scans) that the threshold was set for"
    return [("set for", about), "threshold", *((title, words) for _, title, _, words in _shown_figures(rows))]


def _shown_figures(rows: list[rows_of.Row]) -> list[tuple[str, str, int, str]]:
    used = {key for row in rows for point in (row.get("points") or {}).values() for key in point.get("figures") or {}}
    return [entry for entry in _POINT_FIGURES if entry[0] in used]


def _point_line(row: rows_of.Row, name: str, *first: Markup, all_rows: list[rows_of.Row] | None = None) -> Markup:
    point = row["points"][name]
    cells = [
        figure_cell(rows_of.figure(row, key, name), digits) for key, _, digits, _ in _shown_figures(all_rows or [row])
    ]
    target = point.get("target")
    said = f"{100 * target:g} %" if isinstance(target, (int, float)) and target < 1 else target
    at = text_cell(said if said is not None else "–", order=str(target) if target is not None else "")
    return element("tr", *first, at, number_cell(point.get("threshold")), *cells, data_point=name)


def protocol_table(entry: Mapping[str, Any]) -> Markup:
    """Threshold from healthy scans twice, from labels, and the oracle: each one's threshold and Dice."""
    heads = [
        "model",
        ("Dice, healthy operating point", "the product's balanced threshold; no label is used"),
        "threshold",
        ("Dice, healthy 99.5 % quantile", "the value that 0.5 % of healthy voxels exceed; no label is used"),
        "threshold ",
        (
            "Dice, label-tuned (papers only)",
            "tuned on labelled cases of another half or split; not to be had at a site",
        ),
        "tuned on",
        ("best Dice (oracle)", "tuned on the very cases it is measured on: not a result"),
    ]
    lines = []
    for row in rows_of.default_rows(entry):
        found = row.get("thresholds") or {}
        point, quantile, tuned = (found.get(k) or {} for k in ("healthy_point", "healthy_quantile", "label_tuned"))
        lines.append(
            _line(
                row,
                entry,
                figure_cell(_as_figure(point.get("dice"))),
                number_cell(point.get("threshold")),
                figure_cell(_as_figure(quantile.get("dice"))),
                number_cell(quantile.get("threshold")),
                figure_cell(_as_figure(tuned.get("dice")), class_="papers"),
                text_cell(tuned.get("tuned_on") or "–", class_="papers"),
                figure_cell(rows_of.figure(row, "best_dice_oracle"), class_="oracle"),
            )
        )
    note = element(
        "p",
        "Only the first two can be had without labels. ",
        element("strong", "Label-tuned: papers only"),
        ", to compare with published numbers. ",
        element("strong", "Best Dice: oracle"),
        ", the best that one threshold on the whole map could give. No mask here is outlined as those in use are.",
    )
    return element("div", note, table(heads, lines, caption="Dice by the way its threshold was chosen"))


def differences_table(entry: Mapping[str, Any]) -> Markup:
    """One line per model and reference: the paired difference of every metric."""
    rows = rows_of.default_rows(entry)
    metrics = [
        (k, t) for k, t in _METRICS if any(k in d for row in rows for d in (row.get("differences") or {}).values())
    ]
    lines = []
    for row in rows:
        for name, found in _references(row):
            cells = [figure_cell(found.get(key), signed=True) for key, _ in metrics]
            against = text_cell(str(found.get("reference", name)), element("span", name, class_="limits"))
            lines.append(_line(row, entry, against, *cells))
    heads = ["model", "minus", *(f"{title}" for _, title in metrics)]
    return table(heads, lines, caption="Model minus reference, paired over patients")


def _references(row: rows_of.Row) -> list[tuple[str, Mapping[str, Any]]]:
    """Every model that the row is compared with, once: the better baseline is one of the two."""
    found: dict[Any, tuple[str, Mapping[str, Any]]] = {}
    for name, entry in (row.get("differences") or {}).items():
        words = name.replace("_", " ")
        reference = entry.get("reference", name)
        before = found.get(reference)
        found[reference] = (f"{before[0]}, {words}" if before else words, entry)
    return list(found.values())


def scores_table(entry: Mapping[str, Any]) -> Markup:
    """The rows that are not the default score."""
    lines = [
        _line(
            row,
            entry,
            text_cell(row.get("score", "")),
            text_cell(row.get("smoothing", "")),
            figure_cell(rows_of.figure(row, "pooled_ap")),
            figure_cell(rows_of.figure(row, "best_dice_oracle"), class_="oracle"),
            figure_cell(_at_balanced(row, "dice")),
            figure_cell(rows_of.figure(row, "scan_auroc")),
        )
        for row in rows_of.other_rows(entry)
    ]
    heads = ["model", "score", "smoothing", "AP", "best Dice (oracle)", "Dice at balanced", "scan AUROC"]
    return table(heads, lines, caption="Other scores and smoothings")


def _line(row: rows_of.Row, entry: Mapping[str, Any], *cells: Markup) -> Markup:
    kind = "baseline" if rows_of.is_baseline(row) else None
    if row.get("model") == rows_of.default_model(entry):
        kind = "default"
    return element("tr", _model_cell(row, entry), *cells, class_=kind)


def _model_cell(row: rows_of.Row, entry: Mapping[str, Any]) -> Markup:
    badges = []
    if row.get("model") == rows_of.default_model(entry):
        badges.append(element("span", "offered first", class_="badge first"))
    if rows_of.is_baseline(row):
        badges.append(element("span", "baseline", class_="badge"))
    kind = rows_of.calibration_kind(row)
    if kind in _CALIBRATIONS:
        badges.append(element("span", _CALIBRATIONS[kind], class_="badge"))
    score = element("span", row.get("score", ""), class_="limits") if row.get("score") else None
    return element(
        "th", breakable(row.get("model", "")), *badges, score, scope="row", data_value=str(row.get("model", ""))
    )


def _verdict_cell(row: rows_of.Row) -> Markup:
    kind, words = rows_of.verdict_words(row)
    order = {"good": "3", "unclear": "2", "none": "1", "bad": "0"}[kind]
    return text_cell(words, order=order, class_=f"words {kind}")


def _p_cell(row: rows_of.Row) -> Markup:
    found = (rows_of.shown_difference(row, metric="mean_case_ap") or {}).get("p_value")
    return element("td", p_words(found) or MISSING, class_="num", data_value=repr(found) if is_number(found) else "")


def _baseline_cell(row: rows_of.Row) -> Markup:
    return figure_cell(rows_of.shown_difference(row), signed=True)


def _at_balanced(row: rows_of.Row, name: str) -> Mapping[str, Any] | None:
    found = rows_of.figure(row, name, "balanced")
    return found if found is not None else rows_of.figure(row, name)


def _as_figure(value: Any) -> Mapping[str, Any] | None:
    return value if isinstance(value, Mapping) or value is None else {"value": value}
