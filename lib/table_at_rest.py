"""The table of images as it lies on the disk, for answers that are not to wait while somebody writes it.

A change holds the table until the disk has it, which takes a tenth of a second where the machine is busy, and an answer
that asks the table a thousand times may wait for several of them. What was written last is whole and says all that was
acknowledged: it can be looked at meanwhile.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from monailabel.datastore.local import LocalDatastore, LocalDatastoreModel

from lib.shared_table import SharedTable
from lib.whole_files import Stamp, table_stamp

D = TypeVar("D")


class _Still:
    """Instead of the lock of the table: there is nothing to wait for, and nothing can be changed."""

    changing = True
    threads = nullcontext()

    def __enter__(self) -> NoReturn:
        raise RuntimeError("the table at rest is for looking only")

    def __exit__(self, *error: object) -> None:
        """Never entered."""


class AtRest(SharedTable):
    """A datastore that can be looked at without waiting for a change under way. The first base."""

    _resting: tuple[Stamp | None, LocalDatastoreModel] | None = None
    # Of one that is at rest: what was counted in this look at it.
    _counted_now: dict[tuple[str, bool], dict[str, int]] | None = None

    def at_rest(self) -> LocalDatastore:
        """This datastore with the table as it was written last, for one look.

        What it tells is not copied, so do not change it. It waits only where the table's file is another process's, or
        was not written yet; within a change of this thread it is then the datastore itself.
        """
        stamp = table_stamp(Path(self._datastore_config_path))
        resting = self._resting
        if stamp is None or resting is None or resting[0] != stamp or self._read_only_said:
            written = self._written
            if stamp is None or written is None or written[0] != stamp or self._read_only_said:
                with self._reading():
                    if self._changes.changing:
                        return self
                    written = (self._stamp, self._datastore.model_dump(exclude={"base_path"}))
            table = LocalDatastoreModel.model_validate(written[1])
            table.base_path = self._datastore_path
            self._resting = resting = (written[0], table)
        still = copy.copy(self)
        still._datastore, still._changes, still._counted_now = resting[1], _Still(), {}
        return still

    def status(self) -> dict[str, Any]:
        """MONAI Label's counts."""
        return LocalDatastore.status(self.at_rest() if self._counted_now is None else self)

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """As ever; at rest without its file's path and without a copy, which take most of the time."""
        if self._counted_now is None:
            return super().get_image_info(image_id)
        entry = self._datastore.objects.get(image_id)
        return entry.image.info if entry is not None else {}

    def final_labels(self, image_id: str, inspect: bool = True) -> dict[str, int]:
        """As ever; in one look each image's files are looked for once."""
        if self._counted_now is None:
            return super().final_labels(image_id, inspect)
        key = (image_id, inspect)
        if key not in self._counted_now:
            self._counted_now[key] = super().final_labels(image_id, inspect)
        return self._counted_now[key]


def at_rest(datastore: D) -> D:
    """``datastore`` for looking only, without waiting where it can be: of an archive it is the archive itself."""
    return datastore.at_rest() if isinstance(datastore, AtRest) else datastore
