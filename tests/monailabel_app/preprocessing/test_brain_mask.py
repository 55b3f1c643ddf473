"""Brain masks: on the scan's own grid whatever that is, honest about what no brain can be, kept if given."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from monailabel_app.errors import BrainNotFound, CorruptModel, InvalidSettings, InvalidVolume
from monailabel_app.io.geometry import grid_around, reorient, resample
from monailabel_app.io.images import read_volume
from monailabel_app.preprocessing.brain_mask import BrainExtractor, largest_filled
from monailabel_app.types import Volume

SHIPPED = Path(__file__).resolve().parents[3] / "model_weights" / "brain_extraction"
CONFIG = {"spacing_mm": 2.0, "network": {"strides": [2, 2]}}
HEAD, BRAIN = 78.0, 64.0  # radii in mm; 1.1 litres of brain


class Threshold(torch.nn.Module):
    """Calls everything above 60 % of the brightest grey value brain."""

    def forward(self, x):
        score = 40 * (x - 0.6)
        return torch.cat([-score, score], 1)


@pytest.fixture(scope="module")
def extractor():
    return BrainExtractor(Threshold(), CONFIG)


def sphere_head(shape=(84, 84, 84), affine=None, brain=BRAIN, head=HEAD, centre=(0.0, 0.0, 0.0)):
    """A bright ball (brain) in a dim ball (head) in noise, around ``centre`` in RAS mm."""
    if affine is None:
        affine = np.diag([2.0, 2.0, 2.0, 1.0])
        affine[:3, 3] = -np.array(shape) + 1.0
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    radius = np.linalg.norm(index @ affine[:3, :3].T + affine[:3, 3] - np.array(centre), axis=-1)
    data = 5 * np.random.default_rng(0).random(shape)
    data[radius < head] += 300
    data[radius < brain] += 700
    return Volume(data.astype(np.float32)[None], affine), radius < brain


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_mask_is_on_the_native_grid_and_right(extractor):
    volume, brain = sphere_head()
    found = extractor.extract(volume)
    assert found.mask.shape == volume.shape
    assert found.mask.dtype == bool
    assert found.method == "network"
    assert found.warnings == ()
    assert dice(found.mask, brain) > 0.98


@pytest.mark.parametrize("codes", ["LPS", "PIR", "SAL"])
def test_voxel_order_does_not_change_the_mask(extractor, codes):
    volume, _ = sphere_head()
    plain = extractor.extract(volume).mask
    data, affine = reorient(volume.data[0], volume.affine, codes)
    mask = extractor.extract(Volume(np.ascontiguousarray(data)[None], affine)).mask
    assert np.array_equal(mask, reorient(plain, volume.affine, codes)[0])


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (0.8, 0.8, 6.0), (4.0, 3.0, 5.0)])
def test_any_voxel_size_gives_a_mask_of_that_voxel_size(extractor, spacing):
    plain, _ = sphere_head()
    shape, affine = grid_around(plain.shape, plain.affine, spacing)
    volume, brain = sphere_head(shape, affine)
    found = extractor.extract(volume)
    assert found.mask.shape == shape
    assert dice(found.mask, brain) > 0.94


def test_an_oblique_grid_gives_the_same_brain(extractor):
    angle = np.deg2rad(25)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine[:3, :3] *= 2.0
    affine[:3, 3] = -affine[:3, :3] @ np.full(3, 41.5)
    volume, brain = sphere_head(affine=affine)
    assert dice(extractor.extract(volume).mask, brain) > 0.97


def test_a_distant_bright_object_and_a_cavity_do_not_end_up_in_the_mask(extractor):
    volume, brain = sphere_head()
    data = volume.data.copy()
    data[0, :6, :6, :6] = 1000
    data[0, 40:44, 40:44, 40:44] = 100
    mask = extractor.extract(Volume(data, volume.affine)).mask
    assert not mask[:6, :6, :6].any()
    assert mask[40:44, 40:44, 40:44].all()
    assert dice(mask, brain) > 0.98


def test_a_brain_too_small_or_too_large_is_refused_with_its_volume(extractor):
    with pytest.raises(BrainNotFound, match=r"found \d+ ml"):
        extractor.extract(sphere_head(brain=40.0)[0])
    with pytest.raises(BrainNotFound, match="2300 ml, found 2"):
        extractor.extract(sphere_head((100, 100, 100), brain=88.0, head=97.0)[0])


def test_a_brain_cut_by_the_field_of_view_is_a_warning(extractor):
    volume, brain = sphere_head()
    affine = volume.affine.copy()
    affine[2, 3] += 2 * 42
    found = extractor.extract(Volume(volume.data[..., 42:60], affine))
    assert "field of view" in found.warnings[0]
    assert dice(found.mask, brain[..., 42:60]) > 0.96


@pytest.mark.parametrize(
    "data",
    [np.full((1, 20, 20, 20), 7.0), np.zeros((2, 20, 20, 20)), np.full((1, 20, 20, 20), np.nan)],
    ids=["constant", "two channels", "nan"],
)
def test_what_cannot_be_analysed_is_refused(extractor, data):
    with pytest.raises(InvalidVolume):
        extractor.extract(Volume(data.astype(np.float32), np.eye(4)))


def test_a_voxel_size_no_scanner_has_is_refused_before_it_costs_memory(extractor):
    volume, _ = sphere_head()
    with pytest.raises(InvalidVolume, match="voxel size"):
        extractor.extract(Volume(volume.data, np.diag([2000.0, 2000.0, 2000.0, 1.0])))


def test_a_stripped_scan_keeps_the_mask_it_came_with(extractor):
    volume, brain = sphere_head()
    brain = brain & (np.arange(84)[:, None, None] > 20)
    for background in (0.0, -3.5):
        data = np.where(brain, volume.data[0], np.float32(background))[None]
        found = extractor.extract(Volume(data, volume.affine))
        assert found.method == "already_stripped"
        assert np.array_equal(found.mask, brain)
        assert extractor.extract(Volume(data, volume.affine), recognise_stripped=False).method == "network"


def test_a_head_in_constant_background_is_not_taken_for_a_stripped_brain(extractor):
    volume, brain = sphere_head((100, 100, 100), head=80.0)
    data = np.where(volume.data > 100, volume.data, 0)
    found = extractor.extract(Volume(data, volume.affine))
    assert found.method == "network"
    assert dice(found.mask, brain) > 0.98


def test_unknown_and_missing_backends_say_what_to_do(extractor, monkeypatch):
    volume, _ = sphere_head((20, 20, 20))
    with pytest.raises(InvalidSettings, match="network"):
        extractor.extract(volume, backend="magic")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InvalidSettings, match="pip install hd-bet"):
        extractor.extract(volume, backend="hd_bet")


def test_hd_bet_is_called_through_its_command_line(extractor, monkeypatch, tmp_path):
    volume, brain = sphere_head()
    parameters = tmp_path / "hd-bet_params" / "release_2.0.0" / "fold_all"
    parameters.mkdir(parents=True)
    program = tmp_path / "hd-bet"
    program.write_text(
        "#!/usr/bin/env python3\n"
        "import sys, nibabel as nib\n"
        "a = dict(zip(sys.argv[1::2], sys.argv[2::2]))\n"
        "image = nib.load(a['-i'])\n"
        "mask = (image.get_fdata() > 600).astype('uint8')\n"
        "nib.save(nib.Nifti1Image(mask, image.affine), a['-o'][:-7] + '_bet.nii.gz')\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InvalidSettings, match="parameters"):
        extractor.extract(volume, backend="hd_bet")
    (parameters / "checkpoint_final.pth").touch()
    found = extractor.extract(volume, backend="hd_bet")
    assert found.method == "hd_bet"
    assert np.array_equal(found.mask, brain)
    program.write_text("#!/bin/sh\necho out of memory >&2\nexit 1\n")
    with pytest.raises(BrainNotFound, match="out of memory"):
        extractor.extract(volume, backend="hd_bet")


def test_largest_filled_keeps_one_part_without_cavities():
    mask = np.zeros((12, 12, 12), bool)
    mask[2:9, 2:9, 2:9] = True
    mask[4:6, 4:6, 4:6] = False
    mask[10:, 10:, 10:] = True
    expected = np.zeros_like(mask)
    expected[2:9, 2:9, 2:9] = True
    assert np.array_equal(largest_filled(mask), expected)
    assert not largest_filled(np.zeros((3, 3, 3), bool)).any()


def test_a_damaged_model_folder_is_named(tmp_path):
    for name in ("config.yaml", "model.safetensors", "sha256sums.txt"):
        (tmp_path / name).write_bytes((SHIPPED / name).read_bytes())
    BrainExtractor.load(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptModel, match="sha256"):
        BrainExtractor.load(tmp_path)
    weights.unlink()
    with pytest.raises(CorruptModel, match=r"model\.safetensors"):
        BrainExtractor.load(tmp_path)


@pytest.fixture(scope="module")
def shipped():
    return BrainExtractor.load(SHIPPED)


def test_the_shipped_model_finds_the_brain_of_a_whole_head(shipped, healthy_scan):
    volume = read_volume(healthy_scan)
    found = shipped.extract(volume)
    assert found.method == "network"
    assert 1000 < found.mask.sum() * volume.voxel_volume_mm3 / 1000 < 1800
    # and the same one in an inverted contrast, where air stays dark
    data = np.where(volume.data > 0.1 * volume.data.max(), volume.data.max() - volume.data, 0)
    assert dice(shipped.extract(Volume(data, volume.affine)).mask, found.mask) > 0.85


def test_the_shipped_model_recognises_stripped_scans(shipped):
    for name in ("mslub_t1_2mm", "mslub_flair_2mm"):
        volume = read_volume(SHIPPED.parents[1] / "tests" / "data" / f"{name}.nii.gz")
        found = shipped.extract(volume)
        assert found.method == "already_stripped"
        assert np.array_equal(found.mask, largest_filled(volume.data[0] != 0))


def test_the_shipped_model_finds_no_brain_in_noise(shipped):
    noise = np.random.default_rng(0).random((1, 64, 64, 64)).astype(np.float32)
    with pytest.raises(BrainNotFound):
        shipped.extract(Volume(noise, np.diag([3.0, 3.0, 3.0, 1.0])))


def test_thick_slices_give_nearly_the_mask_of_thin_ones(shipped, healthy_scan):
    volume = read_volume(healthy_scan)
    plain = shipped.extract(volume).mask
    codes_volume, affine = reorient(volume.data[0], volume.affine)
    shape, grid = grid_around(codes_volume.shape, affine, (1.0, 1.0, 6.0))
    thick = shipped.extract(Volume(resample(codes_volume, affine, shape, grid)[None], grid)).mask
    back = resample(thick.astype(np.float32), grid, volume.shape, volume.affine) > 0.5
    assert dice(back, plain) > 0.93


def test_a_scan_of_a_few_centimetres_has_no_brain_and_says_so(extractor):
    data = np.random.default_rng(0).uniform(1, 900, (1, 20, 21, 22)).astype(np.float32)
    with pytest.raises(BrainNotFound, match="found"):
        extractor.extract(Volume(data, np.eye(4)))
