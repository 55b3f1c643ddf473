"""A process that is killed before its n-th call of the kind that changes files."""

import os
import signal
from collections.abc import Iterable


def kill_before_call(number: int, names: Iterable[str]) -> None:
    """From now on this process kills itself before call ``number`` (from 0) of ``os``'s functions ``names``."""
    left = number

    def counted(call):
        def before(*args, **kwargs):
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return call(*args, **kwargs)

        return before

    for name in names:
        setattr(os, name, counted(getattr(os, name)))
