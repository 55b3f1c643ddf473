"""The README's example of the Python client, run as it stands against a real server."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server_fixture import ROOT, copy_studies, running_server

pytestmark = pytest.mark.slow

HEADING = "### From Python"


def example() -> str:
    text = (ROOT / "README.md").read_text().split(HEADING, 1)[1]
    return re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]


def test_the_readme_s_example_runs_without_torch(tmp_path):
    studies = copy_studies(ROOT / "tests" / "data" / "studies", tmp_path / "studies")
    (tmp_path / "work").mkdir()
    scan = tmp_path / "work" / "scan.nii.gz"
    scan.write_bytes((studies / "ixi_lesion.nii.gz").read_bytes())
    code = example()
    assert "http://127.0.0.1:8000" in code
    with running_server(studies, conf={"models": "cold_diffusion_t1"}) as server:
        code = code.replace("http://127.0.0.1:8000", server.url)
        code += "\nimport sys\nassert not {'torch', 'numpy', 'monai'} & sys.modules.keys()\n"
        made = subprocess.run(
            [sys.executable, "-c", code], cwd=scan.parent, capture_output=True, text=True, timeout=600,
            env={"PYTHONPATH": str(ROOT), "PATH": ""},
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
    assert re.search(r"^1 \d+\.\d+ ml", made.stdout, re.MULTILINE)
    assert {path.name for path in scan.parent.iterdir()} >= {"scan.nii.gz", "map.nii.gz", "report.html"}
    assert all(path.stat().st_size > 1000 for path in Path(scan.parent).iterdir())
