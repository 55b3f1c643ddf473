"""The worklist over HTTP: what it says of each study, in which order, without opening a scan."""

import json
from datetime import datetime, timedelta, timezone

import pytest
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC

from lib.endpoints import models, results, reviews, studies
from lib.same_scan import REPLACED_KEY
from lib.scoring.records import record_result
from lib.strategies import MostAnomalous
from monailabel_app.errors import InvalidVolume
from monailabel_app.weights.measured_file import write_measured
from monailabel_app.weights.model_folder import result_hash
from tests.lib.results_app import client_of, small_app

RESULT = {"anomaly_score": 2.0, "p_value": 0.5, "threshold": 1.9, "lesion_count": 3, "anomaly_volume_ml": 4.0}


@pytest.fixture
def app(tmp_path):
    return small_app(tmp_path, scans=("a", "b_FLAIR", "c", "d"))


@pytest.fixture
def client(app, monkeypatch):
    return client_of(app, monkeypatch)


def record(app, image, model="ddpm_t1", result=None, **changes):
    found = result if result is not None else {**RESULT, **changes}
    path = app.store.get_image_uri(image)
    return record_result(app.store, image, app.models[model], {}, found, 1.0, path)


def listed(client, **query):
    reply = client.get("/anomaly/studies", params=query)
    assert reply.status_code == 200, reply.text
    return reply.json()


def ids(client, **query):
    return [study["image"] for study in listed(client, **query)["studies"]]


def test_a_new_study_has_a_sequence_and_no_figures(client):
    answer = listed(client, order="name")
    assert [study["image"] for study in answer["studies"]] == ["a", "b_FLAIR", "c", "d"]
    first, second = answer["studies"][:2]
    assert (first["state"], first["model"], first["score"], first["review"], first["lease"]) == ("new", *(None,) * 4)
    assert (first["sequence"], second["sequence"]) == (None, "flair")
    assert first["dicom"] is None
    assert answer["total"] == 4
    assert answer["counts"] == {"new": 4, "queued": 0, "running": 0, "analysed": 0, "failed": 0, "reviewed": 0}
    assert answer["default_models"] == {"t1": "ddpm_t1", "flair": "ddpm_flair"}


def test_states_follow_records_jobs_and_final_labels(app, client):
    record(app, "a")
    record(app, "b_FLAIR", result=InvalidVolume("expected a scan with contrast"))
    app.working["c"] = "queued"
    by_image = {study["image"]: study for study in listed(client)["studies"]}
    assert {image: study["state"] for image, study in by_image.items()} == {
        "a": "analysed", "b_FLAIR": "failed", "c": "queued", "d": "new",
    }  # fmt: skip
    assert by_image["b_FLAIR"]["error"] == "expected a scan with contrast"
    assert by_image["a"]["lesions"] == 3
    app.working.clear()
    app.store.save_label("a", app.store.get_image_uri("a"), "final", {})
    assert listed(client, state="reviewed")["studies"][0]["image"] == "a"
    assert listed(client, state="reviewed")["counts"]["new"] == 2


def test_the_newest_record_tells_the_state(app, client):
    record(app, "a", result=InvalidVolume("broken"))
    later = (datetime.now(timezone.utc) + timedelta(hours=1)).isoformat(timespec="seconds")
    held = app.store.get_image_info("a")["anomaly"]["ddpm_t1"]
    app.store.add_to_image_info("a", "anomaly", {"ddpm_flair": {**held, "error": None, "score": 7.0, "time": later}})
    (study,) = (study for study in listed(client)["studies"] if study["image"] == "a")
    assert (study["state"], study["model"], study["score"]) == ("analysed", "ddpm_flair", 7.0)
    assert set(study["results"]) == {"ddpm_t1", "ddpm_flair"}


ODD = (
    {"review": {"draft": {"lesions": 5}}},
    {"review": {"final": {"lesions": [5]}}},
    {"review": {"final": {"lesions": [{"peak_voxel": [1, 2]}]}}},
    {"review": {"final": {"lesions": [{"decision": {}}]}}},
    {"review": {"draft": {"settings": "x", "lesions": []}}},
    {"anomaly": 5},
    {"anomaly": {"ddpm_t1": {"score": "high"}}},
    {"anomaly": {"ddpm_t1": {"score": 1.0, "p_value": {}}}},
    {"anomaly": {"ddpm_t1": {"score": 1.0, "settings": "x", "time": 5}}},
)


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_what_a_client_put_with_one_scan_does_not_spoil_the_lists(app, client, odd):
    record(app, "b_FLAIR", "ddpm_flair")
    app.store.update_image_info("a", odd)
    for order in ("most_anomalous", "borderline"):
        assert set(ids(client, order=order)) == {"a", "b_FLAIR", "c", "d"}
    assert MostAnomalous()({"client_id": "anna"}, app.store)["id"] == "b_FLAIR"
    assert client.get("/anomaly/reviews/").json()["rows"] == []
    assert client.get("/anomaly/results/a").status_code == 404


