"""What the scoring methods share: a request that is checked before a process is started, and progress to look at."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod

from lib.scoring.progress import ProgressFile
from monailabel_app.errors import InvalidSettings

FOLDER = Path("runs") / "scoring"
_MONAI_LABEL_ONLY = frozenset({"method", "gpus", "client_id"})


class AppScoring(ScoringMethod):
    """name: as it is started. root: the app's folder, below which progress and reports are kept.

    keys: what a request may say.
    """

    keys: frozenset[str] = frozenset()

    def __init__(self, name: str, description: str, root: str | Path):
        super().__init__(description)
        self.folder = Path(root) / FOLDER
        self.progress = ProgressFile(self.folder / f"{name}.json")

    @abstractmethod
    def check(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """The request with only what the method reads. Raises AnomalyAppError for one that could not be done."""

    def known(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """``request`` without what MONAI Label adds. Raises InvalidSettings naming a parameter that there is not."""
        given = {key: value for key, value in request.items() if key not in _MONAI_LABEL_ONLY}
        unknown = sorted(str(key)[:40] for key in given.keys() - self.keys)
        if unknown:
            raise InvalidSettings(
                f"expected parameters out of {', '.join(sorted(self.keys))}; got {', '.join(map(repr, unknown))}"
            )
        return given


def whole_number(name: str, value: Any, default: int = 0) -> int:
    """A whole number from 0, such as ``12`` or ``"12"``; ``default`` where it is not given. Raises InvalidSettings."""
    if value is None or value == "":
        return default
    if isinstance(value, bool) or not str(value).isdecimal() or len(str(value)) > 9:
        raise InvalidSettings(f"expected {name} to be a whole number from 0, got {str(value)[:24]!r}")
    return int(value)


def keep(datastore: Datastore, image: str, key: str, entries: Mapping[str, Any], of: str = "") -> None:
    """Put plain JSON ``entries`` under ``key`` of a scan's information.

    of: the stamp of the scan's file that they are about. Raises UnknownImage, also where it is another file by now.
    """
    add = getattr(datastore, "add_to_image_info", None)
    if add is not None:
        add(image, key, entries, of)
        return
    # MONAI Label's other datastores, which no other process shares.
    held = (datastore.get_image_info(image) or {}).get(key)
    datastore.update_image_info(image, {key: {**(held if isinstance(held, Mapping) else {}), **entries}})
