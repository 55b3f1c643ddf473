"""The evaluation as one HTML page that needs nothing but itself: for people who read scans, and who run servers."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monailabel_app.errors import EvaluationFailed

from . import evaluation_rows as rows_of
from .evaluation_blind_spots import blind_spot_section
from .evaluation_fairness import fairness_section
from .evaluation_set import drift_sentences, set_section
from .markup import Markup, element, fold, joined, number, short_hash, table, text_cell

# Pictures in the page at most; what is beyond that is named, so that a browser can still open the file.
PICTURES_MB = 24.0
_STYLE, _SCRIPT = "evaluation_page.css", "evaluation_page.js"
_TITLE = "How good the models are"
_RESEARCH = (
    "Research use only. Not a medical device: not for diagnosis, screening or treatment. A region that no model marks "
    "is not thereby healthy."
)
_READING = (
    ("AP (average precision)", "Area under precision and recall over brain voxels. Chance gives the prevalence, the "
     "share of lesion voxels, so numbers of different sets do not compare."),
    ("Operating points", "sensitive, balanced and specific: thresholds that 5 %, 1 % and 0.1 % of voxels of held-out "
     "healthy scans exceed. bounded: made to mark at most 2 ml in 95 % of healthy scans. No label is used."),
    ("Best Dice (oracle)", "The Dice at the one threshold that is best on these very cases. It knows the answer and is "
     "never a result. Masks in use are outlined besides, so that theirs can be higher."),
    ("Label-tuned (papers only)", "The threshold was tuned on labelled cases, as many papers do. A site without labels "
     "cannot have it."),
    ("Lesion recall, false positives", "A lesion is found when the mask touches it. Marked regions without any lesion "
     "are false positives; those below 0.1 ml are dropped first. A mask as large as half the brain touches most "
     "lesions: read recall beside the volume error."),
    ("Intervals and p", "Brackets: 95 % bootstrap over patients. p: permutation of the two models within each patient. "
     "Many comparisons are shown; single p-values just below 0.05 mean little."),
    ("Baselines", "intensity: how far a voxel's intensity is from the scan's own. atlas: how far it is from that of "
     "healthy brains at the same place. Neither is a trained network; a model that does not beat them adds nothing."),
    ("RoDeO", "How well boxes around marked regions fit those around lesions: place, size and number."),
    ("Colours of the maps", "The share of healthy voxels that have a higher value: the same colour means the same "
     "rarity in every picture, every scan and every model."),
)  # fmt: skip


def evaluation_html(
    record: Mapping[str, Any],
    *,
    blind_spots: Sequence[Mapping[str, Any]] = (),
    fairness: Mapping[str, Any] | None = None,
    pictures: Mapping[str, bytes] | None = None,
) -> str:
    """The page as text. record: evaluation.json. blind_spots: records of ``selftest``, one per model. fairness: of
    ``fairness``. pictures: PNG files by the names in the record's examples.

    Everything in the records is taken as text and escaped. Raises EvaluationFailed for a record without sets.
    """
    sets = record.get("sets")
    if not isinstance(sets, (list, tuple)) or not all(isinstance(entry, Mapping) for entry in sets):
        raise EvaluationFailed("expected the record of an evaluation, with its sets, got none; give evaluation.json")
    within, beyond = _within_budget(sets, pictures or {})
    used: set[str] = set()
    sections = [set_section(entry, within, used) for entry in sets]
    blind = blind_spot_section(blind_spots, _models(sets))
    fair = fairness_section(fairness)
    parts = [
        _glance(sets),
        *sections,
        blind,
        fair,
        _calibration(sets),
        _failures(record, beyond),
        _identities(record, sets),
        _reading(record),
    ]
    style, script = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in (_STYLE, _SCRIPT))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy(style, script)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", _page_title(record)),
        element("style", Markup(style)),
    )
    body = element(
        "body",
        element("a", "Skip to the results", href="#glance", class_="skip"),
        _header(record, sets),
        element("div", _contents(sets), element("main", *parts), class_="columns"),
        element("script", Markup(script)),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _policy(style: str, script: str) -> str:
    """Nothing is fetched and nothing but this style and this script is obeyed."""
    style_hash, script_hash = (
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"
        for text in (style, script)
    )
    return (
        f"default-src 'none'; img-src data:; style-src {style_hash}; script-src {script_hash}; base-uri 'none'; "
        "form-action 'none'"
    )


def _within_budget(
    sets: Sequence[Mapping[str, Any]], pictures: Mapping[str, bytes]
) -> tuple[dict[str, bytes], list[str]]:
    """The pictures that fit, those of each set's summed-up model first, and the names of the others."""
    wanted = []
    for entry in sets:
        first = (rows_of.focus(entry) or {}).get("model")
        for example in entry.get("examples") or ():
            name = example.get("picture")
            if isinstance(name, str) and name in pictures:
                wanted.append((example.get("model") != first, name))
    names = list(dict.fromkeys(name for _, name in sorted(wanted, key=lambda pair: pair[0])))
    kept, left = {}, PICTURES_MB * 1e6
    for name in names:
        size = len(pictures[name]) * 4 / 3
        if size <= left:
            kept[name] = pictures[name]
            left -= size
    return kept, [name for name in names if name not in kept]


