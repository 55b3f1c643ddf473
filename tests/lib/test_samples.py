"""The next study over HTTP, as Slicer and OHIF ask for it."""

import pytest
import requests

from tests.lib.conftest import MODEL
from tests.server_fixture import copy_studies, make_app, running_server


@pytest.fixture(scope="module")
def server(tmp_path_factory, studies_dir):
    folder = tmp_path_factory.mktemp("samples")
    (folder / "app").mkdir()
    app = make_app(folder / "app", {"one": MODEL})
    with running_server(copy_studies(studies_dir, folder / "studies"), app=app, fake_pipeline=True) as running:
        yield running


def ask(server, strategy, **params):
    answer = requests.post(f"{server.url}/activelearning/{strategy}", json=params, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_studies_are_analysed_chosen_and_lent_to_one_reader_each(server):
    first = ask(server, "most_anomalous", client_id="Ada")
    assert "no unreviewed scan has a score" in first["reason"]
    assert first["lease"]["reader"] == "Ada"
    assert first["path"].endswith(".nii.gz")
    second = ask(server, "most_anomalous", client_id="Ben")
    assert {first["id"], second["id"]} == {"ixi_healthy", "ixi_lesion"}
    assert ask(server, "first", client_id="Cid") == {}
    assert ask(server, "borderline", client_id="Ada")["id"] == first["id"]


def test_a_batch_leaves_its_scores_and_its_progress(server):
    answer = requests.post(f"{server.url}/batch/infer/one?run_sync=true", json={}, timeout=60)
    assert answer.status_code == 200, answer.text
    again = ask(server, "most_anomalous", client_id="Ada")
    assert "score" in again["reason"]
    assert again["score"] is not None
