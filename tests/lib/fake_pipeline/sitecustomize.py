"""On PYTHONPATH, it gives a server process the small stand-ins in this folder for two pipeline modules.

The server under test is started by the stock command and knows nothing of it; what is replaced is only the
analysis itself, which has tests of its own, so that these tests take seconds and know the right answer.
"""

import importlib.abc
import importlib.util
import sys
from pathlib import Path

_NOT_NEEDED = frozenset({"ignite", "matplotlib", "tensorboard", "mlflow"})
_FILES = {f"monailabel_app.pipelines.{name}": Path(__file__).with_name(f"{name}.py") for name in ("predict", "cache")}


class _Stand(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname in _NOT_NEEDED:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        file = _FILES.get(fullname)
        return importlib.util.spec_from_file_location(fullname, file) if file else None


sys.meta_path.insert(0, _Stand())
