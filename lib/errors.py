"""Errors only a server can have; what is wrong with a scan or model is in ``monailabel_app.errors``."""

from __future__ import annotations

from monailabel_app.errors import AnomalyAppError


class UnknownImage(AnomalyAppError):
    """No image, label or session of that id."""

    status = 404


class InvalidRequest(AnomalyAppError):
    """The request itself is malformed: unsafe id, missing image, parameters that are not JSON."""


class NotAllowed(AnomalyAppError):
    """This server does not do that."""

    status = 403


class ServerBusy(AnomalyAppError):
    """Too many analyses are waiting, or the device has no memory left."""

    status = 503


class ArchiveUnreachable(AnomalyAppError):
    """The DICOMweb archive did not answer, or refused."""

    status = 502
