"""The viewer's scripts are changed where they are known, and served as they came where they are not."""

import shutil
import subprocess

import pytest

from lib.endpoints.viewer import VIEWER
from lib.viewer_scripts import MENDS, mended


def scripts():
    return sorted(VIEWER.glob("*.js"))


def test_every_mend_fits_one_script_of_the_shipped_viewer():
    texts = {file: file.read_text(errors="replace") for file in scripts() if file.stat().st_size < 1_000_000}
    for mend in MENDS:
        fitting = [file for file, text in texts.items() if all(change.lines in text for change in mend)]
        assert len(fitting) == 1
        changed = mended(fitting[0]).decode()
        for change in mend:
            assert changed.count(change.instead) == 1
    assert sum(mended(file) is not None for file in scripts()) == len(MENDS)


def test_a_mended_script_is_still_a_script(tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node, to check the scripts' syntax")
    for file in scripts():
        script = mended(file)
        if script is not None:
            (tmp_path / file.name).write_bytes(script)
            subprocess.run([node, "--check", str(tmp_path / file.name)], check=True, capture_output=True, timeout=60)


def test_a_viewer_with_other_lines_is_served_as_it_came(tmp_path):
    (file,) = (file for file in scripts() if (script := mended(file)) and MENDS[0][0].instead.encode() in script)
    other = tmp_path / file.name
    # One of the places was mended by its makers: the others are left alone, too.
    other.write_bytes(file.read_bytes().replace(MENDS[0][1].lines.encode(), b"    if (is3DSR && somethingElse) {"))
    assert mended(other) is None
    assert mended(tmp_path / "nothing.js") is None
    assert mended(VIEWER / "index.html") is None
