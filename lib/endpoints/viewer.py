"""``GET /ohif/...``: the OHIF viewer that MONAI Label ships, with four faults mended.

MONAI Label looks for ``assets/x.png`` in a file named ``assets:x.png`` and then answers with the start page;
the viewer's panel offers port 8000 whatever port the server has; and the panel paints a label it does not
know in a colour made of the letters' codes, which for "anomaly" is a blue next to black and alike for the bands of
suspicion, and writes the progress of a training in white on white.
"""

from __future__ import annotations

import mimetypes
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

import monailabel.endpoints
from fastapi import APIRouter, Depends, Request
from fastapi.responses import FileResponse, Response
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User

from lib.errors import UnknownImage
from lib.viewer_scripts import mended
from monailabel_app.calibration.bands import COLOURS as BAND_COLOURS

router = APIRouter(prefix=settings.MONAI_LABEL_API_STR, tags=["Others"])

VIEWER = Path(monailabel.endpoints.__file__).resolve().parent / "static" / "ohif"
SERVER_COOKIE = "MONAILABEL_SERVER_URL"
COLOUR = (255, 112, 32)

# An entry of the panel's table of colours, which ours is put before.
_TABLE_ENTRY = b"{\n  label: 'mass',"
_WHITE_ON_WHITE = b"backgroundColor: 'white'"
_OUR_ENTRIES = b"".join(
    b"{\n  label: '%s',\n  value: rgbToHex(%d, %d, %d)\n}, " % (name.encode(), *colour)
    for name, colour in {"anomaly": COLOUR, **BAND_COLOURS}.items()
)


@router.get("/ohif/{path:path}", include_in_schema=False)
def viewer_file(request: Request, path: str, user: User = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))):
    """A file of the viewer, or its start page for the viewer's own addresses (``/ohif/monai-label?...``)."""
    file = find_file(path)
    if file is None:
        # Sent with every page: a cookie belongs to a host whatever the port, so an old one may be of another
        # server.
        server = f"{str(request.base_url).rstrip('/')}{settings.MONAI_LABEL_API_STR}/"
        cookie = f"{SERVER_COOKIE}={quote(server, safe='')}; Path=/ohif; SameSite=Strict"
        headers = {"Cache-Control": "no-cache", "Set-Cookie": cookie}
        return FileResponse(VIEWER / "index.html", media_type="text/html", headers=headers)
    media_type = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    changed = panel_script()
    if changed is not None and file == changed[0]:
        return Response(changed[1], media_type=media_type)
    script = mended(file)
    if script is not None:
        return Response(script, media_type=media_type)
    return FileResponse(file, media_type=media_type)


def find_file(path: str) -> Path | None:
    """The viewer's file of that address, or None where the viewer itself is to route the address.

    Raises UnknownImage for a file that is not there, so that a script is never answered with a page.
    """
    if "\0" in path or len(path.encode("utf-8", "replace")) > 1024 or any(len(part) > 200 for part in path.split("/")):
        raise UnknownImage("the viewer has no file of such a name")
    wanted = (VIEWER / path).resolve()
    if wanted in {VIEWER, VIEWER / "index.html"}:
        return None
    inside = wanted.is_relative_to(VIEWER)
    if inside and wanted.is_file():
        return wanted
    if not inside or wanted.is_relative_to(VIEWER / "assets") or mimetypes.guess_type(wanted.name)[0]:
        raise UnknownImage(f"the viewer has no file {path[:80]!r}")
    return None


@lru_cache(maxsize=1)
def panel_script() -> tuple[Path, bytes] | None:
    """The panel's script with bright colours for our labels and readable progress; None if this OHIF has another."""
    for file in sorted(VIEWER.glob("*.bundle.*.js")):
        if file.stat().st_size < 1_000_000:
            script = file.read_bytes()
            if _TABLE_ENTRY in script:
                script = script.replace(_WHITE_ON_WHITE, _WHITE_ON_WHITE + b", color: 'black'")
                return file, script.replace(_TABLE_ENTRY, _OUR_ENTRIES + _TABLE_ENTRY, 1)
    return None
