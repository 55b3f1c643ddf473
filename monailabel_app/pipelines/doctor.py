"""Examine the environment the app runs in, and say for each fault how to mend it.

Every check is one small function that returns ``Check``s; ``examine`` runs them all. A fault is what stops
the app from working (exit code 1); a warning is what was not tested or will be slow.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from monailabel_app.pipelines import launcher
from monailabel_app.pipelines.serve import port_fault

PYTHONS = ((3, 10), (3, 13))  # from, below
# Versions that cannot work, whatever requirements.txt pins: (name, first broken version, what breaks).
BROKEN_FROM = {
    "numpy": ((2,), "pydicom-seg 0.4.1 needs numpy < 2"),
    "pydicom": ((3,), "pydicom-seg 0.4.1 imports a name that pydicom 3 removed"),
    "pynetdicom": ((3,), "pynetdicom 3 needs pydicom 3"),
    "monai": ((1, 6), "monai 1.6 breaks NIfTI input in MONAI Label 0.8.5"),
}
REINSTALL = "run `make setup` (or: pip install -r requirements.txt in the environment)"
NEEDED_DISK_GB = 1.0
_MODELS = ("model_weights/", "model/")


@dataclass(frozen=True)
class Check:
    """One thing looked at. ``mend`` is empty when ``status`` is ok."""

    name: str
    status: Literal["ok", "warning", "fault"]
    found: str
    mend: str = ""


def examine(root: Path, *, host: str = "127.0.0.1", port: int = 8000) -> list[Check]:
    """All checks, for the app in ``root`` and a server that will listen on ``host:port``."""
    return [
        check_python(sys.version_info[:2]),
        *check_packages(root),
        check_monai_label(),
        check_device(),
        *check_models(root),
        *check_offered_first(root),
        check_launcher(Path(sys.prefix)),
        check_offline(),
        check_port(host, port),
        *check_folders(root),
    ]


def exit_code(checks: Sequence[Check]) -> int:
    """1 when there is a fault, else 0."""
    return int(any(check.status == "fault" for check in checks))


def as_json(checks: Sequence[Check]) -> str:
    """The checks as a JSON object: ``ok`` and ``checks``."""
    return json.dumps({"ok": not exit_code(checks), "checks": [asdict(check) for check in checks]}, indent=2)


def print_table(checks: Sequence[Check], console: Console | None = None) -> None:
    """The checks as a table, and one line that sums them up."""
    console = console or Console()
    colours = {"ok": "green", "warning": "yellow", "fault": "red"}
    table = Table("check", "", "found", "how to mend it", show_lines=False)
    for column in table.columns:
        column.overflow = "fold"  # A path that is cut off cannot be looked for.
    for check in _sound_models_together(checks):
        status = Text(check.status, style=colours[check.status])
        table.add_row(Text(check.name), status, Text(check.found), Text(check.mend))
    console.print(table)
    counts = {status: sum(check.status == status for check in checks) for status in colours}
    console.print(f"{counts['fault']} faults, {counts['warning']} warnings, {counts['ok']} ok")


def _sound_models_together(checks: Sequence[Check]) -> list[Check]:
    """As ``checks``, with one row in place of the many model folders that nothing is wrong with."""
    sound = [check for check in checks if check.status == "ok" and check.name.startswith(_MODELS)]
    if len(sound) < 2:
        return list(checks)
    row = Check("models", "ok", f"{len(sound)} folders complete, hashes match")
    shown = [row if check is sound[0] else check for check in checks]
    return [check for check in shown if not any(check is one for one in sound)]


# --- Python and packages ----------------------------------------------------------------------------------


def check_python(version: tuple[int, int]) -> Check:
    """Python is one of the versions the pins exist for."""
    found = f"Python {'.'.join(map(str, version))} at {sys.executable}"
    if PYTHONS[0] <= tuple(version) < PYTHONS[1]:
        return Check("Python", "ok", found)
    return Check("Python", "fault", found, "install Python 3.10, 3.11 or 3.12; make setup PYTHON=...")


def pins(root: Path) -> dict[str, str]:
    """Name -> version of every ``name==version`` line of the run-time requirement files."""
    found: dict[str, str] = {}
    for name in ("requirements.txt", "requirements-nodeps.txt"):
        path = root / name
        text = path.read_text() if path.is_file() else ""
        found |= dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;#]+)", text, flags=re.MULTILINE))
    return found


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: ``2.13.0+cpu`` -> (2, 13, 0)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def check_packages(root: Path) -> list[Check]:
    """Every pinned package is there in the tested version; missing and known-broken ones are faults."""
    wanted = pins(root)
    if not wanted:
        found = f"no pins in {root / 'requirements.txt'}"
        return [Check("packages", "fault", found, "restore the file: git checkout -- requirements.txt")]
    checks, untested = [], []
    for name, version in wanted.items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            checks.append(Check(name, "fault", f"not installed (expected {version})", REINSTALL))
            continue
        broken_from, reason = BROKEN_FROM.get(name.lower(), ((), ""))
        if broken_from and numbers(found) >= broken_from:
            checks.append(Check(name, "fault", f"{found}: {reason}", REINSTALL))
        elif found.split("+")[0] != version:
            untested.append(f"{name} {found} (tested: {version})")
    if untested:
        checks.append(Check("package versions", "warning", "; ".join(untested), REINSTALL))
    if not checks:
        checks.append(Check("packages", "ok", f"{len(wanted)} pinned packages, all in the tested versions"))
    return checks


def check_monai_label() -> Check:
    """MONAI Label can be imported; tried in another process, which a broken binary package may end."""
    code = "import monailabel.interfaces.app, monailabel.app"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180)
    except subprocess.TimeoutExpired:
        return Check("MONAI Label", "fault", "import took over 180 s", "look for a slow or full disk")
    if done.returncode == 0:
        return Check("MONAI Label", "ok", "imports")
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return Check("MONAI Label", "fault", f"does not import: {last}", REINSTALL)


def check_device() -> Check:
    """What torch computes on. A CPU is enough; a GPU that torch cannot use is a warning."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check("device", "fault", f"torch does not import: {error}", REINSTALL)
    if torch.cuda.is_available():
        found = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        return Check("device", "ok", f"torch {torch.__version__}, CUDA: {found}")
    threads = torch.get_num_threads()
    found = f"torch {torch.__version__}, CPU ({platform.machine()}, {threads} threads)"
    if shutil.which("nvidia-smi") and torch.version.cuda is None:
        mend = "the GPU is not used: rm -r .venv, then make setup TORCH_INDEX=https://download.pytorch.org/whl/cu130"
        return Check("device", "warning", f"{found}, although nvidia-smi is on PATH", mend)
    return Check("device", "ok", found)


