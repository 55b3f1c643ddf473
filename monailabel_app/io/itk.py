"""NRRD and MetaImage: geometry as ITK takes it, from a header that was read here before; voxels read here."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from monailabel_app.errors import UnreadableVolume
from monailabel_app.io.checks import check_count, check_shape
from monailabel_app.io.metaimage_header import read_metaimage_header
from monailabel_app.io.native import NativeGeometry, from_itk
from monailabel_app.io.nrrd_header import read_nrrd_header
from monailabel_app.io.stored import Stored, read_stored


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
    return _open(path)[1]


def read_itk(path: Path) -> tuple[np.ndarray, NativeGeometry, tuple[str, ...]]:
    """Voxels (x, y, z) float32, geometry and warnings. Raises UnreadableVolume, InvalidVolume."""
    stored, geometry = _open(path)
    return read_stored(stored).reshape(geometry.shape, order="F"), geometry, ()


def _open(path: Path) -> tuple[Stored, NativeGeometry]:
    nrrd = path.suffix.lower() in (".nrrd", ".nhdr")
    stored, header = (read_nrrd_header if nrrd else read_metaimage_header)(path)
    check_count(stored.count)
    # ITK gets a file that was written here; names of files may hold patient names, and what ITK is told it may print.
    with tempfile.NamedTemporaryFile(prefix="header_", suffix=".nrrd" if nrrd else ".mha") as file:
        file.write(header)
        file.flush()
        try:
            reader = itk_header(Path(file.name))
        except RuntimeError:
            # Not chained: ITK's text names the file.
            raise UnreadableVolume(
                f"expected a {path.suffix} image, got a file without a valid {path.suffix} header: export it again"
            ) from None
    shape = check_shape(reader.GetSize(), reader.GetNumberOfComponents())
    stored.check_length()
    return stored, from_itk(reader, shape)
