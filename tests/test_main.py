"""main.py has two readers: a person typing commands, and MONAI Label looking for the app class."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WITHOUT_MONAI_LABEL = """
import runpy, sys
sys.modules["monailabel"] = None
sys.argv = ["main.py", *sys.argv[1:]]
runpy.run_path({main!r}, run_name="__main__")
"""
AS_MONAI_LABEL_LOADS_IT = """
import sys
from monailabel.utils.others.class_utils import get_class_of_subclass_from_file
found = get_class_of_subclass_from_file("main", {main!r}, "MONAILabelApp")
again = get_class_of_subclass_from_file("main", {main!r}, "MONAILabelApp")
assert found.__name__ == again.__name__ == "AnomalyApp", (found, again)
import monailabel_app.errors
print(sys.path.count({root!r}))
"""


def run(code: str, *arguments: str, cwd: Path) -> str:
    words = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_line_works_where_monai_label_is_not_installed(tmp_path):
    # As a script, Python itself puts main.py's folder on the path; run_path does not.
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + WITHOUT_MONAI_LABEL.format(main=str(ROOT / "main.py"))
    shown = run(code, "--help", cwd=tmp_path)
    assert "doctor" in shown
    assert "serve" in shown


@pytest.mark.slow
def test_monai_label_finds_the_app_from_any_folder_and_later_imports_still_work(tmp_path):
    code = AS_MONAI_LABEL_LOADS_IT.format(main=str(ROOT / "main.py"), root=str(ROOT))
    assert run(code, cwd=tmp_path).splitlines()[-1] == "1"
