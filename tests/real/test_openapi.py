"""Every address as ``/openapi.json`` describes it, tried by schemathesis against the stock server.

Left out, and why: ``/train/`` (a training goes on for hours), ``/batch/infer`` (every scan with a model), and
``POST /scoring/`` and ``/scoring/{method}`` (a process of minutes) as far as they start something; malformed requests
go to them below. The check ``positive_data_acceptance`` is left out: ids of scans that are not there, and parameters
that are JSON within a form, cannot be described so that every described value is accepted.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from monailabel_app.access.tokens import TokenStore
from tests.server_fixture import ROOT, copy_studies, running_server

pytestmark = pytest.mark.slow

EXAMPLES, SECONDS = 2, 60
STARTS_WORK = "^/(train|batch|scoring)/"
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection,missing_required_header,unsupported_method,"
    "allow_header_conformance"
)
# Not JSON, no finite number, no Unicode, too deep, too long, no object: of each body an error of the client.
BODIES = (
    b"NaN", b'{"a":NaN}', b"[Infinity]", b'{"a":-Infinity,"params":{"x":NaN}}', b"1e999", b'"\\ud800"',
    b'{"image":"\\ud800"}', b"\xff\xfe", b"[" * 20_000, b'{"a":' + b"1" * 5000 + b"}", b"null", b"{",
)  # fmt: skip
QUERIES = (
    "image=%00", "image=%ff%fe", "image=%ED%A0%80", "image=a&image=b", "image=" + "a" * 3000, "id=..%2f..&tag=final",
    "check_sum=x:y&image=ixi_healthy", "check_sum=MD5:y&image=ixi_healthy", "limit=NaN", "lines=9" * 30, "lines=-5",
    "output=zzz", "label=ixi_healthy&tag=%2e%2e",
)  # fmt: skip
IN_PATH = {"image": "ixi_healthy", "strategy": "first"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("openapi")
    studies = copy_studies(ROOT / "tests/data/studies", folder / "studies")
    env = {"MONAI_LABEL_SESSION_PATH": str(folder / "sessions"), "ANOMALY_TOKENS": str(folder / "none.json")}
    conf = {"models": "intensity_t1", "auth": "open", "disk_cache": str(folder / "analyses")}
    with running_server(studies, conf=conf, env=env) as running:
        yield running


def operations(server, **kwargs):
    """Method and address, with something in the place of each part that varies."""
    for path, methods in server.get("/openapi.json", **kwargs).json()["paths"].items():
        for method, described in methods.items():
            filled = path
            for parameter in described.get("parameters", ()):
                if parameter["in"] == "path":
                    name = parameter["name"]
                    filled = filled.replace("{" + name + "}", IN_PATH.get(name, "x"))
            yield method, filled, described


def _refuse(text):
    raise ValueError(f"{text} is no JSON")


def test_schemathesis_finds_no_fault(server, tmp_path):
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{server.url}/openapi.json"]
    command += ["--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES), "--generation-deterministic"]
    command += ["--no-shrink", "--continue-on-failure", "--request-timeout", "60", "--checks", CHECKS]
    command += ["--exclude-path-regex", STARTS_WORK, "--generation-with-security-parameters", "false"]
    command += ["--warnings", "off", "--no-color", "--max-time", str(SECONDS)]
    # How long a machine that is busy otherwise takes to make up a request is no fault of the server.
    command += ["--suppress-health-check", "too_slow"]
    run = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=10 * SECONDS, env={**os.environ, "NO_COLOR": "1"}
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:] + server.log_tail()
    assert server.get("/anomaly/health").json() == {"status": "ok"}


def test_no_body_makes_the_server_fail_or_answer_what_is_no_json(server):
    faults = []
    for method, path, _ in operations(server):
        if method in {"get", "head"} or (method == "delete" and path.startswith(("/train", "/batch", "/scoring"))):
            continue
        for body in BODIES:
            answer = requests.request(
                method, server.url + path, data=body, headers={"Content-Type": "application/json"}, timeout=60
            )
            if answer.status_code >= 500:
                faults.append((answer.status_code, method, path, body[:30], answer.text[:200]))
            elif answer.status_code >= 400:
                json.loads(answer.text, parse_constant=_refuse)
    assert not faults


def test_no_query_makes_the_server_fail(server):
    faults = []
    for method, path, _ in operations(server):
        if method in {"get", "head"}:
            for query in QUERIES:
                with requests.request(method, f"{server.url}{path}?{query}", timeout=60, stream=True) as answer:
                    if answer.status_code >= 500:
                        faults.append((answer.status_code, method, path, query[:40], answer.text[:200]))
    assert not faults


def test_every_address_is_described_with_its_errors_and_its_roles(server):
    for method, path, described in operations(server):
        assert {"400", "401", "403", "404", "422", "503"} <= set(described["responses"]), (method, path)
        assert described["security"] == [] or described["x-roles"], (method, path)


def test_none_but_the_public_addresses_answer_without_a_valid_token(tmp_path):
    """What schemathesis calls ignored_auth, of all operations; its own check would be kept waiting as a guesser is."""
    studies = copy_studies(ROOT / "tests/data/studies", tmp_path / "studies")
    secret, _ = TokenStore(tmp_path / "tokens.json").create("test", "admin")
    env = {"MONAI_LABEL_SESSION_PATH": str(tmp_path / "sessions")}
    conf = {"models": "intensity_t1", "auth": "token", "tokens": str(tmp_path / "tokens.json")}
    with running_server(studies, conf=conf, env=env) as server:
        right = {"Authorization": f"Bearer {secret}"}
        public, tried = set(), 0
        for method, path, described in operations(server, headers=right):
            if described["security"] == []:
                public.add(path)
                continue
            tried += 1
            assert requests.request(method, server.url + path, timeout=60).status_code == 401, (method, path)
            wrong = requests.request(method, server.url + path, headers={"Authorization": "Bearer wrong"}, timeout=60)
            assert wrong.status_code in {401, 429}, (method, path)
        assert tried > 40
        assert public == {"/anomaly/login", "/anomaly/logout", "/anomaly/health", "/auth/", "/auth/token"}
