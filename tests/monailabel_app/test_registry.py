"""The table of methods: complete, instant to import, and helpful when a name is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

from monailabel_app.errors import UnknownModel
from monailabel_app.registry import METHODS, load_method, method_info

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("method_id", METHODS)
def test_every_entry_is_a_whole_method(method_id):
    info, module = method_info(method_id), load_method(method_id)
    assert info.id == method_id
    assert info.scores
    assert len(set(info.scores)) == len(info.scores)
    for name in ("Config", "PRESETS", "build", "combine" if info.composed else "analyse"):
        assert hasattr(module, name), name
    ways = [hasattr(module, "training_loss"), hasattr(module, "fit_cache"), info.composed]
    assert sum(ways) == 1, "trained, computed, or made of others, one of the three"
    assert all(isinstance(preset, module.Config) for preset in module.PRESETS.values())
    assert "compact" in module.PRESETS


def test_an_unknown_method_is_refused_listing_the_known_ones():
    with pytest.raises(UnknownModel, match=r"ddpm.*got 'dppm'") as caught:
        method_info("dppm")
    assert caught.value.status == 404


def test_the_table_cannot_be_changed():
    with pytest.raises(TypeError):
        METHODS["other"] = METHODS["ddpm"]


def test_the_table_is_imported_without_torch_or_monai():
    script = "import sys, monailabel_app.registry; sys.exit(bool({'torch', 'monai', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0
