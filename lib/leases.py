"""Who works on a study: a lease of some minutes in the scan's information, so that no two readers do the same work.

A lease is taken and checked as one change of the table of images, so that of two readers who ask at the same moment, in
whatever processes, one gets the study. It ends by itself; nothing has to be cleaned up after a reader who went home.

A reader's name is what a client writes. Where accounts are in use (tokens, Keycloak) a lease is its account's, too, and
another account gets it by no name; readers who share an account are told apart by their names. A lease that was taken
without an account is told by the name alone, as on a machine where nobody is asked for a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

from monailabel.interfaces.datastore import Datastore

from lib.access.principal import BY_NAME, current
from lib.errors import InvalidRequest, NotAllowed, StudyTaken, UnknownImage

KEY = "lease"
MINUTES = 30.0
_LONGEST_MINUTES = 24 * 60.0
_LONGEST_NAME = 80


def take(datastore: Datastore, image: str, reader: str, minutes: float = MINUTES) -> dict[str, str]:
    """Lend a study to a reader, or lend it on to the one who has it. Returns the lease: reader, until (UTC), account.

    Raises StudyTaken while another reader has it, UnknownImage, InvalidRequest for no name or odd minutes, NotAllowed
    where the studies folder cannot be written.
    """
    reader = reader_name(reader)
    if not 0 < minutes <= _LONGEST_MINUTES:
        raise InvalidRequest(f"expected minutes above 0 and up to {_LONGEST_MINUTES:g}, got {str(minutes)[:24]}")
    lease = {"reader": reader, "until": _iso(datetime.now(timezone.utc) + timedelta(minutes=float(minutes)))}
    if account := _account():
        lease["account"] = account

    def change(info: Mapping[str, Any]) -> dict[str, Any]:
        check(info, reader)
        return {KEY: lease}

    _change(datastore, image, change)
    return lease


def free(datastore: Datastore, image: str, reader: str) -> bool:
    """End a reader's lease; returns whether there was one. Raises StudyTaken for another reader's, UnknownImage."""
    reader, held = reader_name(reader), held_by(datastore.get_image_info(image) or {})
    if held is None:
        return False

    def change(info: Mapping[str, Any]) -> dict[str, Any]:
        check(info, reader)
        return {KEY: None}

    _change(datastore, image, change)
    return True


def held_by(info: Mapping[str, Any], now: datetime | None = None) -> dict[str, str] | None:
    """The lease in a scan's information; None where nobody has the study any more.

    ``{"reader", "until"}``, and ``account`` where it was taken with one.
    """
    held = info.get(KEY)
    if not isinstance(held, Mapping) or str(held.get("until") or "") <= _iso(now or datetime.now(timezone.utc)):
        return None
    account = {"account": str(held["account"])} if held.get("account") else {}
    return {"reader": str(held.get("reader") or ""), "until": str(held["until"]), **account}


def as_told(held: Mapping[str, str] | None) -> dict[str, Any] | None:
    """A lease for the client of this request, with ``yours``: what accounts tell, None where the reader's name does.

    Another account's is not yours whatever name is in it. Your own account's is, where accounts are people (Keycloak);
    a token may be of several readers.
    """
    if held is None:
        return None
    person = current().how == "keycloak" and held.get("account") == _account()
    return {**held, "yours": False if not same_account(held) else True if person else None}


def same_account(held: Mapping[str, str]) -> bool:
    """Whether a lease was taken by the account of this request, or without one."""
    return held.get("account") in (None, _account())


def check(info: Mapping[str, Any], reader: str) -> None:
    """Raises StudyTaken while another reader has the study."""
    held = held_by(info)
    if held is None or (held["reader"] == reader and same_account(held)):
        return
    name = held["reader"][:_LONGEST_NAME]
    if held["reader"] == reader:
        name = f"{name}, signed in with another account,"
    raise StudyTaken(
        f"{name} works on this study until {held['until']}: take another one, or wait until it is free again"
    )


def reader_name(reader: Any) -> str:
    """Raises InvalidRequest for no name, or one that is longer than a name."""
    name = str(reader or "").strip()
    if not name or len(name) > _LONGEST_NAME or not name.isprintable():
        raise InvalidRequest(f"expected a reader's name of 1 to {_LONGEST_NAME} letters, got {name[:20]!r}")
    return name


def _account() -> str:
    """Of this request; empty where nobody was asked who they are. A token's name has no colon."""
    who = current()
    if who.how not in BY_NAME:
        return ""
    return f"keycloak:{who.name}" if who.how == "keycloak" else who.name


def _change(datastore: Datastore, image: str, change: Any) -> None:
    try:
        _change_whole(datastore, image, change)
    except OSError as error:
        raise NotAllowed("who works on a study cannot be noted: the studies folder cannot be written") from error


def _change_whole(datastore: Datastore, image: str, change: Any) -> None:
    whole = getattr(datastore, "change_image_info", None)
    if whole is not None:
        try:
            whole(image, change)
        except UnknownImage:
            # A series of an archive has a place in the table once it was fetched, which is about to happen anyway.
            datastore.get_image_uri(image)
            whole(image, change)
        return
    # MONAI Label's other datastores, which no other process shares.
    datastore.update_image_info(image, change(datastore.get_image_info(image) or {}))


def _iso(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).isoformat(timespec="seconds")
