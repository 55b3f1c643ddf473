"""PNG pictures of a single axial slice, as exported from a viewer or kept in a data set."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from monailabel_app.errors import InvalidVolume, UnreadableVolume
from monailabel_app.io.checks import SPACING_RANGE_MM, check_shape
from monailabel_app.io.native import NativeGeometry, from_affine

PICTURE_SUFFIXES = (".png",)
DEFAULT_PIXEL_MM = 1.0
# What a picture says nothing about. Clinical FLAIR slices are about this thick; lesion volumes are in proportion.
THICKNESS_MM = 5.0
_MAX_PIXELS = 16 * 2**20
_TOO_LARGE = (
    f"expected a picture of one slice, got one of more than {_MAX_PIXELS // 10**6} million pixels: send the slice at "
    "its own resolution"
)
_SCREEN_DPI = (72, 96)  # written by drawing software whatever the picture shows
_GREY_MODES = ("L", "I;16", "I;16B", "I", "1")


def read_picture(path: Path, pixel_mm: float | None = None) -> tuple[np.ndarray, NativeGeometry, tuple[str, ...]]:
    """A grey picture as one slice (columns, rows, 1) float32, with its geometry and what had to be assumed.

    The top is taken as front and the left as the patient's right, as radiologists look at axial slices; the pixel size
    is ``pixel_mm``, else the file's own (pHYs), else 1 mm. Colour is accepted where it is grey all the same.
    Raises UnreadableVolume for what is no picture, InvalidVolume for colour and for absurd sizes.
    """
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            _check_size(picture)
            stated = _stated_pixel_mm(picture)
            mode = picture.mode
            if mode not in _GREY_MODES:
                picture = picture.convert("RGBA")
            pixels = np.asarray(picture)
    except Image.DecompressionBombError:
        raise InvalidVolume(_TOO_LARGE) from None
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError):
        raise UnreadableVolume(
            "expected a complete PNG picture, got a file that cannot be read as one: copy or export it again"
        ) from None
    if pixels.ndim == 3:
        grey = pixels[..., 0]
        if (pixels[..., 1:3] != grey[..., None]).any() or (pixels[..., 3] != 255).any():
            raise InvalidVolume(
                "expected a grey picture, got one in colour or with transparency: export the slice without overlay"
            )
        pixels = grey
    size, warnings = _pixel_size(stated, pixel_mm)
    data = np.ascontiguousarray(pixels.T[..., None], dtype=np.float32)
    return data, from_affine(data.shape, _affine(data.shape, size)), warnings


def picture_geometry(path: Path, pixel_mm: float | None = None) -> NativeGeometry:
    """The geometry of a PNG picture, as ``read_picture`` gives it. Same errors."""
    return read_picture(path, pixel_mm)[1]


def _check_size(picture: Image.Image) -> None:
    if math.prod(picture.size) > _MAX_PIXELS:
        raise InvalidVolume(_TOO_LARGE)
    check_shape((*picture.size, 1))


def _pixel_size(stated: float | None, given: float | None) -> tuple[float, tuple[str, ...]]:
    low, high = SPACING_RANGE_MM
    if given is not None and not low <= given <= high:
        raise InvalidVolume(f"expected a pixel size of {low} to {high:.0f} mm, got {given:g}: give it in mm")
    assumed = "a picture states no orientation: its top was taken as front, its left as the patient's right"
    if given is not None:
        return given, (assumed,)
    if stated is not None:
        return stated, (assumed,)
    return DEFAULT_PIXEL_MM, (
        assumed,
        f"the picture states no pixel size: {DEFAULT_PIXEL_MM:g} mm was assumed, and sizes and volumes depend on it",
    )


def _stated_pixel_mm(picture: Image.Image) -> float | None:
    """From pHYs, where both axes have one resolution and it is not a screen's."""
    dpi = picture.info.get("dpi")
    if dpi is None or not all(math.isfinite(v) and v > 0 for v in dpi) or abs(dpi[0] - dpi[1]) > 0.01 * dpi[0]:
        return None
    if any(abs(dpi[0] - screen) < 0.1 for screen in _SCREEN_DPI):
        return None
    size = 25.4 / float(dpi[0])
    return size if SPACING_RANGE_MM[0] <= size <= SPACING_RANGE_MM[1] else None


def _affine(shape: tuple[int, ...], pixel_mm: float) -> np.ndarray:
    """Columns run to the patient's left, rows to the back; the picture's middle is the origin."""
    affine = np.diag([-pixel_mm, -pixel_mm, THICKNESS_MM, 1.0])
    affine[:2, 3] = pixel_mm * (np.array(shape[:2]) - 1) / 2
    return affine
