"""The command that somebody typed, as results record it."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def as_typed() -> str:
    """The command without the paths that tell where somebody's data lie."""
    words = [Path(word).name if os.sep in word else word for word in sys.argv[1:]]
    return " ".join(["main.py", *words])
