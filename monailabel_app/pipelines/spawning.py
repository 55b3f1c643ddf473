"""How processes are started: quickly, and never to outlive the one that started them."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import connection
from types import ModuleType


@contextmanager
def without_main_module() -> Iterator[None]:
    """Start a process that does not import the program's main module again.

    It would cost each process the whole of MONAI Label, and fail on a machine without it; nothing in it is needed.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def end_with_parent() -> None:
    """Let this process end when the one that started it does, from a thread that waits for that.

    A killed parent cannot tell its processes; they would wait for work for ever, with their memory.
    """
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
