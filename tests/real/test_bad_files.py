"""All bad files through the HTTP interface of one real server, and a short run of every fuzzing target."""

import os
import subprocess
import sys

import pytest

from tests.bad_files import CASES
from tests.bad_files_http import MODEL, memory_mb, send_all
from tests.server_fixture import ROOT, copy_studies, running_server

# What the reading of one scan may leave in the allocator's hands.
MEMORY_GROWTH_MB = 400


@pytest.mark.slow
def test_no_file_breaks_a_server(tmp_path):
    studies = copy_studies(ROOT / "tests/data/studies", tmp_path / "studies")
    (tmp_path / "temporary").mkdir()
    env = {"MONAI_LABEL_SESSION_PATH": str(tmp_path / "sessions"), "TMPDIR": str(tmp_path / "temporary")}
    with running_server(studies, conf={"models": MODEL}, env=env) as server:
        params = {"image": "ixi_healthy", "output": "json"}
        first = server.infer(MODEL, params=params).json()
        before = memory_mb(server)
        rows = list(send_all(server, CASES, tmp_path / "temporary"))
        assert {row.case.title: (row.faults, row.reason) for row in rows if row.faults} == {}
        assert len(rows) == len(CASES) >= 200
        assert memory_mb(server) - before < MEMORY_GROWTH_MB
        assert server.infer(MODEL, params=params).json()["anomaly_score"] == first["anomaly_score"]
        assert "Traceback" not in server.log.read_text(errors="replace")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["nifti", "nrrd", "metaimage", "picture", "dicom", "archive", "model", "unpacking"])
def test_fuzzing_for_a_while_finds_nothing(tmp_path, target):
    pytest.importorskip("atheris")
    # The same inputs at every run, as many as there is time for; others are looked for by hand, without a seed.
    command = [sys.executable, str(ROOT / "tests/fuzz/fuzz.py"), target, "-max_total_time=20", "-max_len=30000"]
    command += ["-seed=1"]
    same = {**os.environ, "PYTHONHASHSEED": "0"}
    told = {"capture_output": True, "text": True, "errors": "replace"}
    done = subprocess.run(command, cwd=tmp_path, env=same, timeout=600, **told)
    assert done.returncode == 0, done.stderr[-4000:]
