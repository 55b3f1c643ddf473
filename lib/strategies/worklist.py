"""What all strategies share: only studies that nobody has reviewed, and none that another reader has now.

A reader is told by ``client_id``, which MONAI Label's clients send (with accounts it is the user's name, see
``lib.endpoints.samples``). Who asks again gets the next study, and keeps the former for the time of its lease: clients
of several readers that all send the same id, as they come, then still get different studies. Only when nothing else is
left are studies handed out again that the same reader has already. Who sends no id at all is another reader each time.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from lib.errors import NotAllowed, StudyTaken, UnknownImage
from lib.leases import held_by, same_account, take
from lib.scoring.records import newest_record, records_of
from monailabel_app.errors import InvalidVolume, UnreadableVolume

MOST_SKIPPED = 5  # of an archive's series each has to be fetched to see that it is none
_NO_SCAN = (InvalidVolume, UnreadableVolume, UnknownImage)
NAMELESS = "reader without a name"
Infos = Mapping[str, Mapping[str, Any]]
# From the studies that can be handed out, and what is known of all: id and reason; None for none.
Choose = Callable[[Sequence[str], Infos], dict[str, Any] | None]


class WorklistStrategy(Strategy):
    """A strategy that chooses by what is known of the studies, without opening one."""

    def choose(self, request: Mapping[str, Any], studies: Sequence[str], infos: Infos) -> dict[str, Any] | None:
        """``id`` and ``reason`` of one of ``studies``, in the order of their ids."""
        raise NotImplementedError

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """Also ``lease``, and how many are ``unreviewed`` and ``held`` by readers; None when none is left."""
        return lend(request, datastore, lambda studies, infos: self.choose(request, studies, infos))


def lend(request: Mapping[str, Any], datastore: Datastore, choose: Choose) -> dict[str, Any] | None:
    """The study that ``choose`` takes out of those nobody has, lent to the reader of ``request``.

    A series that cannot be opened as a scan does not stand in the way of the others. lease: None where the studies
    folder cannot be written. Raises what opening says where MOST_SKIPPED cannot be opened, or all that are left.
    """
    said = str(request.get("client_id") or "").strip()[:80]
    reader = said if said.isprintable() and said else f"{NAMELESS} {secrets.token_hex(3)}"
    infos = unreviewed(datastore)
    leases = {image: lease for image, info in infos.items() if (lease := held_by(info)) is not None}
    free = sorted(image for image in infos if image not in leases)
    mine = sorted(image for image, lease in leases.items() if _same(lease, reader))
    left, refused = free or mine, 0
    while left:
        answer = choose(left, infos)
        if answer is None:
            return None
        try:
            datastore.get_image_uri(answer["id"])
        except _NO_SCAN:
            refused += 1
            left.remove(answer["id"])
            if refused >= MOST_SKIPPED or not left:
                raise
            continue
        try:
            lease = take(datastore, answer["id"], leases[answer["id"]]["reader"] if left is mine else reader)
        except StudyTaken:  # in this moment
            left.remove(answer["id"])
            continue
        except NotAllowed:  # A folder for reading only: several readers may get the same study.
            lease = None
        again = " (handed out before; nothing else is left)" if left is mine else ""
        counts = {"unreviewed": len(infos), "held": len(leases)}
        return {**answer, "reason": f"{answer['reason']}{again}", "lease": lease, **counts}
    return None


def unreviewed(datastore: Datastore) -> dict[str, Mapping[str, Any]]:
    """What is known of each scan without a final label, from one look at the table where there is one."""
    images = datastore.get_unlabeled_images()
    if hasattr(datastore, "reviewed_images"):
        reviewed = frozenset(datastore.reviewed_images())  # with labels of a reader's own
        images = [image for image in images if image not in reviewed]
    entries = datastore.entries() if hasattr(datastore, "entries") else None
    if entries is None:
        return {image: datastore.get_image_info(image) or {} for image in images}
    return {image: entries[image][0] if image in entries else {} for image in images}


def newest(info: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """Model and record of the last analysis that succeeded or failed."""
    return newest_record(records_of(info))


def _same(lease: Mapping[str, str], reader: str) -> bool:
    held = lease["reader"]
    return same_account(lease) and (held == reader or (held.startswith(NAMELESS) and reader.startswith(NAMELESS)))
