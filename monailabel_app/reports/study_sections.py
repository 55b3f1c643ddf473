"""The words and tables of a study report; the pictures are put between them by ``study_page``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .markup import MISSING, Markup, element, is_number, number
from .study_chart import distribution_chart
from .study_words import RESEARCH, WHOLE, checks, ml, nothing_marked, place_words, share_words

Record = Mapping[str, Any]
SCORE_UNIT = "healthy standard deviations"
_ROWS_TOGETHER = 14  # a longer table may go on on the next page
_DECISIONS = {"accept": "accepted", "reject": "rejected", "undecided": "undecided"}
_STAGES = {
    "brain_extraction": "brain extraction",
    "input_gate": "input gate",
    "postprocessing": "post-processing",
}


def head(record: Record, title: str) -> Markup:
    """What it is about, for what use, and what to beware of."""
    scan, model = record["scan"], record["model"]
    size = " × ".join(str(n) for n in scan["shape"])
    spacing = " × ".join(f"{v:.3g}" for v in scan["spacing_mm"])
    kind = "slice" if scan["slice"] else "volume"
    line = element(
        "p",
        "Scan ",
        element("strong", scan["id"]),
        f" · {model['modality'].upper()} model ",
        element("strong", model["id"]),
        f" · {kind} of {size} voxels, {spacing} mm · {_minute(record['made']['time'])}",
        class_="identity",
    )
    warnings = record["warnings"]
    told = None
    if warnings:
        items = [element("li", element("strong", f"{w['about'].capitalize()}: "), w["text"]) for w in warnings]
        told = element("section", element("h2", "Beware"), element("ul", *items), class_="warnings")
    return element(
        "header",
        element("h1", title),
        line,
        element("p", RESEARCH, class_="research"),
        told,
        element("p", " ".join(checks(record)), class_="checks"),
    )


def result(record: Record) -> Markup:
    """The figures of the whole scan among those of healthy scans."""
    finding, healthy = record["finding"], record["healthy"]
    point, count = record["operating_point"], finding["lesion_count"]
    spread = finding.get("uncertainty") or {}
    p_value = "unknown" if finding["p_value"] is None else f"{finding['p_value']:.2g}"
    figures = [
        _figure("Anomaly score", number(finding["anomaly_score"], 2), _of_score(spread, spread, "anomaly_score")),
        _figure("p-value", p_value, f"among {len(healthy['scan_scores'])} healthy scans"),
        _figure("Marked regions", str(count), f"operating point {point['name']}"),
        _figure("Marked volume", f"{ml(finding['anomaly_volume_ml'])} ml", _plus_minus(spread.get("marked_ml_std"), 1)),
    ]
    charts = [
        _chart(
            healthy["scan_scores"],
            finding["anomaly_score"],
            "Anomaly score among healthy scans",
            "anomaly score",
        ),
        _chart(
            healthy["marked_ml"],
            healthy["scan_marked_ml"],
            "Marked volume among healthy scans",
            "marked volume, ml" if healthy["marked_of"] == WHOLE else f"marked volume in {healthy['marked_of']}, ml",
            " ml",
            1,
        ),
    ]
    empty = element("p", nothing_marked(record), class_="empty") if not count else None
    return element(
        "section",
        element("h2", "Result"),
        element("dl", *figures, class_="figures"),
        empty,
        element("div", *charts, class_="charts"),
        element("p", "Each dot is a healthy scan that the calibration held out of training.", class_="chart-note"),
        *[element("p", sentence) for sentence in record["summary"]],
        _missed(record) if not count else None,
    )


def region_table(record: Record) -> Markup | None:
    """One row per marked region; nothing where there is none."""
    lesions = record["finding"]["lesions"]
    if not lesions:
        return None
    uncertain = any(lesion.get("uncertainty") for lesion in lesions)
    reviewed = record["review"] is not None
    heads = [
        ("No.", ""),
        ("Location", ""),
        ("Volume, ml", "num"),
        ("Peak", "num"),
        ("Mean", "num"),
        ("Healthy voxels as high", "num"),
        ("Centre, mm", ""),
        *([("Found again", "num")] if uncertain else []),
        *([("Review", "")] if reviewed else []),
    ]
    spread = record["finding"].get("uncertainty") or {}
    rows = []
    for lesion, region in zip(lesions, record["regions"], strict=True):
        about = lesion.get("uncertainty") or {}
        cells = [
            element("td", lesion["region"] or "outside the named regions"),
            _number_cell(ml(lesion["volume_ml"]), _plus_minus(about.get("volume_ml_std"), 2)),
            _number_cell(number(lesion["peak_score"], 2)),
            _number_cell(number(lesion["mean_score"], 2), _of_score(spread, about, "mean_score")),
            _number_cell(share_words(region) or MISSING),
            element("td", place_words(lesion["centroid_ras_mm"], record["scan"])),
        ]
        if uncertain:
            again = about.get("found_again")
            cells.append(_number_cell(f"{100 * again:.0f} %" if is_number(again) else MISSING))
        if reviewed:
            cells.append(element("td", _decision(region), _comment(region)))
        rows.append(element("tr", element("th", lesion["index"], scope="row"), *cells))
    columns = [element("th", text, scope="col", class_=class_ or None) for text, class_ in heads]
    caption = (
        "Peak and mean: of the anomaly map, in healthy standard deviations. Centre: in mm right/left, "
        "anterior/posterior, superior/inferior of the scan's own origin (x, y, z to the right, front and top where "
        "that lies outside of the brain)." + (" ±: standard deviation over repeated analyses." if uncertain else "")
    )
    whole = element(
        "table", element("caption", caption), element("thead", element("tr", *columns)), element("tbody", *rows)
    )
    together = "keep" if len(lesions) <= _ROWS_TOGETHER else None
    return element("section", element("h2", "Marked regions"), element("div", whole, class_="wide"), class_=together)


def region_heading(lesion: Mapping[str, Any], region: Mapping[str, Any], scan: Mapping[str, Any]) -> Markup:
    """Above the pictures of a region."""
    about = lesion.get("uncertainty") or {}
    facts = [
        f"{ml(lesion['volume_ml'])} ml{_after(_plus_minus(about.get('volume_ml_std'), 2))}",
        f"peak {number(lesion['peak_score'], 2)} at {place_words(region['peak_ras_mm'], scan)} mm",
        f"mean {number(lesion['mean_score'], 2)}",
    ]
    if share_words(region):
        facts.append(f"{share_words(region)} of healthy voxels are as high")
    if is_number(about.get("found_again")):
        facts.append(f"found again in {100 * about['found_again']:.0f} % of repeated analyses")
    decided = [" · ", _decision(region)] if region["decision"] else []
    title = f"{lesion['index']}. {lesion['region'] or 'outside the named regions'}"
    return element(
        "div",
        element("h3", title),
        element("p", " · ".join(facts), *decided, class_="facts"),
        _comment(region),
    )


def highest_words(record: Record) -> str:
    """Where the map of an empty result is highest."""
    highest, threshold = record["highest"], record["finding"]["threshold"]
    place = place_words(highest["ras_mm"], record["scan"])
    small = ", in a region smaller than the smallest that is marked" if highest["value"] > threshold else ""
    return f"{highest['value']:.2f} at {place} mm{small}; the threshold is {threshold:.2f}."


def review(record: Record) -> Markup | None:
    """Who decided what; nothing where nobody did."""
    told = record["review"]
    if told is None:
        return None
    state = "final" if told.get("final") else "draft, not final"
    counts = {}
    for region in record["regions"]:
        counts[region["decision"] or "undecided"] = counts.get(region["decision"] or "undecided", 0) + 1
    said = ", ".join(f"{counts[key]} {word}" for key, word in _DECISIONS.items() if key in counts) or "no marked region"
    facts = [
        ("Reader", told.get("reader") or MISSING),
        ("State", state),
        ("Time", told.get("time") or MISSING),
        ("Decisions", said),
        ("Comment", element("span", told.get("comment") or MISSING, class_="comment")),
    ]
    if told.get("model_hash") not in (None, record["model"]["hash"]):
        facts.insert(2, ("Beware", "decided on the result of another model or version than that of this report"))
    elsewhere = [
        element(
            "li",
            f"{_DECISIONS.get(d.get('decision'), 'undecided')} at voxel {', '.join(str(v) for v in d['peak_voxel'])}",
            f": {d['comment']}" if d.get("comment") else "",
        )
        for d in told.get("elsewhere") or ()
    ]
    return element(
        "section",
        element("h2", "Review"),
        _pairs(facts),
        element("p", "Decided with other settings, not marked with those of this report:") if elsewhere else None,
        element("ul", *elsewhere, class_="tight") if elsewhere else None,
        class_="keep" if len(elsewhere) <= _ROWS_TOGETHER else None,
    )


def model(record: Record) -> Markup:
    """What is known of the model: verdict, figures, what it misses."""
    about = record["model"]
    parts: list[Any] = [element("h2", "How good this model is")]
    parts += [element("p", sentence) for sentence in about["verdict"]]
    if about["sets"]:
        heads = [
            ("Measured on", ""),
            ("Patients", "num"),
            ("Lesions found", "num"),
            ("False alarms per scan", "num"),
            ("ml marked in a healthy scan", "num"),
            ("AP (chance)", "num"),
        ]
        rows = [_set_row(entry) for entry in about["sets"]]
        columns = [element("th", text, scope="col", class_=class_ or None) for text, class_ in heads]
        caption = "At the operating point balanced, with the model's default score. AP: average precision over voxels."
        head_row, body = element("thead", element("tr", *columns)), element("tbody", *rows)
        parts.append(element("table", element("caption", caption), head_row, body, class_="keep"))
    else:
        parts.append(element("p", "Nothing was measured of this model with its present weights and calibration."))
    if record["finding"]["lesion_count"]:
        parts.append(_missed(record))
    return element("section", *parts)


def _run_words(manifest: Mapping[str, Any] | None) -> Any:
    """Its id, device and type of the arithmetic; the whole of it is in the report's JSON."""
    if not manifest:
        return MISSING
    made = (manifest.get("made_with") or [manifest["environment"]])[0]
    where = f" ({made['device']}, {made['dtype']}, {made['threads']} threads, torch {made['libraries'].get('torch')})"
    return [element("code", manifest["id"]), where]


