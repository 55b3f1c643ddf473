"""Where one scan stands among healthy ones: a dot per healthy scan, stacked, and a line for this one, as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .charts import log_of_one_more
from .markup import Markup, element, is_number

_WIDTH, _HEIGHT = 440.0, 172.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 14.0, 14.0, 34.0, 132.0
_LARGEST_RATIO = 6.0  # of the largest value to the healthy median; beyond it the axis is logarithmic
_INK, _HEALTHY, _OWN = "#333333", "#0072b2", "#b34e00"
_MOST_ZEROS = 8
_TICKS = (0.0, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


def distribution_chart(
    healthy: Sequence[float], own: float, *, title: str, x_label: str, unit: str = "", digits: int = 2
) -> Markup:
    """healthy: values of healthy scans. own: this scan's, written above its line."""
    values = [float(v) for v in healthy if is_number(v)]
    largest = max([*values, own, 1e-6])
    median = float(np.median(values)) if values else 0.0
    logarithmic = largest > _LARGEST_RATIO * max(median, 1e-6)
    scale = log_of_one_more if logarithmic else float
    ticks = _ticks(largest, logarithmic=logarithmic)
    low, high = scale(ticks[0]), scale(max(ticks[-1], largest))

    def at(value: float) -> float:
        return _LEFT + (scale(max(value, 0.0)) - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    parts = [_line(_LEFT, _BOTTOM, _WIDTH - _RIGHT, _BOTTOM, _INK, 1)]
    last = -math.inf
    for tick in ticks:
        x = at(tick)
        parts.append(_line(x, _BOTTOM, x, _BOTTOM + 4, _INK, 1))
        if x - last > 26:
            parts.append(_text(f"{tick:g}", x, _BOTTOM + 16, "middle"))
            last = x
    nothing = sum(value <= 0 for value in values)
    if nothing > _MOST_ZEROS:
        parts += _zeros(nothing, len(values), at(0.0))
    parts += _dots([at(value) for value in values if value > 0 or nothing <= _MOST_ZEROS])
    parts.append(_text(x_label, _WIDTH / 2, _BOTTOM + 34, "middle", size=12))
    x = at(own)
    parts.append(_line(x, _TOP - 10, x, _BOTTOM, _OWN, 2.5))
    anchor = "start" if x < _WIDTH / 3 else "end" if x > 2 * _WIDTH / 3 else "middle"
    shown = f"this scan: {own:.{digits}f}{unit}"
    parts.append(_text(shown, min(max(x, _LEFT), _WIDTH - _RIGHT), _TOP - 16, anchor, colour=_OWN, bold=True, size=13))
    below = sum(value < own for value in values)
    rank = f"higher than {below} of {len(values)} healthy scans, their median is {median:.{digits}f}{unit}"
    description = f"{shown}; {rank}"
    return element(
        "svg",
        element("title", title),
        element("desc", description),
        *parts,
        viewBox=f"0 0 {_WIDTH:g} {_HEIGHT:g}",
        role="img",
        aria_label=f"{title}: {description}",
        class_="chart",
    )


def _zeros(count: int, total: int, x: float) -> list[Markup]:
    """A pile of equal dots would be higher than the chart: a bar, as high as its share of all, and their number."""
    height = (_BOTTOM - _TOP - 16) * count / total
    bar = {"x": f"{x - 5:.1f}", "y": f"{_BOTTOM - height:.1f}", "width": 10, "height": f"{height:.1f}"}
    words = _text(f"{count} of {total} with 0", x + 9, _BOTTOM - height + 4, "start", colour=_HEALTHY)
    return [element("rect", **bar, fill=_HEALTHY, fill_opacity=0.75), words]


def _dots(places: Sequence[float]) -> list[Markup]:
    """One dot per healthy scan at its very place, above those that it would cover; smaller where the pile is high."""
    radius = 4.2
    while True:
        heights = _piled(sorted(places), radius)
        if radius < 0.8 or max(heights, default=0) + 2 * radius <= _BOTTOM - _TOP:
            break
        radius *= 0.85
    return [
        element(
            "circle",
            cx=f"{x:.1f}",
            cy=f"{_BOTTOM - height - radius - 1.5:.1f}",
            r=f"{radius:.1f}",
            fill=_HEALTHY,
            fill_opacity=0.75,
        )
        for x, height in zip(sorted(places), heights, strict=True)
    ]


def _piled(places: Sequence[float], radius: float) -> list[float]:
    """For each of the rising places the lowest row, of dots this large, where it covers no other."""
    step, ends = 2 * radius + 0.8, []
    heights = []
    for x in places:
        row = next((i for i, end in enumerate(ends) if x - end >= step), len(ends))
        if row == len(ends):
            ends.append(x)
        ends[row] = x
        heights.append(row * step)
    return heights


def _ticks(largest: float, *, logarithmic: bool) -> list[float]:
    if logarithmic:
        kept = [tick for tick in _TICKS if tick == 0 or tick >= largest / 120]
        beyond = next((index for index, tick in enumerate(kept) if tick >= largest), len(kept) - 1)
        return kept[: beyond + 1]
    step = next(size for size in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1e9) if largest / size <= 8)
    return [round(step * i, 6) for i in range(math.ceil(largest / step) + 1)]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float) -> Markup:
    places = {"x1": f"{x1:.1f}", "y1": f"{y1:.1f}", "x2": f"{x2:.1f}", "y2": f"{y2:.1f}"}
    return element("line", **places, stroke=colour, stroke_width=width)


def _text(text: str, x: float, y: float, anchor: str, *, colour: str = _INK, bold: bool = False, size=11) -> Markup:
    return element(
        "text",
        text,
        x=f"{x:.1f}",
        y=f"{y:.1f}",
        text_anchor=anchor,
        font_size=size,
        fill=colour,
        font_weight="bold" if bold else None,
    )
