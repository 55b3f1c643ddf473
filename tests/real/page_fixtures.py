"""What the tests of the page share: a browser, and a server with a stand-in for the analysis that asks for tokens."""

import pytest

from monailabel_app.access.tokens import TokenStore
from tests.lib.conftest import MODEL
from tests.real.page_driver import Reader, chromium, page_browser_missing
from tests.server_fixture import copy_studies, make_app, running_server

TOKEN_NAME = "ward-3"
CARD = "# cold_diffusion_t1\n\n## Method\n\nA stand-in that marks the brightest voxels.\n"
_START_S = 600


@pytest.fixture(scope="module")
def page_browser():
    """Chromium for the page, one for the tests of a file."""
    reason = page_browser_missing()
    if reason:
        pytest.skip(reason)
    with chromium() as running:
        yield running


@pytest.fixture(scope="session")
def tokens(tmp_path_factory):
    """The store, and the token of a reader."""
    store = TokenStore(tmp_path_factory.mktemp("tokens") / "tokens.json")
    store.create("other", "admin")
    return store, store.create(TOKEN_NAME, "reader")[0]


@pytest.fixture(scope="session")
def hold_file(tmp_path_factory):
    """As long as this file exists, an analysis in ``folder_server`` does not end."""
    return tmp_path_factory.mktemp("hold") / "hold"


@pytest.fixture(scope="session")
def folder_server(tokens, hold_file, studies_dir, tmp_path_factory):
    """A folder of scans; the stand-in marks the brightest voxels."""
    folder = tmp_path_factory.mktemp("folder")
    (folder / "app").mkdir()
    app = make_app(folder / "app", {"cold_diffusion_t1": MODEL})
    (app / "model_weights" / "cold_diffusion_t1" / "card.md").write_text(CARD)
    studies = copy_studies(studies_dir, folder / "studies")
    conf = {"models": "all", "tokens": str(tokens[0].path)}
    env = {"FAKE_HOLD": str(hold_file)}
    with running_server(studies, app=app, conf=conf, env=env, fake_pipeline=True, wait_s=_START_S) as running:
        yield running


@pytest.fixture
def signed_in(page_browser, folder_server, tokens):
    """A window with a session, in which nothing was clicked yet."""
    reader = Reader(page_browser, folder_server.url)
    login = {"username": TOKEN_NAME, "password": tokens[1]}
    accept = {"Accept": "application/json"}
    assert reader.context.request.post(f"{folder_server.url}/anomaly/login", form=login, headers=accept).ok
    yield reader
    reader.close()
