"""Charts as inline SVG: lines with their names beside them, and strips of points, one row per model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .markup import Markup, element, is_number, number

# Okabe and Ito, without the yellow that is too light on white: told apart by colour-blind readers. Baselines are grey.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6a51a3", "#7f3b08")
BASELINE_PALETTE = ("#222222", "#777777")
_WIDTH, _HEIGHT = 600, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 206, 14, 44
_LONGEST_NAME = 27
_LINE_OF_TEXT = 14.0
_ROW = 27
_INK, _RULE = "#333333", "#e2e2e2"


@dataclass(frozen=True)
class Line:
    """points: (x, y). dots: points to mark, with their names. dash: of baselines. rest: goes on from them, faintly."""

    name: str
    colour: str
    points: Sequence[Sequence[float]]
    dots: Mapping[str, Sequence[float]] = field(default_factory=dict)
    thick: bool = False
    dash: str | None = None
    rest: Sequence[Sequence[float]] = ()


@dataclass(frozen=True)
class Strip:
    """One row of points. groups: name of the group -> values. note: written at the row's end."""

    name: str
    colour: str
    groups: Mapping[str, Sequence[float]]
    note: str = ""


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    description: str,
    x_label: str,
    y_label: str,
    x_ticks: Sequence[float],
    scale: Callable[[float], float] = float,
    level: float | None = None,
    y_max: float = 1.0,
) -> Markup:
    """Curves over x (through ``scale``) and y from 0 to y_max; level: of a dotted horizontal line."""
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    low, high = scale(x_ticks[0]), scale(x_ticks[-1])

    def at(x: float, y: float) -> tuple[float, float]:
        share = min(1.0, (scale(x) - low) / (high - low))
        return _LEFT + share * (right - _LEFT), bottom - min(y, y_max) / y_max * (bottom - _TOP)

    parts = [_axes(at, x_ticks, np.linspace(0, y_max, 6), x_label, y_label)]
    if is_number(level):
        y = at(x_ticks[0], level)[1]
        parts.append(_rule(_LEFT, y, right, y, "#555555", dash="1 4"))
    ends = []
    for line in lines:
        points, rest = (
            [at(x, y) for x, y in part if is_number(x) and is_number(y) and scale(x) <= high + 1e-9]
            for part in (line.points, line.rest)
        )
        if not points:
            continue
        if rest:
            parts.append(_curve([points[-1], *rest], line.colour, 1.2, "1 4"))
        parts.append(_curve(points, line.colour, 3 if line.thick else 1.7, line.dash))
        for name, (x, y) in line.dots.items():
            if is_number(x) and is_number(y):
                # Beyond the axis a dot lies on its edge; its name tells where it is.
                parts.append(_dot(*at(x, y), line.colour, f"{line.name}, {name}: {number(y, 2)} at {number(x, 2)}", 4))
        ends.append((line, points[-1]))
    parts += _names_beside(ends, right)
    return _svg(parts, _WIDTH, _HEIGHT, title, description)


def strip_chart(
    strips: Sequence[Strip],
    *,
    title: str,
    description: str,
    x_label: str,
    ticks: Sequence[float] | None,
    colours: Mapping[str, str] | None = None,
    shapes: Mapping[str, str] | None = None,
    scale: Callable[[float], float] = float,
    level: tuple[float, str] | None = None,
) -> Markup:
    """One row per strip, every value a point, the median of each group a bar.

    ticks: of one scale for all rows; None: every row fills the width with its own values. colours, shapes (circle or
    triangle): by group, by default the strip's colour and circles.
    """
    left, right = 190, _WIDTH - 84
    top = 12
    bottom = top + _ROW * len(strips)
    parts = []
    if ticks is not None:
        for tick in ticks:
            x = left + (scale(tick) - scale(ticks[0])) / (scale(ticks[-1]) - scale(ticks[0])) * (right - left)
            parts += [_rule(x, top, x, bottom, _RULE), _text(x, bottom + 15, f"{tick:g}", anchor="middle", size=11)]
    for row, strip in enumerate(strips):
        middle = top + (row + 0.5) * _ROW
        values = [v for group in strip.groups.values() for v in group if is_number(v)]
        low, high = (ticks[0], ticks[-1]) if ticks is not None else (min(values, default=0), max(values, default=1))
        spread = (scale(high) - scale(low)) or 1.0
        parts.append(_rule(left, middle, right, middle, _RULE))
        parts.append(_text(left - 8, middle + 4, strip.name, anchor="end", most=_LONGEST_NAME, size=11))
        parts.append(_text(right + 8, middle + 4, strip.note, size=11))
        for index, (group, members) in enumerate(strip.groups.items()):
            numbers = [v for v in members if is_number(v)]
            colour = (colours or {}).get(group, strip.colour)
            # Groups lie one above the other, so that neither hides the other.
            y = middle + ((index - (len(strip.groups) - 1) / 2) * 9)
            places = [left + min(1.0, max(0.0, (scale(v) - scale(low)) / spread)) * (right - left) for v in numbers]
            for x in places:
                parts.append(_mark(x, y, colour, (shapes or {}).get(group, "circle")))
            if numbers:
                x = float(np.median(places))
                said = f"{strip.name}, {group}: median {number(float(np.median(numbers)), 2)} of {len(numbers)}"
                parts.append(_bar(x, y, colour, said))
    if level is not None and ticks is not None:
        x = left + (scale(level[0]) - scale(ticks[0])) / (scale(ticks[-1]) - scale(ticks[0])) * (right - left)
        parts += [_rule(x, top, x, bottom, _INK, dash="3 3"), _text(x + 4, top + 3, level[1], size=10)]
    parts.append(_text((left + right) / 2, bottom + 33, x_label, anchor="middle"))
    return _svg(parts, _WIDTH, bottom + 42, title, description)


