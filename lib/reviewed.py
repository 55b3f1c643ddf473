"""Final labels as a verdict on their scan: an empty one says "reviewed, nothing abnormal".

The verdict is drawn from the labels themselves whenever it is asked for; the image information ``healthy`` that goes
with an empty final label only makes it visible to clients.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import DefaultLabelTag

from lib.errors import InvalidRequest, UnknownImage
from lib.ids import check_tag
from lib.shared_table import SharedTable, file_stamp, put_into
from lib.whole_files import Placing
from monailabel_app.errors import AnomalyAppError, InvalidVolume
from monailabel_app.io import images
from monailabel_app.io.dicom_seg import read_labelmap
from monailabel_app.io.nifti import read_nifti

FINAL = "final"
REVIEWED = "reviewed: nothing abnormal"
UNREADABLE = -1

_GRID_TOLERANCE_MM = 1e-2
_TRUE = frozenset({"true", "1", "yes"})
_FALSE = frozenset({"false", "0", "no"})
_FLAG_KEYS = ("healthy", "healthy_reason", "healthy_ts")
_COUNT_KEYS = ("voxels", "empty", "counted")


def is_final(tag: str) -> bool:
    """Whether labels under ``tag`` are final: ``final``, and a reader's own such as ``final_anna``."""
    return tag == FINAL or tag.startswith((f"{FINAL}_", f"{FINAL}-"))


def tag_of_analysis(request: Mapping[str, Any]) -> str:
    """The tag under which an analysis keeps its label, ``original`` unless asked otherwise.

    Raises InvalidRequest for one that is no plain word, and for a final one: that is a person's verdict, which an
    analysis must neither give nor replace.
    """
    tag = check_tag(str(request.get("label_tag") or DefaultLabelTag.ORIGINAL.value))
    if is_final(tag):
        raise InvalidRequest(
            "expected label_tag of an analysis to be a word such as original, got a final one: final labels are "
            "submitted by a person (PUT /datastore/label, or a review)"
        )
    return tag


def read_flag(value: Any) -> bool | None:
    """``healthy`` of an image's information: true, false, or None where it is not given.

    Raises InvalidRequest for anything but a JSON boolean, 1, 0, null and the words true, false, yes, no.
    """
    if value is None or isinstance(value, bool):
        return value
    word = str(value).strip().casefold() if isinstance(value, (str, int)) else ""
    if word in _TRUE | _FALSE:
        return word in _TRUE
    raise InvalidRequest(f"expected healthy to be true, false or null, got {str(value)[:24]!r}")


def with_flag(info: Mapping[str, Any]) -> dict[str, Any]:
    """Image information as sent by a client, with its ``healthy`` as a boolean and marked as set by hand.

    Raises InvalidRequest.
    """
    info = {key: value for key, value in info.items() if key not in _FLAG_KEYS[1:]}
    if "healthy" in info:
        info["healthy"] = read_flag(info["healthy"])
    return info


def count_voxels(label: str | Path, image: str | Path | None = None) -> int:
    """Labelled voxels of a file. With ``image``, its grid must be that image's.

    Raises UnreadableVolume, InvalidVolume.
    """
    if str(label).lower().endswith(images.NIFTI_SUFFIXES):
        # By the reader of the scans, which also reads what ITK does not (a sheared grid).
        array, geometry, _ = read_nifti(Path(label))
        affine = geometry.affine
    else:
        array, affine = read_labelmap(label)
    if image is not None:
        _check_grid(array.shape, affine, images.read_geometry(image))
    return int(np.count_nonzero(array))


def _check_grid(shape: tuple[int, ...], affine: np.ndarray, scan: Any) -> None:
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in scan.shape])).reshape(3, -1)
    if tuple(shape) == tuple(scan.shape):
        distance = np.abs((affine - scan.affine)[:3, :3] @ corners + (affine - scan.affine)[:3, 3:]).max()
        if distance <= _GRID_TOLERANCE_MM:
            return
        got = f"one that lies up to {distance:.3g} mm elsewhere"
    else:
        got = "x".join(map(str, shape))
    raise InvalidVolume(
        f"expected the final label on the grid of its scan ({'x'.join(map(str, scan.shape))} voxels), got {got}: "
        "draw or resample it on the scan itself"
    )


@lru_cache(maxsize=4096)
def _counted(path: str, modified: int, size: int) -> int:
    try:
        return count_voxels(path)
    except AnomalyAppError:
        return UNREADABLE


