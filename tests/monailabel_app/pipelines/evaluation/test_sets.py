"""The sets of the comparison: prepared once, the truth where it belongs, one alignment for every normalisation."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from monailabel_app.errors import EvaluationFailed
from monailabel_app.io.images import read_volume
from monailabel_app.pipelines.evaluation.cases import alignment_of, on_grid_of
from monailabel_app.pipelines.evaluation.sets import SetBuilder
from monailabel_app.preprocessing.pipeline import PrepareSettings, Preprocessor
from monailabel_app.types import BrainMask

DATA = Path(__file__).resolve().parents[3] / "data"
MEDIAN = PrepareSettings(normalization="median")


class _Stripped:
    """The samples come stripped: their masks are where they are not zero."""

    def extract(self, volume):
        return BrainMask(volume.data[0] != 0, "already_stripped")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(data, cache): the sample patient as the data folder has it."""
    base = tmp_path_factory.mktemp("sets")
    patient = base / "data" / "mslub" / "patient26"
    patient.mkdir(parents=True)
    for name, source in (("T1", "t1"), ("FLAIR", "flair"), ("GOLD_STANDARD", "lesions")):
        shutil.copy(DATA / f"mslub_{source}_2mm.nii.gz", patient / f"{name}.nii.gz")
    return base / "data", base / "cache"


@pytest.fixture
def builder(folders, monkeypatch):
    monkeypatch.setattr(SetBuilder, "_extractor", _Stripped())
    return SetBuilder(*folders)


@pytest.fixture
def no_alignment(monkeypatch):
    """Preparing from scratch is noticed."""

    def prepare(*args, **options):
        raise AssertionError("prepared from scratch")

    return lambda: monkeypatch.setattr(Preprocessor, "prepare", prepare)


def test_a_case_is_prepared_once_with_its_truth_on_the_model_grid(builder, folders, no_alignment):
    case = builder.build("mslub_flair").cases[0]
    labels = read_volume(folders[0] / "mslub" / "patient26" / "GOLD_STANDARD.nii.gz")
    assert case.gt_mask.shape == case.prepared.brain_mask.shape == builder.template.shape
    assert case.gt_mask.any()
    assert not (case.gt_mask & ~case.counted).any()
    # The volume is that of the native mask, scaled as the alignment scales.
    scale = abs(np.linalg.det(alignment_of(case.prepared)))
    native = (labels.data[0] > 0.5).sum() * labels.voxel_volume_mm3
    assert case.gt_mask.sum() * 8 == pytest.approx(native * scale, rel=0.15)
    no_alignment()
    again = builder.build("mslub_flair").cases[0]
    np.testing.assert_array_equal(again.prepared.image, case.prepared.image)


def test_another_normalisation_takes_mask_and_alignment_over(builder, folders, no_alignment):
    first = builder.build("mslub_flair")
    volume = read_volume(folders[0] / "mslub" / "patient26" / "FLAIR.nii.gz")
    wanted = Preprocessor(builder.template).prepare(volume, MEDIAN, brain=_Stripped().extract(volume))
    no_alignment()
    other = builder.build("mslub_flair", MEDIAN)
    assert other.key == first.key
    np.testing.assert_allclose(other.cases[0].prepared.image, wanted.image, atol=1e-3)
    np.testing.assert_array_equal(other.cases[0].gt_mask, first.cases[0].gt_mask)


def test_levels_are_read_back_where_they_lie_in_the_volume(builder):
    case = builder.build("mslub_flair", MEDIAN, (44, 50)).cases[0]
    assert case.cut.brain_mask.shape == (*case.gt_mask.shape[:2], 7)
    back = on_grid_of(case, case.cut.image[0], case.cut)
    inside = back.any(axis=(0, 1))
    assert set(np.flatnonzero(inside)) <= set(range(43, 52))
    assert inside[45:50].all()
    both = (back[..., 47] > 0.05) & (case.prepared.image[0, ..., 47] > 0.05)
    assert np.corrcoef(back[..., 47][both], case.prepared.image[0, ..., 47][both])[0, 1] > 0.9
    whole = on_grid_of(case, case.prepared.image[0], case.prepared)
    assert whole is not None
    assert whole.shape == case.gt_mask.shape


def test_a_set_whose_files_are_not_there_says_which(builder):
    with pytest.raises(EvaluationFailed, match=r"files of mslub_t2 .* T2\.nii\.gz"):
        builder.build("mslub_t2")
    with pytest.raises(EvaluationFailed, match="files of brats2015_flair"):
        builder.build("brats2015_flair")
