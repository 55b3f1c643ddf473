"""measured.json speaks of the weights it lies beside, or is not read."""

import pytest

from monailabel_app.weights.measured_file import MEASURED, read_measured, write_measured
from monailabel_app.weights.model_folder import result_hash, seal, verify, write_config


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "ddpm_t1"
    path.mkdir()
    write_config(path, {"method": "ddpm"})
    (path / "model.safetensors").write_bytes(b"weights")
    seal(path)
    return path


def test_it_is_read_back_and_changes_the_folder_but_not_its_results(folder):
    results, whole = result_hash(folder), verify(folder)
    write_measured(folder, {"result_hash": results, "warnings": []})
    seal(folder)
    assert read_measured(folder) == {"result_hash": results, "warnings": []}
    assert result_hash(folder) == results
    assert verify(folder) != whole


def test_measurements_of_other_weights_are_not_read(folder):
    write_measured(folder, {"result_hash": result_hash(folder)})
    (folder / "model.safetensors").write_bytes(b"others")
    seal(folder)
    assert read_measured(folder) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"result_hash": 1}'])
def test_a_file_that_is_none_counts_as_nothing_measured(folder, content):
    assert read_measured(folder) is None
    (folder / MEASURED).write_text(content)
    assert read_measured(folder) is None
