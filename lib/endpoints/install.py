"""Puts this app's answers before MONAI Label's, while the server is starting.

The stock command runs ``monailabel.app:app`` and loads the app inside its start-up, when middleware can no
longer be added. Three things can still be done, and take effect before the first request: routes put
first in the router's list win over MONAI Label's; the router's innermost callable can be wrapped (inside
CORS and the handling of HTTP errors, so both still apply); and the list of what is around it all can be changed
and built anew, which is where MONAI Label's CORS, open to every origin by default, is replaced.
"""

from __future__ import annotations

import sys

from fastapi import FastAPI
from monailabel.config import settings
from starlette.middleware import Middleware

from lib import background, garbage
from lib.access.gate import Gate
from lib.endpoints import (
    api_docs,
    archive,
    data,
    dicom,
    evaluation,
    health,
    infer,
    jobs,
    login,
    logs,
    metrics,
    model_upload,
    models,
    page,
    results,
    reviews,
    samples,
    sessions,
    studies,
    tasks,
    viewer,
)
from lib.endpoints.api_schema import describe_server
from lib.endpoints.audit_trail import AuditTrail
from lib.endpoints.guard import Guard
from lib.endpoints.metrics import Metrics
from lib.perimeter import BodyLimit, ExactCors, RepeatedHeaders, SameOrigin, SecurityHeaders, resources
from lib.reach import warn_if_open_to_others

_MARK = "anomaly:"
# What every request goes through, outermost first; inside MONAI Label's own handling of errors.
LAYERS = (Metrics, BodyLimit, SameOrigin, Gate, RepeatedHeaders, AuditTrail, Guard)
# Around that handling, so that its answers have the headers, too.
AROUND = (SecurityHeaders, ExactCors)


def install(server: FastAPI | None = None) -> bool:
    """Put the routes and the guard in place; done again after a reload, it replaces its earlier self.

    ``server`` is found by itself; without a running server (a sub-process, a notebook) nothing is done and
    False is returned.
    """
    if server is None:
        module = sys.modules.get("monailabel.app")
        server = getattr(module, "app", None)
        if server is None:
            return False
    routers = (
        infer.router, data.router, tasks.router, evaluation.router, viewer.router, archive.router, page.router,
        jobs.router, dicom.router, results.router, samples.router, sessions.router, logs.router,
        model_upload.router, api_docs.router,
        studies.router, reviews.router, models.router, health.router, metrics.router, login.router,
    )  # fmt: skip
    routes = [route for router in routers for route in router.routes]
    for route in routes:
        route.name = _MARK + route.name.removeprefix(_MARK)
    kept = [route for route in server.router.routes if not str(getattr(route, "name", "")).startswith(_MARK)]
    server.router.routes[:] = routes + kept
    inner = server.router.middleware_stack
    # After a reload the classes are new ones of the same names.
    while type(inner).__name__ in {layer.__name__ for layer in LAYERS}:
        inner = inner.app
    for layer in reversed(LAYERS):
        inner = layer(inner)
    server.router.middleware_stack = inner
    replaced = {"CORSMiddleware", *(layer.__name__ for layer in AROUND)}
    others = [given for given in server.user_middleware if given.cls.__name__ not in replaced]
    server.user_middleware[:] = [*(Middleware(layer) for layer in AROUND), *others]
    server.middleware_stack = server.build_middleware_stack()
    describe_server(server)
    background.prepare()
    resources.prepare()
    garbage.prepare()
    warn_if_open_to_others(settings.MONAI_LABEL_APP_DIR, settings.MONAI_LABEL_APP_CONF or {})
    return True
