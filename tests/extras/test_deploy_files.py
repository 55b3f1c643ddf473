"""The files for containers and services say what they should; checked by the tools for them where these are there."""

import inspect
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import uvicorn
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "extras/deploy"
SYSTEM = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}


@pytest.fixture(scope="module")
def compose() -> dict:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def dockerfile() -> str:
    return (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")


def tool(name: str) -> str:
    found = shutil.which(name, path=SYSTEM["PATH"])
    if found is None:
        pytest.skip(f"needs {name}")
    return found


def test_every_file_that_the_image_copies_is_there_and_not_left_out(dockerfile):
    kept = [line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [
        word
        for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile, flags=re.MULTILINE)
        for word in line.split()[:-1]
    ]
    assert len(copied) > 10
    for name in copied:
        assert (ROOT / name).exists(), name
        assert any(Path(name).match(pattern) or name.startswith(f"{pattern}/") for pattern in kept), name


def test_the_image_runs_as_a_user_without_rights_and_says_whether_it_works(dockerfile):
    last = dockerfile.rpartition("\nFROM ")[2]
    assert re.search(r"^USER 10001:10001$", last, flags=re.MULTILINE)
    assert "HEALTHCHECK" in last
    assert "/anomaly/health" in last
    assert re.search(r'^ENTRYPOINT \["python"', last, flags=re.MULTILINE), "with a shell in between no signal arrives"
    assert '"auth", "token"' in last


def test_the_image_holds_no_secrets_and_installs_only_what_is_locked(dockerfile):
    assert "LOCK=required" in dockerfile
    assert not re.search(r"password|secret|token=", dockerfile.replace("tokens create", ""), flags=re.IGNORECASE)
    assert (DEPLOY / "Dockerfile.dockerignore").read_text().split("\n")[1] == "*"


def test_only_tls_can_be_reached_from_outside(compose):
    reachable = {name for name, service in compose["services"].items() if "ports" in service}
    assert reachable == {"tls"}
    assert compose["networks"]["inside"]["internal"] is True
    assert compose["services"]["orthanc"]["networks"] == ["inside"]
    assert compose["services"]["anomaly"]["networks"] == ["inside"]


def test_every_service_restarts_has_limits_and_gains_no_rights(compose):
    for name, service in compose["services"].items():
        assert service["restart"] == "unless-stopped", name
        assert {"mem_limit", "cpus", "pids_limit"} <= service.keys(), name
        assert "no-new-privileges:true" in service["security_opt"], name
    assert compose["services"]["anomaly"]["read_only"] is True
    assert compose["services"]["anomaly"]["init"] is True
    assert "token" in compose["services"]["anomaly"]["command"]


def test_no_password_is_in_the_repository(compose):
    orthanc = json.loads((DEPLOY / "orthanc.json.example").read_text())
    assert orthanc["AuthenticationEnabled"] is True
    assert orthanc["RegisteredUsers"] == {"anomaly": "REPLACE-WITH-A-LONG-RANDOM-PASSWORD"}
    assert re.search(
        r"^MONAI_LABEL_DICOMWEB_PASSWORD=$", (DEPLOY / "anomaly.env.example").read_text(), flags=re.MULTILINE
    )
    assert all(set(secret) == {"file"} for secret in compose["secrets"].values())


def test_proxies_and_unit_agree_with_the_server_about_sizes_and_ports():
    from lib.perimeter.body_limit import UPLOAD_MB

    site = (DEPLOY / "nginx/anomaly.conf").read_text()
    assert f"client_max_body_size {UPLOAD_MB}m;" in site
    assert "server 127.0.0.1:8000;" in (DEPLOY / "nginx/upstream_local.conf").read_text()
    assert "--port 8000" in (DEPLOY / "systemd/anomaly.service").read_text()
    proxy = (DEPLOY / "nginx/anomaly_proxy.conf").read_text()
    assert "proxy_request_buffering off;" in proxy
    # Appended to, it would hold what the client claims.
    assert "proxy_set_header X-Forwarded-For $remote_addr;" in proxy


@pytest.mark.parametrize("upstream", ["upstream_local.conf", "upstream_compose.conf"])
def test_the_proxy_lets_go_of_a_connection_before_the_server_does(upstream):
    kept = re.search(r"^ *keepalive_timeout (\d+)s;$", (DEPLOY / "nginx" / upstream).read_text(), re.MULTILINE)
    # MONAI Label starts uvicorn without a word about it.
    assert int(kept[1]) < inspect.signature(uvicorn.run).parameters["timeout_keep_alive"].default


def test_the_unit_opens_only_folders_of_its_own():
    unit = (DEPLOY / "systemd/anomaly.service").read_text()
    for setting in (
        "ProtectSystem=strict",
        "NoNewPrivileges=yes",
        "CapabilityBoundingSet=\n",
        "UMask=0077",
        "MemoryMax=",
    ):
        assert setting in unit, setting
    folders = re.search(r"^StateDirectory=(.*)$", unit, flags=re.MULTILINE).group(1).split()
    assert {"anomaly/model", "anomaly/logs", "anomaly/cache", "anomaly/runs", "anomaly/bin"} <= set(folders)
    assert not re.search(r"^ReadWritePaths=", unit, flags=re.MULTILINE)


def test_hadolint_finds_nothing():
    done = subprocess.run([tool("hadolint"), str(DEPLOY / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_compose_accepts_the_files(tmp_path):
    command = [tool("docker-compose")]
    for name in ("compose.yaml", "compose.gpu.yaml"):
        shutil.copy(DEPLOY / name, tmp_path)
    (tmp_path / "anomaly.env").touch()
    (tmp_path / "secrets").mkdir()
    for files in (["compose.yaml"], ["compose.yaml", "compose.gpu.yaml"]):
        given = [word for name in files for word in ("-f", name)]
        done = subprocess.run([*command, *given, "config", "-q"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_systemd_accepts_the_unit_and_finds_it_closed():
    analyze = tool("systemd-analyze")
    unit = str(DEPLOY / "systemd/anomaly.service")
    verified = subprocess.run([analyze, "verify", unit], capture_output=True, text=True)
    faults = [line for line in verified.stderr.splitlines() if "anomaly.service" in line]
    assert not [line for line in faults if "is not executable" not in line], faults
    security = subprocess.run([analyze, "security", "--offline=true", unit], capture_output=True, text=True)
    if "verall exposure" not in security.stdout:
        pytest.skip("this systemd-analyze cannot judge a file")
    assert float(re.search(r"exposure level for \S+: ([0-9.]+)", security.stdout).group(1)) < 2.0
