"""Whether the file of an image is still the scan that its labels, records and reviews are about.

A scan that is uploaded under a used id is told from the former one by the datastore. One that somebody copies over the
former's file by hand is not, and the old patient's label would lie on the new patient's head. So the content's
checksum is kept with the first thing that is said of a scan. When the file changes afterwards and has another content,
everything that was said goes to ``replaced/`` of the studies folder, where people find it, and the scan is a new one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from lib.shared_table import SharedTable, file_stamp, stamp_of

logger = logging.getLogger(__name__)

KEY, REPLACED_KEY, FOLDER = "scan_file", "replaced_by_hand", "replaced"
_OF_THE_FILE = frozenset({"ts", "name"})
# A file that was not written for so long is whole; how long is waited for that.
QUIET_SECONDS, _PATIENCE_SECONDS = 1.0, 10.0


class SameScan(SharedTable):
    """What a studies folder does about files that change under it. The first base, before MONAI Label's."""

    def get_image_uri(self, image_id: str) -> str:
        """Path of an image; empty where there is none."""
        path = super().get_image_uri(image_id)
        if path:
            self.recognise(image_id)
        return path

    def add_to_image_info(self, image_id: str, key: str, entries: Mapping[str, Any], of: str = "") -> None:
        """As ever, about the scan as it is now."""
        with self._about(image_id):
            super().add_to_image_info(image_id, key, entries, of)

    def change_image_info(self, image_id: str, change: Any) -> None:
        """As ever, about the scan as it is now."""
        with self._about(image_id):
            super().change_image_info(image_id, change)

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """As ever, about the scan as it is now."""
        with self._about(image_id):
            super().update_image_info(image_id, info)

    def _keep_label(self, image_id: str, *args: Any, **kwargs: Any) -> str:
        with self._about(image_id):
            return super()._keep_label(image_id, *args, **kwargs)

    def _reconcile_datastore(self) -> None:
        super()._reconcile_datastore()
        for image_id in self.list_images():
            self.recognise(image_id)

    def _on_modify_event(self, event: Any) -> None:
        """A file changed. An error here would end the watcher."""
        try:
            path = Path(os.fsdecode(event.src_path))
            if path.parent == Path(self._datastore.image_path()).resolve():
                self.recognise(self._to_id(path.name)[0])
            super()._on_modify_event(event)
        except (OSError, ValueError) as error:
            logger.warning("a change in the studies folder was left out: %s", type(error).__name__)

    def recognise(self, image_id: str) -> bool:
        """Look whether the file is the one that the table speaks of; what was said of another one is put aside.

        Costs a look at the file's date where nothing has changed. Returns whether it was another scan.
        """
        path, held = self._known(image_id)
        if held is None or held.get("stamp") in {stamp_of(path), None} or not stamp_of(path):
            return False
        try:
            now = identity_of(path)
            if now["sha256"] != held.get("sha256"):
                now = _settled_identity(path)
            with self._changes:
                path, held = self._known(image_id)
                if held is None or held.get("stamp") == now["stamp"]:
                    return False
                same = held.get("sha256") == now["sha256"]
                if same:
                    # Copied back, or touched: it is said of this file from now on.
                    self._datastore.objects[image_id].image.info[KEY] = now
                    self._update_datastore_file()
                else:
                    self._put_aside(image_id, str(held.get("sha256")))
        except OSError as error:
            logger.warning("a scan whose file has changed could not be looked at: %s", type(error).__name__)
            return False
        if not same:
            logger.warning("a scan's file was replaced by hand: what was said of the former one is in %s/", FOLDER)
        return not same

    def _known(self, image_id: str) -> tuple[str, Mapping[str, Any] | None]:
        with self._reading():
            entry = self._datastore.objects.get(image_id)
            held = entry.image.info.get(KEY) if entry is not None else None
            if not isinstance(held, Mapping):
                return "", None
            return str(Path(self._datastore.image_path()).resolve() / self._filename(image_id, entry.image.ext)), held

    def _about(self, image_id: str) -> _About:
        return _About(self, image_id)

    def _put_aside(self, image_id: str, digest: str) -> None:
        """Within a change. Killed in between, it is done again at the next look; nothing is taken away before it lies
        at its new place."""
        entry = self._datastore.objects[image_id]
        stem = Path(self._datastore_path) / FOLDER / f"{image_id[:100]}_{digest[:8]}"
        folder, number = stem, 1
        while folder.exists():
            number += 1
            folder = stem.with_name(f"{stem.name}_{number}")
        folder.mkdir(parents=True)
        said = {"image": image_id, "info": entry.image.info, "labels": {t: v.info for t, v in entry.labels.items()}}
        with (folder / "said.json").open("w", encoding="utf-8") as file:
            json.dump(said, file, indent=2, default=str)
            file.flush()
            os.fsync(file.fileno())
        with self._placing() as placing:
            for tag, label in entry.labels.items():
                path = Path(self._datastore.label_path(tag)) / self._filename(image_id, label.ext)
                if path.is_file():
                    placing.twin(path, folder / f"{tag}{label.ext}")
                    placing.remove(path)
            entry.labels.clear()
            kept = {key: value for key, value in entry.image.info.items() if key in _OF_THE_FILE}
            kept[REPLACED_KEY] = {"time": int(time.time()), "kept_in": f"{FOLDER}/{folder.name}"}
            entry.image.info.clear()
            entry.image.info.update(kept)
            self._update_datastore_file()


class _About:
    """A change that says something of a scan: together with it the table says which file that is about."""

    def __init__(self, store: SameScan, image_id: str):
        self._store, self._image = store, image_id

    def __enter__(self) -> None:
        store, image = self._store, self._image
        store.recognise(image)
        with store._reading():
            entry = store._datastore.objects.get(image)
        path = entry and str(Path(store._datastore.image_path()).resolve() / store._filename(image, entry.image.ext))
        identity = None
        if path and Path(path).is_file() and not isinstance(entry.image.info.get(KEY), Mapping):
            # Before the lock: reading a large scan takes a moment.
            identity = identity_of(path)
        store._changes.__enter__()
        entry = store._datastore.objects.get(image)
        if identity is not None and entry is not None and stamp_of(path) == identity["stamp"]:
            # Written with what is said, in the same change.
            entry.image.info.setdefault(KEY, identity)

    def __exit__(self, *error: Any) -> None:
        self._store._changes.__exit__(*error)


def identity_of(path: str) -> dict[str, str]:
    """Stamp and checksum of a file. Raises OSError."""
    stamp = file_stamp(path)
    if stamp is None:
        raise FileNotFoundError("the file of a scan is gone")
    return {"stamp": stamp_of(path), "sha256": _checksum(path, *stamp)}


def _settled_identity(path: str) -> dict[str, str]:
    """``identity_of``, once nobody writes the file any more: a scan that is half copied is no other scan yet.

    Raises OSError for a file that goes on changing; it is looked at again the next time.
    """
    until = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < until:
        modified, _ = file_stamp(path) or (0, 0)
        # A time in the future is another machine's clock, and tells nothing.
        if not 0 <= time.time() - modified / 1e9 < QUIET_SECONDS:
            identity = identity_of(path)
            if identity["stamp"] == stamp_of(path):
                return identity
        time.sleep(0.05)
    raise TimeoutError("the file of a scan is being written")


@lru_cache(maxsize=4096)
def _checksum(path: str, modified: int, size: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
