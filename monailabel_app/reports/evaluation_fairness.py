"""The report's section on whether models err more for some people: the record of ``main.py fairness``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .markup import Markup, element, figure_cell, fold, is_number, number, p_words, table, text_cell

_FIGURE_TITLES = {
    "sauroc": "sAUROC",
    "fpr_at_tpr95": "healthy called abnormal at 95 % found",
    "scan_score": "mean score",
}
_KINDS = {"exploratory": "exploratory: scans that trained the networks are among them", "held-out": "held-out scans"}
_UNTOLD = "no split is named: whether scans that trained the networks are among them is not known"


def fairness_section(record: Mapping[str, Any] | None) -> Markup:
    """Per model and set: what the groups of people differ in, in sentences and as tables."""
    heading = element("h2", "Fairness: does it err more for some people?")
    if not record or not record.get("models"):
        missing = element(
            "p",
            "Not measured here. ",
            element("code", "python main.py fairness --table scans.csv"),
            " compares groups of people by sex, age and site where a set says who they are; give its file to ",
            element("code", "python main.py report --fairness FILE"),
            ".",
            class_="missing",
        )
        return element("section", heading, missing, id="fairness")
    options = record.get("options") or {}
    about = [
        f"groups of at least {options['min_group']} patients" if options.get("min_group") is not None else None,
        f"{options['point']} operating point" if options.get("point") else None,
        f"{options['resamples']} resamples" if options.get("resamples") else None,
    ]
    note = element(
        "p",
        "Healthy scans only: all that is marked in them is false. Compared: ",
        "; ".join(filter(None, about)),
        ".",
        class_="note",
    )
    explained = record.get("explained") or {}
    terms = [part for term, words in explained.items() for part in (element("dt", term), element("dd", words))]
    parts = [_fair_model(entry, unfolded=index == 0) for index, entry in enumerate(record["models"])]
    laws = [_law(law) for law in record.get("laws") or ()]
    reading = fold("What the columns mean", element("dl", *terms, class_="reading")) if terms else None
    return element("section", heading, note, *parts, *laws, reading, id="fairness")


def _fair_model(entry: Mapping[str, Any], *, unfolded: bool) -> Markup:
    kind = _KINDS.get(entry.get("kind", ""), entry.get("kind"))
    if entry.get("kind") == "held-out" and not entry.get("split"):
        kind = _UNTOLD
    facts = [
        f"{entry.get('scans', '–')} healthy scans of {entry.get('patients', '–')} patients",
        f"{entry['positives']} scans with anomalies" if entry.get("positives") else "no scans with anomalies",
        f"split {entry['split']}" if entry.get("split") else None,
        kind,
    ]
    attributes = entry.get("attributes") or ()
    said = [sentence for attribute in attributes for sentence in attribute.get("sentences") or ()]
    names = list(
        entry.get("figures") or dict.fromkeys(k for a in attributes for g in a.get("groups", ()) for k in g["figures"])
    )
    lines = [line for attribute in attributes for line in _fair_lines(attribute, names)]
    overall = entry.get("overall") or {}
    if overall:
        cells = [_fair_cell(overall.get(name), name) for name in names]
        everyone = [element("th", "everyone", scope="row"), text_cell(""), text_cell(entry.get("patients", "–"))]
        lines.insert(0, element("tr", *everyone, *cells, text_cell("")))
    heads = ["group", "by", "patients", *(_figure_title(name) for name in names), "test of equal means"]
    caption = f"{entry.get('model', '?')} on {entry.get('set', '?')}: groups of people"
    parts = [
        element("p", "; ".join(str(fact) for fact in facts if fact), ".", class_="note"),
        element("ul", *(element("li", sentence) for sentence in said)) if said else None,
        table(heads, lines, caption=caption, sortable=False),
    ]
    title = f"Fairness of {entry.get('model', '?')} on {entry.get('set', '?')}"
    return fold(title, *parts, open_=unfolded, class_="model-fold")


def _fair_lines(attribute: Mapping[str, Any], names: Sequence[str]) -> list[Markup]:
    lines = []
    for index, group in enumerate(attribute.get("groups") or ()):
        figures = group.get("figures") or {}
        words = text_cell(_test_words(attribute.get("test"))) if index == 0 else text_cell("")
        lines.append(
            element(
                "tr",
                element("th", group.get("title") or group.get("group", "?"), scope="row"),
                text_cell(attribute.get("name", "")),
                text_cell(group.get("patients", "–")),
                *(_fair_cell(figures.get(name), name) for name in names),
                words,
                class_="first-of-group" if index == 0 else None,
            )
        )
    for group in attribute.get("not_reported") or ():
        lines.append(
            element(
                "tr",
                element("th", group.get("title") or group.get("group", "?"), scope="row"),
                text_cell(attribute.get("name", "")),
                text_cell(group.get("patients", "–")),
                element("td", "too few to report", colspan=str(len(names) + 1), class_="missing"),
            )
        )
    return lines


def _fair_cell(figure: Mapping[str, Any] | None, name: str) -> Markup:
    return figure_cell(figure, 1 if name.startswith("false_ml") else 3)


def _figure_title(name: str) -> str:
    if name.startswith("false_ml"):
        point = name.removeprefix("false_ml").strip("_")
        return f"healthy false ml at {point}" if point else "healthy false ml"
    return _FIGURE_TITLES.get(name, name.replace("_", " "))


def _test_words(test: Mapping[str, Any] | None) -> str:
    if not test:
        return "not tested"
    words = p_words(test.get("p_value"))
    corrected = test.get("p_corrected")
    return f"{words}; {number(corrected)} corrected for {test.get('tests', '–')}" if is_number(corrected) else words


def _law(law: Mapping[str, Any]) -> Markup:
    """The fitted lines over training mixtures, in words and as a table."""
    lines = [
        element(
            "tr",
            element("th", group.get("title") or group.get("group", "?"), scope="row"),
            figure_cell({"value": group.get("intercept")}),
            figure_cell({"value": group.get("slope")}, signed=True),
            figure_cell({"value": group.get("mean_absolute_error")}),
            text_cell(group.get("runs", "–")),
        )
        for group in law.get("groups") or ()
    ]
    title = (
        f"{_figure_title(str(law.get('figure', '')))} over the share of {law.get('share_of', '?')} in the training data"
    )
    heads = ["group", "at share 0", "change to share 1", "mean absolute error", "trainings"]
    said = element("ul", *(element("li", sentence) for sentence in law.get("sentences") or ()))
    return element(
        "div", element("h3", f"{title}, {law.get('set', '')}"), said, table(heads, lines, caption=title, sortable=False)
    )
