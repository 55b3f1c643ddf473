"""The report's section on what models cannot see and what disturbs them: the records of the self-test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .markup import (
    MISSING,
    Markup,
    element,
    figure_cell,
    fold,
    is_number,
    joined,
    limits,
    table,
    text_cell,
)

_GROUPS = (
    ("region", "region of the brain"),
    ("kind", "kinds without a change of grey values"),
    ("texture", "texture"),
    ("sign", "sign"),
)


def blind_spot_section(records: Sequence[Mapping[str, Any]], models: Sequence[str]) -> Markup:
    """Per model: sentences, recall over volume and contrast, groups, and what corruptions of the scan do."""
    parts: list[Any] = [element("h2", "Blind spots")]
    if not records:
        parts.append(
            element(
                "p",
                "Not measured here. ",
                element("code", "python main.py selftest --model NAME"),
                " puts synthetic anomalies into healthy scans and shows which of them a model cannot see; give its "
                "file to ",
                element("code", "python main.py report --selftest FILE"),
                ".",
                class_="missing",
            )
        )
    else:
        parts.append(
            element(
                "p",
                "Synthetic anomalies in healthy scans. They tell what a model surely misses; finding them does not "
                "show that real disease is found.",
                class_="note",
            )
        )
        parts += [_blind_spots(record, unfolded=index == 0) for index, record in enumerate(records)]
        named = {_model_name(record) for record in records}
        without = [model for model in models if model not in named]
        if without:
            parts.append(element("p", f"No blind-spot map here for: {', '.join(without)}.", class_="missing"))
    return element("section", *parts, id="blind-spots")


def _model_name(record: Mapping[str, Any]) -> str:
    model = record.get("model")
    return str(model.get("id", "?")) if isinstance(model, Mapping) else str(model)


def _blind_spots(record: Mapping[str, Any], *, unfolded: bool) -> Markup:
    point = record.get("default_point") or next(iter(record.get("points") or {"": 0}))
    data, plan = record.get("data") or {}, record.get("manifest") or {}
    facts = [
        f"{data['scans']} healthy scans" if data.get("scans") is not None else None,
        f"of {data['name']}" if data.get("name") else None,
        f"{plan['anomalies']} anomalies" if plan.get("anomalies") is not None else None,
        f"{point} operating point" if point else None,
    ]
    rule = f"Found: {plan['rule']}." if plan.get("rule") else None
    said = element("ul", *(element("li", sentence) for sentence in record.get("sentences") or ()))
    others = [name for name in record.get("points") or {} if name != point]
    parts = [
        element("p", ", ".join(filter(None, facts)), ". ", rule, class_="note"),
        said if record.get("sentences") else None,
        _figures((record.get("points") or {}).get(point) or {}, f"{_model_name(record)}, {point}"),
        *(
            fold(f"The same at {name}", _heat_map(record["points"][name], f"{_model_name(record)}, {name}"))
            for name in others
        ),
        _whole_pipeline(record.get("whole_pipeline")),
        _corruptions(record.get("corruptions"), _model_name(record), str(point)),
    ]
    return fold(f"Blind spots of {_model_name(record)}", *parts, open_=unfolded, class_="model-fold")


def _figures(figures: Mapping[str, Any], name: str) -> Markup:
    tables = [_group_table(figures, field, title) for field, title in _GROUPS if figures.get(f"by_{field}")]
    chance = figures.get("chance") or {}
    by_chance = None
    if chance.get("n"):
        by_chance = element(
            "p",
            f"Chance: {chance.get('found')} of {chance['n']} places where nothing was put count as found.",
            f" {figures['not_judged']} places were not judged." if figures.get("not_judged") else None,
            class_="note",
        )
    return joined([_heat_map(figures, name), by_chance, element("div", *tables, class_="groups")])


def _heat_map(figures: Mapping[str, Any], name: str) -> Markup:
    """Rows: volume; columns: signed contrast; then the contrast from which half are found."""
    matrix = figures.get("matrix") or {}
    volumes, contrasts = matrix.get("volumes_ml") or (), matrix.get("contrasts") or ()
    if not volumes:
        return element("p", "No map of volume and contrast was recorded.", class_="missing")
    smallest = {(e.get("volume_ml"), e.get("sign")): e for e in figures.get("smallest_contrast") or ()}
    signs = [sign for sign in ("darker", "brighter") if any(key[1] == sign for key in smallest)]
    heads = [
        element("th", f"{100 * contrast:+.0f} %".replace("-", "−"), scope="col", class_="heat-head")
        for contrast in contrasts
    ]
    heads += [element("th", f"half of the {sign} seen from", scope="col", class_="narrow") for sign in signs]
    lines = []
    # The largest on top, as on an axis.
    for row in reversed(range(len(volumes))):
        cells = [_heat_cell(matrix, row, column) for column in range(len(contrasts))]
        cells += [_smallest_cell(smallest.get((volumes[row], sign))) for sign in signs]
        lines.append(element("tr", element("th", f"{volumes[row]:g} ml", scope="row"), *cells))
    caption = f"{name}: share found by lesion volume and contrast to the tissue around (negative: darker); n below"
    whole = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", element("th", "volume", scope="col"), *heads)),
        element("tbody", *lines),
        class_="heat",
    )
    scale = [element("span", f"{10 * step} %", class_=f"heat-{step}") for step in range(0, 11, 2)]
    key = element("p", "Share found: ", *scale, class_="heat-key")
    return joined([element("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption), key])


def _heat_cell(matrix: Mapping[str, Any], row: int, column: int) -> Markup:
    return _share_cell({key: _at(matrix.get(key), row, column) for key in ("recall", "n", "interval")})


def _at(values: Any, row: int, column: int) -> Any:
    try:
        return values[row][column]
    except (TypeError, IndexError, KeyError):
        return None


def _smallest_cell(entry: Mapping[str, Any] | None) -> Markup:
    if not entry:
        return element("td", MISSING)
    contrast = entry.get("contrast")
    if not is_number(contrast):
        best = entry.get("recall_at_strongest")
        small = element("span", f"{100 * best:.0f} % at the strongest", class_="limits") if is_number(best) else None
        return element("td", "not reached", small, class_="words bad")
    low, high = (entry.get("interval") or (None, None))[:2]
    ends = [f"{100 * v:.0f} %" if is_number(v) else "not reached" for v in (low, high)]
    less = " or less" if entry.get("at_smallest_tried") else ""
    return element("td", f"{100 * contrast:.0f} %{less}", element("span", f"[{ends[0]}, {ends[1]}]", class_="limits"))


def _group_table(figures: Mapping[str, Any], field: str, title: str) -> Markup:
    """A line per group: the share found at every volume, and over all of them with its interval."""
    split = figures.get(f"by_{field}_and_volume") or ()
    by_volume = {(entry.get(field), entry.get("volume_ml")): entry for entry in split}
    volumes = sorted({entry["volume_ml"] for entry in split if is_number(entry.get("volume_ml"))})
    lines = []
    for entry in sorted(figures[f"by_{field}"], key=lambda e: -(e.get("recall") or 0)):
        cells = [_share_cell(by_volume.get((entry.get(field), volume)) or {}) for volume in volumes]
        lines.append(element("tr", element("th", entry.get(field, "?"), scope="row"), *cells, _share_cell(entry, True)))
    heads = [title, *(f"{volume:g} ml" for volume in volumes), "all"]
    return table(heads, lines, caption=f"Share found by {title}", sortable=False, class_="heat")


def _share_cell(entry: Mapping[str, Any], whole: bool = False) -> Markup:
    """The share found in the colour of the map; whole: with its interval."""
    share, count = entry.get("recall"), entry.get("n")
    interval = limits([100 * v for v in entry.get("interval") or () if is_number(v)], 0)
    small = [element("span", interval, class_="limits") if whole and interval else None]
    small.append(element("span", f"n = {count}", class_="limits") if is_number(count) else None)
    if not is_number(share):
        return element("td", MISSING, small, data_value="")
    tip = f"{100 * share:.0f} % {interval}" if interval else None
    step = round(10 * min(1.0, max(0.0, share)))
    return element("td", f"{100 * share:.0f} %", small, class_=f"heat-{step}", title=tip, data_value=repr(share))


def _whole_pipeline(check: Mapping[str, Any] | None) -> Markup | None:
    if not check:
        return None
    recalls = [
        (check.get("recall_model_grid"), "put into the prepared scan"),
        (check.get("recall_raw_head"), "put into the head as it comes from the scanner"),
    ]
    said = " and ".join(f"{100 * value:.0f} % of those {words}" for value, words in recalls if is_number(value))
    heads = check.get("scans", MISSING)
    return element(
        "p",
        f"Check with the whole pipeline: {check.get('lesions', MISSING)} lesions in {heads} "
        f"head{'' if heads == 1 else 's'}; it found {said}, with the same verdict for "
        f"{_share(check.get('same_verdict'), check.get('lesions'))}.",
    )


def _share(value: Any, total: Any) -> str:
    if isinstance(value, int) and is_number(total):
        return f"{value} of {total}"
    return f"{100 * value:.0f} %" if is_number(value) else MISSING


def _corruptions(entries: Sequence[Mapping[str, Any]] | None, name: str, point: str) -> Markup:
    """What each corruption of the scan does to score and falsely marked volume, and whether the input gate says so."""
    if not entries:
        return element("p", "No corruptions of the scans were tried on this model.", class_="missing")
    lines = []
    for entry in entries:
        caught, score = entry.get("caught") or {}, entry.get("scan_score") or {}
        volume = (entry.get("points") or {}).get(point) or {}
        millilitres = volume.get("false_ml") or {}
        reasons = "; ".join(str(reason) for reason in entry.get("reasons") or ())
        lines.append(
            element(
                "tr",
                element("th", entry.get("name", "?"), scope="row"),
                text_cell(_of(caught), title=reasons or None, class_=_caught_class(caught)),
                text_cell(_refused(entry)),
                _ratio_cell(score),
                _ratio_cell(volume),
                figure_cell({"value": millilitres.get("clean")}, 1),
                figure_cell({"value": millilitres.get("corrupted")}, 1),
                figure_cell({"value": entry.get("p_value")}, 3),
            )
        )
    heads = [
        "corruption of the head",
        ("caught by the gate", "heads of which the input gate says that they are unlike the training scans"),
        ("refused", "heads that preparation answers with an error"),
        ("scan score, times the clean one", "median over heads; 1: no drift"),
        ("marked volume, times the clean one", f"at {point}, median over heads; 1: no drift"),
        ("ml, clean", "mean marked volume of the head as it is"),
        ("ml, corrupted", "mean marked volume of the corrupted head"),
        ("p-value of the scan", "median; among the healthy scans of the calibration"),
    ]
    caption = f"{name}: corrupted heads, and whether anybody is told"
    return joined([element("h3", "Corrupted scans"), table(heads, lines, caption=caption)])


def _of(caught: Mapping[str, Any]) -> str:
    return f"{caught.get('found', MISSING)} of {caught['n']}" if caught.get("n") else MISSING


def _caught_class(caught: Mapping[str, Any]) -> str | None:
    share = caught.get("recall")
    if not is_number(share):
        return None
    return "words good" if share >= 0.9 else "words bad" if share <= 0.1 else "words unclear"


def _refused(entry: Mapping[str, Any]) -> str:
    return f"{entry['refused']} of {entry.get('scans', MISSING)}" if entry.get("refused") else "none"


def _ratio_cell(entry: Mapping[str, Any]) -> Markup:
    return figure_cell({"value": entry.get("ratio"), "interval": entry.get("interval")}, 2)
