"""A ``monailabel`` command that keeps arguments with spaces whole.

The command in the MONAI Label 0.8.5 wheel is a shell script that ends in ``exec ${PYEXE} -m monailabel.main
$*``: unquoted, so ``--app "/data/my app"`` arrives as two arguments, and with whatever ``python`` is first on
PATH. Set-up replaces it in the virtual environment: ``python -m monailabel_app.pipelines.launcher VENV``.

The folder of the command goes to the front of PATH, because MONAI Label looks there for dcmqi's
``itkimage2segimage`` and downloads it when it is not found, as it is when the environment was not activated.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from monailabel_app.files import replacing

SCRIPT = """\
#!/bin/sh
# Written by this app's set-up, because the command in the MONAI Label wheel splits arguments at spaces.
bin=$(dirname "$(readlink -f "$0")")
PATH="$bin:$PATH"; export PATH
exec "$bin/python" -m monailabel.main "$@"
"""


def launcher_path(venv: Path) -> Path:
    """Where a virtual environment keeps the command."""
    return Path(venv) / "bin" / "monailabel"


def is_sound(venv: Path) -> bool:
    """Whether the command is there, is ours and may be executed."""
    path = launcher_path(venv)
    return path.is_file() and os.access(path, os.X_OK) and path.read_text(errors="replace") == SCRIPT


def install(venv: Path) -> Path:
    """Write the command, whole or not at all, and return its path. Raises OSError when it cannot."""
    path = launcher_path(venv)
    with replacing(path) as fresh:
        fresh.write_text(SCRIPT)
        fresh.chmod(0o755)
    return path


if __name__ == "__main__":
    install(Path(sys.argv[1]))
