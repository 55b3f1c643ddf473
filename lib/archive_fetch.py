"""A series out of a DICOMweb archive, whole or not at all, and what may go wrong with an archive, in words."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from xml.etree.ElementTree import ParseError

import requests
from dicomweb_client import DICOMwebClient
from filelock import FileLock
from monailabel.datastore.utils.dicom import dicom_web_download_series
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from retrying import RetryError

from lib.archive_client import check_identity
from lib.archive_lists import series_of
from lib.errors import ArchiveSlow, ArchiveUnreachable, UnknownImage
from monailabel_app.errors import AnomalyAppError

try:
    import fcntl
except ImportError:  # Windows has none of these locks.
    fcntl = None

_T = TypeVar("_T")
_PARTIAL, _LOCK = ".partial", ".lock"
PAGE, MOST_SERIES = 1000, 100_000
_SERIES_UID = "0020000E"
# SOPInstanceUID and SeriesInstanceUID.
_IDENTITY = ("00080018", _SERIES_UID)
_INSTANCES = "NumberOfSeriesRelatedInstances"
_ASKED_FOR = ("0020000D", _SERIES_UID, "00201209")
_NOT_DICOMWEB = (
    ValueError, TypeError, AttributeError, KeyError, ParseError, InvalidDicomError, RecursionError,
    IndexError, OverflowError,
)  # fmt: skip


def ask(question: Callable[[], _T]) -> _T:
    """Run ``question`` against the archive. Raises ArchiveUnreachable or ArchiveSlow for what goes wrong there.

    A full disk on this side stays what it is.
    """
    try:
        return question()
    except AnomalyAppError:
        raise
    except requests.Timeout as error:
        raise ArchiveSlow(f"the DICOMweb archive did not answer in time ({type(error).__name__})") from error
    except requests.HTTPError as error:
        code = error.response.status_code if error.response is not None else "an error"
        raise ArchiveUnreachable(f"the DICOMweb archive did not answer the question: HTTP {code}") from error
    except (requests.RequestException, ConnectionError, TimeoutError) as error:
        raise ArchiveUnreachable(
            f"the DICOMweb archive did not answer, or went away in the middle: {type(error).__name__}"
        ) from error
    except RetryError as error:
        raise ArchiveUnreachable("the DICOMweb archive was too busy to answer: try again later") from error


def understood(question: Callable[[], _T]) -> _T:
    """The same for a question whose answer is read at once: what is no DICOMweb is the archive's fault, too."""
    try:
        return ask(question)
    except _NOT_DICOMWEB as error:
        raise ArchiveUnreachable(
            f"the DICOMweb archive's answer cannot be read ({type(error).__name__}): check its address and what lies "
            "between"
        ) from error


def find_series(client: DICOMwebClient, uid: str) -> Dataset:
    """What the archive lists of a series. Raises UnknownImage, ArchiveUnreachable."""
    asked = {"SeriesInstanceUID": uid}
    found = understood(lambda: list(client.search_for_series(search_filters=asked, fields=_ASKED_FOR)))
    for listed, series in series_of(found):
        if listed == uid:
            return series
    raise UnknownImage(f"the archive has no series {uid!r}")


def find_all_series(
    client: DICOMwebClient, search_filters: Mapping[str, Any], fields: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """All series that a search finds, as DICOM JSON, asked for page by page: an archive may give a part at a time.

    An archive that knows no pages gives everything at once, or the same again, which ends the asking. Raises
    ArchiveUnreachable, also for more than ``MOST_SERIES``: a part of a list would be taken for the whole.
    """
    found: dict[str, dict[str, Any]] = {}
    while True:
        page = understood(
            lambda: list(
                client.search_for_series(
                    search_filters=dict(search_filters), fields=list(fields), limit=PAGE, offset=len(found)
                )
            )
        )
        before = len(found)
        for item in page:
            found.setdefault(_uid_of(item) or repr(item), item)
        if len(found) > MOST_SERIES:
            raise ArchiveUnreachable(
                f"expected at most {MOST_SERIES} series in the DICOMweb archive's list, got more: narrow it with "
                "MONAI_LABEL_DICOMWEB_SEARCH_FILTER"
            )
        if not page or len(found) == before or len(page) > PAGE:
            return list(found.values())


def _uid_of(item: Any) -> str:
    try:
        return str(item[_SERIES_UID]["Value"][0])
    except (TypeError, KeyError, IndexError):
        return ""


def fetch_series(client: DICOMwebClient, about: Dataset, folder: Path, by_frame: bool) -> None:
    """Fetch the series ``about`` (of ``find_series``) into ``folder``, which appears when it is complete.

    Call it within ``series_lock``. Raises ArchiveUnreachable, also where fewer objects came than the archive lists, and
    UnreadableVolume for an object of another series or without a proper identifier.
    """
    uid = str(about.SeriesInstanceUID)
    partial = folder.with_name(f"{uid}{_PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        study = str(about.get("StudyInstanceUID") or "")
        if by_frame:
            # Beforehand: MONAI Label writes each object in a thread whose errors nobody sees.
            for header in understood(lambda: list(client.retrieve_series_metadata(study, uid))):
                check_identity(understood(lambda header=header: Dataset.from_json(_identity(header))), uid)
        understood(lambda: dicom_web_download_series(study, uid, str(partial), client, by_frame))
        came = len(list(partial.iterdir()))
        # A connection that is closed early looks like the end of the answer where its length was not told.
        listed = _listed(about)
        if came < max(1, listed):
            raise ArchiveUnreachable(
                f"the DICOMweb archive sent {came} of {max(1, listed)} objects of the series: try again"
            )
        partial.replace(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _identity(header: Any) -> dict[str, Any]:
    return {key: header[key] for key in _IDENTITY if key in header} if isinstance(header, dict) else {}


def _listed(about: Dataset) -> int:
    """How many objects the archive says a series has; 0 where it says no number."""
    try:
        return int(about.get(_INSTANCES) or 0)
    except (ValueError, TypeError, OverflowError):
        return 0


@contextmanager
def series_lock(series: Path) -> Iterator[None]:
    """Nobody else, also of another process, fetches this series meanwhile; leaves no file behind."""
    path = series.with_name(f"{series.name}{_LOCK}")
    if fcntl is None:
        with FileLock(path):
            yield
        return
    while True:
        with path.open("ab") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                # Whoever held it before has removed it: then this is the lock of nothing.
                if os.stat(path).st_ino == os.fstat(handle.fileno()).st_ino:
                    try:
                        yield
                    finally:
                        path.unlink(missing_ok=True)
                    return


def remove_abandoned(folder: Path) -> int:
    """Remove half fetched series and locks of processes that were killed. Returns how many."""
    gone = 0
    for path in (*folder.glob(f"*{_PARTIAL}"), *folder.glob(f"*{_LOCK}")):
        name = path.name.removesuffix(_PARTIAL).removesuffix(_LOCK)
        if fcntl is None or not name.replace(".", "").isdigit():
            continue
        with suppress(OSError), (folder / f"{name}{_LOCK}").open("ab") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder / f"{name}{_PARTIAL}", ignore_errors=True)
            (folder / f"{name}{_LOCK}").unlink(missing_ok=True)
            gone += 1
    return gone
