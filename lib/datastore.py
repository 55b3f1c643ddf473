"""The studies folder, made safe: ids and tags cannot leave it, and a label never outlives its image."""

from __future__ import annotations

import filecmp
import hashlib
import itertools
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.datastore.local import DataModel, ImageLabelModel

from lib import audit
from lib.errors import InvalidRequest, UnknownImage
from lib.ids import check_image_id, check_tag
from lib.reviewed import ReviewedLabels, count_voxels, file_stamp, is_final, with_flag
from lib.same_scan import SameScan
from lib.table_at_rest import AtRest
from lib.whole_files import Placing, Staged
from monailabel_app.errors import AnomalyAppError
from monailabel_app.io import images

logger = logging.getLogger(__name__)

IMAGE_EXTENSIONS = (".nii.gz", ".nii", ".nrrd")
LABEL_EXTENSIONS = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd")


class AnomalyLocalDatastore(AtRest, SameScan, ReviewedLabels):
    """MONAI Label's folder of images with four faults mended, and final labels counted (``lib.reviewed``).

    * ids, tags and extensions are checked before they become a path;
    * an unknown id is an error that says so, instead of an empty path;
    * an image uploaded under a used id with other content moves the old image *and its labels* to an id of its own,
      so that no label is ever shown on another scan and nothing is lost;
    * requests, the watcher of the folder and other processes no longer change the table of images under each other
      (``lib.shared_table``);
    * a file that is copied over another one by hand is told from it (``lib.same_scan``).

    Two locks: one for the table, held briefly; one for uploads, which compare files and may take seconds. The
    latter is always taken first.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        self._uploads = threading.Lock()
        super().__init__(*args, **kwargs)

    def _on_any_event(self, event: Any) -> None:
        """A change in the folder. An error here would end the watcher, and no later change would be seen."""
        try:
            super()._on_any_event(event)
        except (OSError, ValueError) as error:
            logger.warning("a change in the studies folder was left out: %s", type(error).__name__)

    def get_image_uri(self, image_id: str) -> str:
        """Path of an image. Raises UnknownImage."""
        path = super().get_image_uri(image_id)
        if not path:
            raise UnknownImage(
                f"no image {image_id[:80]!r} in the datastore: list the ids with GET /datastore/?output=all"
            )
        return path

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Take a copy of an image file in under ``image_id`` and return the id. Raises InvalidRequest.

        What cannot be read or analysed does not get in: UnreadableVolume, InvalidVolume.
        ``healthy`` in ``image_info`` marks the scan, also one that is here already.
        """
        image_info = with_flag(image_info or {})
        extension = known_extension(image_filename, IMAGE_EXTENSIONS, "an image")
        image_id = check_image_id(image_id or Path(image_filename).name[: -len(extension)])
        with self._uploads:
            images.read_volume(image_filename, slices=True)
            former = super().get_image_uri(image_id)
            if former and Path(former).is_file() and same_image(Path(former), Path(image_filename)):
                if "healthy" in image_info:
                    self.update_image_info(image_id, {"healthy": image_info["healthy"]})
                return image_id
            folder = self._datastore.image_path()
            with Staged(image_filename, folder) as staged, self._changes, self._placing() as placing:
                former = super().get_image_uri(image_id)
                if former and Path(former).is_file():
                    self._move_aside(placing, image_id, Path(former))
                    audit.about(replaced=True)
                self._place_image(placing, staged.path, image_id, image_filename, image_info)
                self._update_datastore_file()
            return image_id

    def remove_image(self, image_id: str) -> None:
        """Remove an image and its labels. Raises ImageNotFoundException."""
        with self._changes:
            super().remove_image(image_id)
            self.refresh()

    def save_label(
        self,
        image_id: str,
        label_filename: str,
        label_tag: str,
        label_info: dict[str, Any],
        label_id: str = "",
        of: str = "",
        said: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> str:
        """Take a copy of a label in under ``label_tag``; a final one must lie on the scan's grid and is counted.

        of: the stamp of the file that it was made of (``stamp_of``), where that is known. said: what the image's
        information says of it, in the same change. Raises InvalidRequest, UnknownImage (also where the image is
        another file by now), UnreadableVolume or InvalidVolume.
        """
        check_tag(label_tag)
        known_extension(label_filename, LABEL_EXTENSIONS, "a label")
        image = super().get_image_uri(image_id)
        if not image:
            raise UnknownImage(f"no image {image_id[:80]!r} to attach the label to: upload the image first")
        scan = (image, file_stamp(image))
        voxels = count_voxels(label_filename, image) if is_final(label_tag) else None
        with self._changes:
            now = super().get_image_uri(image_id)
            if (now, file_stamp(now)) != scan:
                raise UnknownImage(f"image {image_id[:80]!r} was replaced meanwhile: submit the label again")
            return self._keep_label(image_id, label_filename, label_tag, label_info, voxels, of, said)

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label. Raises UnknownImage when there is none."""
        with self._changes:
            if not super().get_label_uri(label_id, label_tag):
                raise UnknownImage(f"no label {label_tag[:40]!r} of image {label_id[:80]!r}")
            super().remove_label(label_id, label_tag)
            self.refresh()
            self._settle(label_id)

    def _move_aside(self, placing: Placing, image_id: str, image: Path) -> str:
        """Give an image, its information and its labels an id of their own, within a change. Returns that id.

        Everything has its second name before a first one is taken away, and no label is there any more when the new
        scan comes to its place: a process may be killed anywhere in between.
        """
        digest = hashlib.sha256(image.read_bytes()).hexdigest()[:8]
        stem = f"{image_id[:100]}_replaced_{digest}"
        names = itertools.chain([stem], (f"{stem}_{number}" for number in itertools.count(2)))
        kept = check_image_id(next(name for name in names if name not in self._datastore.objects))
        entry = self._datastore.objects[image_id]
        name = self._filename(kept, entry.image.ext)
        placing.twin(image, image.with_name(name))
        info = {**entry.image.info, "replaced_id": image_id, "name": name}
        moved = ImageLabelModel(image=DataModel(info=info, ext=entry.image.ext))
        labels = {tag: Path(super(AnomalyLocalDatastore, self).get_label_uri(image_id, tag)) for tag in entry.labels}
        labels = {tag: path for tag, path in labels.items() if path.is_file()}
        for tag, path in labels.items():
            label = entry.labels[tag]
            name = self._filename(kept, label.ext)
            placing.twin(path, path.with_name(name))
            moved.labels[tag] = DataModel(info={**label.info, "name": name}, ext=label.ext)
        self._datastore.objects[kept] = moved
        for path in labels.values():
            placing.remove(path)
        placing.remove(image)
        logger.warning("an image was uploaded under an id in use: the former image and its labels moved to a new id")
        return kept


def known_extension(filename: str, allowed: tuple[str, ...], what: str) -> str:
    """The extension of ``filename``. Raises InvalidRequest naming the allowed ones."""
    for extension in allowed:
        if Path(filename).name.lower().endswith(extension):
            return Path(filename).name[-len(extension) :]
    got = "".join(Path(filename).suffixes)[-24:] or "no extension"
    raise InvalidRequest(f"expected {what} file ending in {', '.join(allowed)}; got {got}: convert it first")


def same_image(first: Path, second: Path) -> bool:
    """Whether two files hold the same voxels in the same place; gzip stamps the time, so bytes may differ."""
    if filecmp.cmp(first, second, shallow=False):
        return True
    try:
        one, other = images.read_volume(first), images.read_volume(second)
    except AnomalyAppError:
        return False
    return (
        one.data.shape == other.data.shape
        and np.allclose(one.affine, other.affine, atol=1e-4)
        and np.array_equal(one.data, other.data)
    )
