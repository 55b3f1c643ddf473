"""A model is found by folder, by name (what serves) or by name and version, with its template wherever it lies."""

import pytest
import torch

from monailabel_app.errors import UnknownModel
from monailabel_app.pipelines.find_model import companion, find_model, list_model_folders
from monailabel_app.weights.model_folder import seal, write_config, write_weights
from monailabel_app.weights.versions import new_staging, publish, rollback

NAME = "ddpm_t1"


def write_model(folder):
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, {"kind": "anomaly", "method": "ddpm"})
    write_weights(folder, {"w": torch.zeros(2)})
    (folder / "calibration.json").write_text("{}")
    seal(folder)
    return folder


@pytest.fixture
def root(tmp_path):
    write_model(tmp_path / "model_weights" / NAME)
    (tmp_path / "model_weights" / "template").mkdir()
    for _ in range(2):
        publish(tmp_path, NAME, write_model(new_staging(tmp_path, NAME)), promote=True)
    return tmp_path


def test_a_name_is_what_serves_and_a_version_need_not_serve(root):
    folders = root / "model" / NAME / "versions"
    assert find_model(NAME, root) == folders / "0002"
    assert find_model(f"{NAME}@0001", root) == find_model(f"{NAME}@1", root) == folders / "0001"
    assert find_model(f"{NAME}@shipped", root) == root / "model_weights" / NAME
    rollback(root, NAME)
    assert find_model(NAME, root) == folders / "0001"
    assert list_model_folders(root) == [folders / "0001"]


@pytest.mark.parametrize("name", [f"{NAME}@0007", "other", "other@1", "../x@1"])
def test_what_is_not_there_is_refused(root, name):
    with pytest.raises(UnknownModel):
        find_model(name, root)


def test_the_template_of_a_version_is_the_shipped_one_unless_one_lies_beside_the_model(root):
    for folder in (
        find_model(NAME, root),
        new_staging(root, NAME),
        root / "model_weights" / NAME,
        root / "model" / "a",
    ):
        assert companion(folder, "template") == root / "model_weights" / "template"
    (root / "model" / "template").mkdir()
    assert companion(find_model(NAME, root), "template") == root / "model" / "template"
