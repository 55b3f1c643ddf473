"""Start the stock MONAI Label server with this app, with safe settings, and say where it answers.

The server is the ordinary ``python -m monailabel.main start_server`` in a process of its own; this module
only chooses its arguments and environment, waits for its first answer and prints what to do next.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import ssl
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

from monailabel_app.access.tokens import TokenStore, default_file
from monailabel_app.errors import InvalidSettings, UnknownModel

from .conf_keys import check_keys
from .reach import asks_everybody, check_reach, check_tls, conf_of

# The token of the server's requests to itself, which its first answer is waited for with.
OWN_TOKEN = "ANOMALY_INTERNAL_TOKEN"
_ORIGINS = "MONAI_LABEL_CORS_ORIGINS"
_NAMED = 6  # models that are named at the start; /info/ has them all
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


def named_origins(environment: Mapping[str, str]) -> list[str]:
    """``--conf cors_origins`` for what MONAI_LABEL_CORS_ORIGINS says: the stock command ends with an error by it.

    Raises InvalidSettings where it is no list in JSON, as MONAI Label wants it.
    """
    text = environment.get(_ORIGINS, "").strip()
    try:
        origins = json.loads(text or "[]")
    except ValueError:
        origins = None
    if not isinstance(origins, list) or not all(isinstance(origin, str) for origin in origins):
        raise InvalidSettings(f'expected {_ORIGINS} as ["http://host:3000"], got {text[:80]!r}')
    return ["--conf", "cors_origins", ",".join(origins)] if origins else []


def environment(base: Mapping[str, str]) -> dict[str, str]:
    """``base`` with the safe settings where it has none, and the environment's programs first on PATH.

    Origins are left out, they are told in another way. MONAI Label looks for dcmqi's ``itkimage2segimage`` on PATH at
    start and else downloads it. A token for the server's requests to itself is drawn anew at every start.
    """
    programs = str(Path(sys.executable).parent)
    path = f"{programs}{os.pathsep}{base.get('PATH', os.defpath)}"
    base = {name: value for name, value in base.items() if name != _ORIGINS}
    return {**SAFE_SETTINGS, **base, "PATH": path, OWN_TOKEN: secrets.token_urlsafe(32)}


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


def check_models(root: Path, wanted: str) -> None:
    """Raise UnknownModel for a name in ``models`` that the server would end with a traceback for, ten seconds later."""
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    if not names or "all" in names:
        return
    from .find_model import no_such_model  # PyTorch comes with it, which `doctor` wants to try by itself.

    unknown = next(((name, fault) for name in names if (fault := no_such_model(name, root))), None)
    if unknown:
        raise UnknownModel(f"--models: {unknown[1]}; or all")


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


def address(host: str, port: int, scheme: str = "http") -> str:
    """The URL a viewer on this machine uses for a server listening on ``host``."""
    local = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"{scheme}://{local}:{port}"


def ask(url: str, timeout: float = 5.0, token: str = "") -> Any:
    """The JSON at a local URL, or None while nothing answers there. No proxy is used, and its certificate is believed.

    token: sent along; to an address of this machine only, so that nobody else gets it.
    """
    believing = ssl.create_default_context()
    believing.check_hostname = False
    believing.verify_mode = ssl.CERT_NONE
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=believing)
    )
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with opener.open(urllib.request.Request(url, headers=headers), timeout=timeout) as reply:
            return json.load(reply)
    except (OSError, ValueError):
        return None


def who_is_asked(root: Path, host: str, extra: Sequence[str] = ()) -> str:
    """Who may use a server that is about to start, as a sentence.

    Raises InvalidSettings where others reach it and there is no token, TokensUnreadable.
    """
    conf = conf_of(extra)
    warning = check_reach(root, host, conf, os.environ)
    if warning:
        return warning
    if asks_everybody(root, conf, os.environ):
        valid = sum(not token.expired() for token in TokenStore(default_file(root, conf)).tokens())
        return f"Everybody is asked for a token ({valid} valid: `main.py tokens list`) or an account."
    return "Only this machine is answered, without asking: there are no tokens (`main.py tokens create`)."


def next_steps(url: str, studies: str, info: Mapping[str, Any], image: str | None, *, token: bool = False) -> str:
    """What to do with a server that answers, as text for a terminal. token: whether everybody is asked for one."""
    names = list(info.get("models", {}))  # the server offers the default first
    model, image = (names[0] if names else "MODEL"), image or "IMAGE"
    if is_url(studies):
        ohif = f"open {url}/ohif/ , choose a study, MONAI Label, connect, Run"
    else:
        ohif = "needs a DICOMweb server as studies: make serve STUDIES=http://localhost:8042/dicom-web"
    curl = "curl" + (" --cacert CERTIFICATE" if url.startswith("https") else "")
    curl += ' -H "Authorization: Bearer $TOKEN"' if token else ""
    python = f'from monailabel.client import MONAILabelClient; MONAILabelClient("{url}").info()'
    if token:
        python = f'from monailabel_app.client import AnomalyClient; AnomalyClient("{url}", token="...").info()'
    served = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    signing_in = [
        f"  Sign in    {url}/anomaly/login with a token: python main.py tokens create --name NAME --role reader",
    ]
    return "\n".join(
        [
            f"MONAI Label answers at {url}/   (models: {served or 'none'}; stop with Ctrl-C)",
            "",
            *(signing_in if token else []),
            f"  Browser    {url}/anomaly/  (worklist, upload, viewer, reports)",
            f"  3D Slicer  install the extension MONAILabel; in its module enter {url} and press the reload",
            "             button, Next Sample (or load a scan of your own), Auto Segmentation: Run",
            f"  OHIF       {ohif}",
            f"  curl       {curl} -X POST '{url}/infer/{model}?image={image}&output=image' -o anomaly.nii.gz",
            f"             {curl} -X POST '{url}/infer/{model}?image={image}&output=json'",
            f"  Python     {python}",
            "",
            "Research use only; not a medical device.",
        ]
    )


def _print(text: str) -> None:
    Console(soft_wrap=True, highlight=False).print(f"\n[bold]{escape(text)}[/bold]\n")


def _some_image(url: str, token: str = "") -> str | None:
    objects = (ask(f"{url}/datastore/?output=all", token=token) or {}).get("objects", {})
    return next(iter(sorted(objects)), None)


def run(
    root: Path,
    studies: str | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    models: str = "all",
    extra: Sequence[str] = (),
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    ask_nobody: bool = False,
    patience_s: float = 300.0,
) -> int:
    """Run the server until it ends and return its exit code; 0 when it was interrupted or told to stop.

    ask_nobody: nobody needs a token, as ``--conf auth open``. Raises InvalidSettings for a studies folder, port,
    certificate or installation it cannot start with, and for a server that others reach while there is no token.
    """
    studies = studies or str(root / SAMPLE_STUDIES)
    extra = [*extra, *check_tls(tls_cert, tls_key), *(["--conf", "auth", "open"] if ask_nobody else [])]
    conf = conf_of(extra)
    check_keys(conf)
    extra += [] if "cors_origins" in conf else named_origins(os.environ)
    asked = who_is_asked(root, host, extra)
    check(studies, host, port)
    check_models(root, models)
    if asked.startswith("WARNING"):
        _print(asked)
    variables = environment(os.environ)
    token = variables[OWN_TOKEN]
    server = subprocess.Popen(command(root, studies, host=host, port=port, models=models, extra=extra), env=variables)
    asked_to_stop = []

    def stop(*_: object) -> None:
        asked_to_stop.append(True)
        server.terminate()

    previous = signal.signal(signal.SIGTERM, stop)
    url = address(host, port, "https" if any(word.startswith("--ssl_certfile") for word in extra) else "http")
    try:
        give_up = time.monotonic() + patience_s
        while server.poll() is None and time.monotonic() < give_up:
            info = ask(f"{url}/info/", token=token)
            if isinstance(info, Mapping):
                everybody = asks_everybody(root, conf, os.environ)
                text = next_steps(url, studies, info, _some_image(url, token), token=everybody)
                _print(f"{text}\n\n{asked}")
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