class ReviewedLabels(SharedTable):
    """What both datastores do about final labels."""

    def final_labels(self, image_id: str, inspect: bool = True) -> dict[str, int]:
        """Voxels of each final label of an image, by tag; UNREADABLE for a file that is no label.

        A count is taken when a label is submitted; a file put into the folder by other means is counted once.
        ``inspect``: also count what has to be fetched from elsewhere.
        """
        with self._reading():
            entry = self._datastore.objects.get(image_id)
            labels = dict(entry.labels) if entry else {}
        counts = {}
        for tag, label in labels.items():
            if is_final(tag):
                path = LocalDatastore.get_label_uri(self, image_id, tag)
                stamp = file_stamp(path)
                if stamp is None:
                    continue
                recorded = label.info.get("voxels")
                fresh = isinstance(recorded, int) and label.info.get("counted") == list(stamp)
                counts[tag] = recorded if fresh else _counted(path, *stamp)
        return counts

    def reviewed_images(self) -> list[str]:
        """Images with a final label, a reader's own included."""
        with self._reading():
            return [image for image, entry in self._datastore.objects.items() if any(map(is_final, entry.labels))]

    def patient_of(self, image_id: str) -> str | None:
        """The patient an archive names for an image; None where nothing is known."""
        return None

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Change an image's information. ``healthy`` set here is set by hand, and null takes it back.

        Raises InvalidRequest for a ``healthy`` that is neither true nor false, UnknownImage.
        """
        info = with_flag(info)
        with self._changes:
            entry = self._datastore.objects.get(image_id)
            if entry is None:
                raise UnknownImage(f"no image {image_id[:80]!r} in the datastore: upload the image first")
            if "healthy" in info:
                for key in _FLAG_KEYS:
                    entry.image.info.pop(key, None)
                if info["healthy"] is None:
                    del info["healthy"]
            super().update_image_info(image_id, info)
            self._settle(image_id)

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """Change a label's information, except for what was counted in its file."""
        with self._changes:
            kept = {key: value for key, value in info.items() if key not in _COUNT_KEYS}
            super().update_label_info(label_id, label_tag, kept)

    def _keep_label(
        self,
        image_id: str,
        file: str,
        tag: str,
        info: dict[str, Any],
        voxels: int | None,
        of: str = "",
        said: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> str:
        """Store a label whose voxels are already counted (None: not a final one) and settle its image's flag.

        of: the stamp of the scan's file that it is about, where that is known. said: entries for tables of the image's
        information that belong to the label, as ``add_to_image_info`` takes them. One change: whole or not at all.
        """
        with self._staged_label(file, tag) as staged, self._changes, self._placing() as placing:
            self._check_same(image_id, of)
            former = Path(LocalDatastore.get_label_uri(self, image_id, tag) or "")
            self._label_entry(placing, staged.path, image_id, file, tag, info, voxels)
            if former.is_file() and former != Path(LocalDatastore.get_label_uri(self, image_id, tag)):
                # Saved anew as another file type: the old file would stay behind.
                placing.remove_after(former)
            for key, entries in (said or {}).items():
                put_into(self._datastore.objects[image_id].image.info, key, entries)
            self._update_datastore_file()
        return image_id

    def _label_entry(
        self,
        placing: Placing,
        staged: Path,
        image_id: str,
        file: str,
        tag: str,
        info: Mapping[str, Any],
        voxels: int | None,
    ) -> None:
        """Within a change, which writes the table afterwards."""
        if voxels is not None:
            info = {**info, "voxels": voxels, "empty": voxels == 0}
        self._place_label(placing, staged, image_id, file, tag, info)
        if voxels is not None:
            stored = self._datastore.objects[image_id].labels[tag]
            stored.info["counted"] = list(file_stamp(LocalDatastore.get_label_uri(self, image_id, tag)) or ())
            self._settled(image_id)

    def _settle(self, image_id: str) -> None:
        """Bring the automatic flag of an image in line with its final labels; one set by hand stays."""
        if self._settled(image_id):
            self._update_datastore_file()

    def _settled(self, image_id: str) -> bool:
        """As ``_settle`` without writing the table; whether there is something to write."""
        entry = self._datastore.objects.get(image_id)
        if entry is None:
            return False
        info = entry.image.info
        automatic = info.get("healthy_reason") == REVIEWED
        counts = self.final_labels(image_id, inspect=False)
        nothing_abnormal = bool(counts) and not any(counts.values())
        if nothing_abnormal and "healthy" not in info:
            info.update({"healthy": True, "healthy_reason": REVIEWED, "healthy_ts": int(time.time())})
            return True
        if automatic and not nothing_abnormal:
            for key in _FLAG_KEYS:
                info.pop(key, None)
            return True
        return False
