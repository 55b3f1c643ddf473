"""Notes in the audit log what requests changed, sent away or were refused; before they are answered.

Analyses, sign-ins and what the command line does are noted where they happen. Here it is what people do with scans,
labels, reviews, jobs, trainings and the archive: each address that changes something has a line in ``EVENTS``, so that
a new one is added without touching what serves it, and MONAI Label's own are covered, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

import anyio.to_thread
from monailabel.config import settings

from lib import audit
from lib.errors import answer_error
from monailabel_app.audit import AuditUnwritable

# method, address below the API's root, event, names of the query's values that are noted, fixed facts.
EVENTS: tuple[tuple[str, re.Pattern[str], str, Mapping[str, str], Mapping[str, Any]], ...] = tuple(
    (method, re.compile(path + "/?"), event, query, fixed)
    for method, path, event, query, fixed in (
        ("PUT", r"/datastore(/image)?", "scan_uploaded", {"image": "image"}, {}),
        ("PUT", r"/session", "scan_uploaded", {}, {"kind": "session"}),
        ("DELETE", r"/session/[^/]+", "scan_removed", {}, {"kind": "session"}),
        ("DELETE", r"/datastore(/image)?", "scan_removed", {"id": "image"}, {}),
        ("GET", r"/datastore/dataset", "dataset_downloaded", {}, {}),
        ("PUT", r"/datastore/label", "label_saved", {"image": "image", "tag": "tag"}, {}),
        ("DELETE", r"/datastore/label", "label_removed", {"id": "image", "tag": "tag"}, {}),
        ("PUT", r"/datastore/(label/info|updatelabelinfo)", "info_changed", {"label": "image"}, {"kind": "label"}),
        ("PUT", r"/datastore/image/info", "info_changed", {"image": "image"}, {"kind": "image"}),
        ("PUT", r"/anomaly/reviews/(?P<image>[^/]+)", "review", {}, {}),
        ("DELETE", r"/anomaly/reviews/(?P<image>[^/]+)", "review", {}, {"kind": "discarded"}),
        ("POST", r"/anomaly/dicom/(?P<image>[^/]+)", "dicom_stored", {}, {}),
        ("POST", r"/proxy/dicom/.*", "dicom_stored", {}, {"kind": "viewer"}),
        ("DELETE", r"/anomaly/jobs/(?P<job>[^/]+)", "job_cancelled", {}, {}),
        ("POST", r"/train(/(?P<model>[^/]+))?", "training_started", {}, {"stage": "asked"}),
        ("DELETE", r"/train", "training_stopped", {}, {}),
        ("POST", r"/batch/infer/(?P<model>[^/]+)", "batch_started", {}, {}),
        ("DELETE", r"/batch/infer", "batch_stopped", {}, {}),
        ("POST", r"/scoring(/(?P<what>[^/]+))?", "scoring_started", {}, {}),
        ("DELETE", r"/scoring", "scoring_stopped", {}, {}),
        ("DELETE", r"/model/(?P<model>[^/]+)", "model_removed", {}, {}),
    )
)
# What an answer tells of its own: the id that a scan without one was given, whether a review is finished.
_ANSWERED = {"image": "image", "final": "final"}
_LONGEST_ANSWER = 65536
_FROM_ADDRESS = frozenset({"job", "model", "what"})


class AuditTrail:
    """ASGI callable. With ``--conf audit_required true`` what cannot be noted is answered with 503."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        """Hold the answer back until its record is on the disk."""
        found = event_of(scope) if scope["type"] == "http" and audit.journal().log is not None else None
        if found is None:
            await self.app(scope, receive, send)
            return
        event, facts = found
        answer = _Held(scope, receive, send, event, facts)
        with audit.telling(facts):
            try:
                await self.app(scope, receive, answer.send)
            except Exception as error:
                # Answered further out, by MONAI Label's handling of errors.
                await answer.note(int(getattr(error, "status_code", 422)))
                raise


class _Held:
    """An answer whose beginning waits for the record of its request."""

    def __init__(self, scope, receive, send, event: str, facts: dict[str, Any]):
        self._scope, self._receive, self._send = scope, receive, send
        self._event, self._facts = event, facts
        self._start: Mapping[str, Any] | None = None
        self._body = bytearray()
        self._noted = self._refused = False

    async def send(self, message) -> None:
        """Short JSON waits until it is whole, since it may tell something; anything else goes on as it comes."""
        if self._refused:
            return
        if message["type"] == "http.response.start":
            if _is_short_json(message):
                self._start = message
            elif await self.note(message["status"]):
                await self._send(message)
            return
        if self._start is None:
            await self._send(message)
            return
        self._body.extend(message.get("body", b""))
        if message.get("more_body"):
            return
        start, self._start = self._start, None
        if await self.note(start["status"]):
            await self._send(start)
            await self._send({"type": "http.response.body", "body": bytes(self._body)})

    async def note(self, status: int) -> bool:
        """Whether the answer may go out."""
        if self._noted:
            return True
        self._noted = True
        try:
            await anyio.to_thread.run_sync(_note, self._event, self._facts, status, bytes(self._body))
        except AuditUnwritable as error:
            self._refused = True
            await answer_error(self._scope, self._receive, self._send, error)
            return False
        return True


def event_of(scope: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Which event a request is, and what its address says; None for one that is not noted."""
    path = scope["path"].removeprefix(scope.get("root_path") or "").removeprefix(settings.MONAI_LABEL_API_STR)
    for method, pattern, event, query, fixed in EVENTS:
        match = pattern.fullmatch(path) if scope["method"] == method else None
        if match is None:
            continue
        given = parse_qs(scope.get("query_string", b"").decode("latin-1"), max_num_fields=100)
        named = {name: value for name, value in match.groupdict().items() if value}
        asked = {fact: given[name][0] for name, fact in query.items() if name in given}
        return event, {**fixed, **named, **asked}
    return None


def _note(event: str, facts: dict[str, Any], status: int, body: bytes) -> None:
    try:
        answered = json.loads(body) if body else None
    except ValueError:
        answered = None
    if isinstance(answered, Mapping):
        for name, fact in _ANSWERED.items():
            value = answered.get(name)
            if isinstance(value, (str, bool)) and value != "":
                facts.setdefault(fact, value)
    if facts.pop("replaced", False) and event == "scan_uploaded":
        event = "scan_replaced"
    if status >= 400:
        # Words of the address that name nothing there is may be anything: not to be written in clear.
        facts = {f"asked_{name}" if name in _FROM_ADDRESS else name: value for name, value in facts.items()}
    audit.note(event, "ok" if status < 400 else "refused" if status < 500 else "failed", status=status, **facts)


def _is_short_json(start: Mapping[str, Any]) -> bool:
    headers = {name.lower(): value for name, value in start.get("headers", ())}
    length = headers.get(b"content-length", b"x").decode("latin-1")
    return headers.get(b"content-type", b"").startswith(b"application/json") and (
        length.isdigit() and int(length) <= _LONGEST_ANSWER
    )