def _page_title(record: Mapping[str, Any]) -> str:
    time = (record.get("made") or {}).get("time")
    return f"{_TITLE}: evaluation of {time}" if time else f"{_TITLE}: evaluation"


def _models(sets: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["model"] for entry in sets for row in entry.get("rows", ())))


def _header(record: Mapping[str, Any], sets: Sequence[Mapping[str, Any]]) -> Markup:
    made = record.get("made") or {}
    models = _models(sets)
    counts = f"{len(models)} model{_s(models)} on {len(sets)} data set{_s(sets)}"
    known = [counts, made.get("time"), f"version {made['app_version']}" if made.get("app_version") else None]
    if record.get("resamples"):
        known.append(f"{record['resamples']} bootstrap resamples")
    quick = element("strong", " Quick run: a part of the cases only.") if record.get("quick") else None
    command = joined([" · ", element("code", made["command"])]) if made.get("command") else None
    line = element("p", " · ".join(str(part) for part in known if part), command, quick, class_="made")
    return element("header", element("h1", _TITLE), line, element("p", _RESEARCH, class_="research"))


def _s(things: Sequence[Any]) -> str:
    return "" if len(things) == 1 else "s"


def _contents(sets: Sequence[Mapping[str, Any]]) -> Markup:
    entries = [("glance", "At a glance")]
    inner = [(rows_of.anchor("set", entry.get("name")), _short_title(entry)) for entry in sets]
    after = [
        ("blind-spots", "Blind spots"),
        ("fairness", "Fairness"),
        ("calibration", "Calibration"),
        ("failures", "Not measured"),
        ("identities", "Models and data"),
        ("reading", "How to read this"),
    ]
    links = [element("li", element("a", text, href=f"#{place}")) for place, text in [*entries, *inner, *after]]
    return element("nav", element("h2", "Contents"), element("ol", *links), aria_label="Contents")


def _short_title(entry: Mapping[str, Any]) -> str:
    title = str(entry.get("title") or entry.get("name") or "unnamed set")
    return title if len(title) <= 46 else title[:45].rstrip(" ,(") + "…"


def _glance(sets: Sequence[Mapping[str, Any]]) -> Markup:
    """A line per set: the model offered first, and whether it is better than doing without a network."""
    lines, chosen_here = [], False
    for entry in sets:
        row = rows_of.focus(entry)
        link = element("a", _short_title(entry), href=f"#{rows_of.anchor('set', entry.get('name'))}")
        scans = f"{entry.get('cases', '–')} + {entry.get('healthy') or 'no'} healthy"
        name = element("th", link, element("span", scans, class_="limits"), scope="row")
        if row is None:
            lines.append(element("tr", name, element("td", "not measured", colspan="7")))
            continue
        best = max(rows_of.default_rows(entry), key=lambda r: rows_of.value(r, "pooled_ap") or 0)
        kind, words = rows_of.verdict_words(row)
        mark = "" if rows_of.default_model(entry) else " *"
        chosen_here |= bool(mark)
        best_words = "the same" if best["model"] == row["model"] else best["model"]
        cells = [
            text_cell(row["model"], mark),
            text_cell(words, class_=f"words {kind}"),
            _glance_cell(row, "pooled_ap", None, 3),
            _glance_cell(row, "recall", "balanced", 2),
            _glance_cell(row, "false_positives_per_scan", "balanced", 1),
            _glance_cell(row, "healthy_false_ml", "balanced", 1),
            text_cell(best_words, element("span", f"AP {number(rows_of.value(best, 'pooled_ap'))}", class_="limits")),
        ]
        lines.append(element("tr", name, *cells))
    heads = [
        "data set",
        "model offered first",
        "against the baselines",
        ("AP", "average precision over voxels"),
        ("lesions found", "recall at the balanced operating point"),
        ("false alarms per scan", "false positives at balanced"),
        ("ml in a healthy scan", "falsely marked volume at balanced"),
        ("highest AP of all", "chosen on these same cases"),
    ]
    star = "* no model is offered first for this sequence: the trained one with the highest AP on these same cases."
    shown = table(heads, lines, caption="One line per data set", class_="glance", sortable=False)
    note = element("p", star, class_="note") if chosen_here else None
    return element("section", element("h2", "At a glance"), shown, note, id="glance")