def power_of_two_ticks(largest: float, *, most: float = 64.0) -> list[float]:
    """0, 1, 2, 4 ... up to the first that is not below ``largest``, at most ``most``."""
    ticks = [0.0, 1.0]
    while ticks[-1] < min(largest, most):
        ticks.append(ticks[-1] * 2)
    return ticks


def log_of_one_more(value: float) -> float:
    """A scale that shows 0 and spreads small numbers."""
    return math.log1p(max(value, 0.0))


def _curve(points: Sequence[tuple[float, float]], colour: str, width: float, dash: str | None) -> Markup:
    return element(
        "polyline",
        points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points),
        fill="none",
        stroke=colour,
        stroke_width=width,
        stroke_dasharray=dash,
        stroke_linejoin="round",
    )


def _names_beside(ends: Sequence[tuple[Line, tuple[float, float]]], right: float) -> list[Markup]:
    """Every line's name at its end, moved apart where ends are close, with a thin line back to the end."""
    ordered = sorted(ends, key=lambda end: end[1][1])
    heights = _apart([y for _, (_, y) in ordered], _TOP + 4.0, float(_HEIGHT - _BOTTOM))
    parts = []
    for (line, (x, y)), height in zip(ordered, heights, strict=True):
        swatch = (right + 12, height, right + 26, height)
        parts.append(_rule(x, y, right + 12, height, line.colour, opacity=0.5))
        parts.append(_rule(*swatch, line.colour, dash=line.dash, width=3 if line.thick else 2))
        parts.append(_text(right + 30, height + 4, line.name, bold=line.thick, most=_LONGEST_NAME, size=11))
    return parts


def _apart(wanted: Sequence[float], low: float, high: float) -> list[float]:
    """Heights near the rising ``wanted``, a line of text apart, between low and high."""
    heights = list(wanted)
    for i, height in enumerate(heights):
        heights[i] = max(height, low if i == 0 else heights[i - 1] + _LINE_OF_TEXT)
    # Down to the last, then back up from it where it went too far.
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], high if i == len(heights) - 1 else heights[i + 1] - _LINE_OF_TEXT)
    return heights


def _axes(at, x_ticks, y_ticks, x_label: str, y_label: str) -> list[Markup]:
    parts = []
    left, bottom = at(x_ticks[0], 0)
    right, top = at(x_ticks[-1], y_ticks[-1])
    for tick in x_ticks:
        x, _ = at(tick, 0)
        parts += [_rule(x, top, x, bottom, _RULE), _text(x, bottom + 15, f"{tick:g}", anchor="middle", size=11)]
    for tick in y_ticks:
        _, y = at(x_ticks[0], float(tick))
        parts += [_rule(left, y, right, y, _RULE), _text(left - 6, y + 4, f"{tick:.2g}", anchor="end", size=11)]
    parts.append(_rule(left, bottom, right, bottom, _INK))
    parts.append(_rule(left, top, left, bottom, _INK))
    parts.append(_text((left + right) / 2, bottom + 34, x_label, anchor="middle"))
    middle = (top + bottom) / 2
    parts.append(_text(13, middle, y_label, anchor="middle", transform=f"rotate(-90 13 {middle:.1f})"))
    return parts


def _svg(parts: Sequence[Markup], width: float, height: float, title: str, description: str) -> Markup:
    return element(
        "svg",
        element("title", title),
        element("desc", description),
        *parts,
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=title,
        class_="chart",
    )


def _rule(x1, y1, x2, y2, colour: str, *, dash: str | None = None, opacity: float | None = None, width=1) -> Markup:
    places = {"x1": f"{x1:.1f}", "y1": f"{y1:.1f}", "x2": f"{x2:.1f}", "y2": f"{y2:.1f}"}
    return element("line", **places, stroke=colour, stroke_width=width, stroke_dasharray=dash, stroke_opacity=opacity)


def _text(
    x, y, text: str, *, anchor="start", colour=_INK, size=12, bold=False, most: int | None = None, transform=None
) -> Markup:
    """most: characters shown; of a longer text the whole on hovering."""
    cut = most is not None and len(text) > most
    return element(
        "text",
        f"{text[: most - 1]}…" if cut else text,
        element("title", text) if cut else None,
        x=f"{x:.1f}",
        y=f"{y:.1f}",
        text_anchor=anchor,
        fill=colour,
        font_size=size,
        font_weight="bold" if bold else None,
        transform=transform,
    )


def _dot(x: float, y: float, colour: str, said: str, radius: float) -> Markup:
    attributes = {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": radius, "fill": "#ffffff", "stroke": colour}
    return element("g", element("title", said), element("circle", **attributes, stroke_width=2))


def _mark(x: float, y: float, colour: str, shape: str) -> Markup:
    if shape == "triangle":
        corners = f"M{x:.1f} {y - 4:.1f}l3.6 6.6h-7.2z"
        return element("path", d=corners, fill=colour, fill_opacity=0.45)
    return element("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=3.2, fill=colour, fill_opacity=0.4)


def _bar(x: float, y: float, colour: str, said: str) -> Markup:
    places = {"x": f"{x - 1.5:.1f}", "y": f"{y - 6:.1f}", "width": 3, "height": 12}
    return element("g", element("title", said), element("rect", **places, fill=colour, stroke="#ffffff"))
