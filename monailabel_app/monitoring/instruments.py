"""The counters and histograms of a process: one registry, made once.

It is not in ``lib``, because MONAI Label drops the modules of ``lib`` whenever it loads an app, and figures must
not begin at zero or be there twice then. Label values come from closed sets, and what is outside of them is ``other``:
neither an id nor a text of a client may become a time series.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

# A second series per series, which nobody asks for.
disable_created_metrics()

REGISTRY = CollectorRegistry()
OTHER = "other"
# Different values of one label at most; those that come later are counted as other.
MOST_VALUES = 100
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_.+-]{0,63}")

_REQUEST_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0, 600.0)
_STAGE_SECONDS = (0.05, 0.25, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1800.0)
_WAITING_SECONDS = (0.1, 1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
# OpenMetrics has no sum for a histogram that begins below zero.
_SCORES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0, 10.0, 15.0, 25.0, 50.0)
_P_VALUES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

REQUESTS = Counter(
    "anomaly_requests", "Requests by route template, method and status class", ["route", "method", "status"],
    registry=REGISTRY,
)  # fmt: skip
REQUEST_SECONDS = Histogram(
    "anomaly_request_seconds", "Time until the whole answer was sent (s)", ["route", "method"],
    buckets=_REQUEST_SECONDS, registry=REGISTRY,
)  # fmt: skip
ANALYSES = Counter("anomaly_analyses", "Analyses that gave a result", ["model"], registry=REGISTRY)
STAGE_SECONDS = Histogram(
    "anomaly_stage_seconds", "Time of a stage of an analysis (s)", ["model", "stage"],
    buckets=_STAGE_SECONDS, registry=REGISTRY,
)  # fmt: skip
WAITED_SECONDS = Histogram(
    "anomaly_waited_seconds", "Time an analysis stood in line for its device (s)", ["device"],
    buckets=_WAITING_SECONDS, registry=REGISTRY,
)  # fmt: skip
SCORES = Histogram(
    "anomaly_scan_score",
    "Scan scores, in the unit of the model; below 0 as 0",
    ["model"],
    buckets=_SCORES,
    registry=REGISTRY,
)
P_VALUES = Histogram(
    "anomaly_scan_p_value", "Share of healthy scans that score as high", ["model"],
    buckets=_P_VALUES, registry=REGISTRY,
)  # fmt: skip
JOBS = Counter("anomaly_jobs_ended", "Jobs that ended, by kind and outcome", ["kind", "outcome"], registry=REGISTRY)
ERRORS = Counter("anomaly_errors", "Errors by their class", ["kind"], registry=REGISTRY)
FALLBACKS = Counter("anomaly_fallbacks", "Work that went on in a lesser way, by kind", ["kind"], registry=REGISTRY)
PURGED = Counter("anomaly_purged", "Things that retention removed, by kind", ["kind"], registry=REGISTRY)
PURGED_BYTES = Counter("anomaly_purged_bytes", "Bytes that retention removed, by kind", ["kind"], registry=REGISTRY)

_seen: dict[str, set[str]] = {}
_lock = threading.Lock()


def bounded(label: str, value: object) -> str:
    """``value`` as a label value: a short word out of a bounded set, else ``other``.

    label: which set it belongs to.
    """
    text = str(value)
    if not _WORD.fullmatch(text):
        return OTHER
    with _lock:
        known = _seen.setdefault(label, set())
        if text in known:
            return text
        if len(known) >= MOST_VALUES:
            return OTHER
        known.add(text)
        return text


def observe_analysis(
    model: str, seconds: Mapping[str, float], score: float | None, p_value: float | None, device: str = ""
) -> None:
    """One analysis with its stages' seconds; score and p_value where there are any.

    ``seconds["waiting"]`` is the time in line for ``device``.
    """
    model = bounded("model", model)
    ANALYSES.labels(model).inc()
    for stage, took in seconds.items():
        if _finite(took):
            STAGE_SECONDS.labels(model, bounded("stage", stage)).observe(float(took))
    if _finite(seconds.get("waiting")) and device:
        WAITED_SECONDS.labels(_device(device)).observe(float(seconds["waiting"]))
    if _finite(score):
        SCORES.labels(model).observe(max(0.0, float(score)))
    if _finite(p_value):
        P_VALUES.labels(model).observe(float(p_value))


def observe_request(route: str, method: str, status: int, seconds: float) -> None:
    """One answered request. route: the template, never an address that was asked for."""
    method = method if method in {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"} else OTHER
    REQUESTS.labels(route, method, f"{status // 100}xx").inc()
    REQUEST_SECONDS.labels(route, method).observe(seconds)


def count_job(kind: str, outcome: str) -> None:
    """One job that ended. outcome: done, failed, cancelled."""
    JOBS.labels(bounded("job", kind), bounded("outcome", outcome)).inc()


def count_error(kind: str) -> None:
    """One error. kind: the name of its class."""
    ERRORS.labels(bounded("error", kind)).inc()


def count_fallback(kind: str) -> None:
    """Something that went on in a lesser way, such as ``smaller_batches`` or ``cpu``."""
    FALLBACKS.labels(bounded("fallback", kind)).inc()


def count_purged(kind: str, things: int, size: int) -> None:
    """What retention removed. size: in bytes."""
    kind = bounded("purged", kind)
    PURGED.labels(kind).inc(things)
    PURGED_BYTES.labels(kind).inc(size)


def _device(name: str) -> str:
    return name.replace(":", "") if re.fullmatch(r"cpu|cuda(:[0-9]{1,2})?", name) else OTHER


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
