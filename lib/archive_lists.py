"""What a DICOMweb archive lists, as it is kept between two questions."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset

from lib.errors import ArchiveSlow, ArchiveUnreachable, place_of
from lib.ids import check_uid

logger = logging.getLogger(__name__)

# Seconds for which a request waits for a list; with a former one at hand it would rather have that.
PATIENCE, PATIENCE_WITH_LIST = 20.0, 3.0


@dataclass
class Listing:
    """A list of series and when it was asked for, or why there is none."""

    at: float
    items: list[str]
    error: ArchiveUnreachable | None

    def give(self) -> list[str]:
        """The list. Raises ArchiveUnreachable where there is none."""
        if self.error is not None:
            raise type(self.error)(str(self.error))
        return list(self.items)


class Lists:
    """The archive's lists by name, each asked for at most every ``seconds``.

    A list is asked for in a thread of its own: an archive that takes minutes, or never answers, holds up nobody for
    longer than ``PATIENCE`` seconds, or hardly at all where there is a former list to answer with.
    """

    def __init__(self) -> None:
        self._held: dict[str, Listing] = {}
        self._asking: dict[str, threading.Event] = {}
        self._lock = threading.Lock()

    def held(self, name: str) -> Listing | None:
        """The list as it was last asked for."""
        return self._held.get(name)

    def forget(self, name: str) -> None:
        """Ask anew at the next question."""
        with self._lock:
            self._held.pop(name, None)
            # An answer that is on its way may be older than what has changed.
            self._asking.pop(name, None)

    def get(self, name: str, find: Callable[[], list[str]], seconds: float) -> list[str]:
        """The list. Raises ArchiveUnreachable: it is away, or has not answered yet."""
        with self._lock:
            held = self._held.get(name)
            if held is not None and time.monotonic() - held.at <= seconds:
                return held.give()
            answered = self._asking.get(name)
            if answered is None:
                answered = self._asking[name] = threading.Event()
                threading.Thread(target=self._ask, args=(name, find, answered), daemon=True).start()
        there = answered.wait(PATIENCE if held is None else PATIENCE_WITH_LIST)
        now = self._held.get(name) if there else held
        if now is None:
            raise ArchiveSlow(f"the DICOMweb archive has not answered for {PATIENCE:.0f} s: try again later")
        return now.give()

    def _ask(self, name: str, find: Callable[[], list[str]], answered: threading.Event) -> None:
        now = Listing(time.monotonic(), [], None)
        try:
            now.items = find()
        except ArchiveUnreachable as error:
            now.error = error
        except Exception as error:
            logger.error("the archive's list cannot be read: %s", place_of(error))
            now.error = ArchiveUnreachable(f"the DICOMweb archive's list cannot be read ({type(error).__name__})")
        now.at = time.monotonic()
        with self._lock:
            if self._asking.get(name) is answered:
                del self._asking[name]
                self._held[name] = now
        answered.set()


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
        except Exception as error:
            # Not a list of kinds: what the parser of other people's JSON raises is open-ended, and each means the same.
            logger.warning("a series in the archive's list has no UID or cannot be read: %s", type(error).__name__)
            continue
        yield uid, series
