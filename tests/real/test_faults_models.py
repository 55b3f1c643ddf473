"""Damaged model folders and folders that may only be read, under a real server."""

import json
import shutil
import subprocess
import sys

import pytest
import requests

from tests.real.faults import MODEL, ROOT, Killable, few_models, label, read_only, scan, small_disk

pytestmark = pytest.mark.slow

OTHER = "atlas_zscore_t1"


@pytest.fixture
def app(tmp_path):
    (tmp_path / "app").mkdir()
    return few_models(tmp_path / "app", MODEL, OTHER, copies=True)


@pytest.fixture
def studies(tmp_path, lesion_scan):
    (tmp_path / "studies").mkdir()
    shutil.copy(lesion_scan, tmp_path / "studies" / "head.nii.gz")
    return tmp_path / "studies"


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x04
    path.write_bytes(content)


def command(app, *arguments):
    return subprocess.run(
        [sys.executable, str(app / "main.py"), *arguments], capture_output=True, text=True, cwd=app, timeout=300
    )


def test_a_damaged_file_is_refused_by_name_others_serve_and_it_is_mended_without_a_restart(app, studies, tmp_path):
    folder = app / "model_weights" / OTHER
    with Killable(studies, app) as server:
        assert server.infer("head", OTHER).status_code == 200
        for name in ("model.safetensors", "calibration.json", "calibration.safetensors", "config.yaml"):
            whole = (folder / name).read_bytes()
            flip_bit(folder / name)
            refused = server.infer("head", OTHER)
            assert refused.status_code in {404, 500}, f"{name}: {refused.text}"
            assert OTHER in server.detail(refused)
            if refused.status_code == 500:
                assert name in server.detail(refused)
                assert "restore" in server.detail(refused)
            assert server.infer("head", MODEL).status_code == 200
            info = requests.get(f"{server.url}/info/", timeout=60).json()["models"]
            assert OTHER not in info or "Damaged" in info[OTHER]["description"], name
            for arguments in (("models", "verify"), ("doctor", "--json"))[: 2 if name == "model.safetensors" else 1]:
                said = command(app, *arguments)
                assert said.returncode != 0
                assert OTHER in said.stdout + said.stderr
                assert name in said.stdout + said.stderr
            (folder / name).write_bytes(whole)
            mended = server.infer("head", OTHER)
            assert mended.status_code == 200, f"{name}: {mended.text}"
            info = requests.get(f"{server.url}/info/", timeout=60).json()["models"]
            assert "Damaged" not in info[OTHER]["description"]
        sums = (folder / "sha256sums.txt").read_bytes()
        flip_bit(folder / "sha256sums.txt")
        assert server.infer("head", OTHER).status_code == 500
        (folder / "sha256sums.txt").unlink()
        assert server.infer("head", OTHER).status_code == 500
        assert server.infer("head", MODEL).status_code == 200
        (folder / "sha256sums.txt").write_bytes(sums)
        assert server.infer("head", OTHER).status_code == 200


def test_a_studies_folder_for_reading_only_is_served_and_refuses_what_writes(app, studies, tmp_path):
    scan(studies / "small.nii.gz", 1)
    with Killable(studies, app) as server:
        assert server.submit("small", label(tmp_path / "one.nii.gz", 3)).status_code == 200
        server.kill()
        with read_only(studies):
            server.up()
            assert set(server.images()) == {"head", "small"}
            result = server.infer("head")
            assert result.status_code == 200, result.text
            for refused in (
                server.submit("small", label(tmp_path / "two.nii.gz", 4)),
                server.upload("new", scan(tmp_path / "new.nii.gz", 2)),
                requests.put(
                    f"{server.url}/datastore/image/info",
                    params={"image": "small"},
                    data={"info": json.dumps({"healthy": True})},
                    timeout=60,
                ),
            ):
                assert refused.status_code == 403, refused.text
                assert "write" in server.detail(refused)
            assert server.label("small").status_code == 200
            assert requests.get(f"{server.url}/anomaly/studies", timeout=60).status_code == 200
        assert server.submit("small", label(tmp_path / "two.nii.gz", 4)).status_code == 200


def test_an_app_folder_for_reading_only_serves_with_its_caches_elsewhere(app, studies, tmp_path):
    (tmp_path / "state").mkdir()
    for name in ("model", "bin", "logs"):
        (app / name).mkdir()  # MONAI Label makes them at its first start
    conf = {"disk_cache": str(tmp_path / "state" / "analyses"), "audit": str(tmp_path / "state" / "audit.jsonl")}
    # MONAI Label writes its log into the app's folder, wherever that is.
    home = {"HOME": str(tmp_path / "state")}
    with read_only(app), small_disk(app / "logs", 4), Killable(studies, app, conf=conf, env=home) as server:
        assert server.infer("head").status_code == 200
        assert server.infer("head", OTHER).status_code == 200
        assert requests.get(f"{server.url}/info/", timeout=60).status_code == 200
        assert server.submit("head", ROOT / "tests" / "data" / "ixi_lesion_mask.nii.gz").status_code == 200

