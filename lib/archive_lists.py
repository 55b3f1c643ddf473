"""What a DICOMweb archive lists, as it is kept between two questions."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset

from lib.errors import ArchiveUnreachable, InvalidRequest
from lib.ids import check_uid

logger = logging.getLogger(__name__)


@dataclass
class Listing:
    """A list of series and when it was asked for, or why there is none."""

    at: float
    items: list[str]
    error: ArchiveUnreachable | None

    def give(self) -> list[str]:
        """The list. Raises ArchiveUnreachable where there is none."""
        if self.error is not None:
            raise ArchiveUnreachable(str(self.error))
        return list(self.items)


@dataclass
class Segmentation:
    """A segmentation series in the archive. voxels: None until it is looked into.

    image: the series it refers to; empty for a result of this app that nobody has reviewed, which is no label.
    """

    study: str
    image: str
    voxels: int | None = None


def series_of(found: list[dict[str, Any]]) -> Iterator[tuple[str, Dataset]]:
    """UID and attributes of each series of a list; one that cannot be asked for by its UID must not hide the others."""
    for item in found:
        try:
            series = Dataset.from_json(item)
            uid = check_uid(str(series.get("SeriesInstanceUID") or ""))
        except (InvalidRequest, ValueError, TypeError, KeyError, AttributeError) as error:
            logger.warning("a series in the archive's list has no UID or cannot be read: %s", type(error).__name__)
            continue
        yield uid, series
