"""The drift report as one HTML page that needs nothing but itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from .charts import _axes, _mark, _rule, _svg, _text
from .markup import MISSING, Markup, element, is_number, number, page_policy

_TITLE = "Drift report"
_STYLES = ("study_page.css", "drift_page.css")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 600, 250, 48, 16, 14, 44
_STATES = {"few": "too few scans", "steady": "no change shows", "changed": "changed"}
# Charts are drawn of these; the others are in the table.
_DRAWN = ("anomaly_score", "background", "drift_distance", "seconds")
_COLOUR, _ALARM = "#0072b2", "#a33a00"


def drift_html(record: Mapping[str, Any]) -> str:
    """The page as text. record: ``pipelines.site_drift.drift_report``."""
    style = "".join(Path(__file__).with_name(name).read_text(encoding="utf-8") for name in _STYLES)
    top = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=page_policy(style)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="robots", content="noindex"),
        element("title", _TITLE),
        element("style", Markup(style)),
    )
    parts = [_head(record), *[_series(entry, record["settings"]) for entry in record["series"]], _reading(record)]
    return f"<!DOCTYPE html>\n{element('html', top, element('body', *parts), lang='en')}\n"


def _head(record: Mapping[str, Any]) -> Markup:
    log = record["log"]
    broken = None
    if not log["whole"]:
        broken = element(
            "div",
            element("h2", "The audit log is broken"),
            element(
                "p",
                "Records were changed or are missing (",
                element("code", "main.py audit verify"),
                " says which): what follows may be wrong.",
            ),
            class_="warnings",
        )
    scans = sum(entry["scans"] for entry in record["series"])
    return element(
        "header",
        element("h1", _TITLE),
        element(
            "p",
            f"{scans} scans of {len(record['series'])} series in {log['records']} records of the audit log; made "
            f"{record['made']['time'][:16].replace('T', ' ')} UTC, app {record['made']['app_version']}, log head ",
            element("code", log["head"][:16]),
            class_="identity",
        ),
        element("p", "Research use only. This is not a medical device.", class_="research"),
        broken,
        element(
            "p",
            "Patients are not healthy volunteers: that their scores are higher than those of the calibration's healthy "
            "scans is to be expected and no fault. Whether something has changed here is told by comparing this site's "
            "scans with its own earlier ones.",
        ),
    )


def _series(entry: Mapping[str, Any], settings: Mapping[str, Any]) -> Markup:
    quantities = entry["quantities"]
    about = f"{entry['score']}, smoothing {entry['smoothing']}, calibration {entry['calibration'] or MISSING}"
    charts = [
        element("figure", element("h3", _capital(quantities[name]["title"])), _chart(quantities[name]))
        for name in _DRAWN
        if name in quantities and quantities[name]["watch"]["state"] != "few"
    ]
    return element(
        "section",
        element("h2", f"{entry['model']} ({about})"),
        element(
            "p",
            f"{entry['scans']} scans analysed, {entry['failed']} analyses failed, {entry['from'][:10]} to "
            f"{entry['to'][:10]}; each scan counts once, however often it was looked at.",
        ),
        _verdict(entry, settings),
        element("div", *charts, class_="charts"),
        element(
            "p",
            "Each dot is a scan, in the order they came; the line is the running median of 15. A dashed line stands "
            "where a change is thought to have begun, a solid one where it was told.",
            class_="chart-note",
        )
        if charts
        else None,
        _table(quantities, settings),
        _healthy(entry["healthy"], settings),
        _weeks(entry["weeks"], settings),
    )


def _verdict(entry: Mapping[str, Any], settings: Mapping[str, Any]) -> Markup:
    quantities = entry["quantities"]
    changed = [about for about in quantities.values() if _is_changed(about)]
    if changed:
        names = "; ".join(about["title"] for about in changed)
        return element("p", f"Something has changed: {names}.", class_="verdict changed")
    if all(about["watch"]["state"] == "few" for about in quantities.values()):
        text = f"Too few scans to tell: from {settings['least_scans']} on."
        return element("p", text, class_="verdict few")
    return element("p", "No change shows against this site's earlier scans.", class_="verdict")


def _is_changed(about: Mapping[str, Any]) -> bool:
    return about["watch"]["state"] == "changed" or bool((about["change"] or {}).get("changed"))


def _table(quantities: Mapping[str, Any], settings: Mapping[str, Any]) -> Markup:
    compared = (f"First {settings['reference']}", f"Last {settings['days']} days", "p, corrected")
    heads = ("Quantity", "Scans", "Since the beginning", *compared)
    rows = []
    for about in quantities.values():
        seen, change = about["watch"], about["change"]
        state = _STATES[seen["state"]]
        if seen["state"] == "changed":
            way = "rose" if seen["higher"] else "fell"
            state = f"changed ({way}): told at scan {seen['at']}, since about scan {seen['since']}"
        few = element("td", "too few", class_="num state-few")
        cells = [few, few, few]
        if change is not None:
            hit = "num state-changed" if change["changed"] else "num"
            cells = [
                element("td", _figure(change["reference"], about["yes_no"]), class_="num"),
                element("td", _figure(change["recent"], about["yes_no"]), class_="num"),
                element("td", f"{change['corrected']:.2g}", class_=hit),
            ]
        rows.append(
            element(
                "tr",
                element("th", _capital(about["title"]), scope="row"),
                element("td", str(len(about["values"])), class_="num"),
                element("td", state, class_=f"state-{seen['state']}"),
                *cells,
            )
        )
    return element(
        "table",
        element("thead", element("tr", *[element("th", text, scope="col") for text in heads])),
        element("tbody", *rows),
    )


def _healthy(found: Mapping[str, Any] | None, settings: Mapping[str, Any]) -> Markup:
    if found is None:
        return element(
            "p", f"Against healthy scans: too few scans (from {settings['least_scans']} on), or unknown.", class_="note"
        )
    flagged = found["flagged"]
    low, high = flagged["interval"]
    return element(
        "p",
        f"Against the calibration's {found['calibration_scans']} healthy scans: {flagged['yes']} of {flagged['total']} "
        f"scans have p of 0.05 at most ({100 * low:.0f} to {100 * high:.0f} %; of healthy scans 5 % would). Distance "
        f"of the p-values from uniform {found['distance']:.2f} (Kolmogorov-Smirnov, p = {found['p_value']:.2g}). Only "
        "if these scans were of healthy people would this say that the calibration does not fit.",
        class_="note",
    )


def _weeks(weeks: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> Markup:
    heads = (
        "Week", "Scans", "Failed", "Score, median", "p of 0.05 at most", "Gate flagged", "Warned", "Background",
        "Seconds",
    )  # fmt: skip
    rows = []
    for week in weeks:
        cells = [element("td", str(week["scans"]), class_="num"), element("td", str(week["failed"]), class_="num")]
        if week["few"]:
            text = f"too few for figures (from {settings['least_per_week']} on)"
            cells.append(element("td", text, colspan=6, class_="state-few"))
        else:
            shares = [_share(week[name]) for name in ("flagged", "gate", "warned")]
            texts = [_figure(week["anomaly_score"]), *shares, _figure(week["background"]), _figure(week["seconds"])]
            cells += [element("td", text, class_="num") for text in texts]
        rows.append(element("tr", element("th", week["week"], scope="row", class_="week"), *cells))
    first, *others = heads
    titles = [element("th", first, scope="col"), *[element("th", text, scope="col", class_="num") for text in others]]
    return element(
        "table",
        element("caption", "By week; in brackets the exact 95 % interval of a share"),
        element("thead", element("tr", *titles)),
        element("tbody", *rows),
        class_="wide",
    )


def _reading(record: Mapping[str, Any]) -> Markup:
    settings = record["settings"]
    return element(
        "section",
        element("h2", "How to read this"),
        element(
            "p",
            "Since the beginning: a conformal test martingale (Vovk, Statistical Science 36, 2021; bets of the Simple "
            "Jumper, Vovk et al., COPA 2021) on the claim that the order of the scans does not matter. However often "
            f"one looks, all {settings['watched']} watches together raise a false alarm, ever, with probability "
            f"{settings['alarm']:g} at most. Where a change began: "
            "where the ranks part most (Pettitt, 1979).",
        ),
        element(
            "p",
            f"First {settings['reference']} against last {settings['days']} days: medians by the test of Kolmogorov "
            "and Smirnov, shares by Fisher's exact test, corrected for their number (Holm, 1979); changed where the "
            f"corrected p is below {settings['alarm']:g}.",
        ),
        element(
            "p",
            "A change is no fault by itself: another mix of patients moves the scores as another scanner does. A "
            "change of the background ratio or of the distance points to scanner, protocol or preparation: look at "
            "some of these scans, and calibrate on own healthy scans (main.py calibrate). Another version of a model "
            "or another calibration begins a series of its own.",
        ),
    )


def _chart(about: Mapping[str, Any]) -> Markup:
    values, seen = about["values"], about["watch"]
    count, top = len(values), _nice(max(values))
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        return _LEFT + (x - 1) / max(1, count - 1) * (right - _LEFT), bottom - max(0.0, y) / top * (bottom - _TOP)

    ticks = sorted({1, *(round(1 + share * (count - 1)) for share in (0.25, 0.5, 0.75, 1))})
    parts = [_axes(at, ticks, [top * n / 4 for n in range(5)], _span(about["times"]), "")]
    if seen["state"] == "changed":
        for scan, dash in ((seen["since"], "5 4"), (seen["at"], None)):
            x, _ = at(scan, 0)
            parts.append(_rule(x, _TOP, x, bottom, _ALARM, dash=dash, width=1.5))
        parts.append(_text(at(seen["at"], 0)[0] + 4, _TOP + 10, "changed", colour=_ALARM, size=11))
    parts += [_mark(*at(n, value), _COLOUR, "circle") for n, value in enumerate(values, 1)]
    middle = [at(n, value) for n, value in enumerate(_running_median(values), 1)]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in middle)
    parts.append(element("path", d=path, fill="none", stroke="#222222", stroke_width=1.8))
    return _svg(parts, _WIDTH, _HEIGHT, about["title"], f"{count} scans; {_STATES[seen['state']]}")


def _running_median(values: Sequence[float], half: int = 7) -> list[float]:
    found = []
    for n in range(len(values)):
        near = sorted(values[max(0, n - half) : n + half + 1])
        found.append(near[len(near) // 2])
    return found


def _nice(largest: float) -> float:
    """An axis' end just above the largest value: 1, 2, 4 or 8 times a power of ten."""
    if largest <= 0:
        return 1.0
    unit = 10 ** math.floor(math.log10(largest))
    return next(step * unit for step in (1, 2, 4, 8, 10) if step * unit >= largest)


def _span(times: Sequence[str]) -> str:
    first, last = (datetime.fromisoformat(time).date() for time in (times[0], times[-1]))
    return f"scan, from {first} to {last}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _share(found: Mapping[str, Any] | None) -> str:
    if not found:
        return MISSING
    low, high = (100 * value for value in found["interval"])
    return f"{100 * found['yes'] / found['total']:.0f} % ({low:.0f}–{high:.0f})"


def _figure(value: Any, yes_no: bool = False) -> str:
    if not is_number(value):
        return MISSING
    return f"{100 * value:.0f} %" if yes_no else number(value, 2)
