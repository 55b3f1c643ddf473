"""Where a browser goes after signing in: only to an address of this server."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_SAFE = re.compile(r"/(?![/\\])[!-\[\]-~]*")
LONGEST = 4096


def return_path(wanted: str | None, default: str) -> str:
    """``wanted`` if it is a path of this very site (with query and fragment), else ``default``.

    Refused are other sites in every spelling that browsers understand: ``//site``, ``/\\site``, ``https:site``, with
    control characters or spaces in between, or not ASCII.
    """
    if not wanted or len(wanted) > LONGEST or not _SAFE.fullmatch(wanted):
        return default
    try:
        parts = urlsplit(wanted)
    except ValueError:
        return default
    return default if parts.scheme or parts.netloc else wanted
