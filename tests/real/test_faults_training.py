"""kill -9 of a server in the middle of a training, and of the training itself."""

import json
import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import requests

from tests.healthy_heads import write_heads
from tests.real.faults import NEEDED, Killable, wait_for
from tests.server_fixture import ROOT

pytestmark = pytest.mark.slow

TINY = {
    "modality": "t1", "model_name": "ddpm_site", "preset": "tiny", "start_from": "scratch", "max_steps": 120,
    "train_batch_size": 8, "learning_rate": 0.002, "val_split": 0.4, "promote": "always",
}  # fmt: skip


@pytest.fixture
def app(tmp_path):
    """With a copy of the code, so that models and runs are written beside it."""
    folder = tmp_path / "app"
    folder.mkdir()
    shutil.copy(ROOT / "main.py", folder)
    for name in ("lib", "monailabel_app"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
    (folder / "model_weights").mkdir()
    for name in (*NEEDED, "intensity_t1"):
        (folder / "model_weights" / name).symlink_to(ROOT / "model_weights" / name)
    return folder


def task_of(server):
    answer = requests.get(f"{server.url}/train/", timeout=60)
    return answer.json() if answer.status_code == 200 else {}


def start_training(server, **more):
    answer = requests.post(f"{server.url}/train/ddpm", json={**TINY, **more}, timeout=120)
    assert answer.status_code == 200, answer.text


def step_of(server):
    return task_of(server).get("progress", {}).get("step", 0)


def has_ended(process):
    """Also of one that goes while it is looked at, or that nobody has waited for yet."""
    with suppress(psutil.NoSuchProcess):
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True


def test_a_training_goes_on_from_its_checkpoint_after_the_server_and_then_the_training_were_killed(
    app, tmp_path, healthy_scan
):
    studies = tmp_path / "studies"
    studies.mkdir()
    for head in write_heads(Path(healthy_scan), tmp_path / "heads", [f"head{number:02d}" for number in range(10)]):
        shutil.move(head, studies)
    conf = {"trainers": "ddpm", "healthy": "all"}
    with Killable(studies, app, conf) as server:
        start_training(server)
        wait_for(lambda: list((app / "runs").rglob("last.safetensors")), "the first checkpoint", 1200)
        children = psutil.Process(server.server.process.pid).children(recursive=True)
        assert children, "the training is a process of its own"
        server.kill()
        server.up()
        # The training may still run: then a second one for the same run is refused.
        for child in children:
            with suppress(psutil.NoSuchProcess):
                os.kill(child.pid, signal.SIGKILL)
        wait_for(lambda: all(map(has_ended, children)), "their end")
        if not (app / "model" / "ddpm_site" / "CURRENT").exists():
            start_training(server, resume=True)
            seen = []

            def over():
                seen.append(task_of(server))
                return seen[-1]["status"] not in {"SUBMITTED", "RUNNING"}

            wait_for(over, "the end of the training", 2400)
            assert seen[-1]["status"] == "DONE", json.dumps(seen[-1])[-3000:]
            steps = [task["progress"]["step"] for task in seen if "step" in task.get("progress", {})]
            assert min(steps) > 0, "it began anew"
        result = server.infer("head00", "ddpm_site")
        assert result.status_code == 200, result.text
        assert result.json()["model"]["id"] == "ddpm_site@0001"
