"""Model folders: every file is checked, by name, and the weights come back."""

import pytest
import torch

from monailabel_app.errors import CorruptModel
from monailabel_app.weights.model_folder import (
    SUMS,
    open_model_folder,
    seal,
    sha256_of,
    verify,
    write_config,
    write_weights,
)

FILES = ("config.yaml", "model.safetensors", "card.md", "calibration.json")


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "ddpm_t1"
    path.mkdir()
    write_config(path, {"method": "ddpm", "config": {"levels": [0.7]}})
    write_weights(path, {"layer.weight": torch.randn(40, 3, generator=torch.Generator().manual_seed(0))})
    (path / "card.md").write_text("# card\n")
    (path / "calibration.json").write_text("{}\n")
    seal(path)
    return path


def test_a_sealed_folder_opens(folder):
    opened = open_model_folder(folder)
    assert opened.id == "ddpm_t1"
    assert opened.config["config"] == {"levels": [0.7]}
    assert opened.hash == verify(folder)


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_byte_in_any_file_is_refused_naming_the_file(folder, name):
    content = bytearray((folder / name).read_bytes())
    for at in (0, len(content) // 2, len(content) - 1):
        content[at] ^= 1
        (folder / name).write_bytes(content)
        with pytest.raises(CorruptModel, match=name):
            open_model_folder(folder)
        content[at] ^= 1


def test_a_flipped_byte_anywhere_in_the_checksum_list_is_noticed(folder):
    content = (folder / SUMS).read_bytes()
    whole = verify(folder)
    refused = 0
    for at in range(0, len(content), 5):
        changed = bytearray(content)
        changed[at] ^= 1 << (at % 8)
        (folder / SUMS).write_bytes(changed)
        try:
            assert verify(folder) != whole, f"byte {at}"
        except CorruptModel:
            refused += 1
    assert refused >= len(content) // 5 - 1


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused_naming_it(folder, name):
    (folder / name).unlink()
    with pytest.raises(CorruptModel, match=f"{name}.*missing"):
        open_model_folder(folder)


def test_a_folder_without_a_checksum_list_is_refused(folder):
    (folder / SUMS).unlink()
    with pytest.raises(CorruptModel, match=SUMS):
        open_model_folder(folder)


@pytest.mark.parametrize("text", ["", "\n\n", "not a checksum\n", "abc  config.yaml\n"])
def test_a_list_that_is_none_is_refused(folder, text):
    (folder / SUMS).write_text(text)
    with pytest.raises(CorruptModel, match="sha256"):
        open_model_folder(folder)


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors"])
def test_weights_and_settings_must_be_listed(folder, name):
    kept = [line for line in (folder / SUMS).read_text().splitlines() if not line.endswith(name)]
    (folder / SUMS).write_text("\n".join(kept) + "\n")
    with pytest.raises(CorruptModel, match=f"checksum of {name}"):
        open_model_folder(folder)


@pytest.mark.parametrize("text", ["- a list\n", "a: [1\n", "!!python/object/apply:os.getcwd []\n"])
def test_a_configuration_that_is_no_mapping_is_refused_and_never_run(folder, text):
    (folder / "config.yaml").write_text(text)
    seal(folder)
    with pytest.raises(CorruptModel, match=r"config\.yaml"):
        open_model_folder(folder)


def test_weights_that_are_no_safetensors_are_refused(folder):
    (folder / "model.safetensors").write_bytes(b"\x80\x04pickle")
    seal(folder)
    with pytest.raises(CorruptModel, match="readable weights"):
        open_model_folder(folder).weights()


def test_weights_come_back_in_float32_within_bfloat16_rounding(folder):
    values = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    back = open_model_folder(folder).weights()["layer.weight"]
    assert back.dtype == torch.float32
    assert torch.equal(back, values.bfloat16().float())
    assert ((back - values).abs() <= values.abs() / 256 + 1e-30).all()


def test_integers_and_views_are_stored_as_they_are(tmp_path):
    base = torch.arange(12).reshape(3, 4)
    write_config(tmp_path, {})
    write_weights(tmp_path, {"steps": base.T, "scalar": torch.tensor(7)})
    seal(tmp_path)
    back = open_model_folder(tmp_path).weights()
    assert torch.equal(back["steps"], base.T)
    assert back["scalar"].dtype == torch.int64


def test_the_hash_names_the_content(folder):
    first = verify(folder)
    assert seal(folder) == first
    (folder / "calibration.json").write_text('{"a": 1}\n')
    assert seal(folder) != first


def test_the_list_holds_the_usual_checksum_lines(folder):
    lines = (folder / SUMS).read_text().splitlines()
    assert lines == [f"{sha256_of(folder / name)}  {name}" for name in sorted(FILES)]
