"""``datastore_v2.json``, the table of images and labels, shared by every process that serves or works on a folder.

A training, a scoring and a batch analysis each have a datastore of their own beside the server's. MONAI Label's writes
the whole table from memory, so that whatever another process wrote in between is lost. Here

* every change happens under a lock on a file beside the table, after reading what the others wrote (``_changes``);
* the table is replaced by renaming, so that it is whole at any moment, also when a process is killed;
* every answer looks at the table's stamp first, so that another process's change is seen without a restart.

The lock is held for one change at a time, never while a scan is analysed or fetched. The system releases it when its
process dies. Order: the threads' lock of this object, then the file's, then MONAI Label's own ``.lock``, which its
methods take inside.
"""

from __future__ import annotations

import errno
import functools
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore, LocalDatastoreModel

from lib.errors import ServerBusy, UnknownImage
from lib.whole_files import Placing, Staged, Stamp, clean, put_back, table_stamp
from monailabel_app.files import flush

logger = logging.getLogger(__name__)

WAIT_SECONDS = 60.0
_POLL_SECONDS = 0.005
_LAID_OUT = 1000


class _TableLock(AbstractContextManager):
    """The table for one change: no other thread, no other process, and what those wrote has been read.

    Reentrant. A change that ends in an error is taken back: memory is read from the file again.
    """

    def __init__(self, path: Callable[[], str], read: Callable[[], None], distrust: Callable[[], None]):
        self.threads = threading.RLock()
        self._path, self._read, self._distrust = path, read, distrust
        self._held: list[FileLock] = []
        self._failed = False

    @property
    def changing(self) -> bool:
        """Whether a change is under way; ask while holding ``threads``."""
        return bool(self._held)

    def __enter__(self) -> _TableLock:
        """Raises ServerBusy when another process holds the table for a minute."""
        self.threads.acquire()
        try:
            if self._held:
                self._held.append(self._held[0])
                return self
            lock = FileLock(self._path(), timeout=WAIT_SECONDS)
            try:
                lock.acquire(poll_interval=_POLL_SECONDS)
            except Timeout as error:
                raise ServerBusy("another process holds the table of images: try again later") from error
            try:
                self._read()
            except BaseException:
                lock.release()
                raise
            self._held.append(lock)
            return self
        except BaseException:
            self.threads.release()
            raise

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        try:
            self._failed = self._failed or kind is not None
            lock = self._held.pop()
            if not self._held:
                if self._failed:
                    self._distrust()
                self._failed = False
                lock.release()
        finally:
            self.threads.release()


def _reader(name: str) -> Callable:
    """A method of MONAI Label's datastore that answers from the table as it is now."""
    method = getattr(LocalDatastore, name)

    @functools.wraps(method)
    def reading(self, *args: Any, **kwargs: Any) -> Any:
        with self._reading():
            return method(self, *args, **kwargs)

    return reading


def _writer(name: str) -> Callable:
    """A method of MONAI Label's datastore that changes the table, as one change."""
    method = getattr(LocalDatastore, name)

    @functools.wraps(method)
    def changing(self, *args: Any, **kwargs: Any) -> Any:
        with self._changes:
            return method(self, *args, **kwargs)

    return changing


