"""A disk that is full or may not be written, in words for whoever asked for the work."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from monailabel.config import settings

from lib.errors import NoSpace, NotAllowed
from monailabel_app.errors import AnomalyAppError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_NOT_WRITABLE = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
# Less is free on a disk that has just refused a write: what was begun there has been taken away again.
_FULL_BYTES = 64 * 2**20
# A library that writes by itself tells no error number; then the disk has to be full to the last page.
_NOTHING_BYTES = 2**18
_LIBRARIES = (RuntimeError, OSError, EOFError)


def disk_trouble(error: BaseException) -> AnomalyAppError | None:
    """The named error (507 or 403) where a disk is to blame for ``error``; None where it is not."""
    causes = list(_causes(error))
    for cause in causes:
        number = cause.errno if isinstance(cause, OSError) else None
        if number in _FULL:
            return _full(_FULL_BYTES)
        if number in _NOT_WRITABLE:
            return NotAllowed(
                f"this server may not write into {_place(cause) or 'a folder that it needs'}: its administrator has to "
                "mend the permissions, or a disk that is mounted for reading only. Nothing was kept"
            )
    if any(isinstance(cause, _LIBRARIES) and not isinstance(cause, OSError) for cause in causes) and any(
        _free(folder) < _NOTHING_BYTES for _, folder in _folders()
    ):
        return _full(_NOTHING_BYTES)
    return None


def _full(below: int) -> NoSpace:
    least = sorted((_free(folder), name) for name, folder in _folders())
    names = [name for free, name in least if free < below] or [name for _, name in least[:1]]
    return NoSpace(
        f"the disk of {' and '.join(dict.fromkeys(names))} is full: nothing of this request was kept, and what was "
        "kept before is as it was. Ask the administrator to make room, then send it again"
    )


def _place(error: BaseException) -> str | None:
    """Which of the server's folders the file lies in; its own name may be a patient's."""
    file = getattr(error, "filename", None)
    if not isinstance(file, (str, bytes)):
        return None
    path = Path(file.decode(errors="replace") if isinstance(file, bytes) else file).absolute()
    return next((name for name, folder in _folders() if path.is_relative_to(folder)), None)


def _folders() -> Iterator[tuple[str, Path]]:
    """What this server writes into, the innermost first."""
    studies = settings.MONAI_LABEL_STUDIES
    if studies and not studies.startswith(("http://", "https://")):
        yield "the studies folder", Path(studies).absolute()
    elif settings.MONAI_LABEL_DICOMWEB_CACHE_PATH:
        yield "the folder for scans of the archive", Path(settings.MONAI_LABEL_DICOMWEB_CACHE_PATH).absolute()
    yield "the folder for temporary files", Path(tempfile.gettempdir()).absolute()
    app = Path(settings.MONAI_LABEL_APP_DIR or ".").absolute()
    for name in ("model", "cache", "logs", "runs"):
        if (app / name).exists():
            yield f"the app's folder {name}/", app / name
    yield "the app's folder", app


def _free(folder: Path) -> float:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return float("inf")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from, the last one first."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
