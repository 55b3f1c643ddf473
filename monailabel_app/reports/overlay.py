"""A scan with its anomaly map and outlines as one picture, in colours that mean the same in every picture."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from skimage.measure import find_contours

from monailabel_app.errors import InvalidSettings, InvalidVolume
from monailabel_app.io.geometry import reorient, spacing_mm
from monailabel_app.types import CONNECTIVITY_26

# Share of healthy voxels above the value, and the colour of values above it. Equal steps of rarity, growing in
# lightness from purple to yellow (of the map "inferno"), which colour-blind readers can put in order too.
COLOURS: tuple[tuple[float, tuple[int, int, int]], ...] = (
    (0.05, (112, 31, 129)),
    (0.01, (203, 65, 73)),
    (0.001, (249, 142, 9)),
    (0.0001, (252, 243, 120)),
)
TRUTH_COLOUR, MASK_COLOUR = (0, 229, 255), (255, 255, 255)
_PLANES = ("sagittal", "coronal", "axial")  # by the axis that is cut
_LETTERS = {"sagittal": "AP", "coronal": "RL", "axial": "RL"}  # at the left and right border
_UPRIGHT = {"sagittal": "SI", "coronal": "SI", "axial": "AP"}  # at the top and bottom border
_INK, _DIM, _GROUND, _HALO = (235, 235, 235), (170, 170, 170), (0, 0, 0), (0, 0, 0)
_GAP, _MARGIN_MM, _LEAST_WIDTH = 8, 6.0, 320


@dataclass(frozen=True)
class _View:
    """One plane as it is looked at: (rows, columns) arrays, and the size of a pixel in mm, down and across.

    at_mm: where the plane cuts the volume; None for a slice, whose place in the head its file does not tell.
    """

    name: str
    at_mm: float | None
    grey: np.ndarray
    bands: np.ndarray
    truth: np.ndarray
    mask: np.ndarray
    pixel_mm: tuple[float, float]


def three_planes_png(
    image: np.ndarray,
    anomaly_map: np.ndarray,
    gt_mask: np.ndarray | None,
    mask: np.ndarray | None,
    affine: np.ndarray,
    tails: Mapping[float, float],
    *,
    width: int = 900,
) -> bytes:
    """The scan alone (above) and under its map (below) in three planes; of a single slice, side by side.

    The planes run through the largest true lesion, else through the map's highest value. Radiological convention: the
    patient's right is on the left of the picture, the front on the left of the sagittal plane. The map is opaque and
    its colours are fixed by healthy scans (COLOURS), never by the picture.

    image, anomaly_map: (x, y, z) or (1, x, y, z), the map calibrated; gt_mask, mask: bool of the same shape or None;
    affine: (4, 4) voxel index -> RAS mm. tails: the value that each share of healthy voxels exceeds, of the score and
    smoothing of the map, as ``dict(zip(calibration.tails.TAIL_SHARES, table))``. width: pixels. Returns a PNG, without
    any words about the patient. Raises InvalidVolume for arrays that do not lie on one grid, InvalidSettings for tails
    without the shares of COLOURS.
    """
    thresholds = colour_thresholds(tails)
    if width < _LEAST_WIDTH:
        raise InvalidSettings(f"expected a picture at least {_LEAST_WIDTH} pixels wide, got {width}")
    volume, upright = reorient(_volume(image), affine)
    parts = {"map": anomaly_map, "truth": gt_mask, "mask": mask}
    for name, values in parts.items():
        values = np.zeros(_volume(image).shape, bool) if values is None else _volume(values)
        if values.shape != _volume(image).shape:
            raise InvalidVolume(
                f"expected the {name} on the grid of the image, {_volume(image).shape}, got {values.shape}"
            )
        parts[name] = reorient(values, affine)[0]
    truth, marked = parts["truth"] > 0, parts["mask"] > 0
    bands = colour_bands(parts["map"], thresholds)
    grey, box = _grey(volume, truth | marked, spacing_mm(upright))
    at = _centre(truth, parts["map"])
    flat = [axis for axis in range(3) if volume.shape[axis] == 1]
    views = [_view(axis, at, box, upright, grey, bands, truth, marked) for axis in ([flat[0]] if flat else (2, 1, 0))]
    shown = "scan", "scan and map"
    rows = [[(views[0], False), (views[0], True)]] if flat else [[(v, part) for v in views] for part in (False, True)]
    return _png(rows, shown, width, has_truth=bool(truth.any()), has_mask=mask is not None)


def colour_thresholds(tails: Mapping[float, float]) -> tuple[float, ...]:
    """The map's values at which its colours change. Raises InvalidSettings where a share of COLOURS is missing."""
    if not isinstance(tails, Mapping) or any(share not in tails for share, _ in COLOURS):
        raise InvalidSettings(
            "expected the healthy values by share, dict(zip(TAIL_SHARES, table)), with "
            f"{', '.join(f'{share:g}' for share, _ in COLOURS)}; calibrate the model again if it has none"
        )
    return tuple(float(tails[share]) for share, _ in COLOURS)


