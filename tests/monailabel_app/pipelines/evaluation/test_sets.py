"""Sets are prepared once, by content, with the truth where it belongs; what cannot be used is named and left out."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from monailabel_app.errors import EvaluationFailed
from monailabel_app.io.images import read_volume, write_labelmap, write_map
from monailabel_app.pipelines.evaluation import preparation
from monailabel_app.pipelines.evaluation.cases import alignment_of, load_case, on_grid_of, save_case
from monailabel_app.pipelines.evaluation.dataset_types import Dataset, DatasetScan, ImplantRule, Picture
from monailabel_app.pipelines.evaluation.sets import SetBuilder
from monailabel_app.pipelines.predict import SHIPPED_MODELS
from monailabel_app.preprocessing.pipeline import PrepareSettings, Preprocessor
from monailabel_app.types import BrainMask
from tests.monailabel_app.pipelines.evaluation.case_factory import write_dataset
from tests.monailabel_app.synthetic import person, save_template, scan

DATA = Path(__file__).resolve().parents[3] / "data"
MEDIAN = PrepareSettings(normalization="median")


class _Stripped:
    """The samples come stripped: their masks are where they are not zero."""

    def extract(self, volume):
        return BrainMask(volume.data[0] != 0, "already_stripped")


@pytest.fixture(scope="module")
def mslub():
    scan = DatasetScan(
        "patient26", "patient26", DATA / "mslub_flair_2mm.nii.gz", (DATA / "mslub_lesions_2mm.nii.gz",), brain="nonzero"
    )
    return Dataset("mslub_flair", "One patient", "flair", "CC BY", DATA, None, (scan,))


@pytest.fixture(scope="module")
def mslub_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("mslub")


@pytest.fixture
def mslub_builder(mslub_cache, monkeypatch):
    monkeypatch.setattr(preparation, "_extractor", lambda folder, device: _Stripped())
    return SetBuilder(mslub_cache)


@pytest.fixture
def no_alignment(monkeypatch):
    """Preparing from scratch is noticed."""

    def prepare(*args, **options):
        raise AssertionError("prepared from scratch")

    return lambda: monkeypatch.setattr(Preprocessor, "prepare", prepare)


@pytest.fixture
def builder(tmp_path):
    """Of synthetic sets: the small template."""
    preparation._template.cache_clear()
    return SetBuilder(
        tmp_path / "cache", template=save_template(tmp_path), extractor=SHIPPED_MODELS / "brain_extraction"
    )


def test_a_case_is_prepared_once_with_its_truth_on_the_model_grid(mslub, mslub_builder, no_alignment):
    case = mslub_builder.build(mslub).cases[0]
    labels = read_volume(DATA / "mslub_lesions_2mm.nii.gz")
    assert case.gt_mask.shape == case.prepared.brain_mask.shape == mslub_builder.template.shape
    assert case.gt_mask.any()
    assert not (case.gt_mask & ~case.counted).any()
    # The volume is that of the native mask, scaled as the alignment scales.
    scale = abs(np.linalg.det(alignment_of(case.prepared)))
    native = (labels.data[0] > 0.5).sum() * labels.voxel_volume_mm3
    assert case.gt_mask.sum() * 8 == pytest.approx(native * scale, rel=0.15)
    assert case.details["native_ml"] == pytest.approx(native / 1000)
    assert 0 <= case.details["lost_lesions"] < case.details["native_lesions"]
    no_alignment()
    again = mslub_builder.build(mslub).cases[0]
    np.testing.assert_array_equal(again.prepared.image, case.prepared.image)


def test_another_normalisation_takes_mask_and_alignment_over(mslub, mslub_builder, no_alignment):
    first = mslub_builder.build(mslub)
    volume = read_volume(DATA / "mslub_flair_2mm.nii.gz")
    wanted = Preprocessor(mslub_builder.template).prepare(volume, MEDIAN, brain=_Stripped().extract(volume))
    no_alignment()
    other = mslub_builder.build(mslub, MEDIAN)
    assert other.key == first.key
    assert other.cases.references[0].key != first.cases.references[0].key
    np.testing.assert_allclose(other.cases[0].prepared.image, wanted.image, atol=1e-3)
    np.testing.assert_array_equal(other.cases[0].gt_mask, first.cases[0].gt_mask)


def test_levels_are_read_back_where_they_lie_in_the_volume(mslub, mslub_builder):
    case = mslub_builder.build(mslub, MEDIAN, (44, 50)).cases[0]
    assert case.cut.brain_mask.shape == (*case.gt_mask.shape[:2], 7)
    back = on_grid_of(case, case.cut.image[0], case.cut)
    again = mslub_builder.build(mslub, MEDIAN, (44, 50)).cases[0]  # an analysis comes with its own copy of the grid
    np.testing.assert_array_equal(on_grid_of(case, again.cut.image[0], again.cut), back)
    inside = back.any(axis=(0, 1))
    assert set(np.flatnonzero(inside)) <= set(range(43, 52))
    assert inside[45:50].all()
    both = (back[..., 47] > 0.05) & (case.prepared.image[0, ..., 47] > 0.05)
    assert np.corrcoef(back[..., 47][both], case.prepared.image[0, ..., 47][both])[0, 1] > 0.9
    whole = on_grid_of(case, case.prepared.image[0], case.prepared)
    assert whole.shape == case.gt_mask.shape


def test_a_broken_scan_is_skipped_with_a_reason_that_names_no_file(builder, tmp_path, caplog):
    made = builder.build(write_dataset(tmp_path / "data", healthy=1, lesioned=2, broken=1))
    assert (len(made.healthy), len(made.cases)) == (1, 2)
    assert [item["id"] for item in made.skipped] == ["s3"]
    assert "expected" in made.skipped[0]["reason"]
    told = json.dumps([item["reason"] for item in made.skipped]) + caplog.text
    assert "left out" in caplog.text
    for secret in (str(tmp_path), "s3_image", "p3"):
        assert secret not in told


def test_attributes_and_brain_masks_of_the_data_set_are_kept(builder, tmp_path):
    made = builder.build(write_dataset(tmp_path / "data", healthy=1, lesioned=1))
    case = made.cases[0]
    assert (case.id, case.patient, case.attributes) == ("s1", "p1", {"sex": "F"})
    assert made.healthy[0].attributes == {"sex": "M"}
    assert not made.healthy[0].gt_mask.any()
    np.testing.assert_array_equal(case.counted, case.prepared.brain_mask)  # a given mask is what is analysed


def test_what_the_brain_extraction_cuts_off_of_a_lesion_stays_in_the_truth(builder, tmp_path, monkeypatch):
    given = write_dataset(tmp_path / "data", lesioned=1)
    whole = builder.build(given)
    lesion = read_volume(given.scans[0].labels[0]).data[0] > 0.5
    brain = read_volume(given.scans[0].brain).data[0] > 0.5
    middle = int(np.median(np.argwhere(lesion)[:, 0]))
    lesion[middle:] = False

    class Cutting:
        def extract(self, volume):
            return BrainMask(brain & ~lesion, "model")

    monkeypatch.setattr(preparation, "_extractor", lambda folder, device: Cutting())
    extracted = builder.build(replace(given, scans=(replace(given.scans[0], brain="extract"),)))
    case = extracted.cases[0]
    missed = case.gt_mask & ~case.prepared.brain_mask
    assert missed.sum() > 0.2 * case.gt_mask.sum()
    assert not (case.gt_mask & ~case.counted).any()
    assert case.gt_mask.sum() == pytest.approx(whole.cases[0].gt_mask.sum(), rel=0.1)


def test_an_empty_label_is_a_case_with_nothing_to_find(builder, tmp_path):
    made = builder.build(write_dataset(tmp_path / "data", lesioned=1, empty=1))
    assert [case.details["native_lesions"] for case in made.cases] == [1, 0]
    assert not made.cases[1].gt_mask.any()


def test_a_lesion_that_the_grid_loses_is_counted(builder, tmp_path):
    dataset = write_dataset(tmp_path / "data", lesioned=1)
    volume, _, truth = scan(person(300), lesion_mm=(-12, 12, 6))
    truth[22, 30, 20] = True  # one voxel, far from the other: no model voxel is half covered by it
    fine = np.repeat(np.repeat(np.repeat(volume.data[0], 2, 0), 2, 1), 2, 2)
    half = volume.affine @ np.diag([0.5, 0.5, 0.5, 1.0])
    half[:3, 3] -= 0.5
    lesion = np.repeat(np.repeat(np.repeat(truth, 2, 0), 2, 1), 2, 2)
    lesion[44:46, 60:62, 40:42] = False
    lesion[44, 60, 40] = True
    native = replace(volume, data=fine[None], affine=half, native=None)
    brain = read_volume(dataset.scans[0].brain).data[0] > 0.5
    write_map(dataset.scans[0].image, fine, native)
    write_labelmap(dataset.scans[0].labels[0], lesion.astype(np.uint8), native)
    write_labelmap(dataset.scans[0].brain, np.kron(brain, np.ones((2, 2, 2))).astype(np.uint8), native)
    case = builder.build(dataset).cases[0]
    assert case.details["native_lesions"] == 2
    assert case.details["lost_lesions"] == 1


def test_a_label_in_another_voxel_order_is_brought_onto_its_scan(builder, tmp_path):
    dataset = write_dataset(tmp_path / "data", lesioned=1)
    plain = builder.build(dataset).cases[0].gt_mask
    label = read_volume(dataset.scans[0].labels[0])
    flipped = label.affine @ np.array([[-1.0, 0, 0, label.shape[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    write_labelmap(
        dataset.scans[0].labels[0],
        label.data[0][::-1].astype(np.uint8),
        replace(label, affine=flipped, native=None),
    )
    np.testing.assert_array_equal(builder.build(dataset).cases[0].gt_mask, plain)


def test_a_label_of_another_grid_is_refused(builder, tmp_path):
    dataset = write_dataset(tmp_path / "data", lesioned=2)
    other, brain, _ = scan(person(1), shape=(30, 44, 36))
    write_labelmap(dataset.scans[0].labels[0], brain.mask.astype(np.uint8), other)
    made = builder.build(dataset)
    assert len(made.cases) == 1
    assert "on the grid of its scan" in made.skipped[0]["reason"]


def test_a_set_without_a_usable_scan_says_why(builder, tmp_path):
    with pytest.raises(EvaluationFailed, match="got none of 2, the first: expected"):
        builder.build(write_dataset(tmp_path / "data", lesioned=0, broken=2))


def test_a_set_is_another_when_a_scan_or_what_is_said_of_it_changes(builder, tmp_path):
    dataset = write_dataset(tmp_path / "data", lesioned=2)
    first = builder.build(dataset)
    fewer = builder.build(replace(dataset, scans=dataset.scans[:1]))
    older = replace(dataset, scans=(replace(dataset.scans[0], attributes={"age": 50}), dataset.scans[1]))
    assert len({first.key, fewer.key, builder.build(older).key}) == 3
    # Leaving a scan out later is the set that never had it.
    assert first.without([{"id": "s1", "stage": "analyse", "reason": "x"}]).key == fewer.key
    assert first.cases.references[0].path == fewer.cases.references[0].path


def test_scans_are_known_again_by_their_content(builder, tmp_path, no_alignment):
    dataset = write_dataset(tmp_path / "data", lesioned=1)
    builder.build(dataset)
    shutil.move(dataset.scans[0].image, tmp_path / "data" / "renamed.nii.gz")
    no_alignment()
    moved = replace(dataset.scans[0], image=tmp_path / "data" / "renamed.nii.gz")
    assert len(builder.build(replace(dataset, scans=(moved,))).cases) == 1


def test_lesions_are_implanted_into_healthy_scans(builder, tmp_path):
    dataset = write_dataset(tmp_path / "data", healthy=3, lesioned=0)
    shapes = tmp_path / "shapes"
    shapes.mkdir()
    # In the standard space of the shapes, at the brain's middle.
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (-32, -60, -30)
    ball = (np.linalg.norm(np.indices((40, 40, 40)) - 20, axis=0) < 9)[None]
    template = builder.template
    volume = replace(scan(person(1))[0], data=ball.astype(np.float32), affine=affine, native=None)
    write_labelmap(shapes / "sub-1_lesion.nii.gz", ball[0].astype(np.uint8), volume)
    dataset = replace(dataset, implants=ImplantRule(shapes, per_scan=2, contrast=(0.3, 0.4), seed=1))
    made = builder.build(dataset)
    assert (len(made.healthy), len(made.cases)) == (3, 6)
    first, healthy = made.cases[0], made.healthy[0]
    assert first.patient == healthy.patient
    assert first.source == healthy.id
    assert first.gt_mask.any()
    assert first.gt_mask.shape == template.shape
    assert 0.3 <= abs(first.details["contrast"]) <= 0.4
    gone = made.without([{"id": healthy.id, "stage": "analyse", "reason": "x"}])
    assert (len(gone.healthy), len(gone.cases)) == (2, 4)
    quick = SetBuilder(
        tmp_path / "cache", template=tmp_path / "template", extractor=SHIPPED_MODELS / "brain_extraction", quick=True
    ).build(dataset)
    assert len(quick.cases) == 2
    assert quick.key.endswith("-quick")


def test_slices_lie_at_their_level_and_left_stays_left(tmp_path):
    folder = DATA / "soop"
    pictures = sorted(folder.rglob("*.png"))
    if not pictures:
        pytest.skip("no sample slices")
    image = next(path for path in pictures if "mask" not in path.as_posix())
    scans = (DatasetScan("a", "a", image, healthy=True, brain="nonzero"),)
    dataset = Dataset("slices", "Slices", "flair", "CC0", folder, None, scans, True, 20.0)
    found = {}
    for left in (True, False):
        picture = Picture(pixel_mm=1.0, left_is_left=left)
        made = SetBuilder(tmp_path / "cache").build(replace(dataset, picture=picture))
        found[left] = made.healthy[0]
        assert made.level == 47
        assert found[left].gt_mask.shape[2] == 1
    one, other = found[True].prepared.image[0, ..., 0], found[False].prepared.image[0, ..., 0]
    # The template's middle lies between two voxels: one picture is the other's mirror image.
    assert np.corrcoef(one.ravel(), other[::-1].ravel())[0, 1] > 0.95
    assert np.corrcoef(one.ravel(), other[::-1].ravel())[0, 1] > np.corrcoef(one.ravel(), other.ravel())[0, 1]


def test_a_case_read_from_disk_is_the_one_that_was_written(builder, tmp_path):
    case = builder.build(write_dataset(tmp_path / "data", lesioned=1)).cases[0]
    save_case(tmp_path / "case.safetensors", case)
    again = load_case(tmp_path / "case.safetensors")
    np.testing.assert_allclose(again.prepared.image, case.prepared.image, atol=3e-4)
    for name in ("gt_mask", "counted"):
        np.testing.assert_array_equal(getattr(again, name), getattr(case, name))
    np.testing.assert_array_equal(again.prepared.brain_mask, case.prepared.brain_mask)
    (tmp_path / "case.safetensors").write_bytes(b"damaged")
    with pytest.raises(EvaluationFailed, match="remove the folder"):
        load_case(tmp_path / "case.safetensors")
