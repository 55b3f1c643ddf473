"""Which ids and tags may become part of a file name.

Slicer uses the name of the volume node as the image id, and names a node after its DICOM series
("6: t1_mprage sag"), so spaces and punctuation must pass; what leads out of the folder
or hides a file must not.
"""

from __future__ import annotations

import re

from lib.errors import InvalidRequest

# Of a file's name, which has the extension too, and in a folder of labels a suffix.
_LONGEST_NAME = 200
_IMAGE_ID = re.compile(r"[^\x00-\x1f\x7f/\\]{1,128}")
_TAG = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SESSION = re.compile(r"[A-Za-z0-9-]{1,64}")
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")


def check_image_id(image_id: str) -> str:
    """``image_id`` unchanged. Raises InvalidRequest when it could name a file outside the studies folder."""
    long = len(image_id.encode("utf-8", "surrogatepass")) > _LONGEST_NAME
    unsafe = long or ".." in image_id or image_id[:1] in {".", "~", " "} or image_id[-1:] in {".", " "}
    if unsafe or not _IMAGE_ID.fullmatch(image_id):
        raise InvalidRequest(
            f"expected an image id of 1 to 128 characters ({_LONGEST_NAME} bytes) without slashes, control characters "
            "or '..', "
            f"not starting with a dot; got {image_id[:80]!r}: give the id of an image in the datastore"
        )
    return image_id


def check_tag(tag: str) -> str:
    """``tag`` unchanged. Raises InvalidRequest when it is not a plain word."""
    if not _TAG.fullmatch(tag):
        raise InvalidRequest(f"expected a tag of 1 to 64 letters, digits, '_' or '-' (such as final), got {tag[:80]!r}")
    return tag


def check_session_id(session_id: str) -> str:
    """``session_id`` unchanged. Raises InvalidRequest when it has not the form that the server hands out."""
    if not _SESSION.fullmatch(session_id):
        raise InvalidRequest(f"expected a session id of letters, digits and '-', got {session_id[:80]!r}")
    return session_id


def check_uid(uid: str) -> str:
    """``uid`` unchanged. Raises InvalidRequest when it is not a DICOM unique identifier."""
    if len(uid) > 64 or not _UID.fullmatch(uid):
        raise InvalidRequest(
            f"expected a DICOM SeriesInstanceUID (digits and dots, at most 64 characters), got {uid[:80]!r}: "
            "this server's images come from a DICOMweb archive, upload there first"
        )
    return uid
