"""The service as systemd runs it: its command, as an ordinary user, everything read-only but what the unit declares."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import requests

from monailabel_app.access.tokens import TokenStore, default_file
from tests.ports import free_port
from tests.real.faults import MODEL, count, few_models, wait_for
from tests.server_fixture import ROOT

UNIT = ROOT / "extras/deploy/systemd/anomaly.service"
NOBODY = 65534
APP, STATE = Path("/opt/anomaly"), Path("/var/lib/anomaly")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a file system of its own"),
    pytest.mark.skipif(not (shutil.which("unshare") and shutil.which("setpriv")), reason="needs util-linux"),
]


def unit() -> dict[str, list[str]]:
    """The settings of [Service]: name -> values, split at spaces."""
    found: dict[str, list[str]] = {}
    section = UNIT.read_text().partition("[Service]")[2].partition("[Install]")[0]
    for name, value in re.findall(r"^(\w+)=(.*)$", section, flags=re.MULTILINE):
        found.setdefault(name, []).extend(value.split())
    return found


def confinement(app: Path, state: Path, settings: dict[str, list[str]], command: list[str]) -> str:
    """What systemd does for the unit, as far as mounts and the user go, as a script for a mount namespace."""
    lines = ["set -e", "mount --make-rprivate /", "mount -t tmpfs -o mode=755 tmpfs /opt"]
    home = Path.home()
    if Path(sys.base_prefix).is_relative_to(home):
        # ProtectHome, but for an interpreter that lives there.
        kept = shlex.quote(sys.base_prefix)
        lines += [
            "mkdir -p /opt/kept",
            f"mount --bind {kept} /opt/kept",
            f"mount -t tmpfs tmpfs {home}",
            f"chmod 755 {home}",
        ]
        lines += [f"mkdir -p {kept}", f"mount --bind /opt/kept {kept}"]
    lines += [f"mkdir {APP}", f"mount --bind {shlex.quote(str(app))} {APP}"]
    lines += [
        "mount -t tmpfs -o mode=755 tmpfs /var/lib",
        f"mkdir {STATE}",
        f"mount --bind {shlex.quote(str(state))} {STATE}",
    ]
    # ProtectSystem=strict, and StateDirectory.
    lines += ["for m in / /opt /var/lib /opt/anomaly /var/lib/anomaly; do mount -o remount,bind,ro $m; done"]
    lines.append(f"mount -o remount,bind,rw {STATE}")
    lines += ["mount -t tmpfs -o mode=1777 tmpfs /tmp", "mount -t tmpfs -o mode=1777 tmpfs /var/tmp"]
    environment = [value for value in settings["Environment"] if not value.endswith("=")]
    environment += ["OMP_NUM_THREADS=1", f"PATH={os.defpath}"]
    lines.append(f"cd {settings['WorkingDirectory'][0]}")
    user = f"--reuid {NOBODY} --regid {NOBODY} --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all"
    lines.append(
        f"umask {settings['UMask'][0]}; exec setpriv {user} env -i {shlex.join(environment)} {shlex.join(command)}"
    )
    return "\n".join(lines)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    app = folder / "app"
    app.mkdir(mode=0o755)
    few_models(app, MODEL, copies=True)
    for link in [path for path in (app / "model_weights").iterdir() if path.is_symlink()]:
        source = link.resolve()
        link.unlink()
        shutil.copytree(source, link)
    (app / ".venv").symlink_to(sys.prefix)
    subprocess.run(["chmod", "-R", "a+rX,go-w", str(app)], check=True)
    settings = unit()
    state = folder / "state"
    for name in settings["StateDirectory"]:
        (folder / "state" / name.removeprefix("anomaly").lstrip("/")).mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in ("model", "logs", "cache", "runs", "bin"):
        (app / name).symlink_to(STATE / name)
    shutil.copy(ROOT / "tests/data/studies/ixi_lesion.nii.gz", state / "studies/head.nii.gz")
    token, _ = TokenStore(default_file(state)).create("dr-reader", "reader")
    subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", str(state)], check=True)
    port = free_port()
    values = {"${ANOMALY_STUDIES}": str(STATE / "studies"), "$ANOMALY_OPTIONS": None, "8000": str(port)}
    command = [values.get(word, word) for word in settings["ExecStart"]]
    script = confinement(app, state, settings, [word for word in command if word is not None])
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(["unshare", "--mount", "bash", "-c", script], stdout=out, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"

    def up():
        text = log.read_text(errors="replace")
        if "permission denied" in text and "mount" in text and process.poll() is not None:
            pytest.skip(f"needs a mount namespace, which is refused here: {text[-200:]}")
        assert process.poll() is None, text[-3000:]
        with suppress(requests.RequestException):
            return requests.get(f"{url}/anomaly/health", timeout=60).status_code == 200
        return False

    try:
        wait_for(up, "the confined server")
        yield SimpleNamespace(
            url=url, bearer={"Authorization": f"Bearer {token}"}, log=log, state=state, process=process, app=app
        )
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()


def test_it_runs_as_an_ordinary_user_without_any_right(service):
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    assert re.search(rf"^Uid:\s+{NOBODY}\s+{NOBODY}", status, flags=re.MULTILINE)
    assert re.search(r"^CapEff:\s+0+$", status, flags=re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s+1$", status, flags=re.MULTILINE)
    mounts = Path(f"/proc/{service.process.pid}/mounts").read_text()
    assert re.search(rf"^\S+ {APP} \S+ ro\b", mounts, flags=re.MULTILINE)


def test_it_analyses_and_keeps_labels_with_nothing_else_writable(service, tmp_path):
    before = {path for path in service.app.rglob("*") if "model_weights" in path.parts}
    answer = requests.post(f"{service.url}/infer/{MODEL}?image=head&output=json", headers=service.bearer, timeout=600)
    assert answer.status_code == 200, answer.text
    head = nib.load(ROOT / "tests/data/studies/ixi_lesion.nii.gz")
    drawn = np.zeros(head.shape, np.uint8)
    drawn.flat[:7] = 1
    nib.save(nib.Nifti1Image(drawn, head.affine), tmp_path / "label.nii.gz")
    with (tmp_path / "label.nii.gz").open("rb") as content:
        kept = requests.put(
            f"{service.url}/datastore/label?image=head&tag=final",
            files={"label": ("label.nii.gz", content)},
            headers=service.bearer,
            timeout=120,
        )
    assert kept.status_code == 200, kept.text
    assert count(service.state / "studies/labels/final/head.nii.gz") == 7
    assert {path for path in service.app.rglob("*") if "model_weights" in path.parts} == before


def test_what_it_needed_was_declared(service):
    text = service.log.read_text(errors="replace")
    assert not re.findall(r".*(?:Read-only file system|Permission denied|Operation not permitted).*", text)
    assert (service.state / "logs/audit.jsonl").is_file()


def test_what_it_writes_is_readable_for_itself_only(service):
    for path in service.state.rglob("*"):
        with suppress(FileNotFoundError):  # Gone meanwhile: it serves still.
            assert path.stat().st_mode & 0o077 == 0 or path.name == "head.nii.gz", path


def test_it_ends_with_0_when_it_is_told_to_stop(service):
    service.process.terminate()
    assert service.process.wait(300) == 0
