"""A real archive, real servers and a real browser, started once for all tests of this folder."""

import shutil
from pathlib import Path

import pytest

from lib.catalogue import list_models
from monailabel_app.io.images import read_volume
from tests.dicom_factory import write_series
from tests.real.ohif_driver import OhifDriver, browser_missing
from tests.real.orthanc_server import OrthancServer, orthanc_binary
from tests.real.page_fixtures import folder_server, hold_file, page_browser, signed_in, tokens  # noqa: F401
from tests.real.phantom import SERIES, write_hook_series
from tests.real.report_browser import browser  # noqa: F401  a fixture for every file of this folder
from tests.server_fixture import ROOT, make_app, running_server

SCREENSHOTS = ROOT / "runs" / "screenshots"
STAND_IN = "threshold"
START_S = 600  # on a machine that is busy otherwise, the imports alone take minutes
_CONFIG = "kind: anomaly\nmethod: ddpm\nmodality: t1\n"


@pytest.fixture(scope="session")
def orthanc(tmp_path_factory):
    """A running Orthanc, empty at first."""
    if orthanc_binary() is None:
        pytest.skip("needs Orthanc (Debian packages orthanc, orthanc-dicomweb)")
    with OrthancServer(tmp_path_factory.mktemp("orthanc")) as server:
        yield server


def _environment(folder: Path) -> dict[str, str]:
    return {"MONAI_LABEL_DICOMWEB_CACHE_PATH": str(folder / "dicomweb_cache"), "HOME": str(folder)}


@pytest.fixture(scope="session")
def server(orthanc, tmp_path_factory):
    """The stock server on that archive; its one model, a stand-in, marks the brightest voxels."""
    folder = tmp_path_factory.mktemp("server")
    app = make_app(tmp_path_factory.mktemp("app"), {STAND_IN: _CONFIG})
    with running_server(
        orthanc.dicomweb_url, app=app, fake_pipeline=True, env=_environment(folder), wait_s=START_S
    ) as running:
        yield running


@pytest.fixture(scope="session")
def shipped_model() -> str:
    """The shipped model whose masks are compared with the lesion's voxels."""
    if "ddpm_t1" not in list_models(ROOT):
        pytest.skip("needs the model ddpm_t1 in model_weights/")
    return "ddpm_t1"


@pytest.fixture(scope="session")
def shipped_server(orthanc, shipped_model, tmp_path_factory):
    """The stock server on that archive with the shipped models."""
    with running_server(
        orthanc.dicomweb_url, env=_environment(tmp_path_factory.mktemp("server")), wait_s=START_S
    ) as running:
        yield running


@pytest.fixture(scope="session")
def hook_series(orthanc, healthy_scan, tmp_path_factory):
    """``hook_series(kind)`` is the head with the hook in the archive; each kind is a patient of its own."""
    head = read_volume(healthy_scan)
    stored = {}

    def get(kind: str):
        if kind not in stored:
            folder = tmp_path_factory.mktemp("series")
            stored[kind] = write_hook_series(folder, head, kind, seed=100 + list(SERIES).index(kind))
            orthanc.upload(stored[kind].files)
            shutil.rmtree(folder)
        return stored[kind]

    return get


@pytest.fixture(scope="session")
def lesion_series(orthanc, lesion_scan, tmp_path_factory):
    """``lesion_series(plane)`` is the head with the implanted lesion in the archive."""
    stored = {}

    def get(plane: str):
        if plane not in stored:
            folder = tmp_path_factory.mktemp("series")
            seed = 200 + len(stored)
            stored[plane] = write_series(folder, read_volume(lesion_scan), plane=plane, seed=seed)
            orthanc.upload(stored[plane].files)
        return stored[plane]

    return get


@pytest.fixture(scope="session")
def ohif():
    """Chromium, closed at the end."""
    reason = browser_missing()
    if reason:
        pytest.skip(reason)
    with OhifDriver() as driver:
        yield driver


@pytest.fixture(scope="session")
def screenshots() -> Path:
    """Where the pictures of this run go."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    return SCREENSHOTS
