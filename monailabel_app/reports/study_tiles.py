"""The pictures of a study report: every tile an SVG in millimetres of the head, its greys embedded once."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from .markup import Markup, element, joined
from .overlay import COLOURS, MASK_COLOUR
from .study_planes import Head, Plane, Printed
from .study_words import axis_words

PAGE_MM = 186.0  # between the margins of an A4 page
_GAP_MM = 2.0
_LARGE_MM, _SMALL_MM, _SLICE_MM = (60.5, 63.0), (48.0, 31.0), (60.5, 92.0)  # across and down, at most
_GLASS_MM = (72.0, 54.0)
_MOSAIC_COLUMNS, _MOSAIC_TILES = 8, 24
_LEFT_RIGHT = {"sagittal": "AP", "coronal": "RL", "axial": "RL"}
_UP_DOWN = {"sagittal": "SI", "coronal": "SI", "axial": "AP"}
_INK, _HALO, _CROSS = "#f2f2f2", "#000000", "#6fe3ff"
_TEXT_MM = 2.7  # printed height of letters in a picture
_SCAN, _MAP, _HEALTHY = "scan", "anomaly map", "pseudo-healthy"


@dataclass
class Pictures:
    """Makes the pictures of one report. thresholds: the values at which COLOURS begin. letters: of ``axis_words``.

    A picture that is shown twice, alone and under the map, is embedded once and used twice.
    """

    head: Head
    thresholds: tuple[float, ...]
    letters: bool = True
    _numbers: count = field(default_factory=count)

    def key_image(self, voxel: Sequence[int], *, name: str) -> Markup:
        """Three planes through a voxel (the slice of a single slice): scan, map and pseudo-healthy image side by side.

        voxel: in the scan's own order. name: of what lies there, for readers that cannot see the picture.
        """
        head, at = self.head, self.head.place(voxel)
        main = head.main_axis()
        kinds = [_SCAN, _MAP, *([_HEALTHY] if head.has_healthy else [])]
        first = head.plane(main, at)
        scale = _fitting([first], _SLICE_MM if head.flat_axis is not None else _LARGE_MM)
        large = self._row(main, at, first, scale, kinds, name)
        if head.flat_axis is not None:
            return element("div", large, class_="tiles")
        others = [axis for axis in (2, 1, 0) if axis != main]
        planes = [head.plane(axis, at) for axis in others]
        across = sum(plane.size_mm[1] for plane in planes) * len(kinds)
        room = PAGE_MM - _GAP_MM * (len(planes) * len(kinds) - 1)
        small = min(room / across, _fitting(planes, _SMALL_MM))
        rows = [
            self._row(axis, at, plane, small, kinds, name, captions=False)
            for axis, plane in zip(others, planes, strict=True)
        ]
        return joined([element("div", large, class_="tiles"), element("div", *rows, class_="tiles")])

    def glass_brain(self, places: Sequence[tuple[str, Sequence[int]]]) -> Markup:
        """The brain seen through from three sides, with what was marked. places: label and voxel of its regions."""
        head = self.head
        planes = [(axis, head.projection(axis)) for axis in (2, 1, 0)]
        scale = min(
            _fitting([plane for _, plane in planes], _GLASS_MM),
            (PAGE_MM - 2 * _GAP_MM) / sum(plane.size_mm[1] for _, plane in planes),
        )
        tiles = []
        for axis, plane in planes:
            labels = [(label, head.point(axis, head.place(voxel))) for label, voxel in places]
            parts = [self._grey(Printed(plane, scale)), self._colours(Printed(plane, scale))]
            parts.append(_path(Printed(plane, scale), 0.25 / scale))
            parts.append(_labels(labels, scale, plane.size_mm))
            view = {"axial": "from above", "coronal": "from the front", "sagittal": "from the side"}[plane.name]
            tiles.append(self._tile(plane, scale, parts, title=f"Marked regions seen {view}", caption=view, bar=50))
        return element("div", *tiles, class_="tiles")

    def mosaic(self, places: Sequence[tuple[str, Sequence[int]]]) -> Markup:
        """Planes through the whole brain with the map, from below (or the left) on. places: as in ``glass_brain``."""
        head, axis = self.head, self.head.main_axis()
        levels = head.levels(axis, _MOSAIC_TILES)
        planes = [head.plane(axis, _at(axis, level)) for level in levels]
        if not planes:
            return Markup("")
        width = (PAGE_MM - _GAP_MM * (_MOSAIC_COLUMNS - 1)) / _MOSAIC_COLUMNS
        scale = width / planes[0].size_mm[1]
        nearest: dict[int, list[tuple[str, tuple[float, float]]]] = {}
        for label, voxel in places:
            at = head.place(voxel)
            level = min(levels, key=lambda value: abs(value - at[axis]))
            nearest.setdefault(level, []).append((label, head.point(axis, at)))
        tiles = []
        for level, plane in zip(levels, planes, strict=True):
            printed = Printed(plane, scale, dots_per_mm=6.0)
            numbers = _labels(nearest.get(level, ()), scale, plane.size_mm)
            parts = [self._grey(printed), self._colours(printed), _path(printed, 0.2 / scale), numbers]
            place = f"{axis_words(axis, plane.at_mm, letters=self.letters)} mm"
            tiles.append(self._tile(plane, scale, parts, title=f"{plane.name} plane at {place}", caption=place))
        return element("div", *tiles, class_="tiles mosaic")

    def _row(
        self,
        axis: int,
        at: Sequence[int],
        plane: Plane,
        scale: float,
        kinds: Sequence[str],
        name: str,
        *,
        captions: bool = True,
    ) -> list[Markup]:
        """One plane in every kind. The scan under the map is the one shown alone."""
        printed, cross = Printed(plane, scale), _cross(self.head.point(axis, at), plane.size_mm, scale)
        place = "" if plane.at_mm is None else f" {axis_words(axis, plane.at_mm, letters=self.letters)} mm"
        mark, tiles = f"g{next(self._numbers)}", []
        for kind in kinds:
            if kind == _SCAN:
                parts = [element("g", self._grey(printed), id=mark), cross]
            elif kind == _MAP:
                under = element("use", href=f"#{mark}")
                parts = [under, self._colours(printed), _path(printed, 0.3 / scale), cross]
            else:
                parts = [_image(printed.healthy(), "jpeg", plane.size_mm), cross]
            caption = f"{plane.name}{place}, {kind}" if captions else kind
            if not captions and kind == _SCAN:
                caption = f"{plane.name[:3]}.{place}"
            title = f"{name}: {plane.name} plane{place}, {kind}"
            tiles.append(self._tile(plane, scale, parts, title=title, caption=caption, bar=50))
        return tiles

    def _tile(
        self, plane: Plane, scale: float, parts: Sequence[Any], *, title: str, caption: str, bar: int | None = None
    ) -> Markup:
        down, across = plane.size_mm
        letters = _letters(plane, scale) if bar is not None else None
        drawing = element(
            "svg",
            element("title", title),
            *parts,
            letters,
            None if bar is None else _scale_bar(bar, plane.size_mm, scale),
            viewBox=f"0 0 {across:.2f} {down:.2f}",
            width=f"{across * scale:.2f}mm",
            height=f"{down * scale:.2f}mm",
            role="img",
            class_="tile",
        )
        return element("figure", drawing, element("figcaption", caption))

    def _grey(self, printed: Printed) -> Markup:
        return _image(printed.grey(), "jpeg", printed.plane.size_mm)

    def _colours(self, printed: Printed) -> Markup | None:
        found = printed.colours(self.thresholds)
        return None if found is None else _image(found, "png", printed.plane.size_mm)


def colour_bar(thresholds: Sequence[float], names: Mapping[float, str], *, explained: bool = True) -> Markup:
    """What the colours mean, on every page with pictures. names: of the bands of suspicion by share.

    explained: with the values and what no colour means; else the colours alone, on one line.
    """
    items = []
    for (share, colour), value in zip(COLOURS, thresholds, strict=True):
        swatch = _swatch(element("rect", width=18, height=10, fill=_rgb(colour)))
        more = f" (map above {', '.join(filter(None, (f'{value:.2f}', names.get(share))))})" if explained else ""
        items.append(element("span", swatch, f" < {100 * share:g} %{more}", class_="key"))
    white = {"stroke": _rgb(MASK_COLOUR), "stroke_width": 1.6}
    edge = element("rect", x=3, y=2, width=12, height=6, fill="none", **white)
    edge = _swatch([element("rect", width=18, height=10, fill="#555555"), edge])
    items.append(element("span", edge, " edge of a marked region", class_="key"))
    told = " No colour: common in healthy scans. The scale is the same in every report of this model and calibration."
    return element(
        "p", element("strong", "Healthy voxels with a higher value: "), *items, told if explained else None,
        class_="colour-bar",
    )  # fmt: skip


def _swatch(inside: Any) -> Markup:
    return element("svg", inside, viewBox="0 0 18 10", width="5mm", height="2.8mm", aria_hidden="true")


def _fitting(planes: Sequence[Plane], room_mm: tuple[float, float]) -> float:
    across, down = room_mm
    return min(min(across / plane.size_mm[1], down / plane.size_mm[0]) for plane in planes)


def _at(axis: int, level: int) -> list[int]:
    return [level if a == axis else 0 for a in range(3)]


def _image(data: bytes, kind: str, size_mm: tuple[float, float]) -> Markup:
    down, across = size_mm
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
    return element("image", href=source, width=f"{across:.2f}", height=f"{down:.2f}", preserveAspectRatio="none")


def _path(printed: Printed, thick: float) -> Markup | None:
    """The edge of the marked regions with a dark rim, so that it shows on every colour."""
    outline = printed.outline()
    if not outline:
        return None
    return joined(
        element("path", d=outline, fill="none", stroke=colour, stroke_width=f"{width:.2f}", stroke_linejoin="round")
        for colour, width in ((_HALO, 2.2 * thick), (_rgb(MASK_COLOUR), thick))
    )


def _cross(at: tuple[float, float], size_mm: tuple[float, float], scale: float) -> Markup:
    """Lines towards the place that leave it free."""
    (x, y), (down, across), free = at, size_mm, 3.2 / scale
    lines = ((0, y, x - free, y), (x + free, y, across, y), (x, 0, x, y - free), (x, y + free, x, down))
    kept = [line for line in lines if line[0] < line[2] or line[1] < line[3]]
    drawn = [element("line", x1=f"{a:.1f}", y1=f"{b:.1f}", x2=f"{c:.1f}", y2=f"{d:.1f}") for a, b, c, d in kept]
    return element("g", *drawn, stroke=_CROSS, stroke_width=f"{0.18 / scale:.2f}", stroke_opacity=0.75)


def _letters(plane: Plane, scale: float) -> Markup:
    """Where right, front and up are, at the borders."""
    down, across = plane.size_mm
    size = _TEXT_MM / scale
    (left, right), (top, bottom) = _LEFT_RIGHT[plane.name], _UP_DOWN[plane.name]
    places = (
        (left, 0.35 * size, down / 2 + 0.35 * size, "start"),
        (right, across - 0.35 * size, down / 2 + 0.35 * size, "end"),
        (top, across / 2, 0.95 * size, "middle"),
        (bottom, across / 2, down - 0.3 * size, "middle"),
    )
    return joined(_text(letter, x, y, size, anchor) for letter, x, y, anchor in places)


def _scale_bar(length: int, size_mm: tuple[float, float], scale: float) -> Markup:
    down, _ = size_mm
    size = 0.8 * _TEXT_MM / scale
    x, y = 0.6 * size, down - 0.7 * size
    tick = f"v{0.7 * size:.1f}m0 {-0.35 * size:.1f}"
    stroke = {"stroke": _INK, "stroke_width": f"{0.3 / scale:.2f}"}
    line = f"M{x:.1f} {y - 0.35 * size:.1f}{tick}h{length}m0 {-0.35 * size:.1f}{tick}"
    return joined(
        [
            element("path", d=line, fill="none", **stroke),
            _text(f"{length} mm", x + 0.2 * size, y - 0.6 * size, size, "start"),
        ]
    )


def _labels(labels: Sequence[tuple[str, tuple[float, float]]], scale: float, size_mm: tuple[float, float]) -> Markup:
    """Numbers beside their places, inside the picture, moved down where they would lie on one another."""
    size = 1.05 * _TEXT_MM / scale
    down, across = size_mm
    parts, taken = [], []
    for label, (x, y) in labels:
        beyond = x + (0.6 + 0.7 * len(label)) * size > across
        x, y = (x - 0.6 * size if beyond else x + 0.6 * size), min(max(y, size), down - 0.2 * size)
        while any(abs(x - a) < size and abs(y - b) < 0.9 * size for a, b in taken) and y < down - 1.2 * size:
            y += 0.9 * size
        taken.append((x, y))
        parts.append(_text(label, x, y, size, "end" if beyond else "start", bold=True))
    return joined(parts)


def _text(text: str, x: float, y: float, size: float, anchor: str, *, bold: bool = False) -> Markup:
    return element(
        "text",
        text,
        x=f"{x:.1f}",
        y=f"{y:.1f}",
        font_size=f"{size:.1f}",
        font_weight="bold" if bold else None,
        text_anchor=anchor,
        fill=_INK,
        stroke=_HALO,
        stroke_width=f"{0.16 * size:.2f}",
        paint_order="stroke",
    )


def _rgb(colour: Sequence[int]) -> str:
    return "#" + "".join(f"{part:02x}" for part in colour)
