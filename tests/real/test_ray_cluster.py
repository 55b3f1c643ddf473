"""A cohort on two Ray nodes that were started with the commands of docs/cohorts.md, token and all."""

import csv
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.ports import free_port
from tests.server_fixture import ROOT, copy_studies

pytestmark = pytest.mark.slow
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs Ray: pip install -r requirements-ray.txt"
)
SECONDS = 1200


def commands() -> list[list[str]]:
    """What docs/cohorts.md types after ``ray``: the head's arguments, then those of the others."""
    text = (ROOT / "docs" / "cohorts.md").read_text()
    return [line.split("#")[0].split() for line in re.findall(r"^ray (start .*)$", text, re.MULTILINE)]


def exports() -> dict[str, str]:
    """The variables that docs/cohorts.md sets before."""
    text = (ROOT / "docs" / "cohorts.md").read_text()
    (line,) = re.findall(r"^export (RAY_.*)$", text, re.MULTILINE)
    return dict(word.split("=") for word in line.split("#")[0].split())


def ports() -> list[str]:
    """A node whose agents choose their ports themselves dies where they take longer than 15 s for it."""
    names = ("dashboard-agent-grpc", "dashboard-agent-listen", "metrics-export", "runtime-env-agent")
    return [word for name in names for word in (f"--{name}-port", str(free_port()))]


def home_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("HOME")
    except psutil.Error:
        return None


@contextmanager
def two_nodes(home: Path):
    """An own home, so that the token is this test's; the temporary folder is short, as Ray's sockets lie in it."""
    port = free_port()
    environment = {**os.environ, **exports(), "HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0"}
    environment["RAY_worker_niceness"] = "0"  # by itself Ray gives its workers what others leave of the processor
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    head, other = commands()
    address = f"{socket.gethostbyname(socket.gethostname())}:{port}"
    nodes = (
        [*(str(port) if word == "6379" else word for word in head), "--temp-dir", str(home / "ray")],
        [address if word == "HEAD:6379" else word for word in other],
    )

    def run(*words: str) -> bool:
        done = subprocess.run([*ray, *words], env=environment, capture_output=True, text=True, timeout=SECONDS)
        said.append(done.stdout[-2000:] + done.stderr[-2000:])
        return done.returncode == 0

    said, end = [], time.monotonic() + SECONDS
    try:
        assert run("get-auth-token", "--generate"), said
        # Ray gives a node 30 s to come up, and not more: begun anew where it gives up.
        while not all(run(*command, "--num-cpus", "2", *ports()) for command in nodes):
            stop(home)
            assert time.monotonic() < end, said[-1]
        yield address, environment
    finally:
        stop(home)


def stop(home: Path) -> None:
    """``ray stop`` would end every cluster of this machine, also one that somebody works with."""
    of_this_test = []
    for process in [process for process in psutil.process_iter() if home_of(process) == str(home)]:
        with suppress(psutil.NoSuchProcess):
            # Its children, too: one that gives itself another title writes over its environment.
            of_this_test += [process, *process.children(recursive=True)]
    for process in of_this_test:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(of_this_test, timeout=60)


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
