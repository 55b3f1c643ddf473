"""The report of one scan as one HTML page that needs nothing but itself, made to be printed on A4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import study_sections as sections
from .markup import Markup, element, page_policy
from .overlay import colour_thresholds
from .study_planes import Head
from .study_tiles import Pictures, colour_bar

KEY_IMAGES = 10
_STYLE = "study_page.css"
_TITLE = "Brain anomaly report"


def study_html(record: Mapping[str, Any], head: Head) -> str:
    """The page as text. record: ``pipelines.study_report.study_record``. head: the arrays of the pictures.

    Everything in the record is taken as text and escaped. Raises InvalidSettings where the calibration has no table of
    healthy values, from which the colours come.
    """
    tails = record["healthy"]["tails"]
    thresholds = colour_thresholds(dict(zip(tails["shares"], tails["values"], strict=True)))
    pictures = Pictures(head, thresholds, letters=record["scan"]["origin_in_brain"])
    names = {band["share"]: band["name"] for band in record["bands"]}
    bar, short = (colour_bar(thresholds, names, explained=explained) for explained in (True, False))
    parts = [
        sections.head(record, _TITLE),
        sections.result(record),
        _overview(record, pictures, short),
        sections.region_table(record),
        _mosaic(record, pictures, bar),
        _key_images(record, pictures, short if pictures.head.flat_axis is None else bar),
        sections.review(record),
        sections.model(record),
        sections.making(record),
        sections.reading(record),
    ]
    style = Path(__file__).with_name(_STYLE).read_text(encoding="utf-8") + _page_footer(record)
    top = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=page_policy(style)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("meta", name="robots", content="noindex"),
        element("title", f"{_TITLE}: {record['scan']['id']}"),
        element("style", Markup(style)),
    )
    return f"<!DOCTYPE html>\n{element('html', top, element('body', *parts), lang='en')}\n"


def shown_regions(record: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """(lesion, what the report adds to it) of those with a picture: the highest peaks, in the order of the table."""
    pairs = list(zip(record["finding"]["lesions"], record["regions"], strict=True))
    kept = sorted(pairs, key=lambda pair: -pair[0]["peak_score"])[:KEY_IMAGES]
    return sorted(kept, key=lambda pair: pair[0]["index"])


def _page_footer(record: Mapping[str, Any]) -> str:
    """Scan, statement of use and page number at the foot of every printed page (CSS paged media, margin boxes)."""
    name = str(record["scan"]["id"])
    scan = _css_text(f"Scan {name if len(name) <= 60 else name[:57] + '...'}")
    use = _css_text("Research use only, not a medical device")
    font = "font: 7.5pt system-ui, Arial, sans-serif; color: #59616b;"
    return (
        f"@page {{ @bottom-left {{ content: {scan}; {font} }} @bottom-center {{ content: {use}; {font} }} "
        f'@bottom-right {{ content: "page " counter(page) " of " counter(pages); {font} }} }}\n'
    )


def _css_text(text: str) -> str:
    """A CSS string; whatever is not a plain letter or digit is written as its number, so that nothing ends it."""
    return '"' + "".join(c if c.isascii() and c.isalnum() else f"\\{ord(c):x} " for c in text) + '"'


def _places(record: Mapping[str, Any]) -> list[tuple[str, Sequence[int]]]:
    return [(str(lesion["index"]), region["peak_voxel"]) for lesion, region in shown_regions(record)]


def _overview(record: Mapping[str, Any], pictures: Pictures, bar: Markup) -> Markup:
    """Of a volume the brain seen through; a slice is shown by its key image alone."""
    if pictures.head.flat_axis is not None:
        return Markup("")
    count = len(record["regions"])
    of = f"The {KEY_IMAGES} with the highest peaks are numbered. " if count > KEY_IMAGES else ""
    note = (
        "The whole brain seen through; of what was marked, the highest value along the line of sight. Numbers: at the "
        f"peaks, as in the table. {of}The patient's right is on the left (radiological convention)."
        if count
        else "The whole brain seen through: nothing was marked."
    )
    return element(
        "section",
        element("h2", "Where"),
        pictures.glass_brain(_places(record)),
        element("p", note, class_="note"),
        bar,
        class_="keep",
    )


def _mosaic(record: Mapping[str, Any], pictures: Pictures, bar: Markup) -> Markup:
    if pictures.head.flat_axis is not None:
        return Markup("")
    analysed = record["finding"].get("analysed")
    part = " Only a part of the scan was analysed: no colour elsewhere says nothing." if analysed else ""
    note = element("p", f"Planes through the whole brain under the anomaly map.{part}", class_="note")
    return element("section", element("h2", "Whole brain"), note, pictures.mosaic(_places(record)), bar, class_="keep")


def _key_images(record: Mapping[str, Any], pictures: Pictures, bar: Markup) -> Markup:
    shown = shown_regions(record)
    if not shown:
        return _highest(record, pictures, bar)
    items = []
    for number, (lesion, region) in enumerate(shown):
        inside = [
            sections.region_heading(lesion, region, record["scan"]),
            pictures.key_image(region["peak_voxel"], name=f"region {lesion['index']}"),
        ]
        if number == 0:
            inside = [element("h2", "Marked regions in detail", class_="fresh"), _convention(pictures), bar, *inside]
        items.append(element("div", *inside, class_="region"))
    left_out = len(record["regions"]) - len(shown)
    if left_out:
        text = f"{left_out} more with lower peaks are in the table only."
        items.append(element("p", text, class_="note"))
    return element("section", *items)


def _highest(record: Mapping[str, Any], pictures: Pictures, bar: Markup) -> Markup:
    highest = record["highest"]
    if highest is None:
        return Markup("")
    parts = [
        element("h2", "The highest value of the map, which was not marked"),
        element("p", sections.highest_words(record), class_="facts"),
        _convention(pictures),
        bar,
        pictures.key_image(highest["voxel"], name="highest value"),
    ]
    return element("section", *parts, class_="keep")


def _convention(pictures: Pictures) -> Markup:
    made = (
        "Pseudo-healthy: what the model expects of a healthy brain there, in the scan's own grey values."
        if pictures.head.has_healthy
        else "This method makes no pseudo-healthy image."
    )
    low, high = pictures.head.window
    text = f"Patient's right on the left of the picture. Cross: the peak. Window: {low:.4g} to {high:.4g}. {made}"
    return element("p", text, class_="note")
