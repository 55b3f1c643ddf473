"""Which role an address needs. What is not in the table is for administrators, so that nothing is open by oversight.

Addresses are as the router has them: below ``MONAI_LABEL_API_STR``, with or without a slash at the end; ``{}`` stands
for one part of the address, ``{*}`` for the rest of it.
"""

from __future__ import annotations

import re
from functools import lru_cache

from monailabel.config import settings

from lib.access.principal import ADMIN, MONITOR, READER

# Of everybody, signed in or not.
PUBLIC = frozenset({"anybody"})
_ALL = frozenset({READER, ADMIN, MONITOR})
_READERS = frozenset({READER, ADMIN})
_WATCHERS = frozenset({MONITOR, ADMIN})
_ADMINS = frozenset({ADMIN})

_TABLE = (
    (PUBLIC, (
        "GET /anomaly/login", "POST /anomaly/login", "GET /anomaly/login/{}", "POST /anomaly/logout",
        # files of the page that hold nothing: a browser remembers a part that it could not fetch as missing
        "GET /anomaly/assets/{}", "GET /anomaly/THIRD-PARTY-LICENSES.txt",
        "GET /auth", "POST /auth/token", "GET /anomaly/health", "GET /favicon.ico",
    )),
    (_ALL, ("GET /auth/token/valid", "GET /anomaly/ready")),
    (_WATCHERS, ("GET /anomaly/metrics",)),
    (_READERS, (
        # MONAI Label's own; its viewer, and the archive behind it
        "GET /", "GET /docs", "GET /openapi.json", "GET /static/{*}",
        "GET /info", "POST /infer/{}", "POST /infer/wsi/{}", "POST /infer/wsi_v2/{}", "POST /activelearning/{}",
        "GET /datastore", "PUT /datastore", "GET /datastore/image", "PUT /datastore/image",
        "GET /datastore/image/info", "PUT /datastore/image/info", "GET /datastore/label", "PUT /datastore/label",
        "GET /datastore/label/info", "PUT /datastore/label/info", "PUT /datastore/updatelabelinfo",
        "PUT /session", "GET /session/{}", "DELETE /session/{}",
        "GET /train", "GET /batch/infer", "GET /scoring", "POST /scoring", "POST /scoring/{}", "DELETE /scoring",
        "GET /ohif/{*}", "GET /proxy/dicom/{*}", "POST /proxy/dicom/{*}",
        # the page and what it shows
        "GET /anomaly", "GET /anomaly/page.json",
        "GET /anomaly/jobs", "POST /anomaly/jobs", "GET /anomaly/jobs/{}", "DELETE /anomaly/jobs/{}",
        "GET /anomaly/results/{}", "GET /anomaly/results/{}/{}",
        "GET /anomaly/studies", "GET /anomaly/studies/{}", "POST /anomaly/studies/{}/lease",
        "DELETE /anomaly/studies/{}/lease",
        "GET /anomaly/reviews", "GET /anomaly/reviews/{}", "PUT /anomaly/reviews/{}", "DELETE /anomaly/reviews/{}",
        "GET /anomaly/dicom/{}/{}", "POST /anomaly/dicom/{}",
        "GET /anomaly/models", "GET /anomaly/models/{}/card", "GET /anomaly/healthy",
        "GET /anomaly/evaluation", "GET /anomaly/evaluation/{}", "GET /anomaly/evaluation/{}/{}",
    )),
    # As is everything that is not here; written down where somebody has thought about it.
    (_ADMINS, (
        "POST /train", "POST /train/{}", "DELETE /train", "POST /batch/infer/{}", "DELETE /batch/infer",
        "DELETE /datastore", "DELETE /datastore/image", "DELETE /datastore/label", "GET /datastore/dataset",
        "GET /model/{}", "GET /model/info/{}", "PUT /model/{}", "DELETE /model/{}",
        "GET /logs", "GET /logs/gpu", "POST /reload",
    )),
)  # fmt: skip


def role_needed(method: str, path: str) -> frozenset[str]:
    """The roles of which one is needed, or PUBLIC. ``path`` without the server's ``root_path``."""
    found = rule_of(method, path)
    return _ADMINS if found is None else found[0]


def rule_of(method: str, path: str) -> tuple[frozenset[str], str] | None:
    """The roles and the table's own words for an address (no id is in them); None where nothing was decided."""
    method = "GET" if method == "HEAD" else method
    path = path.removeprefix(settings.MONAI_LABEL_API_STR)
    path = path[:-1] if path.endswith("/") and path != "/" else path or "/"
    for known, pattern, roles, words in _rules():
        if method == known and pattern.fullmatch(path):
            return roles, words
    return None


@lru_cache(maxsize=1)
def _rules() -> tuple[tuple[str, re.Pattern[str], frozenset[str], str], ...]:
    rules = []
    for roles, lines in _TABLE:
        for line in lines:
            method, path = line.split(" ")
            # The rest may be empty: /ohif/ is the viewer's start page.
            pattern = re.escape(path).replace(r"/\{\*\}", "(/.*)?").replace(r"\{\}", "[^/]+")
            rules.append((method, re.compile(pattern, re.DOTALL), roles, line))
    return tuple(rules)
