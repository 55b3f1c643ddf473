"""A model from outside is looked through before anything in it is built, and only a whole, safe one is published."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from monailabel_app.errors import AnomalyAppError, InvalidSettings
from monailabel_app.pipelines.uploaded_model import check_folder, publish_upload
from monailabel_app.weights.model_folder import seal
from monailabel_app.weights.version_layout import current

SHIPPED = Path(__file__).resolve().parents[3] / "model_weights" / "intensity_flair"


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(SHIPPED, tmp_path / "upload"))


def change(folder, **values):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, **values}))


def test_a_folder_that_this_app_wrote_is_published_and_serves_under_a_new_name(folder, tmp_path):
    root = tmp_path / "app"
    version = publish_upload(root, "guest_flair", folder)
    assert (version.version, version.serving) == ("0001", True)
    assert current(root, "guest_flair") == version.folder
    assert {path.name for path in version.folder.iterdir()} == {path.name for path in SHIPPED.iterdir()}


def test_a_second_version_waits_to_be_promoted(folder, tmp_path):
    root = tmp_path / "app"
    first = publish_upload(root, "guest_flair", Path(shutil.copytree(folder, tmp_path / "again")))
    second = publish_upload(root, "guest_flair", folder)
    assert (second.version, second.serving) == ("0002", False)
    assert current(root, "guest_flair") == first.folder


def truncated(folder):
    path = folder / "calibration.safetensors"
    path.write_bytes(path.read_bytes()[:-40])


def not_a_number(folder):
    values = load_file(folder / "calibration.safetensors")
    name = next(name for name, value in values.items() if value.is_floating_point())
    values[name] = torch.full_like(values[name], float("nan"))
    save_file(values, folder / "calibration.safetensors")


def no_deviation(folder):
    values = load_file(folder / "calibration.safetensors")
    name = next(name for name in values if name.endswith("/std"))
    values[name] = values[name].clone()
    values[name].view(-1)[3] = 0
    save_file(values, folder / "calibration.safetensors")


def with_threshold(text):
    def spoil(folder):
        content = (folder / "calibration.json").read_text()
        (folder / "calibration.json").write_text(re.sub(r'"threshold": [0-9.]+', f'"threshold": {text}', content))

    return spoil


def pickled(folder):
    torch.save({"weight": torch.zeros(3)}, folder / "model.safetensors")


def of_another_grid(folder):
    values = load_file(folder / "calibration.safetensors")
    values = {name: value[[1, 0, 2]] if name.endswith("/shape") else value for name, value in values.items()}
    save_file(values, folder / "calibration.safetensors")


def without_a_smoothing(folder):
    record = json.loads((folder / "calibration.json").read_text())
    for entry in record["scores"].values():
        del entry["scan_scores"]["strong"]
    (folder / "calibration.json").write_text(json.dumps(record))


BROKEN = {
    "maps of another grid": (of_another_grid, "calibration maps of"),
    "no scores of a smoothing": (without_a_smoothing, "smoothing 'strong'"),
    "a setting of another kind": (lambda folder: change(folder, config={"bins": 256.5}), "expected int for bins"),
    "a deviation of zero": (no_deviation, "deviations above zero in calibration.safetensors"),
    "a threshold that is no number": (with_threshold("NaN"), "finite numbers in calibration.json"),
    "a threshold beyond all numbers": (with_threshold("1e999"), "finite numbers in calibration.json"),
    "a program as weights": (lambda folder: (folder / "model.pt").write_bytes(b"\x80\x04"), "model.pt"),
    "an extra file": (lambda folder: (folder / "notes.txt").write_text("x"), "notes.txt"),
    "code": (lambda folder: (folder / "network.py").write_text("import os"), "network.py"),
    "a folder": (lambda folder: (folder / "more").mkdir(), "more"),
    "no calibration": (lambda folder: (folder / "calibration.json").unlink(), "calibration.json missing"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors missing"),
    "a pickle under another name": (pickled, "safetensors format"),
    "truncated tensors": (truncated, "safetensors format"),
    "numbers that are none": (not_a_number, "finite numbers"),
    "another kind": (lambda folder: change(folder, kind="template"), "kind: anomaly"),
    "an unknown method": (lambda folder: change(folder, method="os.system"), "os.system"),
    "a huge network": (
        lambda folder: change(folder, method="ddpm", config={"network": {"channels": [4096, 4096, 4096]}}),
        "expected",
    ),
    "an endless network": (
        lambda folder: change(folder, method="ddpm", config={"network": {"blocks": 10**6}}),
        "whole numbers up to 4096",
    ),
    "an unknown setting": (lambda folder: change(folder, config={"command": "rm"}), "command"),
    "a huge number": (lambda folder: change(folder, prior_scans=1e300), "numbers up to"),
    "references in yaml": (
        lambda folder: (folder / "config.yaml").write_text(
            "a: &a [x, x]\nb: &b [*a, *a]\n" + (folder / "config.yaml").read_text()
        ),
        "reference",
    ),
    "a python object in yaml": (
        lambda folder: (folder / "config.yaml").write_text("kind: !!python/object/apply:os.system ['true']\n"),
        "reference or a tag",
    ),
    "yaml of many levels": (lambda folder: (folder / "config.yaml").write_text("[" * 500 + "]" * 500), "levels"),
    "json of many levels": (
        lambda folder: (folder / "measured.json").write_text("[" * 100_000 + "]" * 100_000),
        "refused",
    ),
    "a long card": (lambda folder: (folder / "card.md").write_text("x" * (9 * 2**20)), "card.md of at most"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_not_a_whole_safe_model_is_refused_by_name(folder, tmp_path, kind):
    spoil, reason = BROKEN[kind]
    spoil(folder)
    if not (folder / "more").exists():
        seal(folder, [])
    with pytest.raises(InvalidSettings, match=reason):
        publish_upload(tmp_path / "app", "guest", folder)
    assert not (tmp_path / "app").exists()


def test_a_changed_file_that_the_checksums_do_not_name_is_refused(folder):
    change(folder, description="another")
    with pytest.raises(InvalidSettings, match=r"config\.yaml with sha256"):
        check_folder(folder)


@pytest.mark.parametrize("name", ["template", "brain_extraction", "../x", "a/b", ".hidden", "", "x" * 65])
def test_names_of_the_apps_own_folders_are_refused(folder, tmp_path, name):
    with pytest.raises(AnomalyAppError):
        publish_upload(tmp_path / "app", name, folder)
