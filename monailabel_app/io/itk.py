"""Files that ITK reads best: NRRD and MetaImage."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from monailabel_app.errors import UnreadableVolume
from monailabel_app.io.checks import MAX_GZIP_RATIO, check_shape
from monailabel_app.io.native import NativeGeometry, from_itk

_NOT_SCALAR = (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64)


class _Quiet:
    """How many threads want silence, and what to return to; the switch is one for the whole process."""

    lock = threading.Lock()
    depth = 0
    shown = True


@contextmanager
def quiet_itk() -> Iterator[None]:
    """ITK's warnings go to stderr and name the file, and file names carry patient names: not here."""
    with _Quiet.lock:
        if _Quiet.depth == 0:
            _Quiet.shown = sitk.ProcessObject.GetGlobalWarningDisplay()
            sitk.ProcessObject.SetGlobalWarningDisplay(False)
        _Quiet.depth += 1
    try:
        yield
    finally:
        with _Quiet.lock:
            _Quiet.depth -= 1
            if _Quiet.depth == 0:
                sitk.ProcessObject.SetGlobalWarningDisplay(_Quiet.shown)


def itk_header(path: Path) -> sitk.ImageFileReader:
    """A reader that has read the header of ``path`` only. Raises RuntimeError (SimpleITK's) if it cannot."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    with quiet_itk():
        reader.ReadImageInformation()
    return reader


def itk_geometry(path: Path) -> NativeGeometry:
    """The geometry of a NRRD or MetaImage file. Raises UnreadableVolume, InvalidVolume."""
    reader = _checked_header(path)
    return from_itk(reader)


def read_itk(path: Path) -> tuple[np.ndarray, NativeGeometry, tuple[str, ...]]:
    """Voxels (x, y, z) float32, geometry and warnings. Raises UnreadableVolume, InvalidVolume."""
    reader = _checked_header(path)
    geometry = from_itk(reader)
    reader.SetOutputPixelType(sitk.sitkFloat32)
    try:
        with quiet_itk():
            image = reader.Execute()
    except RuntimeError:
        # Not chained: ITK's text names the file.
        raise UnreadableVolume(
            f"expected a complete {path.suffix} image, got voxels that cannot be read: the file is "
            "truncated or "
            "damaged, copy or export it again"
        ) from None
    data = sitk.GetArrayFromImage(image)
    return data.reshape(data.shape[-3:]).transpose(2, 1, 0), geometry, ()


def _checked_header(path: Path) -> sitk.ImageFileReader:
    try:
        reader = itk_header(path)
    except RuntimeError:
        raise UnreadableVolume(
            f"expected a {path.suffix} image, got a file without a valid {path.suffix} header: export it "
            "again"
        ) from None
    complex_valued = reader.GetPixelID() in _NOT_SCALAR
    check_shape(reader.GetSize(), 2 if complex_valued else reader.GetNumberOfComponents())
    # ITK allocates what the header promises before it looks; .nhdr and .mhd keep voxels elsewhere.
    inside = path.suffix.lower() in (".nrrd", ".mha")
    if inside and path.stat().st_size * MAX_GZIP_RATIO < math.prod(reader.GetSize()):
        raise UnreadableVolume(
            f"expected {math.prod(reader.GetSize())} voxels as the header promises, got a file of "
            f"{path.stat().st_size} bytes: it is truncated, copy or export it again"
        )
    return reader