def test_the_most_anomalous_come_first_across_models(app, client):
    record(app, "a", p_value=0.05, anomaly_score=3.0)
    record(app, "b_FLAIR", "ddpm_flair", p_value=0.2, anomaly_score=30.0)
    record(app, "c", p_value=0.05, anomaly_score=5.0)
    assert ids(client, order="most_anomalous") == ["c", "a", "b_FLAIR", "d"]
    assert ids(client) == ["c", "a", "b_FLAIR", "d"]


def test_borderline_is_nearest_to_the_healthy_limit(app, client):
    """Of 21 healthy scores 1 to 3, 95 % are below 2.9 and the median is 2; of the other model ten times as much."""
    healthy = [1 + n / 10 for n in range(21)]
    for model, scale in (("ddpm_t1", 1), ("ddpm_flair", 10)):
        entry = {"points": {}, "scan_scores": {"standard": [scale * value for value in healthy]}}
        file = app.models[model].entry.folder / "calibration.json"
        file.write_text(json.dumps({"scores": {"signed": entry}}))
    record(app, "a", anomaly_score=4.0)
    record(app, "b_FLAIR", "ddpm_flair", anomaly_score=32.0)
    record(app, "c", anomaly_score=2.0)
    record(app, "d", result=InvalidVolume("broken"))
    assert ids(client, order="borderline") == ["b_FLAIR", "c", "a", "d"]


def test_whether_a_model_beats_the_baselines_is_said_or_not_known(app, client):
    folder = app.models["ddpm_t1"].entry.folder
    (folder / "card.md").write_text("# Card\n")

    def said(*answers):
        sequences = [{"modality": "t1", "answer": answer} for answer in answers]
        write_measured(folder, {"result_hash": result_hash(folder), "sequences": sequences})
        return client.get("/anomaly/models").json()[0]["beats_baselines"]

    assert client.get("/anomaly/models").json()[0]["beats_baselines"] is None
    assert [said("yes"), said("yes", "no"), said("undecided"), said()] == [True, False, False, None]
    (folder / "measured.json").write_text("[1]")
    assert client.get("/anomaly/models").json()[0]["beats_baselines"] is None


def test_newest_is_what_was_added_last(app, client):
    for image, added in (("a", 3), ("b_FLAIR", 1), ("c", 9), ("d", 2)):
        app.store.update_image_info(image, {"ts": added})
    assert ids(client, order="newest") == ["c", "a", "d", "b_FLAIR"]


def test_a_random_order_stays_from_page_to_page(client):
    whole = ids(client, order="random", seed="7")
    assert [*ids(client, order="random", seed="7", limit=2), *ids(client, order="random", seed="7", offset=2)] == whole
    assert sorted(whole) == ["a", "b_FLAIR", "c", "d"]
    assert len({tuple(ids(client, order="random", seed=str(seed))) for seed in range(8)}) > 1


def test_pages_searches_and_states_narrow_the_list(app, client):
    record(app, "a")
    assert ids(client, order="name", offset=1, limit=2) == ["b_FLAIR", "c"]
    assert listed(client, order="name", offset=1, limit=2)["total"] == 4
    found = listed(client, search="flai")
    assert ([study["image"] for study in found["studies"]], found["counts"]["analysed"]) == (["b_FLAIR"], 0)
    assert ids(client, state="analysed") == ["a"]
    assert ids(client, state="failed") == []


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"order": "best"}, "most_anomalous"),
        ({"state": "old"}, "reviewed"),
        ({"limit": "0"}, "from 1 to"),
        ({"limit": "many"}, "whole number"),
        ({"offset": "-1"}, "whole number"),
        ({"sort": "name"}, "order"),
    ],
)
def test_what_cannot_be_asked_is_said_in_words(client, query, said):
    reply = client.get("/anomaly/studies", params=query)
    assert reply.status_code == 400
    assert said in reply.json()["detail"]


def test_one_study_is_as_in_the_list(app, client):
    record(app, "c")
    (study,) = (study for study in listed(client)["studies"] if study["image"] == "c")
    assert client.get("/anomaly/studies/c").json() == study
    assert client.get("/anomaly/studies/nobody").status_code == 404


@pytest.mark.parametrize("part", ["..%2f..%2fetc", ".hidden", "a%00", "~root", "%2e%2e"])
@pytest.mark.parametrize("where", ["studies", "results", "reviews"])
def test_ids_that_could_lead_out_of_the_folder_are_refused(client, where, part):
    assert client.get(f"/anomaly/{where}/{part}").status_code in {400, 404}


