"""STOW-RS: DICOM objects to the archive, and what may go wrong on the way, in words."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError

import pydicom
import requests
from dicomweb_client import DICOMwebClient
from pydicom.dataset import Dataset
from retrying import RetryError

from lib.errors import ArchiveRefused, ArchiveUnreachable

logger = logging.getLogger(__name__)

# PS3.18 table 6.6.1-4 and PS3.7 annex C, for the reasons an archive has in practice.
_REASONS = {
    0x0110: "it failed to process the object",
    0x0122: "it does not take this kind of object",
    0x0124: "it is not authorised",
    0x0117: "it holds the object as invalid",
    0x0111: "it has the object already",
    0xA700: "it has no space left",
    0xC000: "it cannot understand the object",
}
_CONFLICT = 409
_READ_ONLY = frozenset({401, 403, 405})
# "Duplicate SOP instance", and what Azure's archive says instead.
_HAS_IT = frozenset({0x0111, 0xB00E})


def store_objects(client: DICOMwebClient, paths: Sequence[Path | str]) -> None:
    """Send DICOM files to the archive, one request each, in this order; an object that is there already is fine.

    Raises ArchiveUnreachable (it did not answer, or went away meanwhile) and ArchiveRefused (read-only, full, a kind of
    object it does not take); both say how many objects had been stored by then.
    """
    for done, path in enumerate(paths):
        sent = f"; {done} of {len(paths)} objects had been stored" if done else ""
        again = " Sending them again is safe: what is there already stays as it is." if len(paths) > 1 else ""
        dataset = pydicom.dcmread(path)
        try:
            answer = client.store_instances([dataset])
        except requests.HTTPError as error:
            code = error.response.status_code if error.response is not None else 0
            if code == _CONFLICT and (_has_it_already(error.response) or _is_there(client, dataset)):
                continue
            raise _refusal(code, sent, again) from error
        except RetryError as error:
            raise ArchiveUnreachable(f"the archive was too busy to take an object{sent}.{again}") from error
        except (requests.RequestException, OSError) as error:
            raise ArchiveUnreachable(
                f"the archive did not answer while an object was sent ({type(error).__name__}){sent}.{again}"
            ) from error
        except (ValueError, ParseError, AttributeError, KeyError) as error:
            # What does not come from an archive: a proxy's page, for example.
            raise ArchiveRefused(
                f"the archive's answer to a stored object cannot be read ({type(error).__name__}){sent}: "
                "check the address and what lies between"
            ) from error
        _check_answer(answer, sent, again)


def _refusal(code: int, sent: str, again: str) -> ArchiveRefused | ArchiveUnreachable:
    if code in _READ_ONLY:
        return ArchiveRefused(
            f"the archive does not take objects from this server (HTTP {code}){sent}: it may be read-only, or the "
            "user of MONAI_LABEL_DICOMWEB_USERNAME may not write"
        )
    if code in {502, 503, 504}:
        return ArchiveUnreachable(f"the archive cannot be reached behind its gateway (HTTP {code}){sent}.{again}")
    if code in {413, 507}:
        return ArchiveRefused(f"the archive has no room for an object of this size (HTTP {code}){sent}")
    return ArchiveRefused(f"the archive refused an object (HTTP {code}){sent}")


def _has_it_already(response: requests.Response) -> bool:
    """Whether a refusal says that the archive holds the object."""
    try:
        failed = Dataset.from_json(response.json()).get("FailedSOPSequence") or ()
        reasons = {int(item.get("FailureReason") or 0) for item in failed}
    except (ValueError, TypeError, AttributeError, KeyError):
        return False
    return bool(reasons) and reasons <= _HAS_IT


def _is_there(client: DICOMwebClient, dataset: Dataset) -> bool:
    """Whether the archive lists the object: Google's refuses one that it has without a reason of the standard.

    Identifiers are made of the content (``monailabel_app.io.dicom_uids``), so what is there is the same.
    """
    try:
        found = client.search_for_instances(
            str(dataset.StudyInstanceUID),
            str(dataset.SeriesInstanceUID),
            search_filters={"SOPInstanceUID": str(dataset.SOPInstanceUID)},
        )
        return any(Dataset.from_json(item).get("SOPInstanceUID") == dataset.SOPInstanceUID for item in found)
    except (requests.RequestException, RetryError, OSError, ValueError, TypeError, AttributeError, KeyError):
        return False


def _check_answer(answer: Any, sent: str, again: str) -> None:
    """Raises ArchiveRefused when the archive says, with whatever status, that it did not keep the object."""
    failed = answer.get("FailedSOPSequence") if isinstance(answer, Dataset) else None
    reasons = {int(item.get("FailureReason") or 0) for item in failed or ()} - _HAS_IT
    if not failed or not reasons:
        return
    told = "; ".join(_REASONS.get(reason, f"its reason is {reason:#06x}") for reason in sorted(reasons))
    raise ArchiveRefused(f"the archive did not keep an object: {told}{sent}.{again}")