def making(record: Record) -> Markup:
    """Settings, preparation, times and identities."""
    finding, calibration = record["finding"], record["finding"].get("calibration") or {}
    settings = [(key.replace("_", " "), _plain(value)) for key, value in finding["settings"].items()]
    steps = []
    for step in finding["preprocessing"]:
        rest = {key: value for key, value in step.items() if key not in ("step", "native_to_template")}
        steps.append((str(step.get("step", "?")).replace("_", " "), _plain(rest)))
    times = [(_STAGES.get(key, key), f"{value:.2f} s") for key, value in finding["seconds"].items()]
    identities = [
        ("scan id", record["scan"]["id"]),
        ("scan sha256 (voxels, affine)", element("code", record["scan"]["sha256"])),
        ("model", f"{record['model']['id']} (version {record['model']['version']}, {record['model']['method']})"),
        ("model hash", element("code", record["model"]["hash"])),
        ("calibration", _calibration_words(calibration)),
        ("calibration hash", element("code", calibration.get("hash") or MISSING)),
        ("run manifest", _run_words(finding.get("manifest"))),
        ("app version", record["made"]["app_version"]),
        ("report made", record["made"]["time"]),
        ("report schema", record["schema_version"]),
    ]
    uncertainty = finding.get("uncertainty")
    return element(
        "section",
        element("h2", "How this result was made"),
        element(
            "div",
            element("div", element("h3", "Settings"), _pairs(settings)),
            element("div", element("h3", "Times"), _pairs(times), _uncertainty(uncertainty)),
            class_="two keep",
        ),
        element("h3", "Preparation of the scan"),
        _pairs(steps),
        element("div", element("h3", "Identities"), _pairs(identities), class_="keep"),
    )


