"""What is wrong with a command is told as a sentence, before minutes of work, and not as a traceback."""

import errno

import pytest
import torch
import typer
from typer.testing import CliRunner

from monailabel_app import cli
from monailabel_app.errors import InvalidSettings
from monailabel_app.pipelines import predict as pipeline
from monailabel_app.pipelines.option_checks import checked_output, known_device, of_the_disk

ENDINGS = (".nii.gz", ".nrrd")


def call(*arguments):
    return CliRunner().invoke(cli.app, [str(word) for word in arguments])


@pytest.fixture
def nothing_is_analysed(monkeypatch):
    monkeypatch.setattr(pipeline, "load_model", lambda folder: pytest.fail("the analysis was begun"))


@pytest.mark.parametrize(
    "command",
    [
        ("predict", "scan.nii.gz"),
        ("train", "ddpm", "--data", "."),
        ("calibrate", "--model", "ddpm_t1", "--healthy", "."),
        ("evaluate", "--models", "all", "--data", "."),
        ("selftest", "--model", "ddpm_t1", "--healthy", "."),
        ("curate", "."),
    ],
)
@pytest.mark.parametrize("device", ["cuda", "gpu"])
def test_a_device_that_is_not_there_is_a_sentence(command, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("COLUMNS", "300")
    done = call(*command, "--device", device)
    assert done.exit_code == 2
    assert "--device" in done.output
    assert ("doctor" if device == "cuda" else "expected cpu, cuda") in done.output


def test_a_device_that_is_there_is_taken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [known_device(name) for name in ("cpu", "auto", "cuda", "cuda:1", None)] == [
        *("cpu", "auto", "cuda", "cuda:1"),
        None,
    ]
    with pytest.raises(typer.BadParameter, match="cuda:2: there is 2 CUDA devices here"):
        known_device("cuda:2")


def test_a_result_that_could_not_be_written_is_told_before_the_analysis(tmp_path, nothing_is_analysed):
    (tmp_path / "file").write_text("")
    scan = tmp_path / "scan.nii.gz"
    scan.write_bytes(b"1")
    for option in ("--mask", "--map"):
        done = call("predict", scan, option, tmp_path / "result.png")
        assert done.exit_code == 2, done.output
        assert "expected a file name ending in one of .nii.gz" in done.output
        assert "'result.png'" in done.output
        done = call("predict", scan, option, tmp_path / "file/mask.nii.gz")
        assert done.exit_code == 2, done.output
        assert "what should be a folder is a file" in done.output


def test_the_folder_of_a_result_is_made(tmp_path):
    checked_output(tmp_path / "new/er/mask.nrrd", ENDINGS)
    assert (tmp_path / "new/er").is_dir()
    assert not list((tmp_path / "new/er").iterdir())
    checked_output(None, ENDINGS)
    (tmp_path / "taken.nrrd").mkdir()
    with pytest.raises(IsADirectoryError):
        checked_output(tmp_path / "taken.nrrd", ENDINGS)
    with pytest.raises(InvalidSettings):
        checked_output(tmp_path / "mask.jpg", ENDINGS)


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "free some space"), (errno.EROFS, "choose a place"), (errno.ENOENT, "check the path")],
)
def test_what_a_disk_refuses_is_one_line_that_says_what_to_do(number, advice, tmp_path, monkeypatch):
    def refuse(folder):
        raise OSError(number, "refused", str(tmp_path / ".writing-0123.nii.gz"))

    monkeypatch.setattr(pipeline, "load_model", refuse)
    done = call("predict", tmp_path / "scan.nii.gz", "--model", "ddpm_t1")
    assert done.exit_code == 2
    line = done.output.strip()
    assert "\n" not in line
    assert f"refused: {tmp_path}; {advice}" in line
    assert ".writing" not in line


def test_an_error_without_a_name_or_number_is_told_as_it_is():
    assert of_the_disk(ConnectionResetError()).startswith("ConnectionResetError; try again")
