"""On PYTHONPATH, it has a server keep everybody's turn, however long the machine takes to read their scans.

In line, whoever's scan is not read within some seconds lets the next one go first (``lib.line.PATIENCE_SECONDS``); on a
machine that stands still for a while nobody's is, and then it is chance who goes first.
"""

import importlib.abc
import importlib.util
import sys


class _Patience(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname != "lib.line":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        execute = spec.loader.exec_module

        def with_patience(module):
            execute(module)
            module.PATIENCE_SECONDS = 600.0

        spec.loader.exec_module = with_patience
        return spec


sys.meta_path.insert(0, _Patience())
