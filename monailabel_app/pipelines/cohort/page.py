"""The page of a cohort: one file that filters and sorts some hundred thousand scans without any network.

The rows are in it as data; its script draws a hundred of them at a time. Pictures are files beside it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from monailabel_app.reports.markup import Markup, element, joined

if TYPE_CHECKING:
    from .tables import Row

_STYLE, _SCRIPT = "page.css", "page.js"
RESEARCH = (
    "Research use only. Not a medical device: not for diagnosis, screening or treatment. A scan without a mark is not "
    "thereby healthy."
)
# In this order in the page's data; the script knows it.
COLUMNS = (
    "scan", "state", "sequence", "model", "score", "p_value", "lesions", "volume_ml", "flagged", "gate", "drift",
    "text", "seconds", "time", "picture",
)  # fmt: skip
_HEADS = (
    ("scan", "Scan", "Its path within the folder, or its id in the list"),
    ("state", "State", "analysed, or failed with the reason"),
    ("sequence", "Sequence", "As name, list or DICOM header say; without, it is taken for T1"),
    ("model", "Model", "Which model was asked"),
    ("score", "Score", "Anomaly score of the whole scan, in healthy standard deviations"),
    ("p_value", "p", "Rank of the score among held-out healthy scans of the model: comparable between models"),
    ("lesions", "Regions", "Marked regions at the operating point"),
    ("volume_ml", "ml", "Their volume together"),
    ("text", "Flags and errors", "Unlike the model's training scans; drift from its calibration; why it failed"),
    ("seconds", "s", "Seconds that the scan took"),
    ("picture", "Picture", "Of scans with marked regions and p at most 0.05"),
)


def page_parts(rows: Sequence[Row], title: str, notes: Sequence[str]) -> Iterator[str]:
    """The page in parts, to be written one after the other. Everything in the rows is taken as text."""
    style, script = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in (_STYLE, _SCRIPT))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy(style, script)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        Markup(f"<style>{style}</style>"),
    )
    yield '<!DOCTYPE html>\n<html lang="en">'
    yield head
    yield "<body>"
    yield element("header", element("h1", title), element("p", RESEARCH, class_="research"))
    yield element("main", element("ul", *(element("li", note) for note in notes), class_="notes"), _filters(), _table())
    yield '<script type="application/json" id="rows">[\n'
    separator = ""
    for row in rows:
        values = [getattr(row, name) for name in COLUMNS]
        # "<" as an escape: no name can end the element.
        yield separator + json.dumps(values, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
        separator = ",\n"
    yield "\n]</script>"
    yield f"<script>{script}</script></body></html>\n"


def _filters() -> Markup:
    def choice(name: str, text: str, *options: tuple[str, str]) -> Markup:
        items = [element("option", label, value=value) for value, label in options]
        return element("label", text, element("select", *items, id=name))

    return element(
        "form",
        element("label", "Search", element("input", id="search", type="search", autocomplete="off")),
        choice("state", "State", ("", "all"), ("analysed", "analysed"), ("failed", "failed")),
        choice(
            "flag", "Only", ("", "all"), ("flagged", "p at most 0.05 with regions"), ("gate", "unlike training scans"),
            ("drift", "drift"), ("clean", "without any flag"),
        ),
        choice("sequence", "Sequence", ("", "all")),
        choice("model", "Model", ("", "all")),
        element("p", id="count", role="status"),
        id="filters",
    )  # fmt: skip


def _table() -> Markup:
    heads = [
        element("th", element("button", text, type="button", data_column=name), scope="col", title=about)
        for name, text, about in _HEADS
    ]
    body = element(
        "table",
        element("caption", "Scans, the lowest p and then the highest score first; headings sort"),
        element("thead", element("tr", element("th", "#", scope="col"), *heads)),
        element("tbody", id="body"),
    )
    pager = [element("button", text, type="button", id=name) for name, text in (("back", "Back"), ("next", "Next"))]
    return joined(
        [
            element("div", body, class_="scroll", tabindex="0", role="region", aria_label="Scans"),
            element("p", *pager, element("span", id="place"), class_="pager"),
            element("noscript", "Filtering needs JavaScript; the CSV file beside this page has the same rows."),
        ]
    )


def _policy(style: str, script: str) -> str:
    style_hash, script_hash = (
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"
        for text in (style, script)
    )
    return (
        f"default-src 'none'; img-src 'self' file:; style-src {style_hash}; script-src {script_hash}; base-uri 'none'; "
        "form-action 'none'"
    )