def _glance_cell(row: rows_of.Row, name: str, point: str | None, digits: int) -> Markup:
    found = rows_of.value(row, name, point)
    if found is None and point is not None:
        found = rows_of.value(row, name)
    return element("td", number(found, digits), class_="num", data_value=repr(found) if found is not None else "")


def _calibration(sets: Sequence[Mapping[str, Any]]) -> Markup:
    """What the drift checks of the calibrations say, once per sentence."""
    said = dict.fromkeys(s for entry in sets for row in entry.get("rows", ()) for s in drift_sentences(row))
    if said:
        inside = element("ul", *(element("li", sentence) for sentence in said))
    else:
        inside = element(
            "p",
            "No drift from the calibration scans was recorded. That is no proof that there is none: it is checked "
            "where a set has healthy scans.",
            class_="missing",
        )
    return element("section", element("h2", "Calibration: does it hold on these scans?"), inside, id="calibration")


def _failures(record: Mapping[str, Any], beyond: Sequence[str]) -> Markup:
    failed = record.get("failed") or ()
    items = [
        element(
            "li", element("strong", item.get("model", "?")), f" on {item.get('set', '?')}: {item.get('error', '?')}"
        )
        for item in failed
        if isinstance(item, Mapping)
    ]
    parts = [element("ul", *items) if items else element("p", "Every model asked for was measured on every set.")]
    if beyond:
        text = (
            f"{len(beyond)} picture{_s(beyond)} left out to keep this page below {PICTURES_MB:g} MB; the files lie "
            "beside the record: "
        )
        parts.append(element("p", text, ", ".join(beyond), class_="missing"))
    return element("section", element("h2", "Not measured, left out"), *parts, id="failures")


def _identities(record: Mapping[str, Any], sets: Sequence[Mapping[str, Any]]) -> Markup:
    told = (record.get("made") or {}).get("models") or {}
    lines = {}
    for row in (row for entry in sets for row in entry.get("rows", ())):
        model, calibration = row["model"], row.get("calibration")
        calibration = calibration if isinstance(calibration, Mapping) else {"kind": calibration}
        known = told.get(model) if isinstance(told.get(model), Mapping) else {}
        identity = calibration.get("id")
        cells = [
            text_cell(row.get("method") or "–"),
            text_cell(str(row.get("modality") or "–").upper()),
            text_cell(short_hash(row.get("hash"))),
            text_cell(calibration.get("kind") or "–", " ", short_hash(identity) if identity else ""),
            text_cell("–" if calibration.get("scans") is None else calibration["scans"]),
            text_cell(known.get("licence") or "see its card"),
        ]
        key = str(model), str(row.get("hash")), str(calibration.get("kind")), str(identity)
        lines.setdefault(key, element("tr", element("th", model, scope="row"), *cells))
    heads = ["model", "method", "sequence", "hash", "calibration", "calibration scans", "licence of the weights"]
    models = table(heads, [lines[key] for key in sorted(lines)], caption="Models", sortable=False)
    data = [
        element(
            "tr",
            element("th", entry.get("title") or entry.get("name", ""), scope="row"),
            text_cell(element("code", entry.get("name", ""))),
            text_cell(entry.get("split") or "–"),
            text_cell(entry.get("cases", "–")),
            text_cell(entry.get("healthy", "–")),
            text_cell(entry.get("licence") or "not stated"),
            text_cell(short_hash(entry.get("key"))),
        )
        for entry in sets
    ]
    heads = ["data set", "name", "split", "cases", "healthy", "licence", "content"]
    return element(
        "section",
        element("h2", "Models and data"),
        element("p", "Hover over a hash or focus it to see the whole; copying it copies the whole.", class_="note"),
        models,
        table(heads, data, caption="Data sets", sortable=False),
        id="identities",
    )


def _reading(record: Mapping[str, Any]) -> Markup:
    terms = joined(part for term, about in _READING for part in (element("dt", term), element("dd", about)))
    told = record.get("protocols_explained")
    recorded = None
    if isinstance(told, Mapping) and told:
        parts = [part for name, about in told.items() for part in (element("dt", name), element("dd", about))]
        recorded = fold("How exactly each figure was made, as recorded", element("dl", *parts, class_="reading"))
    return element(
        "section",
        element("h2", "How to read this"),
        fold("What the words and numbers mean", element("dl", terms, class_="reading"), open_=True),
        recorded,
        id="reading",
    )
