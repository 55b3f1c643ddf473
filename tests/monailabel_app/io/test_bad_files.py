"""Every bad file is refused with a reason or read into a volume that keeps its contract; nothing else happens."""

import io
import os
import zipfile

import numpy as np
import pytest

from monailabel_app.errors import AnomalyAppError, NotEnoughMemory, UnreadableVolume
from monailabel_app.io import memory, stored
from monailabel_app.io.images import read_geometry, read_volume
from tests.bad_files import CASES, CUBE, Case, bomb, gz, nifti1, nrrd

# What only a server can refuse: names, and what a file is called on another machine.
_BY_NAME = {"name"}


def written(case: Case, folder):
    """The file or folder of a case, under a name that any disk can hold."""
    if case.way == "session":
        zipfile.ZipFile(io.BytesIO(case.content())).extractall(folder / "series")
        return folder / "series"
    safe = len(os.fsencode(case.name)) < 200 and case.name.isprintable()
    path = folder / (case.name if safe else "scan.nii")
    path.write_bytes(case.content())
    return path


def assert_is_a_volume(volume):
    assert volume.data.ndim == 4
    assert volume.data.shape[0] == 1
    assert volume.data.dtype == np.float32
    assert volume.data.flags.c_contiguous
    assert np.isfinite(volume.data).all()
    assert volume.data.min() < volume.data.max()
    assert volume.affine.shape == (4, 4)
    assert np.isfinite(volume.affine).all()
    assert abs(np.linalg.det(volume.affine)) > 1e-4
    assert tuple(volume.native.shape) == volume.shape


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}: {case.title}")
def test_a_bad_file_is_refused_or_read(tmp_path, case, capfd):
    path = written(case, tmp_path) if not (case.kind == "DICOM" and not case.content()) else tmp_path
    if case.title == "DICOM, no file":
        path.mkdir(exist_ok=True)
    volume = refusal = None
    try:
        volume = read_volume(path, slices=True)
    except AnomalyAppError as error:
        refusal = error
    if refusal is not None:
        assert case.outcome != "taken", str(refusal)
        assert str(refusal).startswith("expected ")
        assert refusal.status == 400
        assert str(tmp_path) not in str(refusal) + capfd.readouterr().err
        return
    assert_is_a_volume(volume)
    assert case.outcome != "refused" or case.kind in _BY_NAME
    np.testing.assert_array_equal(read_geometry(path).affine, volume.affine)


def test_what_is_taken_has_the_voxels_that_were_stored(tmp_path):
    for case in CASES:
        if case.kind == "type" and case.outcome == "taken" and "voxels of the other" not in case.title:
            data = read_volume(written(case, tmp_path)).data[0]
            assert (data == CUBE).all() or (data == np.clip(CUBE, 1, 120)).all(), case.title


def test_a_stream_is_unpacked_no_further_than_its_header_says(tmp_path, monkeypatch):
    (tmp_path / "scan.nii.gz").write_bytes(bomb(nifti1(), 300))
    given = []
    read = stored.Unpacked.read
    monkeypatch.setattr(stored.Unpacked, "read", lambda self, size: given.append(len(part := read(self, size))) or part)
    with pytest.raises(UnreadableVolume, match="goes on"):
        read_volume(tmp_path / "scan.nii.gz")
    assert sum(given) < 4 * len(nifti1()) + 2 * stored.MAX_TRAILING


def test_a_detached_header_reads_the_file_beside_it_and_no_other(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "voxels.raw").write_bytes(CUBE.tobytes(order="F"))
    header = tmp_path / "a" / "scan.nhdr"
    header.write_bytes(nrrd("data file: voxels.raw", b""))
    np.testing.assert_array_equal(read_volume(header).data[0], CUBE)
    for other in ("../a/voxels.raw", str(tmp_path / "a" / "voxels.raw"), "./voxels.raw", "link.raw"):
        (tmp_path / "a" / "link.raw").unlink(missing_ok=True)
        (tmp_path / "a" / "link.raw").symlink_to("voxels.raw")
        header.write_bytes(nrrd(f"data file: {other}", b""))
        with pytest.raises(UnreadableVolume, match="beside its header"):
            read_volume(header)


def test_a_scan_for_which_there_is_no_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    (tmp_path / "scan.nii.gz").write_bytes(gz(nifti1()))
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: type("Memory", (), {"available": memory.RESERVE}))
    with pytest.raises(NotEnoughMemory, match="free memory") as caught:
        read_volume(tmp_path / "scan.nii.gz")
    assert caught.value.status == 503


def test_memory_of_a_container_counts(tmp_path, monkeypatch):
    for name, text in {"max": "1000", "current": "700", "stat": "anon 5\ninactive_file 100"}.items():
        (tmp_path / f"memory.{name}").write_text(text)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.available_bytes() == 400
    (tmp_path / "memory.max").write_text("max")
    assert memory.available_bytes() > 1000
