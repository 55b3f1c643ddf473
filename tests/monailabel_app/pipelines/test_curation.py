"""Curation of a folder: the odd image comes first with a box around what is odd, broken files are named and skipped."""

import csv
import json
from itertools import pairwise

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from monailabel_app.cli import app
from monailabel_app.errors import InvalidSettings, UnreadableVolume
from monailabel_app.io.geometry import voxel_to_mm
from monailabel_app.pipelines import predict
from monailabel_app.pipelines.curation import curate, list_images, native_box, write_csv, write_sheet
from monailabel_app.pipelines.predict import SHIPPED_MODELS, load_model
from monailabel_app.types import BrainMask, PreparedVolume
from tests.monailabel_app.synthetic import person, scan

from .conftest import HEALTHY

LESION_MM = (-10, 14, 8)
SOOP = SHIPPED_MODELS.parent / "tests" / "data" / "soop" / "flair"


class Stripped:
    """Stands in for the brain extraction, which knows human heads only: the files below are stripped."""

    @staticmethod
    def extract(volume):
        return BrainMask(volume.data[0] > 0, "given")


def write(path, seed, **changes):
    flipped = np.diag([-2.0, 2.0, 2.0, 1.0])
    flipped[:3, 3] = (35, -43, -35)
    volume, brain, lesion = scan(person(seed), affine=flipped, **changes)
    nib.save(nib.Nifti1Image(np.where(brain.mask, np.maximum(volume.data[0], 1), 0), volume.affine), path)
    return lesion


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four healthy scans, one with a lesion, one cut off, one that is no image, and files that are none of ours."""
    made = tmp_path_factory.mktemp("images")
    for seed in range(4):
        write(made / f"healthy{seed}.nii.gz", 700 + seed)
    write(made / "odd.nii.gz", 710, lesion_mm=LESION_MM, contrast=0.9)
    (made / "broken.nii.gz").write_bytes((made / "odd.nii.gz").read_bytes()[:600])
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(made / "photo.jpg")
    (made / "notes.txt").write_text("not an image")
    return made


@pytest.fixture
def load(make_model):
    def open_model(method_id):
        model = load_model(make_model(method_id).folder)
        model._extractors["cpu"] = Stripped()
        return model

    return open_model


@pytest.mark.parametrize("method_id", ["atlas_zscore", "ddpm"])
def test_the_odd_one_comes_first_with_a_box_around_its_lesion(load, folder, method_id):
    seen = []
    report = curate(folder, load(method_id), progress=lambda *now: seen.append(now))
    assert report.rows[0].file == "odd.nii.gz"
    assert len(report.rows) == 5
    first = report.rows[0]
    assert first.p_value == pytest.approx(1 / (HEALTHY + 1))
    assert report.healthy == HEALTHY
    assert all(row.anomaly_score >= other.anomaly_score for row, other in pairwise(report.rows))
    affine = nib.load(folder / "odd.nii.gz").affine
    middle = np.linalg.inv(affine) @ (*LESION_MM, 1)
    assert all(low - 4 <= at < high + 4 for low, at, high in zip(first.low, middle[:3], first.high, strict=True))
    assert np.linalg.norm(np.subtract(first.centre_mm, LESION_MM)[:2]) < 16
    assert {file for file, _ in report.refused} == {"broken.nii.gz", "photo.jpg"}
    assert all("expected" in reason for _, reason in report.refused)
    assert seen[-1] == (7, 7)
    json.dumps(report.to_json(), allow_nan=False)


def test_ranking_by_patch_follows_the_patch(load, folder):
    report = curate(folder, load("ddpm"), rank_by="patch", patch_score="mse", sheet_rows=2)
    patches = [row.patch_score for row in report.rows]
    assert patches == sorted(patches, reverse=True)
    assert list(report.panels) == [row.file for row in report.rows[:2]]
    assert all(row.patch_p_value is None for row in report.rows)


def test_given_healthy_images_are_what_the_p_values_compare_with(load, folder, tmp_path):
    for seed in range(3):
        write(tmp_path / f"h{seed}.nii.gz", 720 + seed)
    (tmp_path / "broken.nii.gz").write_bytes(b"nothing")
    report = curate(folder, load("atlas_zscore"), healthy=tmp_path)
    assert report.healthy == 3
    assert report.rows[0].p_value == 0.25
    assert {round(4 * row.patch_p_value) for row in report.rows} <= {1, 2, 3, 4}
    for seed in range(3):
        (tmp_path / f"h{seed}.nii.gz").unlink()
    with pytest.raises(InvalidSettings, match="healthy images"):
        curate(folder, load("atlas_zscore"), healthy=tmp_path)


def test_the_box_on_the_images_own_grid_covers_the_models():
    """A model grid of 2 mm over an image of 1 mm, flipped in x and shifted."""
    native = np.diag([-1.0, 1.0, 1.0, 1.0])
    native[:3, 3] = (50, -20, -10)
    grid = np.diag([2.0, 2.0, 2.0, 1.0])
    grid[:3, 3] = (-30, -19, -9)
    shift = np.eye(4)
    shift[:3, 3] = (5, 0, 0)
    prepared = PreparedVolume(
        image=np.zeros((1, 20, 20, 10), np.float32),
        brain_mask=np.ones((20, 20, 10), bool),
        model_affine=grid,
        native_to_template=shift,
        native_affine=native,
        native_shape=(60, 40, 20),
        native_brain_mask=np.ones((60, 40, 20), bool),
    )
    low, high, centre = native_box(prepared, (4, 2, 3), (7, 5, 4))
    # Template x from -23 to -17, native RAS x from -28 to -22: voxels 72 to 78, beyond the image's sixty.
    assert centre == pytest.approx((-25, -13, -3))
    assert (low[0], high[0]) == (59, 60)
    # y from -16 to -10 lies between the edges of voxels 4 and 9 (edge -16 is at 3.5), z from -4 to -2.
    assert (low[1], high[1]) == (4, 11)
    assert (low[2], high[2]) == (6, 9)
    inside = voxel_to_mm(native, np.array([[60, 6, 7]]))[0]
    assert (np.abs(inside[1:] - centre[1:]) < 3).all()


def test_table_and_sheet_tell_everything(load, folder, tmp_path):
    report = curate(folder, load("ddpm"), sheet_rows=3)
    write_csv(report, tmp_path / "out.csv")
    with (tmp_path / "out.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["rank"] for line in lines] == ["1", "2", "3", "4", "5", "", ""]
    assert [line["status"] for line in lines] == ["analysed"] * 5 + ["refused"] * 2
    assert lines[0]["file"] == "odd.nii.gz"
    assert int(lines[0]["x0"]) < int(lines[0]["x1"])
    assert "expected" in lines[-1]["remark"]
    assert write_sheet(report, tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as sheet:
        assert sheet.size[1] > 3 * 2 * 40  # three rows of slices forty voxels high, twice enlarged
    panel = report.panels["odd.nii.gz"]
    assert panel.image.shape == (32, 40)
    assert panel.box[2] - panel.box[0] == 12


def test_only_files_of_the_pattern_are_looked_at(folder, tmp_path):
    assert [p.name for p in list_images(folder, "healthy[01]*")] == ["healthy0.nii.gz", "healthy1.nii.gz"]
    assert "notes.txt" not in {p.name for p in list_images(folder)}
    with pytest.raises(UnreadableVolume, match="found"):
        list_images(tmp_path)
    with pytest.raises(UnreadableVolume, match="folder"):
        list_images(tmp_path / "missing")


def test_bad_settings_are_refused(load, folder):
    model = load("atlas_zscore")
    with pytest.raises(InvalidSettings, match="score, patch"):
        curate(folder, model, rank_by="size")
    with pytest.raises(InvalidSettings, match="at least 2 mm"):
        curate(folder, model, patch_mm=0.5)


def test_the_command_writes_table_and_sheet(load, folder, tmp_path, monkeypatch, make_model):
    model = load("atlas_zscore")
    monkeypatch.setattr(predict, "load_model", lambda folder: model)
    arguments = ["curate", folder, "--model", make_model("atlas_zscore").folder, "--out", tmp_path / "found.csv"]
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    assert "5 analysed, 2 refused" in result.output
    assert result.output.index("odd.nii.gz") < result.output.index("healthy0.nii.gz")
    assert (tmp_path / "found.csv").is_file()
    assert (tmp_path / "found.png").is_file()
    told = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert json.loads(told.stdout)["rows"][0]["file"] == "odd.nii.gz"


@pytest.mark.skipif(not (SHIPPED_MODELS / "intensity_flair").is_dir(), reason="the shipped model is not there")
def test_pictures_of_single_slices_are_ranked_by_a_model_of_slices():
    report = curate(SOOP, load_model(SHIPPED_MODELS / "intensity_flair"))
    assert not report.refused
    assert len(report.rows) == len(list(SOOP.glob("*.png")))
    for row in report.rows:
        assert (row.low[2], row.high[2]) == (0, 1)
        assert any("orientation" in warning for warning in row.warnings)
