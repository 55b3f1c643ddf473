"""A cohort on two Ray nodes that were started with the commands of docs/cohorts.md, token and all."""

import csv
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.server_fixture import ROOT, copy_studies

pytestmark = pytest.mark.slow
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs Ray: pip install -r requirements-ray.txt"
)
SECONDS = 400


def commands() -> list[list[str]]:
    """What docs/cohorts.md types after ``ray``: the head's arguments, then those of the others."""
    text = (ROOT / "docs" / "cohorts.md").read_text()
    return [line.split("#")[0].split() for line in re.findall(r"^ray (start .*)$", text, re.MULTILINE)]


@contextmanager
def two_nodes(home: Path):
    """An own home, so that the token is this test's; the temporary folder is short, as Ray's sockets lie in it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "HOME": str(home), "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    head, other = commands()
    address = f"{socket.gethostbyname(socket.gethostname())}:{port}"
    try:
        subprocess.run(
            [*ray, "get-auth-token", "--generate"], env=environment, check=True, capture_output=True, timeout=120
        )
        for command in (
            [*(str(port) if word == "6379" else word for word in head), "--temp-dir", str(home / "ray")],
            [address if word == "HEAD:6379" else word for word in other],
        ):
            subprocess.run(
                [*ray, *command, "--num-cpus", "2"], env=environment, check=True, capture_output=True, timeout=120
            )
        yield address, environment
    finally:
        subprocess.run([*ray, "stop", "--force"], env=environment, capture_output=True, timeout=120, check=False)


@needs_ray
def test_the_documented_commands_make_a_cluster_that_analyses_a_folder(tmp_path):
    studies = copy_studies(ROOT / "tests" / "data" / "studies", tmp_path / "studies")
    for number in range(4):
        shutil.copy(studies / "ixi_lesion.nii.gz", studies / f"more_{number}.nii.gz")
    out = tmp_path / "out"
    home = Path("/tmp") / f"ray-test-{os.getpid()}"
    home.mkdir()
    try:
        with two_nodes(home) as (address, environment):
            command = ["cohort", str(studies), "--model", "cold_diffusion_t1", "--out", str(out), "--ray", address]
            done = subprocess.run(
                [sys.executable, "main.py", *command], cwd=ROOT, env=environment, capture_output=True, text=True,
                timeout=SECONDS,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr[-3000:]
            without = {**environment, "HOME": str(tmp_path)}
            refused = subprocess.run(
                [sys.executable, "main.py", *command, "--again"], cwd=ROOT, env=without, capture_output=True, text=True,
                timeout=SECONDS,
            )  # fmt: skip
    finally:
        shutil.rmtree(home, ignore_errors=True)
    with (out / "cohort.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == 6
    assert {row["state"] for row in rows} == {"analysed"}
    assert refused.returncode != 0  # who has no token gets no answer
    assert "auth_token" in refused.stderr + refused.stdout
