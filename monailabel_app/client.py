"""A client for the server that needs ``requests`` and nothing else: no torch, no MONAI Label, no numpy.

The file stands alone: copy it to where it is needed, or import it as ``monailabel_app.client``. Every call is one of
the server's documented addresses (``/docs`` on the server lists them). ids are those of the server's datastore;
``params`` are the settings that the viewers offer: operating_point, threshold, score, smoothing, min_lesion_volume,
calibration, uncertainty, input_gate, seed, device.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests

__all__ = ["EXTENSIONS", "KINDS", "AnomalyClient", "AnomalyClientError", "JobFailed"]

KINDS = ("anomaly_map", "reconstruction", "uncertainty_map", "mask", "bands", "brain_mask")
EXTENSIONS = ("nii.gz", "nii", "nrrd")
DICOM_OBJECTS = ("segmentation", "parametric_map", "report")
_OVER = frozenset({"done", "failed", "cancelled"})
# What a busy server is asked again after, when it does not say so itself.
_BUSY_SECONDS = 5.0
_CHUNK = 1 << 20
TOKEN_VARIABLE = "ANOMALY_TOKEN"
# What to do where the server does not admit this client.
_ADVICE = {
    401: f"pass a token of this server: AnomalyClient(address, token=...) or the environment's {TOKEN_VARIABLE}",
    403: "the token's role does not allow this: ask the server's administrator for another one",
}
_SCANS = re.compile(r"\.(nii\.gz|nii|nrrd)$", re.IGNORECASE)


class AnomalyClientError(Exception):
    """The server refused, failed or was not reached. status: of HTTP; None when there was no answer."""

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


class _Bearer(requests.auth.AuthBase):
    """The header, which requests drops by itself when an answer leads to another host."""

    def __init__(self, token: str):
        if not token.isascii() or not token.isprintable() or " " in token:
            raise ValueError("expected a token without spaces, got something else")
        self._header = f"Bearer {token}"

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = self._header
        return request


class JobFailed(AnomalyClientError):
    """A job ended without a result. job: as the server tells it."""

    def __init__(self, job: Mapping[str, Any]):
        super().__init__(f"{job.get('kind', 'job')} {job.get('state')}: {job.get('error') or 'no reason given'}")
        self.job = dict(job)


class AnomalyClient:
    """Calls to one server.

    server: its address, such as ``http://127.0.0.1:8000``. token: sent as ``Authorization: Bearer``; by default
    $ANOMALY_TOKEN. reader: who looks at the scans, kept with reviews. verify: as in requests, a bundle of certificates
    for a server with its own. timeout: seconds without a byte before a call is given up; None waits for ever.
    """

    def __init__(
        self,
        server: str,
        *,
        token: str | None = None,
        reader: str = "",
        verify: bool | str = True,
        timeout: float | None = 600.0,
    ):
        if not re.match(r"https?://", server):
            raise ValueError(f"expected an address that begins with http:// or https://, got {server[:80]!r}")
        self.server = server.rstrip("/")
        self.reader = reader
        self._timeout = timeout
        self._session = requests.Session()
        self._session.verify = verify
        token = os.environ.get(TOKEN_VARIABLE, "") if token is None else token
        if token:
            # Not left to requests, which would put a password of ~/.netrc in its place.
            self._session.auth = _Bearer(token.strip())

    # --- what there is -------------------------------------------------------------------------------------------

    def info(self) -> dict[str, Any]:
        """MONAI Label's own description of the server: models, labels, strategies, datastore counts."""
        return self._json("GET", "/info/")

    def models(self) -> list[dict[str, Any]]:
        """The models: name, sequence, description, verdict beside the baselines, scores, options, operating points."""
        return self._json("GET", "/anomaly/models")

    def card(self, model: str) -> str:
        """A model's card as Markdown: data, measured numbers, blind spots, limits."""
        return self._ask("GET", f"/anomaly/models/{_id(model)}/card").text

    def studies(
        self, *, order: str = "most_anomalous", state: str = "", search: str = "", page: int = 100
    ) -> Iterator[dict[str, Any]]:
        """The scans with their scores and states, fetched ``page`` at a time as they are asked for.

        order: most_anomalous, borderline, random, name or newest. state: new, queued, running, analysed, failed or
        reviewed.
        """
        offset = 0
        while True:
            query = {"order": order, "state": state, "search": search, "offset": offset, "limit": page}
            answer = self._json("GET", "/anomaly/studies", params=_given(query))
            yield from answer["studies"]
            offset += len(answer["studies"])
            if not answer["studies"] or offset >= answer["total"]:
                return

    def next_study(self, strategy: str = "most_anomalous", **params: Any) -> dict[str, Any] | None:
        """The next scan to look at, held for this reader; None when all are reviewed."""
        asked = {**({"client_id": self.reader} if self.reader else {}), **params}
        return self._json("POST", f"/activelearning/{_id(strategy)}", json=asked) or None

    # --- scans ---------------------------------------------------------------------------------------------------

    def upload(self, file: str | os.PathLike, image: str | None = None) -> str:
        """Store a scan (.nii.gz, .nii or .nrrd) in the server's studies folder and return its id.

        image: the id; by default the file's name without extension.
        """
        path = Path(file)
        image = image or _SCANS.sub("", path.name)
        with path.open("rb") as handle:
            files = {"file": (path.name, handle, "application/octet-stream")}
            answer = self._json("PUT", "/datastore/image", params={"image": image}, files=files)
        return str(answer.get("image", image))

    def download_scan(self, image: str, target: str | os.PathLike) -> Path:
        """The scan as a file."""
        return self._save("/datastore/image", target, {"image": image})

    def download_label(self, image: str, tag: str, target: str | os.PathLike) -> Path:
        """A label of the datastore, such as ``final``, or a map under its tag: anomaly_map, reconstruction."""
        return self._save("/datastore/label", target, {"label": image, "tag": tag})

    # --- analysis ------------------------------------------------------------------------------------------------

    def submit(self, image: str, model: str | None = None, **params: Any) -> dict[str, Any]:
        """Put an analysis in line and return its job at once; a full line is waited for (``Retry-After``)."""
        body = _given({"image": image, "model": model}) | {"params": params}
        while True:
            try:
                return self._json("POST", "/anomaly/jobs", json=body)
            except AnomalyClientError as error:
                if error.status != 503:
                    raise
                time.sleep(getattr(error, "retry_after", _BUSY_SECONDS))

    def jobs(self, image: str = "", state: str = "") -> list[dict[str, Any]]:
        """The jobs of this server, the newest first: state, place in the line, stage, progress, error."""
        return self._json("GET", "/anomaly/jobs", params=_given({"image": image, "state": state}))["jobs"]

    def job(self, job: str | Mapping[str, Any]) -> dict[str, Any]:
        """One job as it is now."""
        return self._json("GET", f"/anomaly/jobs/{_id(_job_id(job))}")

    def cancel(self, job: str | Mapping[str, Any]) -> dict[str, Any]:
        """Take a job out of the line, or stop it at its next step."""
        return self._json("DELETE", f"/anomaly/jobs/{_id(_job_id(job))}")

    def wait(
        self,
        job: str | Mapping[str, Any],
        *,
        progress: Callable[[dict[str, Any]], None] | None = None,
        seconds: float | None = None,
        every: float = 0.5,
    ) -> dict[str, Any]:
        """Wait for a job to end; ``progress`` gets it at every look. Raises JobFailed; after seconds, TimeoutError."""
        began = time.monotonic()
        while True:
            now = self.job(job)
            if progress is not None:
                progress(now)
            if now["state"] in _OVER:
                if now["state"] != "done":
                    raise JobFailed(now)
                return now
            if seconds is not None and time.monotonic() - began > seconds:
                raise TimeoutError(f"the job is still {now['state']} after {seconds:g} s; cancel it or wait longer")
            time.sleep(every)

    def analyse(
        self,
        image: str,
        model: str | None = None,
        *,
        progress: Callable[[dict[str, Any]], None] | None = None,
        **params: Any,
    ) -> dict[str, Any]:
        """Analyse a stored scan, wait, and return its result (``result``)."""
        job = self.wait(self.submit(image, model, **params), progress=progress)
        return self.result(image, job["model"], **params)

    def infer(
        self, scan: str | os.PathLike, model: str, target: str | os.PathLike, **params: Any
    ) -> tuple[Path, dict[str, Any]]:
        """MONAI Label's own call: send a file that is not stored, get the mask as ``target`` and the JSON beside it.

        The extension of ``target`` (.nii.gz or .nrrd) chooses the mask's format.
        """
        path, target = Path(scan), Path(target)
        extension = _SCANS.search(target.name)
        params = {"result_extension": extension[0] if extension else ".nii.gz", **params}
        with path.open("rb") as handle:
            answer = self._ask(
                "POST",
                f"/infer/{_id(model)}",
                data={"params": json.dumps(params)},
                files={"file": (path.name, handle, "application/octet-stream")},
            )
        parts = _multipart(answer)
        with _whole(target) as partial:
            partial.write_bytes(parts["file"])
        return target, json.loads(parts["params"])

    # --- results -------------------------------------------------------------------------------------------------

    def result(self, image: str, model: str | None = None, **params: Any) -> dict[str, Any]:
        """The result under these settings, from the analysis at hand: score, lesions, thresholds, addresses of files.

        Other settings than those of the analysis answer at once; the network does not run again. Raises
        AnomalyClientError with status 404 where the scan was not analysed with that model.
        """
        return self._json("GET", f"/anomaly/results/{_id(image)}", params=_query(model, params))

    def download(
        self, image: str, kind: str, target: str | os.PathLike, model: str | None = None, **params: Any
    ) -> Path:
        """A file of a result, on the scan's own grid. kind: one of KINDS. The target's extension chooses the format."""
        target = Path(target)
        extension = _SCANS.search(target.name)
        if kind not in KINDS or extension is None:
            raise ValueError(
                f"expected a kind out of {', '.join(KINDS)} and a file ending in {', '.join(EXTENSIONS)}; "
                f"got {kind!r} and {target.name!r}"
            )
        name = f"{kind}{extension[0].lower()}"
        return self._save(f"/anomaly/results/{_id(image)}/{name}", target, _query(model, params))

    def report(self, image: str, target: str | os.PathLike, model: str | None = None, **params: Any) -> Path:
        """The study report: a page to read and print for a target ending in .html, its facts for .json."""
        suffix = Path(target).suffix.lower()
        if suffix not in (".html", ".json"):
            raise ValueError(f"expected a file ending in .html or .json, got {Path(target).name!r}")
        return self._save(f"/anomaly/results/{_id(image)}/report{suffix}", target, _query(model, params))

    def dicom(self, image: str, kind: str, target: str | os.PathLike, model: str | None = None, **params: Any) -> Path:
        """A DICOM object of a result, for a series of an archive. kind: segmentation, parametric_map or report."""
        if kind not in DICOM_OBJECTS:
            raise ValueError(f"expected a DICOM object out of {', '.join(DICOM_OBJECTS)}, got {kind!r}")
        return self._save(f"/anomaly/dicom/{_id(image)}/{kind}.dcm", target, _query(model, params))

    def store_dicom(
        self, image: str, model: str | None = None, objects: Sequence[str] = DICOM_OBJECTS, **params: Any
    ) -> list[dict[str, Any]]:
        """Send DICOM objects of a result to the archive; returns their UIDs."""
        body = _given({"model": model}) | {"params": params, "objects": list(objects)}
        return self._json("POST", f"/anomaly/dicom/{_id(image)}", json=body)["stored"]

    # --- reviews -------------------------------------------------------------------------------------------------

    def review(
        self,
        image: str,
        model: str,
        lesions: Iterable[Mapping[str, Any]] = (),
        *,
        final: bool = False,
        rest: str = "undecided",
        comment: str = "",
        params: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Keep decisions on a scan's lesions: of each ``peak_voxel`` (i, j, k), ``decision`` and ``comment``.

        decision: accept or reject. final: the accepted ones become the final label, none an empty one. rest: what
        becomes of lesions without a decision. params: the settings under which the lesions were seen.
        """
        body = {
            "model": model,
            "params": dict(params or {}),
            "reader": self.reader,
            "comment": comment,
            "final": final,
            "rest": rest,
            "lesions": [dict(lesion) for lesion in lesions],
        }
        return self._json("PUT", f"/anomaly/reviews/{_id(image)}", json=body)

    def reviews(self) -> list[dict[str, Any]]:
        """Every decision on this server, one entry per lesion."""
        return self._json("GET", "/anomaly/reviews/", params={"format": "json"})["rows"]

    # --- the calls themselves ------------------------------------------------------------------------------------

    def _ask(self, method: str, path: str, **options: Any) -> requests.Response:
        try:
            answer = self._session.request(method, self.server + path, timeout=self._timeout, **options)
        except requests.RequestException as error:
            raise AnomalyClientError(f"no answer from {self.server} ({type(error).__name__})") from error
        if answer.status_code >= 400:
            advice = _ADVICE.get(answer.status_code)
            error = AnomalyClientError(_reason(answer) + (f" ({advice})" if advice else ""), answer.status_code)
            wait = answer.headers.get("Retry-After", "")
            error.retry_after = float(wait) if wait.isdigit() else _BUSY_SECONDS
            answer.close()
            raise error
        return answer

    def _json(self, method: str, path: str, **options: Any) -> Any:
        answer = self._ask(method, path, **options)
        try:
            return answer.json()
        except ValueError as error:
            raise AnomalyClientError(
                f"expected JSON from {path}, got {answer.headers.get('Content-Type')}; is this the right address?"
            ) from error

    def _save(self, path: str, target: str | os.PathLike, query: Mapping[str, Any]) -> Path:
        target = Path(target)
        with self._ask("GET", path, params=query, stream=True) as answer, _whole(target) as partial:
            try:
                with partial.open("wb") as handle:
                    for chunk in answer.iter_content(_CHUNK):
                        handle.write(chunk)
            except requests.RequestException as error:
                raise AnomalyClientError(f"the transfer broke off ({type(error).__name__})") from error
        return target


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A file to write that takes the target's place when it is complete, and leaves nothing behind otherwise."""
    partial = target.with_name(f".writing-{secrets.token_hex(8)}.partial")
    try:
        yield partial
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _id(text: str) -> str:
    return quote(str(text), safe="")


def _job_id(job: str | Mapping[str, Any]) -> str:
    return str(job["id"]) if isinstance(job, Mapping) else str(job)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value not in (None, "")}


def _query(model: str | None, params: Mapping[str, Any]) -> dict[str, Any]:
    return _given({"model": model, **params})


def _reason(answer: requests.Response) -> str:
    try:
        detail = answer.json()["detail"]
    except (ValueError, KeyError, TypeError):
        detail = answer.text[:300] or answer.reason
    return f"HTTP {answer.status_code}: {detail if isinstance(detail, str) else json.dumps(detail)[:300]}"


def _multipart(answer: requests.Response) -> dict[str, bytes]:
    """The parts of MONAI Label's answer by name. Raises AnomalyClientError for another kind of answer."""
    found = re.search(r'boundary="?([^";]+)"?', answer.headers.get("Content-Type", ""))
    if found is None:
        raise AnomalyClientError(f"expected a mask and its JSON, got {answer.headers.get('Content-Type')}")
    parts = {}
    for part in answer.content.split(b"--" + found[1].encode()):
        head, gap, body = part.partition(b"\r\n\r\n")
        name = re.search(rb'name="([^"]+)"', head)
        if gap and name:
            parts[name[1].decode()] = body.removesuffix(b"\r\n")
    if not {"params", "file"} <= parts.keys():
        raise AnomalyClientError("expected a mask and its JSON, got an answer without one of them")
    return parts
