"""A DICOMweb archive (such as Orthanc) as the datastore: series in, DICOM Segmentations back.

Labels are written by ``monailabel_app.io.dicom_seg``, so that no external converter is needed, an
abnormality is not coded as an anatomical structure, and an empty finding is stored instead of failing.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dicomweb_client import DICOMwebClient
from monailabel.config import Settings
from monailabel.config import settings as platform
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import ImageLabelModel
from monailabel.datastore.utils.convert import binary_to_image
from monailabel.interfaces.datastore import DefaultLabelTag
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

from lib import archive_labels
from lib.archive_fetch import ask, fetch_series, find_all_series, find_series, remove_abandoned, series_lock, understood
from lib.archive_lists import Lists, Segmentation, series_of
from lib.dicom_store import store_objects
from lib.errors import ArchiveUnreachable, NotAllowed, UnknownImage
from lib.ids import check_tag, check_uid
from lib.reviewed import FINAL, ReviewedLabels, count_voxels, is_final
from lib.shared_table import SharedTable
from monailabel_app.errors import AnomalyAppError, UnreadableVolume
from monailabel_app.io.dicom import dicom_geometry
from monailabel_app.io.dicom_seg import is_multi_frame

logger = logging.getLogger(__name__)

LISTING_SECONDS = 30.0
# What lists show of a series, and the issuer of the patient's id, which belongs to it.
_SHOWN = ("StudyInstanceUID", "SeriesInstanceUID", "PatientID", "PatientName", "StudyDate", "Modality")
_SHOWN += ("SeriesDescription", "StudyDescription")
_ASKED_FOR = tuple(f"{tag_for_keyword(name):08X}" for name in (*_SHOWN, "IssuerOfPatientID"))


class AnomalyDICOMWebDatastore(ReviewedLabels, DICOMWebDatastore, SharedTable):
    """MONAI Label's archive datastore; an image id is a SeriesInstanceUID.

    The cache folder is shared with the other processes of the app, as the studies folder is (``lib.shared_table``).

    The lists of series are asked for at most every ``LISTING_SECONDS`` (MONAI Label keeps them for two
    hours, so that neither a new scan nor a submitted label shows up), and a segmentation's header only once.

    A final label that is not empty goes to the archive; an empty one ("reviewed, nothing abnormal") stays in the
    cache folder, as do the flags of images, and both are there again after a restart.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        self._lists = Lists()
        self._segmented: dict[str, Segmentation] = {}
        self._patients: dict[str, str] = {}
        self._shown: dict[str, dict[str, str]] = {}
        self._fetching: dict[str, threading.RLock] = {}
        super().__init__(*args, **kwargs)
        # The folder is a cache that only this app writes: removals are noticed here, not by watching it.
        self._auto_reload = False
        gone = remove_abandoned(Path(self._datastore.image_path()).resolve())
        if gone:
            logger.warning("%d series removed that a killed process had half fetched, or their locks", gone)

    def _on_any_event(self, event: Any) -> None:
        """Nothing: looking through the cache while a series is added to it would fail."""

    @classmethod
    def from_settings(cls, client: DICOMwebClient, settings: Settings) -> AnomalyDICOMWebDatastore:
        """The datastore that MONAI Label's settings describe."""
        return cls(
            client=client,
            search_filter=settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER,
            cache_path=(settings.MONAI_LABEL_DICOMWEB_CACHE_PATH or "").strip() or None,
            fetch_by_frame=settings.MONAI_LABEL_DICOMWEB_FETCH_BY_FRAME,
            convert_to_nifti=settings.MONAI_LABEL_DICOMWEB_CONVERT_TO_NIFTI,
        )

    def get_image_uri(self, image_id: str) -> str:
        """Path of a series as NIfTI, fetched at first use. Raises UnknownImage or ArchiveUnreachable."""
        check_uid(image_id)
        with self._fetching.setdefault(image_id, threading.RLock()):
            return self._ask(lambda: self._fetched(image_id), image_id)

    def scan_name(self, image_id: str) -> str:
        """The UID, under which there is one scan; its file in the cache may be fetched again."""
        return check_uid(image_id)

    def _fetched(self, image_id: str) -> str:
        """A series' file in the cache; one process fetches and converts it.

        MONAI Label takes any file in the series' folder for the whole series, and writes there one by one: a download
        of another process, or one that was killed, would be taken for a scan of fewer slices. Here the folder appears
        when it is complete. MONAI Label also leaves its converted file behind, outside of the cache.
        """
        kept = SharedTable.get_image_uri(self, image_id)
        if kept and Path(kept).is_file():
            return kept
        series = Path(self._datastore.image_path()).resolve() / image_id
        about = None if _has_files(series) else find_series(self._client, image_id)
        # No limit: the one who holds it gives up after the archive's own.
        with series_lock(series):
            self._download(about, series)
            path = self._converted(image_id, series)
        kept = SharedTable.get_image_uri(self, image_id)
        if kept and kept != path and Path(kept).is_file():
            Path(path).unlink(missing_ok=True)
            return kept
        return path

    def _download(self, about: Dataset | None, series: Path) -> None:
        if not _has_files(series):
            about = about or find_series(self._client, series.name)
            fetch_series(self._client, about, series, self._fetch_by_frame)

    def _converted(self, image_id: str, series: Path) -> str:
        """The series as NIfTI; ITK would also make one of pictures without a place, and of slices with gaps."""
        try:
            if not is_multi_frame(series):
                dicom_geometry(series)
            return super().get_image_uri(image_id)
        except AnomalyAppError:
            # The archive may not have had all of it yet: the next request is to look again.
            shutil.rmtree(series, ignore_errors=True)
            raise
        except RuntimeError as error:
            raise UnreadableVolume("expected a DICOM image series, got files that ITK cannot read as one") from error

    def series_folder(self, image_id: str) -> Path:
        """The folder with a series' own files, fetched (again) where they are not here.

        Raises UnknownImage, ArchiveUnreachable, UnreadableVolume or InvalidVolume.
        """
        self.get_image_uri(image_id)
        series = Path(self._datastore.image_path()).resolve() / image_id
        if not _has_files(series):
            about = find_series(self._client, image_id)
            with series_lock(series):
                self._download(about, series)
        return series

    def results_folder(self) -> Path:
        """Where DICOM objects made of results may be kept: in the cache, which holds patients' data anyway."""
        return Path(self._datastore.image_path()).resolve() / "results"

    def store(self, paths: list[Path]) -> None:
        """Send DICOM files to the archive. Raises ArchiveUnreachable, ArchiveRefused, NotAllowed."""
        if platform.MONAI_LABEL_DATASTORE_READ_ONLY:
            raise NotAllowed("this server's datastore is read-only (MONAI_LABEL_DATASTORE_READ_ONLY): nothing is sent")
        store_objects(self._client, paths)

    def list_images(self) -> list[str]:
        """SeriesInstanceUIDs of the series the search filter finds. Raises ArchiveUnreachable."""
        return self._remembered("images", self._find_images)

    @property
    def client(self) -> DICOMwebClient:
        """The connection to the archive."""
        return self._client

    def known_series(self) -> int | None:
        """How many series the archive listed when it was last asked; None before that, and while it is away."""
        held = self._lists.held("images")
        return None if held is None or held.error is not None else len(held.items)

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Series with a segmentation in the archive or an empty final label here. Raises ArchiveUnreachable."""
        archived = self._remembered("labelled", self._find_labelled)
        images = set(self.list_images()) - set(archived)
        with self._reading():
            kept = [image for image, entry in self._datastore.objects.items() if image in images and _only_here(entry)]
        return archived + kept

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """The other series. Raises ArchiveUnreachable."""
        labelled = set(self.get_labeled_images())
        return [image for image in self.list_images() if image not in labelled]

    def status(self) -> dict[str, Any]:
        """Counts for ``/info/``; zeros and the reason while the archive does not answer."""
        try:
            total, completed = len(self.list_images()), len(self.get_labeled_images())
        except ArchiveUnreachable as error:
            return {"total": 0, "completed": 0, "label_tags": {}, "error": str(error)}
        with self._reading():
            tags = Counter(tag for entry in self._datastore.objects.values() for tag in entry.labels)
        return {"total": total, "completed": completed, "label_tags": dict(tags)}

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """Path of a label; one submitted through this server is kept here and not fetched again."""
        path = SharedTable.get_label_uri(self, label_id, label_tag)
        if path and Path(path).is_file():
            return path
        if label_tag != DefaultLabelTag.FINAL or not image_id:
            return ""
        return self._ask(
            lambda: super(AnomalyDICOMWebDatastore, self).get_label_uri(label_id, label_tag, image_id),
            label_id,
        )

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
        """Keep a label here and, when it is final and not empty, send it to the archive as a DICOM Segmentation.

        of: not looked at; what an archive holds under a UID is never another scan. said: what the image's information
        says of it, in the same change.

        Raises UnknownImage, ArchiveUnreachable, UnreadableVolume, InvalidVolume (not on the scan's grid).
        """
        check_tag(label_tag)
        image = self.get_image_uri(image_id)
        converted = ""
        if label_filename.endswith(".bin"):
            # OHIF sends the bare voxels.
            label_filename = converted = binary_to_image(image, label_filename)
        try:
            voxels = count_voxels(label_filename, image) if is_final(label_tag) else None
            final = label_tag == DefaultLabelTag.FINAL
            lost = archive_labels.unanswered(SharedTable.get_image_info(self, image_id) or {}) if final else {}
            former = lost or SharedTable.get_label_info(self, image_id, label_tag) or {}
            if final and voxels:
                series = self.series_folder(image_id)
                # Staged first: where it cannot be kept here, nothing is to be in the archive either.
                with (
                    self._staged_label(label_filename, label_tag),
                    archive_labels.submitted(label_filename, series, label_info, former) as (segmentation, info),
                ):
                    lost = archive_labels.to_note(info)
                    self.change_image_info(image_id, lambda _: {archive_labels.UNANSWERED: lost})
                    store_objects(self._client, [segmentation])
                label_info = info
                self._lists.forget("labelled")
            else:
                label_info = archive_labels.not_sent(label_info, former)
            self._list_anew_for(image_id)
            kept = self._keep_label(image_id, label_filename, label_tag, label_info, voxels, said=said)
            if lost:
                self.change_image_info(image_id, lambda now: archive_labels.answered(now, lost))
            return kept
        finally:
            if converted:
                os.unlink(converted)

    def _list_anew_for(self, image_id: str) -> None:
        """What somebody has just worked on must not be missing from the list for being newer than the list."""
        held = self._lists.held("images")
        if held is not None and image_id not in held.items:
            self._lists.forget("images")

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label kept here; a segmentation in the archive is removed there. Raises UnknownImage."""
        with self._changes:
            path = SharedTable.get_label_uri(self, label_id, label_tag)
            if not path:
                raise UnknownImage(f"no label {label_tag[:40]!r} of image {label_id[:80]!r} is kept here")
            Path(path).unlink(missing_ok=True)
            self.refresh()
            self._settle(label_id)

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """Change an image's information, fetching the image first: only then there is a place to keep it."""
        self.get_image_uri(image_id)
        self._list_anew_for(image_id)
        super().update_image_info(image_id, info)

    def final_labels(self, image_id: str, inspect: bool = True) -> dict[str, int]:
        """Voxels of the final labels kept here and of the segmentations in the archive that refer to the image.

        inspect: False takes a segmentation that was not looked into yet as not empty. Raises ArchiveUnreachable.
        """
        counts = super().final_labels(image_id, inspect)
        self._remembered("labelled", self._find_labelled)
        with self._reading():
            entry = self._datastore.objects.get(image_id)
            labels = [label.info for label in entry.labels.values()] if entry else []
            sent = {uid for info in labels for uid in archive_labels.series_sent(info)}
        for uid, segmentation in list(self._segmented.items()):
            if segmentation.image == image_id and uid not in sent:
                if segmentation.voxels is None and inspect:
                    segmentation.voxels = self._ask(lambda uid=uid, s=segmentation: self._count(s.study, uid), image_id)
                counts[f"archive {uid}"] = 1 if segmentation.voxels is None else segmentation.voxels
        return counts

    def reviewed_images(self) -> list[str]:
        """Series with a final label here or a segmentation in the archive. Raises ArchiveUnreachable."""
        return list({*super().reviewed_images(), *self.get_labeled_images()})

    def patient_of(self, image_id: str) -> str | None:
        """PatientID, and where it is stated ``PatientID^^^IssuerOfPatientID``; None where the archive names none."""
        return self._patients.get(image_id) or None

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """Its information kept here, and what the archive's last list called the series, which tells its sequence."""
        info = super().get_image_info(image_id)
        called = self._shown.get(image_id, {}).get("SeriesDescription")
        return {"SeriesDescription": called, **info} if called else info

    def series_info(self, image_id: str) -> dict[str, str]:
        """What the archive's list says about a series, by DICOM keyword, without fetching it; empty if it is not there.

        StudyInstanceUID, SeriesInstanceUID, PatientID, PatientName, StudyDate, Modality, SeriesDescription and
        StudyDescription, as far as the archive gives them. Raises ArchiveUnreachable.
        """
        self.list_images()
        return dict(self._shown.get(image_id, {}))

    def _download_labeled_data(self) -> None:
        """Fetch the archive's labels; MONAI Label's own would take results for labels, and remove those kept here."""
        images = set(self.list_images())
        self._remembered("labelled", self._find_labelled)
        for uid, segmentation in list(self._segmented.items()):
            if segmentation.image in images:
                self.get_label_uri(uid, DefaultLabelTag.FINAL, segmentation.image)

    def _count(self, study: str, series: str) -> int:
        try:
            instances = self._client.retrieve_series(study, series)
        except UnreadableVolume:
            logger.warning("a segmentation of the archive cannot be read; its series is not trained on")
            return 1
        try:
            return sum(int((instance.pixel_array != 0).sum()) for instance in instances if "PixelData" in instance)
        except Exception:
            # Compressed or damaged: what cannot be looked into is not taken for empty.
            logger.warning("a segmentation of the archive cannot be read; its series is not trained on")
            return 1

    def to_dicom_seg(
        self,
        image_id: str,
        label_filename: str,
        label_info: list[dict[str, Any]] | None,
        result: dict[str, Any],
        reviewed: bool = False,
    ) -> str:
        """Write a label file as a DICOM Segmentation of series ``image_id``; the caller removes it."""
        series = self.series_folder(image_id)
        return archive_labels.write_label(label_filename, series, label_info, result, reviewed)

    def _find_images(self) -> list[str]:
        uids = []
        for uid, series in series_of(find_all_series(self._client, self._search_filter, _ASKED_FOR)):
            uids.append(uid)
            patient, issuer = (str(series.get(name) or "").strip() for name in ("PatientID", "IssuerOfPatientID"))
            self._shown[uids[-1]] = {name: str(series[name].value or "") for name in _SHOWN if name in series}
            self._patients[uids[-1]] = f"{patient}^^^{issuer}" if patient and issuer else patient
        return uids

    def _find_labelled(self) -> list[str]:
        images = set(self.list_images())
        found, there = [], set()
        for uid, series in series_of(find_all_series(self._client, {"Modality": "SEG"})):
            there.add(uid)
            if uid not in self._segmented:
                study = str(series.get("StudyInstanceUID") or "")
                headers = understood(partial(self._client.retrieve_series_metadata, study, uid))
                self._segmented[uid] = Segmentation(study, archive_labels.labelled(headers))
            if self._segmented[uid].image in images and self._segmented[uid].image not in found:
                found.append(self._segmented[uid].image)
        for uid in set(self._segmented) - there:
            del self._segmented[uid]
        return found

    def _remembered(self, name: str, find: Callable[[], list[str]]) -> list[str]:
        return self._lists.get(name, find, LISTING_SECONDS)

    def _ask(self, question: Callable[[], Any], image_id: str) -> Any:
        """Run ``question`` against the archive and turn its failures into named errors."""
        try:
            return ask(question)
        except (IndexError, KeyError) as error:
            raise UnknownImage(f"the archive has no series {image_id!r}") from error


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _only_here(entry: ImageLabelModel) -> bool:
    return any(is_final(tag) and (tag != FINAL or label.info.get("empty")) for tag, label in entry.labels.items())