def test_no_scan_is_opened_or_copied_to_list_thousands(tmp_path, monkeypatch):
    app = small_app(tmp_path, scans=("a",))
    table = json.loads((tmp_path / "studies" / "datastore_v2.json").read_text())
    entry = table["objects"]["a"]
    for number in range(3000):
        table["objects"][f"s{number}"] = entry
    (tmp_path / "studies" / "datastore_v2.json").write_text(json.dumps(table))
    client = client_of(app, monkeypatch)
    monkeypatch.setattr("nibabel.load", None)
    monkeypatch.setattr(app.store, "get_image_info", None)
    monkeypatch.setattr(app.store, "get_image_uri", None)
    answer = listed(client, limit=50)
    assert (answer["total"], len(answer["studies"])) == (3001, 50)


def test_answers_are_not_kept_by_browsers(client):
    assert client.get("/anomaly/studies").headers["cache-control"] == "no-store"
    assert client.get("/anomaly/models").headers["cache-control"] == "no-store"


def test_models_say_what_there_is_to_choose(app, client):
    (app.models["ddpm_t1"].entry.folder / "card.md").write_text("# Card\n")
    app.models["ddpm_t1_bands"] = app.models["ddpm_t1"]
    models = client.get("/anomaly/models").json()
    assert [model["name"] for model in models] == ["ddpm_t1", "ddpm_flair"]
    first, second = models
    assert (first["default"], first["default_for"], first["modality"]) == (True, ["t1"], "t1")
    assert first["scores"] == ["signed", "l1"]
    assert first["options"]["operating_point"][0] == "balanced"
    assert second["card"] is None
    card = client.get(first["card"])
    assert card.text == "# Card\n"
    assert card.headers["content-type"].startswith("text/markdown")
    assert client.get("/anomaly/models/ddpm_flair/card").status_code == 404
    assert "ddpm_flair" in client.get("/anomaly/models/tree/card").json()["detail"]


def test_the_points_of_a_shipped_calibration_are_listed(tmp_path, monkeypatch):
    app = small_app(tmp_path)
    point = {"threshold": 1.5, "target_fpr": 0.01, "measured_fpr": 0.011}
    calibration = {"scores": {"signed": {"points": {"standard": {"balanced": point}}}}}
    (app.models["ddpm_t1"].entry.folder / "calibration.json").write_text(json.dumps(calibration))
    points = client_of(app, monkeypatch).get("/anomaly/models").json()[0]["points"]
    assert points == {"signed": {"standard": {"balanced": {**point, "bound_ml": None}}}}


def test_a_scan_that_was_replaced_by_hand_says_so(app, client):
    assert client.get("/anomaly/studies/a").json()["replaced_by_hand"] is None
    said = {"time": 1760000000, "kept_in": "replaced/a_12345678"}
    app.datastore().update_image_info("a", {REPLACED_KEY: said})
    assert client.get("/anomaly/studies/a").json()["replaced_by_hand"] == said
    assert [one["replaced_by_hand"] for one in listed(client, order="name")["studies"]] == [said, None, None, None]


def lease(client, image="a", **body):
    return client.post(f"/anomaly/studies/{image}/lease", json=body)


def test_a_study_is_lent_to_one_reader_at_a_time(app, client):
    taken = lease(client, reader="anna").json()
    assert taken["reader"] == "anna"
    assert client.get("/anomaly/studies/a").json()["lease"] == taken
    assert lease(client, reader="anna").status_code == 200
    refused = lease(client, reader="bert")
    assert (refused.status_code, "anna works on this study" in refused.json()["detail"]) == (409, True)
    assert client.delete("/anomaly/studies/a/lease", params={"reader": "bert"}).status_code == 409
    assert client.delete("/anomaly/studies/a/lease", params={"reader": "anna"}).json() == {"freed": True}
    assert client.delete("/anomaly/studies/a/lease", params={"reader": "anna"}).json() == {"freed": False}
    assert lease(client, reader="bert").status_code == 200
    assert client.get("/anomaly/studies/b_FLAIR").json()["lease"] is None


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"reader": ""},
        {"reader": [1, 2]},
        {"reader": "a\nb"},
        {"reader": "anna", "minutes": True},
        {"reader": "anna", "minutes": 1e9},
        {"reader": "anna", "surprise": 1},
    ],
)
def test_a_lease_that_is_none_is_refused_in_words(client, body):
    reply = lease(client, **body)
    assert (reply.status_code, "expected" in reply.json()["detail"]) == (400, True)
    assert lease(client, image="nobody", reader="anna").status_code == 404


def test_reading_and_writing_need_the_roles_of_scans_and_labels():
    """Every address asks MONAI Label's own access control."""
    reading, writing = settings.MONAI_LABEL_AUTH_ROLE_USER, settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR
    for module in (models, results, reviews, studies):
        for route in module.router.routes:
            calls = [dependency.call for dependency in route.dependant.dependencies]
            wanted = reading if route.methods == {"GET"} else writing
            assert [call.roles for call in calls if isinstance(call, RBAC)] == [wanted], route.path