# --- weights ----------------------------------------------------------------------------------------------


def file_hash(path: Path) -> str:
    """The sha256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def folder_faults(folder: Path) -> list[str]:
    """What is wrong with a model folder by its ``sha256sums.txt`` (lines ``<hash>  <file>``), or nothing.

    Apart from ``weights.model_folder``, which stops at the first fault and needs torch, itself a suspect here.
    """
    sums = folder / "sha256sums.txt"
    if not sums.is_file():
        return ["no sha256sums.txt"]
    faults, listed = [], 0
    for line in sums.read_text().splitlines():
        if not line.strip():
            continue
        match = re.fullmatch(r"([0-9a-f]{64})\s+\*?(\S.*)", line.strip())
        if not match or Path(match[2]).is_absolute() or ".." in Path(match[2]).parts:
            faults.append(f"sha256sums.txt has a line that is no `<hash>  <file>`: {line.strip()!r}")
            continue
        listed += 1
        path = folder / match[2]
        if not path.is_file():
            faults.append(f"{match[2]} is missing")
        elif file_hash(path) != match[1]:
            faults.append(f"{match[2]} differs from its recorded hash")
    if not listed and not faults:
        faults.append("sha256sums.txt lists no file")
    return faults


def check_models(root: Path) -> list[Check]:
    """Every shipped and every user-trained model folder is complete and unchanged."""
    shipped = _model_folders(root / "model_weights")
    checks = []
    if not shipped:
        mend = "restore it (git checkout -- model_weights) or rebuild it (make weights DATA=...)"
        checks.append(Check("model_weights", "fault", "no shipped model", mend))
    for folder in (*shipped, *_trained_folders(root / "model")):
        name, faults = str(folder.relative_to(root)), folder_faults(folder)
        if not faults:
            checks.append(Check(name, "ok", "complete, hashes match"))
        elif folder in shipped:
            mend = f"restore it (git checkout -- {name}) or rebuild it (make weights DATA=...)"
            checks.append(Check(name, "fault", "; ".join(faults), mend))
        else:
            mend = "restore it from a backup, or go back to a whole one: python main.py models rollback NAME"
            checks.append(Check(name, "fault", "; ".join(faults), mend))
    return checks


def check_offered_first(root: Path) -> list[Check]:
    """The model that is offered first for each sequence is there; without it a lesser one is asked, which is said."""
    try:
        from monailabel_app.pipelines.sequences import stand_ins
        from monailabel_app.weights.listing import list_models
    except (ImportError, OSError):
        return []  # PyTorch comes with them: `check_device` says what is wrong with it.
    models = {name: entry for name, entry in list_models(root).items() if entry.calibrated}
    mend = "restore it (git checkout -- model_weights) or rebuild it (make weights DATA=...)"
    return [Check("models offered first", "warning", told, mend) for told in (stand_ins(models) if models else ())]


def _trained_folders(parent: Path) -> list[Path]:
    """Every version of every trained model, and the models that were copied in without versions."""
    names = _model_folders(parent)
    flat = [folder for folder in names if (folder / "sha256sums.txt").is_file()]
    return [*flat, *(version for folder in names for version in _model_folders(folder / "versions"))]


def _model_folders(parent: Path) -> list[Path]:
    if not parent.is_dir():
        return []
    return sorted(f for f in parent.iterdir() if f.is_dir() and not f.name.startswith((".", "_")))


# --- the machine ------------------------------------------------------------------------------------------


def check_launcher(prefix: Path) -> Check:
    """The ``monailabel`` command keeps arguments with spaces whole."""
    path = launcher.launcher_path(prefix)
    if launcher.is_sound(prefix):
        return Check("monailabel command", "ok", str(path))
    found = "the wheel's own, which splits paths at spaces" if path.exists() else f"{path} is missing"
    mend = f"in the app's folder: '{sys.executable}' -m monailabel_app.pipelines.launcher '{prefix}'"
    return Check("monailabel command", "fault" if not path.exists() else "warning", found, mend)


def check_offline() -> Check:
    """Nothing will be downloaded at start: dcmqi's tool is there, and SAM2, which fetches weights, is not."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    tool = shutil.which("itkimage2segimage", path=path)
    if not tool:
        mend = f"pip install dcmqi in the environment: {REINSTALL}"
        found = "itkimage2segimage not found: MONAI Label would download it"
        return Check("works offline", "fault", found, mend)
    try:
        version = metadata.version("sam2")
    except metadata.PackageNotFoundError:
        return Check("works offline", "ok", f"dcmqi at {tool}; nothing else is fetched at start")
    return Check("works offline", "warning", f"sam2 {version}, which this app does not use", "pip uninstall sam2")


