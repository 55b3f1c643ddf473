"""Start the stock MONAI Label server with this app, with safe settings, and say where it answers.

The server is the ordinary ``python -m monailabel.main start_server`` in a process of its own; this module
only chooses its arguments and environment, waits for its first answer and prints what to do next.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from monailabel_app.errors import InvalidSettings

SAMPLE_STUDIES = Path("tests") / "data" / "studies"

# What MONAI Label should do unless the environment says otherwise: by itself it shows CT only from DICOMweb,
# queues a scoring process at start and at every sample, and it tracks with mlflow, which is not installed.
SAFE_SETTINGS = {
    "MONAI_LABEL_DICOMWEB_SEARCH_FILTER": '{"Modality": "MR"}',
    "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
    "MONAI_LABEL_TRACKING_ENABLED": "false",
    "MONAI_LABEL_DATASTORE_FILE_EXT": '["*.nii.gz", "*.nii", "*.nrrd"]',
}


def is_url(studies: str) -> bool:
    """Whether the studies are a DICOMweb address and not a folder."""
    return studies.startswith(("http://", "https://"))


def environment(base: Mapping[str, str]) -> dict[str, str]:
    """``base`` with the safe settings where it has none, and the environment's programs first on PATH.

    MONAI Label looks for dcmqi's ``itkimage2segimage`` on PATH at start and else downloads it.
    """
    programs = str(Path(sys.executable).parent)
    return {**SAFE_SETTINGS, **base, "PATH": f"{programs}{os.pathsep}{base.get('PATH', os.defpath)}"}


def command(root: Path, studies: str, *, host: str, port: int, models: str, extra: Sequence[str] = ()) -> list[str]:
    """The argument list of the stock server."""
    return [
        *(sys.executable, "-m", "monailabel.main", "start_server", "--app", str(root), "--studies", studies),
        *("--host", host, "--port", str(port), "--conf", "models", models, *extra),
    ]


def check(studies: str, host: str, port: int) -> None:
    """Raise InvalidSettings for what would fail only after the server has loaded for ten seconds."""
    if find_spec("monailabel") is None:
        raise InvalidSettings(f"expected MONAI Label in {sys.executable}, found none: run `make setup`")
    if not is_url(studies) and not Path(studies).is_dir():
        raise InvalidSettings(
            f"expected a folder of scans or a DICOMweb address as studies, got {studies!r}, "
            "which is no folder: make it or name another"
        )
    fault = port_fault(host, port)
    if fault:
        raise InvalidSettings(f"cannot listen on {host}:{port} ({fault}): choose another --port (make: PORT=)")


def port_fault(host: str, port: int) -> str | None:
    """Why the server could not listen there, or None."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            return getattr(error, "strerror", None) or str(error)
    return None


def address(host: str, port: int) -> str:
    """The URL a viewer on this machine uses for a server listening on ``host``."""
    local = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{local}:{port}"


def ask(url: str, timeout: float = 5.0) -> Any:
    """The JSON at a local URL, or None while nothing answers there. No proxy is used."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout) as reply:
            return json.load(reply)
    except (OSError, ValueError):
        return None


def next_steps(url: str, studies: str, info: Mapping[str, Any], image: str | None) -> str:
    """What to do with a server that answers, as text for a terminal."""
    names = list(info.get("models", {}))  # the server offers the default first
    model, image = (names[0] if names else "MODEL"), image or "IMAGE"
    if is_url(studies):
        ohif = f"open {url}/ohif/ , choose a study, MONAI Label, connect, Run"
    else:
        ohif = "needs a DICOMweb server as studies: make serve STUDIES=http://localhost:8042/dicom-web"
    return "\n".join(
        [
            f"MONAI Label answers at {url}/   (models: {', '.join(names) or 'none'}; stop with Ctrl-C)",
            "",
            f"  3D Slicer  install the extension MONAILabel; in its module enter {url} and press the reload",
            "             button, Next Sample (or load a scan of your own), Auto Segmentation: Run",
            f"  OHIF       {ohif}",
            f"  curl       curl -X POST '{url}/infer/{model}?image={image}&output=image' -o anomaly.nii.gz",
            f"             curl -X POST '{url}/infer/{model}?image={image}&output=json'",
            f'  Python     from monailabel.client import MONAILabelClient; MONAILabelClient("{url}").info()',
            "",
            "Research use only; not a medical device.",
        ]
    )


def _some_image(url: str) -> str | None:
    objects = (ask(f"{url}/datastore/?output=all") or {}).get("objects", {})
    return next(iter(sorted(objects)), None)


def run(
    root: Path,
    studies: str | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    models: str = "all",
    extra: Sequence[str] = (),
    patience_s: float = 300.0,
) -> int:
    """Run the server until it ends and return its exit code; 0 when it was interrupted or told to stop.

    Raises InvalidSettings for a studies folder, port or installation it cannot start with.
    """
    studies = studies or str(root / SAMPLE_STUDIES)
    check(studies, host, port)
    server = subprocess.Popen(
        command(root, studies, host=host, port=port, models=models, extra=extra), env=environment(os.environ)
    )
    asked_to_stop = []

    def stop(*_: object) -> None:
        asked_to_stop.append(True)
        server.terminate()

    previous = signal.signal(signal.SIGTERM, stop)
    url = address(host, port)
    try:
        give_up = time.monotonic() + patience_s
        while server.poll() is None and time.monotonic() < give_up:
            info = ask(f"{url}/info/")
            if isinstance(info, Mapping):
                text = next_steps(url, studies, info, _some_image(url))
                Console(soft_wrap=True, highlight=False).print(f"\n[bold]{escape(text)}[/bold]\n")
                break
            time.sleep(0.5)
        code = server.wait()
        return 0 if asked_to_stop else code
    except KeyboardInterrupt:
        # The terminal has sent the interrupt to the server as well; it only needs time to finish.
        server.wait(timeout=30)
        return 0
    finally:
        signal.signal(signal.SIGTERM, previous)