def reading(record: Record) -> Markup:
    """What the words mean."""
    terms = (
        ("Anomaly map", "How far each voxel is from what the model expects, in standard deviations of healthy scans at "
         "the same place."),
        ("Anomaly score", "Mean of the highest 2 ml of the map (of a slice, of its highest part)."),
        ("Threshold", "What lies above it is marked; chosen on healthy scans, never on labelled lesions."),
        ("Marked region", "Connected voxels above the threshold, cut off where the map falls below 40 % of the peak "
         "nearby. No diagnosis: any deviation from the healthy scans counts, of the machine as of the brain."),
    )  # fmt: skip
    return element("section", element("h2", "Words used"), _pairs(terms), class_="keep")


def _missed(record: Record) -> Markup:
    """What the model is known not to see."""
    spots = [spot for spot in record["model"]["blind_spots"] if spot.get("sentences")]
    title = element("h3", "What it can miss" if record["finding"]["lesion_count"] else "What could have been missed")
    if not spots:
        text = (
            "The blind spots of this model have not been measured (python main.py selftest measures them). Small and "
            "faint lesions, and those without a change of grey values, must be expected to be missed."
        )
        return element("div", title, element("p", text))
    parts: list[Any] = [title]
    for spot in spots:
        about = f"Synthetic anomalies in {spot.get('scans', MISSING)} healthy scans ({spot.get('data', MISSING)}), "
        parts.append(element("p", f"{about}operating point {spot.get('point', MISSING)}:", class_="note"))
        parts.append(element("ul", *(element("li", sentence) for sentence in spot["sentences"]), class_="tight spots"))
    return element("div", *parts)