def check_port(host: str, port: int) -> Check:
    """The server can listen on the port."""
    fault = port_fault(host, port)
    if not fault:
        return Check(f"port {port}", "ok", f"free on {host}")
    mend = (
        "stop the program that uses it (this app's server, if it runs already), or choose another: make serve PORT=8001"
    )
    return Check(f"port {port}", "fault", f"{host}: {fault}", mend)


def check_folders(root: Path) -> Iterator[Check]:
    """The folders MONAI Label writes to can be written, and the disk has room."""
    for folder in (root, root / "model", root / "logs", root / "bin", Path(tempfile.gettempdir())):
        # model, logs and bin are made at the first start, inside the app's folder.
        target = folder if folder.exists() else folder.parent
        name = f"folder {folder.name or folder}" if folder != root else "app folder"
        try:
            with tempfile.TemporaryFile(dir=target):
                pass
        except OSError as error:
            mend = f"make it writable for this user: chown -R $(id -un) '{target}' && chmod -R u+w '{target}'"
            yield Check(name, "fault", f"{target} cannot be written: {error.strerror}", mend)
    free_gb = shutil.disk_usage(root).free / 1e9
    if free_gb < NEEDED_DISK_GB:
        yield Check("disk", "warning", f"{free_gb:.1f} GB free", f"free at least {NEEDED_DISK_GB:.0f} GB")
    else:
        yield Check("folders", "ok", f"writable; {free_gb:.0f} GB free")
