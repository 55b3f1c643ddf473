"""``main.py train`` and what follows it, as one types it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.healthy_heads import write_heads
from tests.server_fixture import ROOT

pytestmark = pytest.mark.slow

NAMES = [f"sub-{number:02d}_T1w" for number in range(11)]
TINY = ["--preset", "tiny", "--steps", "12", "--batch-size", "4", "--validation-share", "0.4", "--name", "mine"]


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    shutil.copy(ROOT / "main.py", folder)
    shutil.copytree(ROOT / "monailabel_app", folder / "monailabel_app", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "model_weights").symlink_to(ROOT / "model_weights")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory, healthy_scan):
    folder = tmp_path_factory.mktemp("data")
    write_heads(Path(healthy_scan), folder, NAMES)
    lines = [f"{name.split('_')[0]}\t{'patient' if number == 10 else 'control'}" for number, name in enumerate(NAMES)]
    (folder / "participants.tsv").write_text("participant_id\tgroup\n" + "\n".join(lines) + "\n")
    return folder


def run(app: Path, *words: str, code: int = 0, answer: str = "") -> str:
    """``python main.py WORDS``: what it printed."""
    command = [sys.executable, str(app / "main.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, input=answer, cwd=app, timeout=1800)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_train_publish_list_roll_back_forget(app, data):
    table = ["--healthy-list", str(data / "participants.tsv")]
    printed = run(app, "train", "ddpm", "--data", str(data), *table, *TINY, "--start-from", "scratch")
    assert "mine@0001" in printed
    manifest = json.loads((app / "model/mine/versions/0001/training.json").read_text())
    assert manifest["left_out"] == {"not healthy, by the list": 1}

    # Two processes under torchrun, from the weights of the first version; the cache makes preparing quick.
    again = ["train", "ddpm", "--data", str(data), *table, *TINY, "--promote", "always", "--processes", "2"]
    assert "mine@0002" in run(app, *again)
    listed = {entry["name"]: entry for entry in json.loads(run(app, "models", "list", "--json"))}
    assert listed["mine"]["version"] == "0002"
    run(app, "models", "verify")
    published = (app / "model/mine/versions/0002/sha256sums.txt").read_bytes()
    assert "in use: site calibration" in run(app, "calibrate", "--model", "mine", "--healthy", str(data))
    assert (app / "model/mine/versions/0002/sha256sums.txt").read_bytes() == published
    run(app, "models", "verify")  # the version itself is as it was published
    run(app, "models", "rollback", "mine")
    assert (app / "model/mine/CURRENT").read_text().strip() == "0001"

    private = [*again[:-2], "--privacy", "epsilon=8", "delta=1e-5", "steps=3", "slices_per_patient=2"]
    assert "trained at this site" in run(app, *private, "--start-from", "mine@0001", code=2)
    private += ["--start-from", "ddpm_t1@shipped"]
    printed = run(app, *private)
    assert "what a privacy budget costs with" in printed
    assert "privacy spent: epsilon" in printed
    assert "membership inference by loss" in printed
    card = (app / "model/mine/versions/0003/card.md").read_text()
    assert "Differential privacy" in card
    assert (app / "model/mine/versions/0003/calibration.json").read_bytes() == (
        app / "model_weights/ddpm_t1/calibration.json"
    ).read_bytes()

    plan = run(app, "models", "forget", "--patient", "sub-03", "--dry-run")
    assert "mine@0001" in plan
    assert "sub-03" not in plan


def test_forgetting_needs_enough_patients_to_train_anew(app, data):
    printed = run(app, "models", "forget", "--patient", "sub-03", "--yes", code=2)
    assert "10 patients" in printed or "at least" in printed


def test_a_word_too_many_is_refused(app, data):
    assert "'surplus'" in run(app, "train", "ddpm", "surplus", "--data", str(data), code=2)


def test_too_few_scans_is_a_clear_error(app, tmp_path, data):
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(data.glob("*.nii.gz"))[:4]:
        shutil.copy(path, few)
    assert "at least 10 patients" in run(app, "train", "ddpm", "--data", str(few), *TINY, code=2)