class SharedTable(LocalDatastore):
    """MONAI Label's datastore whose table other processes may change too.

    Use as the last base of a class whose other bases call MONAI Label's methods.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        self._changes = _TableLock(lambda: f"{self._datastore_config_path}.lock", self._read_for_change, self._distrust)
        self._text: bytes | None = None
        self._stamp: Stamp | None = None
        # As this process wrote it last, with that stamp: nobody changes it, so no lock is needed to look at it.
        self._written: tuple[Stamp | None, dict[str, Any]] | None = None
        self._read_only_said = False
        super().__init__(*args, **kwargs)
        self._clean()

    def _clean(self) -> None:
        """Remove what killed processes have left half written."""
        try:
            with self._changes:
                folders = [Path(self._datastore.image_path())]
                folders += [path for path in Path(self._datastore.label_path(None)).iterdir() if path.is_dir()]
                gone = sum(map(clean, folders))
                # Whoever writes the table holds the lock that is held here.
                Path(f"{self._datastore_config_path}.partial").unlink(missing_ok=True)
        except (OSError, ServerBusy) as error:
            logger.warning("the folder of scans could not be cleaned: %s", type(error).__name__)
            return
        if gone:
            logger.warning("%d files removed that a killed process had left half written", gone)

    datalist = _reader("datalist")
    description = _reader("description")
    get_image_info = _reader("get_image_info")
    get_image_uri = _reader("get_image_uri")
    get_label_by_image_id = _reader("get_label_by_image_id")
    get_label_info = _reader("get_label_info")
    get_label_uri = _reader("get_label_uri")
    get_labeled_images = _reader("get_labeled_images")
    get_labels_by_image_id = _reader("get_labels_by_image_id")
    get_unlabeled_images = _reader("get_unlabeled_images")
    json = _reader("json")
    list_images = _reader("list_images")
    name = _reader("name")
    status = _reader("status")

    remove_image = _writer("remove_image")
    remove_label = _writer("remove_label")
    set_description = _writer("set_description")
    set_name = _writer("set_name")
    update_image_info = _writer("update_image_info")
    update_label_info = _writer("update_label_info")

    def _reconcile_datastore(self) -> None:
        """Bring the table in line with the files, as one change; in memory only where the folder may not be written."""
        try:
            with self._changes:
                super()._reconcile_datastore()
        except OSError as error:
            if error.errno not in {errno.EROFS, errno.EACCES, errno.EPERM}:
                raise
            if not self._read_only_said:
                logger.warning("the folder of scans may not be written: scans are served, and nothing is kept")
                self._read_only_said = True
            with self._changes.threads:
                self._remove_non_existing()
                self._add_non_existing_images()
                for tag in os.listdir(self._datastore.label_path(None)):
                    if os.path.isdir(self._datastore.label_path(tag)):
                        self._add_non_existing_labels(tag)

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Take a copy of an image in, whole or not at all. Raises OSError, and then nothing has changed."""
        image_id = image_id or self._to_id(os.path.basename(image_filename))[0]
        with Staged(image_filename, self._datastore.image_path()) as staged, self._changes, self._placing() as placing:
            self._place_image(placing, staged.path, image_id, image_filename, image_info)
            self._update_datastore_file()
        return image_id

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Take a copy of a label in, whole or not at all; the former one stays until then. Raises as ``add_image``."""
        with self._staged_label(label_filename, label_tag) as staged, self._changes, self._placing() as placing:
            self._place_label(placing, staged.path, image_id, label_filename, label_tag, label_info)
            self._update_datastore_file()
        return image_id

    def _placing(self) -> Placing:
        """For the files of a change, whose table ends it."""
        return Placing(self._datastore_config_path)

    def _staged_label(self, label_filename: str, label_tag: str) -> Staged:
        folder = self._datastore.label_path(label_tag)
        os.makedirs(folder, exist_ok=True)
        return Staged(label_filename, folder)

    def _place_image(
        self, placing: Placing, staged: Path, image_id: str, image_filename: str, image_info: Mapping[str, Any] | None
    ) -> None:
        """Within a change, which writes the table afterwards: the file's place and the image's entry."""
        _, extension = self._to_id(os.path.basename(image_filename))
        name = self._filename(image_id, extension)
        placing.put(staged, Path(self._datastore.image_path()).resolve() / name)
        info = {**(image_info or {}), "ts": int(time.time()), "name": name}
        self._datastore.objects[image_id] = ImageLabelModel(image=DataModel(info=info, ext=extension))

    def _place_label(
        self,
        placing: Placing,
        staged: Path,
        image_id: str,
        label_filename: str,
        label_tag: str,
        label_info: Mapping[str, Any] | None,
    ) -> None:
        """As ``_place_image``, for a label. Raises UnknownImage."""
        entry = self._datastore.objects.get(image_id)
        if entry is None:
            raise UnknownImage(f"no image {image_id[:80]!r} to attach the label to: upload the image first")
        _, extension = self._to_id(os.path.basename(label_filename))
        name = self._filename(image_id, extension)
        placing.put(staged, Path(self._datastore.label_path(label_tag)) / name)
        info = {**(label_info or {}), "ts": int(time.time()), "name": name}
        entry.labels[label_tag] = DataModel(info=info, ext=extension)

    def add_to_image_info(self, image_id: str, key: str, entries: Mapping[str, Any], of: str = "") -> None:
        """Put ``entries`` into the table ``key`` of an image's information, beside those that are there.

        of: the stamp of the file that they are about (``stamp_of``), where they are about one. Raises UnknownImage for
        an image that is gone, or is another file by now.
        """
        with self._changes:
            entry = self._datastore.objects.get(image_id)
            if entry is None:
                raise UnknownImage(f"no image {image_id[:80]!r} in the datastore any more")
            self._check_same(image_id, of)
            put_into(entry.image.info, key, entries)
            self._update_datastore_file()

    def scan_name(self, image_id: str) -> str:
        """Tells whether an image is still the same scan. Raises UnknownImage."""
        return stamp_of(self.get_image_uri(image_id))

    def _check_same(self, image_id: str, of: str) -> None:
        """Within a change: raises UnknownImage where the image's file is not the one with the stamp ``of``."""
        if of and stamp_of(LocalDatastore.get_image_uri(self, image_id)) != of:
            raise UnknownImage(f"image {image_id[:80]!r} was replaced meanwhile: look at it as it is now")

    def change_image_info(self, image_id: str, change: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> None:
        """Put what ``change`` makes of an image's information beside it, as one change: nobody writes in between.

        An error of ``change`` leaves everything as it is. Raises UnknownImage.
        """
        with self._changes:
            entry = self._datastore.objects.get(image_id)
            if entry is None:
                raise UnknownImage(f"no image {image_id[:80]!r} in the datastore")
            entry.image.info.update(change(dict(entry.image.info)))
            self._update_datastore_file()

    def entries(self) -> dict[str, tuple[dict[str, Any], frozenset[str]]]:
        """Information and tags of the labels of every image in the table, as it is at one moment, for listings.

        Thousands of images cost milliseconds: what lies inside the information is not copied, so do not change it.
        """
        with self._reading():
            objects = self._datastore.objects
            return {image: (dict(entry.image.info), frozenset(entry.labels)) for image, entry in objects.items()}

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """The table for this thread, as the file has it now; within a change, as the change has it."""
        with self._changes.threads:
            if not self._changes.changing:
                self._read_if_changed()
            yield

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        """Read the table. Raises ValueError for one that cannot be read, if asked to."""
        with self._changes.threads:
            try:
                if not self._changes.changing:
                    self._load(only_if_stamped=False)
            except ValueError as error:
                logger.error("the table of images cannot be read (%s)", type(error).__name__)
                if throw_exception:
                    raise

    def _read_if_changed(self) -> None:
        try:
            self._load(only_if_stamped=True)
        except ValueError as error:
            logger.error("the table of images cannot be read (%s); it stays as it was", type(error).__name__)

    def _read_for_change(self) -> None:
        """A table that cannot be read is kept under another name, before a change replaces it.

        What a killed process had put into place before it could write the table is put back.
        """
        if put_back(self._datastore_config_path):
            logger.warning("a change that was killed before the table of images told of it has been undone")
        try:
            self._load(only_if_stamped=False)
        except ValueError as error:
            aside = f"{self._datastore_config_path}.damaged-{time.strftime('%Y%m%d-%H%M%S')}"
            logger.error("the table of images cannot be read (%s); it is kept beside it", type(error).__name__)
            os.replace(self._datastore_config_path, aside)

    def _load(self, only_if_stamped: bool) -> None:
        """Take over the file where it differs; by its stamp only, or by its content. Raises ValueError."""
        path = Path(self._datastore_config_path)
        try:
            stamp = table_stamp(path)
            if only_if_stamped and stamp == self._stamp:
                return
            text = path.read_bytes()
        except FileNotFoundError:
            return  # Nothing written yet, or removed by hand: the next change writes it anew.
        # Set also where the file cannot be read: said once, not at every request.
        self._stamp = stamp
        if text == self._text:
            return
        table = LocalDatastoreModel.model_validate_json(text)
        table.base_path = self._datastore_path
        self._datastore, self._text = table, text

    def _distrust(self) -> None:
        """Memory may hold what was never written."""
        self._text = self._stamp = None

    def _update_datastore_file(self, lock: bool = True) -> None:
        """Write the table, within a change. Raises OSError, and then the change did not happen."""
        if not self._changes.changing:
            # Entering one now would read the file and lose what is to be written.
            raise RuntimeError("the table of images is written outside of a change")
        # Laid out for people, as MONAI Label does, takes Python most of the time: too long for a large table.
        indent = 2 if len(self._datastore.objects) <= _LAID_OUT else None
        table = self._datastore.model_dump(exclude={"base_path"})
        text = json.dumps(table, indent=indent, default=str).encode()
        # Only the holder of the lock writes here; what a killed process left is written over.
        partial = f"{self._datastore_config_path}.partial"
        try:
            with open(partial, "wb") as handle:
                handle.write(text)
                handle.flush()
                os.fsync(handle.fileno())
        except OSError:
            with suppress(OSError):  # A part of it would only fill the disk.
                os.unlink(partial)
            raise
        # By itself the time has the clock's steps of some ms, and two tables within one may have the same size.
        now = time.time_ns()
        os.utime(partial, ns=(now, now))
        # Before it has its name: whoever sees that name can look at what it says, and need not wait for the disk.
        self._written = (table_stamp(Path(partial)), table)
        os.replace(partial, self._datastore_config_path)
        status = os.stat(self._datastore_config_path)
        self._text, self._stamp = text, (status.st_mtime_ns, status.st_size, status.st_ino)
        self._config_ts = status.st_mtime
        with suppress(OSError):  # It is written; this is for a power cut.
            flush(Path(self._datastore_config_path).parent)


def put_into(info: dict[str, Any], key: str, entries: Mapping[str, Any]) -> None:
    """``entries`` into the table ``key`` of an image's information, beside those that are there."""
    held = info.get(key)
    info[key] = {**(held if isinstance(held, Mapping) else {}), **entries}


def file_stamp(path: str) -> tuple[int, int] | None:
    """Time of change (ns) and size, which tell whether a file is still the same; None where there is none."""
    try:
        status = Path(path).stat() if path else None
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size) if status else None


def stamp_of(path: str) -> str:
    """Tells whether a file is still the same; empty where there is none. As text, for JSON of browsers."""
    stamp = file_stamp(path)
    return "-".join(f"{value:x}" for value in stamp) if stamp else ""
