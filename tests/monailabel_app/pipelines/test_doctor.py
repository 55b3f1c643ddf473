"""The doctor finds each fault it knows of, says how to mend it, and is content with a sound installation."""

import hashlib
import io
import json
import os
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from monailabel_app import cli
from monailabel_app.pipelines import doctor, launcher
from monailabel_app.pipelines.doctor import Check

ROOT = Path(doctor.__file__).resolve().parents[2]


def by_name(checks):
    return {check.name: check for check in checks}


def write_model(folder: Path, content: bytes = b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    (folder / "sha256sums.txt").write_text(f"{digest}  model.safetensors\n")
    return folder


@pytest.mark.parametrize(
    ("version", "status"), [((3, 9), "fault"), ((3, 10), "ok"), ((3, 12), "ok"), ((3, 13), "fault")]
)
def test_only_the_pinned_pythons_are_accepted(version, status):
    assert doctor.check_python(version).status == status


# --- packages ---


def write_pins(folder: Path, text: str) -> Path:
    (folder / "requirements.txt").write_text(text)
    return folder


def test_pins_are_read_without_comments_and_from_both_files(tmp_path):
    write_pins(tmp_path, "# numpy==9\nnumpy==1.26.4   # why\nscipy==1.15.3; python_version < '3.11'\n")
    (tmp_path / "requirements-nodeps.txt").write_text("monailabel==0.8.5\n")
    assert doctor.pins(tmp_path) == {"numpy": "1.26.4", "scipy": "1.15.3", "monailabel": "0.8.5"}


def test_every_requirement_line_of_the_app_is_an_exact_pin():
    for name in ("requirements.txt", "requirements-nodeps.txt", "requirements-dev.txt"):
        for line in (ROOT / name).read_text().splitlines():
            requirement = line.split("#")[0].strip()
            assert not requirement or "==" in requirement, f"{name}: {line}"


def test_a_package_that_is_not_installed_is_a_fault(tmp_path):
    [check] = doctor.check_packages(write_pins(tmp_path, "no-such-package-here==1.0\n"))
    assert check.status == "fault"
    assert "not installed" in check.found
    assert "make setup" in check.mend


def test_a_version_other_than_the_tested_one_is_a_warning(tmp_path):
    [check] = doctor.check_packages(write_pins(tmp_path, "pytest==0.1\n"))
    assert (check.status, check.name) == ("warning", "package versions")
    assert f"pytest {metadata.version('pytest')} (tested: 0.1)" in check.found


def test_a_version_known_to_break_monai_label_is_a_fault_even_when_pinned(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "3.0.1")
    [check] = doctor.check_packages(write_pins(tmp_path, "pydicom==3.0.1\n"))
    assert check.status == "fault"
    assert "pydicom-seg" in check.found


def test_a_local_build_of_the_tested_version_is_fine(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "2.13.0+cpu")
    [check] = doctor.check_packages(write_pins(tmp_path, "torch==2.13.0\n"))
    assert check.status == "ok"


def test_missing_requirement_files_are_a_fault(tmp_path):
    [check] = doctor.check_packages(tmp_path)
    assert check.status == "fault"


def test_an_import_that_fails_is_a_fault_that_quotes_the_reason(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "Traceback ...\nImportError: no _storage_sopclass_uids\n")
    monkeypatch.setattr(doctor.subprocess, "run", lambda *args, **kwargs: failed)
    check = doctor.check_monai_label()
    assert check.status == "fault"
    assert "no _storage_sopclass_uids" in check.found


# --- weights ---


def test_a_sound_model_folder_has_no_fault(tmp_path):
    assert doctor.folder_faults(write_model(tmp_path / "ddpm")) == []


def test_a_changed_byte_is_found(tmp_path):
    folder = write_model(tmp_path / "ddpm")
    (folder / "model.safetensors").write_bytes(b"weightS")
    assert doctor.folder_faults(folder) == ["model.safetensors differs from its recorded hash"]


def test_a_missing_file_is_found(tmp_path):
    folder = write_model(tmp_path / "ddpm")
    (folder / "model.safetensors").unlink()
    assert doctor.folder_faults(folder) == ["model.safetensors is missing"]


@pytest.mark.parametrize("line", ["", "not a hash  model.safetensors", f"{'0' * 64}  ../outside", f"{'0' * 64}"])
def test_a_list_of_hashes_that_vouches_for_nothing_is_a_fault(tmp_path, line):
    folder = write_model(tmp_path / "ddpm")
    (folder / "sha256sums.txt").write_text(f"{line}\n")
    assert len(doctor.folder_faults(folder)) == 1


def test_no_shipped_model_is_a_fault(tmp_path):
    [check] = doctor.check_models(tmp_path)
    assert check.status == "fault"
    assert "make weights" in check.mend


def test_user_trained_models_are_examined_beside_the_shipped_ones(tmp_path):
    write_model(tmp_path / "model_weights" / "ddpm")
    mine = write_model(tmp_path / "model" / "mine")
    (mine / "model.safetensors").unlink()
    (tmp_path / "model" / "not a model").mkdir()
    write_model(tmp_path / "model" / "versioned" / "versions" / "0001")
    second = write_model(tmp_path / "model" / "versioned" / "versions" / "0002")
    (second / "model.safetensors").write_bytes(b"changed")
    checks = by_name(doctor.check_models(tmp_path))
    assert {name: check.status for name, check in checks.items()} == {
        "model_weights/ddpm": "ok",
        "model/mine": "fault",
        "model/versioned/versions/0001": "ok",
        "model/versioned/versions/0002": "fault",
    }
    assert "rollback" in checks["model/versioned/versions/0002"].mend


def test_a_model_offered_first_that_is_missing_is_a_warning_that_names_what_is_asked_instead(tmp_path):
    assert doctor.check_offered_first(tmp_path) == []
    assert doctor.check_offered_first(ROOT) == []
    for name, method, modality in (("atlas_zscore_t1", "atlas_zscore", "t1"), ("cold_diffusion_any", "x", "any")):
        folder = write_model(tmp_path / "model_weights" / name)
        (folder / "config.yaml").write_text(f"kind: anomaly\nmethod: {method}\nmodality: {modality}\n")
        (folder / "calibration.json").write_text("{}")
    first, slices = doctor.check_offered_first(tmp_path)
    assert first.status == slices.status == "warning"
    assert "cold_diffusion_t1, is missing" in first.found
    assert "atlas_zscore_t1 is asked, a baseline" in first.found
    assert "cold_diffusion_any is asked (" in slices.found
    assert "git checkout" in first.mend
    assert first in doctor.examine(tmp_path, port=0)


# --- the machine ---


def test_a_port_in_use_is_a_fault_that_names_another_way():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        check = doctor.check_port("127.0.0.1", port)
        assert check.status == "fault"
        assert "PORT=" in check.mend
    assert doctor.check_port("127.0.0.1", port).status == "ok"


def test_the_wheels_own_command_is_reported_with_the_way_to_replace_it(tmp_path):
    (tmp_path / "bin").mkdir()
    assert doctor.check_launcher(tmp_path).status == "fault"
    launcher.launcher_path(tmp_path).write_text("#!/bin/bash\nexec python -m monailabel.main $*\n")
    check = doctor.check_launcher(tmp_path)
    assert check.status == "warning"
    subprocess.run(check.mend.removeprefix("in the app's folder: "), shell=True, cwd=ROOT, check=True)
    assert doctor.check_launcher(tmp_path).status == "ok"


def test_without_dcmqi_the_server_would_download_it(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name, path=None: None)
    check = doctor.check_offline()
    assert check.status == "fault"
    assert "dcmqi" in check.mend


def test_a_folder_that_cannot_be_written_is_a_fault(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    temporary_file = doctor.tempfile.TemporaryFile

    def refuse(dir):
        if Path(dir).name == "model":
            raise OSError(13, "Permission denied")
        return temporary_file(dir=dir)

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    faults = [check for check in doctor.check_folders(tmp_path) if check.status == "fault"]
    assert [check.name for check in faults] == ["folder model"]
    assert str(tmp_path / "model") in faults[0].mend


def test_folders_are_left_as_they_were(tmp_path):
    assert all(check.status == "ok" for check in doctor.check_folders(tmp_path))
    assert list(tmp_path.iterdir()) == []


# --- the report ---

MIXED = [
    Check("a", "ok", "fine"),
    Check("b", "warning", "so so", "wait"),
    Check("c", "fault", "[gone]", "get one"),
]


def test_only_faults_make_the_exit_code_one():
    assert doctor.exit_code(MIXED[:2]) == 0
    assert doctor.exit_code(MIXED) == 1


def test_the_table_shows_every_fault_and_its_mending():
    page = io.StringIO()
    doctor.print_table(MIXED, Console(file=page, width=120))
    text = page.getvalue()
    assert all(word in text for check in MIXED for word in (check.name, check.found, check.mend))
    assert "1 faults, 1 warnings, 1 ok" in text


def test_the_command_prints_json_and_exits_with_the_verdict(monkeypatch):
    monkeypatch.setattr(doctor, "examine", lambda root, **kwargs: MIXED)
    result = CliRunner().invoke(cli.app, ["doctor", "--json"])
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["ok"] is False
    assert [check["status"] for check in report["checks"]] == ["ok", "warning", "fault"]


def test_examine_covers_every_part_of_this_installation(monkeypatch):
    monkeypatch.setattr(doctor, "check_monai_label", lambda: Check("MONAI Label", "ok", "not imported here"))
    names = by_name(doctor.examine(ROOT, port=0))
    assert {
        "Python",
        "MONAI Label",
        "device",
        "monailabel command",
        "works offline",
        "port 0",
        "folders",
    } <= set(names)
    assert all(check.mend for check in names.values() if check.status != "ok")


@pytest.mark.slow
def test_monai_label_really_imports_here():
    assert doctor.check_monai_label() == Check("MONAI Label", "ok", "imports")


@pytest.mark.slow
def test_a_broken_import_is_seen_through_the_process_boundary(tmp_path, monkeypatch):
    (tmp_path / "monailabel").mkdir()
    (tmp_path / "monailabel" / "__init__.py").write_text("raise ImportError('broken on purpose')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    check = doctor.check_monai_label()
    assert check.status == "fault"
    assert "broken on purpose" in check.found


def test_models_share_a_row_unless_there_is_something_to_say_about_one():
    sound = [Check(f"model_weights/m{number}", "ok", "complete, hashes match") for number in range(28)]
    page = io.StringIO()
    broken = Check("model_weights/stylegan2_inversion_flair", "fault", "w is missing", "restore it")
    doctor.print_table([*sound, broken, Check("last", "ok", "x")], Console(file=page, width=80))
    text = page.getvalue()
    assert text.count("hashes match") == 1
    assert "28 folders complete" in text
    assert "w is missing" in text
    assert "…" not in text
    assert "1 faults, 0 warnings, 29 ok" in text
