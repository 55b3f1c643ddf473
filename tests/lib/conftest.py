"""One real server for the tests of the adapters, with a stand-in for the analysis itself."""

import pytest

from tests.server_fixture import copy_studies, make_app, running_server

MODEL = "kind: anomaly\nmethod: ddpm\nmodality: t1\nscores: [l1, ssim_ensemble]\n"


@pytest.fixture(scope="session")
def hold_file(tmp_path_factory):
    """As long as this file exists, an analysis in ``server`` does not end."""
    return tmp_path_factory.mktemp("hold") / "hold"


@pytest.fixture(scope="session")
def server(tmp_path_factory, studies_dir, hold_file):
    """A server with the models ``one`` and ``two`` and the sample studies, from a path with a space."""
    folder = tmp_path_factory.mktemp("with a space")
    (folder / "app").mkdir()
    app = make_app(folder / "app", {"one": MODEL, "two": MODEL})
    studies = copy_studies(studies_dir, folder / "the studies")
    env = {"FAKE_HOLD": str(hold_file), "MONAI_LABEL_SESSION_PATH": str(folder / "sessions")}
    with running_server(studies, app=app, env=env, fake_pipeline=True, cwd=folder) as running:
        yield running


@pytest.fixture
def client(server, tmp_path):
    """The client that 3D Slicer's extension is built on."""
    from monailabel.client import MONAILabelClient

    return MONAILabelClient(server.url, str(tmp_path))
