"""Identifiers of the DICOM objects this package writes, derived from what they tell.

The same content is the same SOP instance, so that storing it once more, because an archive's answer was lost or
because somebody submits again, adds nothing to the archive; other content is another instance. Time does not enter:
of two writings that differ in their time of creation only, an archive keeps the first (or, set to overwrite, the
last). Nothing of the patient enters either, only the UIDs of the images that the object refers to anyway, and from the
identifier itself nothing can be read: it is a UUID of SHA-256 digests below the root 2.25 (PS3.5 annex B.2, RFC 4122
section 4.3).
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset

from monailabel_app.types import digest_of, to_json

# Of the way objects are written: with a change of it the same content becomes another instance.
WRITING = 1
_NAMESPACE = uuid.UUID("5b0c3d0e-7a52-5d4c-9f61-0d9b4f1f6a27")


class ObjectUids:
    """The identifiers of one object: of its series, of itself, and of what it names."""

    def __init__(self, kind: str, images: Sequence[Dataset], told: Mapping[str, Any], *arrays: np.ndarray):
        """kind: of object. images: headers of those it refers to. told, arrays: all else that it tells."""
        names = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
        source = [[str(image[name].value) for name in names] for image in images]
        content = {"kind": kind, "writing": WRITING, "source": source, "told": to_json(dict(told))}
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
        for array in arrays:
            digest.update(digest_of(array).encode())
        self._digest = digest.hexdigest()

    def of(self, role: str) -> hd.UID:
        """The identifier of the object's ``role``, such as "series" or "instance"."""
        return hd.UID.from_uuid(str(uuid.uuid5(_NAMESPACE, f"{self._digest} {role}")))

    def name_dimensions(self, dataset: Dataset) -> None:
        """Give an object of many frames a derived Dimension Organization UID in place of a random one."""
        uid = self.of("dimensions")
        for item in (*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence):
            item.DimensionOrganizationUID = uid
