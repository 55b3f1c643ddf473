"""MONAI Label loads this file to find the app; ``python main.py COMMAND`` is the command line.

MONAI Label executes it as a module called ``main`` and takes the first class whose direct base is
``MONAILabelApp``. Run as a script, nothing of MONAI Label is imported, so that the command line also works on
a training machine without it.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    from monailabel_app.cli import app

    app()
else:
    # MONAI Label takes this folder off sys.path as soon as the app class is found; an entry of our own keeps
    # imports inside functions working whatever folder the server was started from.
    _root = str(Path(__file__).resolve().parent)
    if _root not in sys.path[1:]:
        sys.path.append(_root)

    from lib.app import AnomalyApp  # noqa: F401
