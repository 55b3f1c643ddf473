"""atheris on what reads bytes from elsewhere: ``python tests/fuzz/fuzz.py TARGET [options of libFuzzer] [corpus]``."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
# Only our own code and the parsers it hands bytes to: instrumenting all of pydicom or numpy takes minutes.
with atheris.instrument_imports(include=["monailabel_app.io"]):
    from monailabel_app.errors import AnomalyAppError, UnreadableVolume
    from monailabel_app.io import dicom as dicom_reader
    from monailabel_app.io import images

import numpy as np  # noqa: E402

from tests.bad_dicom import DICOM_CASES, series  # noqa: E402
from tests.bad_files import CASES  # noqa: E402

# Of the targets in ``structured``, whose modules are only imported for them.
_STRUCTURED = ("unpacking", "archive", "model")
_INSTRUMENTED = (
    "lib.unpacking", "lib.archive_lists", "lib.archive_client", "lib.archive_fetch", "lib.archive_labels",
    "lib.dicomweb", "lib.dicom_results", "monailabel_app.weights", "monailabel_app.pipelines.uploaded_model",
    "monailabel_app.pipelines.config_io", "monailabel_app.pipelines.anomaly_model", "monailabel_app.calibration",
)  # fmt: skip
_FOLDER = Path(tempfile.mkdtemp(prefix="fuzz_"))


def read(path: Path) -> None:
    """Raises when the reader does anything but refuse, or return a volume as it is promised."""
    volume, refusal = None, ""
    try:
        volume = images.read_volume(path, slices=True)
    except AnomalyAppError as error:
        refusal = str(error)
    if volume is None:
        assert refusal.startswith("expected "), refusal
        assert str(_FOLDER) not in refusal
        return
    assert volume.data.dtype == np.float32
    assert volume.data.ndim == 4
    assert np.isfinite(volume.data).all()
    assert np.isfinite(volume.affine).all()
    assert abs(np.linalg.det(volume.affine)) > 1e-6
    assert volume.native.shape == volume.shape


def _file(name: str) -> Callable[[bytes], None]:
    path = _FOLDER / name

    def one(data: bytes) -> None:
        path.write_bytes(data)
        read(path)

    return one


def nifti(data: bytes) -> None:
    """The first byte says whether the rest is unpacked; what is packed is hardly ever changed into something valid."""
    _file("scan.nii.gz" if data[:1] == b"\x1f" else "scan.nii")(data)


def _not_decoded(*_: object) -> None:
    raise UnreadableVolume("expected pixels that this target decodes, got compressed ones")


def dicom(data: bytes) -> None:
    """Two slices: the bytes, and a good one beside it. Compressed pixels go to a process of their own: not here."""
    dicom_reader.decode_slices = _not_decoded
    folder = _FOLDER / "series"
    folder.mkdir(exist_ok=True)
    (folder / "a.dcm").write_bytes(data)
    if not (folder / "b.dcm").exists():
        (folder / "b.dcm").write_bytes(series()["001.dcm"])
    read(folder)


def _seeds_named(*suffixes: str) -> Callable[[], list[bytes]]:
    def seeds() -> list[bytes]:
        made = (case.content() for case in CASES if case.name.endswith(suffixes) and case.kind != "gzip")
        return [content for content in made if len(content) < 30_000]

    return seeds


def _dicom_seeds() -> list[bytes]:
    titles = ("RLE", "big endian", "implicit", "inverted grey values", "100 sequences within each other")
    return [next(iter(DICOM_CASES[title][0]().values())) for title in titles] + [series()["000.dcm"]]


TARGETS: Mapping[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]]]] = {
    "nifti": (nifti, _seeds_named(".nii", ".nii.gz")),
    "nrrd": (_file("scan.nrrd"), _seeds_named(".nrrd")),
    "metaimage": (_file("scan.mha"), _seeds_named(".mha")),
    "picture": (_file("slice.png"), _seeds_named(".png")),
    "dicom": (dicom, _dicom_seeds),
}


def target_of(name: str) -> tuple[Callable[[bytes], None], Callable[[], list[bytes]]]:
    """What is done with one input, and the inputs to begin with."""
    if name in TARGETS:
        return TARGETS[name]
    with atheris.instrument_imports(include=list(_INSTRUMENTED)):
        from tests.fuzz import structured
    return getattr(structured, name), structured.seeds


def main() -> None:
    """Run the target until libFuzzer's options say so."""
    known = (*TARGETS, *_STRUCTURED)
    if len(sys.argv) < 2 or sys.argv[1] not in known:
        sys.exit(f"expected a target out of {', '.join(known)}")
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    target, seeds = target_of(sys.argv[1])
    arguments = [sys.argv[0], *sys.argv[2:]]
    if not any(os.path.isfile(argument) for argument in sys.argv[2:]):
        started = _FOLDER / "seeds"
        started.mkdir()
        for number, seed in enumerate(seeds()):
            (started / f"{number:04d}").write_bytes(seed)
        arguments.append(str(started))
    atheris.Setup(arguments, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