def colour_bands(values: np.ndarray, thresholds: tuple[float, ...]) -> np.ndarray:
    """0 where a value is common among healthy voxels, else 1 to 4: the colour of COLOURS. Like ``values``, uint8."""
    found = np.zeros(values.shape, np.uint8)
    for number, threshold in enumerate(thresholds, start=1):
        found[(values > threshold) & (values > 0)] = number
    return found


def _volume(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim == 4 and values.shape[0] == 1:
        values = values[0]
    if values.ndim != 3:
        raise InvalidVolume(f"expected arrays (x, y, z) or (1, x, y, z), got shape {values.shape}")
    return values


def _centre(truth: np.ndarray, anomaly_map: np.ndarray) -> tuple[int, ...]:
    """A voxel of the largest lesion next to that lesion's middle; without a lesion the map's highest voxel."""
    if truth.any():
        numbered, _ = ndimage.label(truth, CONNECTIVITY_26)
        sizes = np.bincount(numbered.ravel())
        sizes[0] = 0
        voxels = np.argwhere(numbered == sizes.argmax())
        nearest = np.linalg.norm(voxels - voxels.mean(axis=0), axis=1).argmin()
        return tuple(int(v) for v in voxels[nearest])
    return tuple(int(v) for v in np.unravel_index(np.argmax(anomaly_map), anomaly_map.shape))


def _grey(volume: np.ndarray, keep: np.ndarray, spacing: tuple[float, ...]) -> tuple[np.ndarray, tuple[slice, ...]]:
    """The scan in greys 0 to 255, float32, and the box around what is not background."""
    volume = np.nan_to_num(volume.astype(np.float32))
    inside = volume[volume != volume.min()]
    low, high = np.percentile(inside, (1, 99.5)) if inside.size else (0.0, 1.0)
    low = min(low, float(volume.min()) + 0.05 * (high - float(volume.min())))
    grey = np.clip((volume - low) / max(high - low, 1e-6), 0, 1) * 255
    seen = (grey > 0.06 * 255) | keep
    box = []
    for axis in range(3):
        used = np.flatnonzero(seen.any(axis=tuple(a for a in range(3) if a != axis)))
        margin = round(_MARGIN_MM / spacing[axis])
        first, last = (used[0], used[-1]) if len(used) else (0, volume.shape[axis] - 1)
        box.append(slice(max(0, first - margin), min(volume.shape[axis], last + 1 + margin)))
    return grey, tuple(box)


def _view(axis: int, at: tuple[int, ...], box: tuple[slice, ...], affine: np.ndarray, *volumes: np.ndarray) -> _View:
    """One plane of volumes whose axes run R, A, S: right and front on the left, head up."""
    where = [box[a] if a != axis else at[axis] for a in range(3)]
    shown = [np.ascontiguousarray(v[tuple(where)].T[::-1, ::-1]) for v in volumes]
    size = spacing_mm(affine)
    across, down = [a for a in range(3) if a != axis]
    position = None if volumes[0].shape[axis] == 1 else float(affine[axis, :3] @ np.array(at) + affine[axis, 3])
    return _View(_PLANES[axis], position, *shown, pixel_mm=(size[down], size[across]))


def _png(rows, shown: tuple[str, str], width: int, *, has_truth: bool, has_mask: bool) -> bytes:
    """rows: of (view, whether with map). Every tile has the same scale; the tiles of a row end at the same height."""
    font = ImageFont.load_default(size=max(11, round(width / 53)))
    line = round(font.size * 1.4)
    extents = [[_extent_mm(view) for view, _ in row] for row in rows]
    scale = min((width - _GAP * (len(row) + 1)) / sum(across for _, across in row) for row in extents)  # pixels per mm
    heights = [round(max(down for down, _ in row) * scale) for row in extents]
    total = sum(heights) + len(rows) * (line + _GAP) + 3 * line + _GAP
    sheet = Image.new("RGB", (width, total), _GROUND)
    draw = ImageDraw.Draw(sheet)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = _GAP
        for view, with_map in row:
            tile = _tile(view, scale, with_map=with_map)
            place = "" if view.at_mm is None else f" {view.at_mm:+.0f} mm"
            title = f"{view.name}{place}, {shown[with_map]}"
            draw.text((left, top + line * 0.15), title, fill=_DIM, font=font)
            corner = (left, top + line + (height - tile.height) // 2)
            sheet.paste(tile, corner)
            _letters(draw, view.name, corner, tile.size, font)
            left += tile.width + _GAP
        top += line + height + _GAP
    end = _scale_bar(draw, (_GAP, top), scale, font)
    _outline_key(draw, (end + 3 * _GAP, top), font, has_truth=has_truth, has_mask=has_mask)
    _colour_bar(draw, (_GAP, top + line), font)
    note = "Patient's right on the left. No colour: common in healthy scans."
    draw.text((_GAP, top + 2 * line), note, fill=_DIM, font=font)
    stream = io.BytesIO()
    sheet.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _extent_mm(view: _View) -> tuple[float, float]:
    return view.grey.shape[0] * view.pixel_mm[0], view.grey.shape[1] * view.pixel_mm[1]


def _tile(view: _View, scale: float, *, with_map: bool) -> Image.Image:
    down, across = (max(1, int(extent * scale)) for extent in _extent_mm(view))
    # Steps of four greys: no eye sees them, and the file is a third smaller.
    grey = Image.fromarray(view.grey.astype(np.uint8)).resize((across, down), Image.Resampling.BICUBIC)
    tile = grey.point(lambda value: value & 0xFC).convert("RGB")
    if with_map:
        bands = Image.fromarray(view.bands).resize((across, down), Image.Resampling.NEAREST)
        palette = np.array([(0, 0, 0), *(colour for _, colour in COLOURS)], np.uint8)
        number = np.asarray(bands)
        tile = Image.fromarray(np.where((number > 0)[..., None], palette[number], np.asarray(tile)))
    draw = ImageDraw.Draw(tile)
    steps = (down / view.grey.shape[0], across / view.grey.shape[1])
    if with_map:
        _outline(draw, view.mask, steps, MASK_COLOUR, 1)
    _outline(draw, view.truth, steps, TRUTH_COLOUR, 2)
    return tile


def _outline(draw: ImageDraw.ImageDraw, mask: np.ndarray, steps: tuple[float, float], colour, thick: int) -> None:
    """The edge of a mask around its voxels, with a dark rim so that it shows on every colour."""
    for contour in find_contours(np.pad(mask, 1).astype(np.float32), 0.5):
        # A voxel's centre lies half a voxel from its edge; the padding moved everything by one.
        points = [((x - 0.5) * steps[1], (y - 0.5) * steps[0]) for y, x in contour]
        draw.line(points, fill=_HALO, width=thick + 2, joint="curve")
        draw.line(points, fill=colour, width=thick, joint="curve")


def _letters(draw: ImageDraw.ImageDraw, plane: str, corner: tuple[int, int], size: tuple[int, int], font) -> None:
    (left, right), (up, down) = _LETTERS[plane], _UPRIGHT[plane]
    x, y = corner
    width, height = size
    places = (
        (left, (x + 3, y + height // 2), "lm"),
        (right, (x + width - 3, y + height // 2), "rm"),
        (up, (x + width // 2, y + 2), "mt"),
        (down, (x + width // 2, y + height - 2), "mb"),
    )
    for letter, place, anchor in places:
        draw.text(place, letter, fill=_INK, font=font, anchor=anchor, stroke_width=2, stroke_fill=_HALO)


def _scale_bar(draw: ImageDraw.ImageDraw, corner: tuple[int, int], scale: float, font) -> float:
    """A bar of 50 mm at the scale of the tiles; returns where its words end."""
    x, y = corner
    length = round(50 * scale)
    middle = y + font.size * 0.75
    draw.line([(x, middle), (x + length, middle)], fill=_INK, width=2)
    for end in (x, x + length):
        draw.line([(end, middle - 4), (end, middle + 4)], fill=_INK, width=2)
    draw.text((x + length + 8, middle), "50 mm", fill=_INK, font=font, anchor="lm")
    return x + length + 8 + draw.textlength("50 mm", font=font)


def _colour_bar(draw: ImageDraw.ImageDraw, corner: tuple[int, int], font) -> None:
    x, y = corner
    middle = y + font.size * 0.75
    text = "Healthy voxels above:"
    draw.text((x, middle), text, fill=_INK, font=font, anchor="lm")
    x += draw.textlength(text, font=font) + 10
    for share, colour in COLOURS:
        box = font.size
        draw.rectangle([x, middle - box / 2, x + 2 * box, middle + box / 2], fill=colour)
        label = f"< {100 * share:g} %"
        draw.text((x + 2 * box + 5, middle), label, fill=_INK, font=font, anchor="lm")
        x += 2 * box + 5 + draw.textlength(label, font=font) + 14


def _outline_key(
    draw: ImageDraw.ImageDraw, corner: tuple[float, float], font, *, has_truth: bool, has_mask: bool
) -> None:
    x, y = corner
    middle = y + font.size * 0.75
    for text, colour, there in (
        ("lesion (truth)", TRUTH_COLOUR, has_truth),
        ("marked by the model", MASK_COLOUR, has_mask),
    ):
        if there:
            draw.line([(x, middle), (x + 2 * font.size, middle)], fill=colour, width=3)
            draw.text((x + 2 * font.size + 6, middle), text, fill=_INK, font=font, anchor="lm")
            x += 2 * font.size + 6 + draw.textlength(text, font=font) + 18
