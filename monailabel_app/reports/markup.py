"""HTML from parts: text is escaped wherever it comes from, and only elements made here are not."""

from __future__ import annotations

import base64
import hashlib
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_EMPTY = frozenset({"br", "col", "hr", "img", "input", "meta", "wbr"})  # HTML's; those of SVG are closed
MISSING = "–"


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(tag: str, *children: Any, **attributes: Any) -> Markup:
    """``<tag attributes>children</tag>``; None as a child or attribute is left out, True is an attribute without value.

    A trailing underscore of an attribute's name is dropped (class_), others become hyphens (data_value). There are no
    attributes for style and events: a page with them could not forbid inline code. Raises ValueError for such a name.
    """
    written = []
    for key, value in attributes.items():
        name = key.rstrip("_").replace("_", "-")
        if name == "style" or name.startswith("on"):
            raise ValueError(f"expected an attribute without inline code, got {name}; use a class")
        if value is None or value is False:
            continue
        written.append(f" {name}" if value is True else f' {name}="{html.escape(str(value), quote=True)}"')
    opening = f"<{tag}{''.join(written)}>"
    return Markup(opening) if tag in _EMPTY else Markup(f"{opening}{joined(children)}</{tag}>")


def joined(children: Iterable[Any]) -> Markup:
    """Children one after the other: strings escaped, Markup as it is, None left out, lists flattened."""
    parts = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, Markup):
            parts.append(child)
        elif isinstance(child, (list, tuple)):
            parts.append(joined(child))
        else:
            parts.append(html.escape(str(child), quote=False))
    return Markup("".join(parts))


def page_policy(style: str) -> str:
    """Content security of a page without scripts: nothing is fetched, nothing but this style is obeyed."""
    digest = base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii")
    return f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def breakable(name: Any) -> Markup:
    """A model's name that may be broken after its underscores, and nowhere else."""
    parts = str(name).split("_")
    return joined([[part + "_", element("wbr")] for part in parts[:-1]] + [parts[-1]])


def is_number(value: Any) -> bool:
    """Whether there is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, digits: int = 3, *, signed: bool = False) -> str:
    """A number with fixed digits, a dash where there is none."""
    if not is_number(value):
        return MISSING
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return text.replace("-", "−")


def limits(interval: Any, digits: int = 3, *, signed: bool = False) -> str:
    """``[low, high]`` or an empty text."""
    if not interval or len(interval) != 2 or not all(is_number(value) for value in interval):
        return ""
    return f"[{', '.join(number(value, digits, signed=signed) for value in interval)}]"


def p_words(p_value: Any) -> str:
    """``p = 0.012``, ``p < 0.001``, or an empty text."""
    if not is_number(p_value):
        return ""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def figure_cell(
    figure: Mapping[str, Any] | None, digits: int = 3, *, signed: bool = False, class_: str | None = None
) -> Markup:
    """A table's cell of a value with its interval and p-value below; ``data-value`` holds the whole number."""
    value = (figure or {}).get("value")
    if not is_number(value):
        return element("td", MISSING, class_="num", data_value="")
    below = " ".join(
        text for text in (limits(figure.get("interval"), digits, signed=signed), p_words(figure.get("p_value"))) if text
    )
    small = element("span", below, class_="limits") if below else None
    classes = f"num {class_}" if class_ else "num"
    return element("td", number(value, digits, signed=signed), small, class_=classes, data_value=repr(value))


def number_cell(value: Any, digits: int = 3) -> Markup:
    """A table's cell of a bare number."""
    return figure_cell({"value": value}, digits)


def text_cell(*children: Any, order: str | None = None, class_: str | None = None, title: str | None = None) -> Markup:
    """A table's cell of words; order: what it is sorted by, if not its text. title: shown on hovering."""
    return element("td", *children, class_=class_, title=title, data_value=order)


def table(
    heads: Sequence[Any], rows: Sequence[Markup], *, caption: str, class_: str = "", sortable: bool = True
) -> Markup:
    """A table in a box of its own that scrolls, and can be reached by keyboard to do so.

    heads: a text, or (text, explanation) per column. rows: ``tr`` elements.
    """
    cells = []
    for head in heads:
        text, about = head if isinstance(head, tuple) else (head, None)
        label = element("button", text, type="button", class_="sort") if sortable else text
        cells.append(element("th", label, scope="col", title=about))
    whole = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *cells)),
        element("tbody", *rows),
        class_=" ".join(filter(None, (class_, "sortable" if sortable else ""))) or None,
    )
    return element("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption)


def fold(summary: Any, *children: Any, open_: bool = False, class_: str | None = None) -> Markup:
    """Children that are folded away under a line of words."""
    return element("details", element("summary", summary), *children, open=open_, class_=class_)


def short_hash(value: Any) -> Markup | str:
    """The first twelve digits; the whole on hovering, on focus, and when it is copied."""
    text = str(value) if value else ""
    if len(text) <= 12:
        return text or MISSING
    rest = element("span", text[12:], class_="rest")
    return element("code", text[:12], rest, class_="hash", title=text, tabindex="0")