def _set_row(entry: Mapping[str, Any]) -> Markup:
    figures = entry.get("figures") or {}

    def cell(name: str, digits: int) -> Markup:
        figure = figures.get(name) or {}
        limits = figure.get("interval")
        below = f"{limits[0]:.{digits}f} to {limits[1]:.{digits}f}" if limits else None
        return _number_cell(number(figure.get("value"), digits), below)

    prevalence = (figures.get("prevalence") or {}).get("value")
    ap = (figures.get("pooled_ap") or {}).get("value")
    return element(
        "tr",
        element("th", entry.get("title") or MISSING, scope="row"),
        _number_cell(str(entry.get("patients") or MISSING)),
        cell("recall", 2),
        cell("false_positives_per_scan", 1),
        cell("healthy_false_ml", 1),
        _number_cell(number(ap, 3), f"chance {number(prevalence, 3)}"),
    )


def _uncertainty(about: Mapping[str, Any] | None) -> Markup | None:
    if not about:
        return None
    shares = about.get("anomaly_score_shares") or {}
    parts = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items() if is_number(share))
    facts = [
        ("analyses", str(about.get("analyses", MISSING))),
        ("preparations × seeds", f"{about.get('preparations', MISSING)} × {about.get('seeds', MISSING)}"),
        ("the score varies by", parts or MISSING),
    ]
    return element("div", element("h3", "Uncertainty"), _pairs(facts))


def _calibration_words(calibration: Mapping[str, Any]) -> str:
    kind = "the site's own" if calibration.get("kind") == "site" else "shipped with the model"
    scans = calibration.get("healthy_scans")
    data = f": {calibration['data']}" if calibration.get("data") else ""
    return f"{calibration.get('id', MISSING)} ({kind}; {scans if scans is not None else MISSING} healthy scans{data})"


def _chart(healthy, own: float, title: str, label: str, unit: str = "", digits: int = 2) -> Markup | None:
    if not healthy:
        return None
    return element("figure", distribution_chart(healthy, own, title=title, x_label=label, unit=unit, digits=digits))


def _figure(name: str, value: str, below: str | None) -> Markup:
    return element("div", element("dt", name), element("dd", value, element("span", below or "", class_="small")))


def _number_cell(value: str, below: str | None = None) -> Markup:
    return element("td", value, element("span", below, class_="below") if below else None, class_="num")


def _of_score(spread: Record, about: Record, name: str) -> str | None:
    """The deviation of a score, where it is in the score's own unit; that of an ensemble's members is in another."""
    same = spread.get("score_unit", SCORE_UNIT) == SCORE_UNIT
    return _plus_minus(about.get(f"{name}_std"), 2) if same else None


def _plus_minus(deviation: Any, digits: int) -> str | None:
    return f"± {deviation:.{digits}f}" if is_number(deviation) else None


def _after(text: str | None) -> str:
    return f" {text}" if text else ""


def _decision(region: Mapping[str, Any]) -> Markup:
    key = region["decision"] if region["decision"] in _DECISIONS else "undecided"
    return element("span", _DECISIONS[key], class_=f"decision {key}")


def _comment(region: Mapping[str, Any]) -> Markup | None:
    return element("p", region["comment"], class_="comment") if region.get("comment") else None


def _pairs(pairs) -> Markup:
    return element("dl", *[[element("dt", name), element("dd", value)] for name, value in pairs], class_="pairs")


def _minute(time: str) -> str:
    """A time of ISO 8601 without seconds; that of the zone 0 as UTC."""
    zone = " UTC" if time.endswith("+00:00") else time[19:]
    return f"{time[:16].replace('T', ' ')}{zone}"


def _plain(value: Any) -> str:
    """A setting or a step in words: numbers short, lists joined, keys before their values."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key.replace('_', ' ')} {_plain(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return " × ".join(_plain(item) for item in value)
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)
