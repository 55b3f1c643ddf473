"""Reviews over HTTP: drafts that outlive the server, final labels of what was accepted, and the feedback of all."""

import csv
import io
import json
import multiprocessing
import os
import signal
from datetime import datetime, timedelta, timezone

import nibabel as nib
import numpy as np
import pytest

from lib.datastore import AnomalyLocalDatastore
from lib.errors import StudyTaken
from lib.review import review_of
from monailabel_app.access.tokens import TokenStore
from tests.lib.results_app import BLOBS, SHAPE, anomaly_map, client_of, small_app, write_scan

FIRST, SECOND, THIRD, FOURTH = (list(centre) for centre, _ in BLOBS)
APART = {"threshold": 4.5, "min_lesion_volume": "0 ml"}  # every blob a lesion of its own
TOGETHER = {"threshold": 3.5}  # the third and fourth are one


@pytest.fixture
def app(tmp_path):
    app = small_app(tmp_path)
    app.done = {"a", "b"}
    return app


@pytest.fixture
def client(app, monkeypatch):
    return client_of(app, monkeypatch)


def decided(*accepted, rejected=(), **more):
    rows = [{"peak_voxel": peak, "decision": "accept"} for peak in accepted]
    rows += [{"peak_voxel": peak, "decision": "reject"} for peak in rejected]
    return {"model": "ddpm_t1", "params": APART, "reader": "anna", "final": True, "lesions": rows, **more}


def put(client, body, image="a", status=200):
    reply = client.put(f"/anomaly/reviews/{image}", json=body)
    assert reply.status_code == status, reply.text
    return reply.json() if status == 200 else reply.json()["detail"]


def final_label(app, image="a"):
    return nib.load(app.store.get_label_uri(image, "final")).get_fdata() > 0


def near(*centres, threshold=4.5):
    """The part of the map above the threshold that these centres' blobs make."""
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    highest = np.argmax([height - np.linalg.norm(grid - np.array(centre), axis=-1) for centre, height in BLOBS], axis=0)
    mine = np.isin(highest, [i for i, (centre, _) in enumerate(BLOBS) if list(centre) in list(centres)])
    brain = np.zeros(SHAPE, bool)
    brain[2:-2, 2:-2, 2:-2] = True
    return brain & mine & (anomaly_map() > threshold)


def test_a_draft_is_there_again_after_a_restart(app, client, monkeypatch, tmp_path):
    body = decided(FIRST, rejected=[SECOND], final=False, comment="look again")
    body["lesions"][0]["comment"] = "sicher"
    kept = put(client, body)
    assert (kept["final"], kept["signed"]) == (False, None)
    app.store = AnomalyLocalDatastore(str(tmp_path / "studies"), extensions=["*.nii.gz", "*.nii"])
    again = client.get("/anomaly/reviews/a").json()
    assert again == kept
    assert {key: again[key] for key in body} == body | {"lesions": again["lesions"]}
    assert [(row["peak_voxel"], row["decision"], row["comment"]) for row in again["lesions"]] == [
        (FIRST, "accept", "sicher"), (SECOND, "reject", ""),
    ]  # fmt: skip
    assert client.get("/anomaly/results/a").json()["review"] == again
    (study, _) = client.get("/anomaly/studies", params={"order": "name"}).json()["studies"]
    assert (study["state"], study["review"]["accepted"], study["review"]["rejected"]) == ("new", 1, 1)
    assert app.store.get_label_uri("a", "final") == ""


def test_saving_a_draft_does_not_look_at_the_scan(app, client, monkeypatch):
    monkeypatch.setattr(app, "analysed", None)
    put(client, decided(FIRST, final=False))


def test_the_accepted_lesions_become_the_final_label(app, client):
    app.warnings = ["the model ddpm_t1 was trained on this scan as a healthy one: train it anew"]
    kept = put(client, decided(FIRST, THIRD, rejected=[SECOND, FOURTH], comment="two real ones"))
    assert np.array_equal(final_label(app), near(FIRST, THIRD))
    assert kept["warnings"] == app.warnings
    assert kept["signed"] == {"reader": "anna", "time": kept["time"], "model": "ddpm_t1", "voxels": kept["voxels"]}
    assert kept["voxels"] == near(FIRST, THIRD).sum()
    assert {tuple(row["peak_voxel"]): row["decision"] for row in kept["lesions"]} == {
        tuple(FIRST): "accept", tuple(SECOND): "reject", tuple(THIRD): "accept", tuple(FOURTH): "reject",
    }  # fmt: skip
    study = client.get("/anomaly/studies/a").json()
    assert (study["state"], study["review"]["final"]) == ("reviewed", True)
    assert app.store.get_label_info("a", "final")["reader"] == "anna"


def test_nothing_accepted_is_an_empty_final_label_of_a_healthy_scan(app, client):
    put(client, decided(rest="reject"))
    assert not final_label(app).any()
    assert app.store.final_labels("a") == {"final": 0}
    assert client.get("/anomaly/studies/a").json()["healthy"] is True


def test_what_is_left_follows_rest(app, client):
    put(client, decided(rejected=[SECOND], rest="accept"))
    assert np.array_equal(final_label(app), near(FIRST, THIRD, FOURTH))


def test_an_undecided_lesion_keeps_a_review_from_being_finished(app, client):
    said = put(client, decided(FIRST, rejected=[SECOND]), status=400)
    assert "2 of 4 lesions are undecided" in said
    assert "rest=reject" in said
    assert app.store.get_label_uri("a", "final") == ""
    assert client.get("/anomaly/reviews/a").status_code == 404
    comment_only = decided(FIRST, rejected=[SECOND, THIRD])
    comment_only["lesions"].append({"peak_voxel": FOURTH, "comment": "?"})
    assert "1 of 4" in put(client, comment_only, status=400)


def test_a_decision_holds_at_another_threshold_where_lesions_run_together(app, client):
    """The fourth blob's highest voxel then lies within the third's lesion."""
    put(client, decided(FIRST, rejected=[SECOND, FOURTH], params=TOGETHER))
    kept = client.get("/anomaly/reviews/a").json()
    assert sorted(row["decision"] for row in kept["lesions"]) == ["accept", "reject", "reject"]
    assert np.array_equal(final_label(app), near(FIRST, threshold=3.5))


def test_decisions_that_run_together_must_agree(client):
    said = put(client, decided(FIRST, THIRD, rejected=[SECOND, FOURTH], params=TOGETHER), status=400)
    assert "accepted in one part and rejected in another" in said
    put(client, decided(FIRST, THIRD, FOURTH, rejected=[SECOND], params=TOGETHER))


def test_an_accepted_lesion_that_is_not_marked_is_not_lost_silently(app, client):
    high = {"threshold": 6.5, "min_lesion_volume": "0"}
    said = put(client, decided(FIRST, SECOND, rejected=[THIRD], params=high), status=400)
    assert "[14, 5, 5]" in said
    kept = put(client, decided(FIRST, rejected=[SECOND, THIRD], params=high))
    assert [row["peak_voxel"] for row in kept["not_marked"]] == [SECOND]
    outside = decided(FIRST, rejected=[[500, 0, 0]], params=high, rest="reject")
    assert put(client, outside)["not_marked"][0]["peak_voxel"] == [500, 0, 0]


def test_a_draft_after_the_end_leaves_what_was_signed(app, client):
    signed = put(client, decided(rest="reject"))["signed"]
    draft = put(client, decided(FIRST, final=False, reader="bert"))
    assert (draft["final"], draft["reader"], draft["signed"]) == (False, "bert", signed)
    assert client.get("/anomaly/studies/a").json()["state"] == "reviewed"
    assert client.delete("/anomaly/reviews/a").json()["final"] is True
    assert client.delete("/anomaly/reviews/a").status_code == 404
    assert client.get("/anomaly/reviews/a").json()["reader"] == "anna"
    put(client, decided(FIRST, rest="reject", reader="bert"))
    assert np.array_equal(final_label(app), near(FIRST))
    assert client.get("/anomaly/reviews/a").json()["signed"]["reader"] == "bert"


def test_no_two_readers_on_one_study(app, client):
    until = (datetime.now(timezone.utc) + timedelta(minutes=5)).isoformat(timespec="seconds")
    app.store.add_to_image_info("a", "lease", {"reader": "bert", "until": until})
    for body in (decided(FIRST, final=False), decided(rest="reject")):
        assert "bert works on this study" in put(client, body, status=409)
    put(client, decided(rest="reject", reader=" bert "))
    assert client.get("/anomaly/studies/a").json()["lease"] is None  # done, so nobody works on it any more


def test_feedback_has_a_line_for_each_lesion_with_what_it_was_judged_on(app, client):
    put(client, decided(FIRST, rejected=[SECOND, THIRD, FOURTH]))
    put(client, decided(rest="reject", params={"operating_point": "specific"}), image="b")
    answer = client.get("/anomaly/reviews/", params={"format": "json"}).json()
    rows = answer["rows"]
    assert [row["image"] for row in rows] == ["a"] * 4 + ["b"]
    assert list(rows[0]) == answer["columns"]
    accepted = [row for row in rows if row["decision"] == "accept"]
    assert [(row["peak_i"], row["peak_j"], row["peak_k"]) for row in accepted] == [tuple(FIRST)]
    assert accepted[0]["peak_score"] == 9.0
    assert accepted[0]["threshold"] == 4.5
    assert accepted[0]["scan_score"] == 8.5
    assert len(accepted[0]["model_hash"]) == 64
    assert (accepted[0]["reader"], accepted[0]["final"], accepted[0]["p_value"]) == ("anna", True, None)
    assert (rows[4]["lesion"], rows[4]["final"], rows[4]["threshold"]) == (None, True, 8.0)


def test_drafts_are_feedback_unless_left_out(client):
    put(client, decided(FIRST, final=False))
    assert [row["final"] for row in client.get("/anomaly/reviews/").json()["rows"]] == [False]
    assert client.get("/anomaly/reviews/", params={"drafts": "false"}).json()["rows"] == []
    assert client.get("/anomaly/reviews/", params={"format": "xml"}).status_code == 400


def test_a_spreadsheet_runs_no_formula_of_a_comment(client):
    put(client, decided(rest="reject", comment='=HYPERLINK("http://x")', reader="+anna"))
    reply = client.get("/anomaly/reviews/", params={"format": "csv"})
    assert reply.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(reply.text)))
    assert rows[0]["review_comment"] == '\'=HYPERLINK("http://x")'
    assert rows[0]["reader"] == "'+anna"
    assert float(rows[0]["x_mm"]) < 20


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"model": "tree"}, 404, "ddpm_flair"),
        ({"model": None}, 400, "model"),
        ({"params": {"operating_point": "best"}}, 400, "balanced"),
        ({"params": {"colour": 1}}, 400, "operating_point"),
        ({"params": {"image_path": "/etc/passwd"}}, 400, "image_path"),
        ({"final": "yes"}, 400, "final"),
        ({"rest": "maybe"}, 400, "rest"),
        ({"comment": "x" * 5000}, 400, "comment"),
        ({"lesions": {}}, 400, "lesions"),
        ({"lesions": [{"peak_voxel": [1, 2], "decision": "accept"}]}, 400, "peak_voxel"),
        ({"lesions": [{"peak_voxel": [1, 2, -3], "decision": "accept"}]}, 400, "peak_voxel"),
        ({"lesions": [{"peak_voxel": [1, 2, 3.5], "decision": "accept"}]}, 400, "peak_voxel"),
        ({"lesions": [{"peak_voxel": FIRST, "decision": "perhaps"}]}, 400, "decision"),
        ({"lesions": [{"peak_voxel": FIRST}, {"peak_voxel": FIRST}]}, 400, "twice"),
        ({"surprise": 1}, 400, "surprise"),
    ],
)
def test_a_review_that_is_none_is_refused_in_words(client, change, status, said):
    assert said in put(client, decided(final=False) | change, status=status)
    assert client.get("/anomaly/reviews/a").status_code == 404


@pytest.mark.parametrize("body", ["", "[1]", "{", '{"comment": NaN}', '{"params": {"threshold": 1e999}}', "\xff"])
def test_a_body_that_is_no_json_object_is_refused(client, body):
    reply = client.put("/anomaly/reviews/a", content=body.encode("latin-1"))
    assert reply.status_code == 400
    assert "expected" in reply.json()["detail"]


def test_a_body_without_end_is_not_read_to_its_end(client):
    reply = client.put("/anomaly/reviews/a", content=b" " * (3 * 2**20))
    assert reply.status_code == 413
    assert "1 MiB" in reply.json()["detail"]


def test_what_is_not_there_cannot_be_reviewed(app, client):
    assert "no image" in put(client, decided(FIRST, final=False), image="nobody", status=404)
    app.done.clear()
    assert "/anomaly/jobs" in put(client, decided(rest="reject"), status=404)


def test_a_folder_that_cannot_be_written_is_said(app, client, monkeypatch):
    def refused(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr(app.store, "add_to_image_info", refused)
    assert "may not write" in put(client, decided(FIRST, final=False), status=403)


def test_no_id_and_no_comment_is_logged(client, caplog):
    put(client, decided(FIRST, final=False, comment="secret"))
    put(client, decided(final=True), status=400)
    client.get("/anomaly/results/Doe_Jane")
    client.put("/anomaly/reviews/Doe_Jane", json=decided(FIRST, comment="secret"))
    assert "Doe_Jane" not in caplog.text
    assert "secret" not in caplog.text
    assert json.dumps(FIRST) not in caplog.text


def upload(app, tmp_path, image="a"):
    write_scan(tmp_path / "new.nii.gz", 9)
    app.store.add_image(image, str(tmp_path / "new.nii.gz"), {})


@pytest.mark.parametrize("final", [False, True])
def test_a_review_of_a_scan_that_was_replaced_since_it_was_opened_is_refused(app, client, tmp_path, final):
    body = decided(FIRST, rejected=[SECOND, THIRD, FOURTH], final=final)
    scan = client.get("/anomaly/results/a").json()["scan"]
    put(client, {**body, "scan": scan})
    upload(app, tmp_path)
    assert "open it again" in put(client, {**body, "scan": scan}, status=409)
    assert client.get("/anomaly/reviews/a").status_code == 404
    assert not app.store.get_labels_by_image_id("a")
    put(client, {**body, "scan": client.get("/anomaly/results/a").json()["scan"]})


def test_a_review_that_is_finished_while_the_scan_is_replaced_is_not_kept_with_the_new_one(
    app, client, tmp_path, monkeypatch
):
    analysed = app.analysed

    def slow(*args, **kwargs):
        found = analysed(*args, **kwargs)
        upload(app, tmp_path)
        return found

    monkeypatch.setattr(app, "analysed", slow)
    assert "replaced" in put(client, decided(FIRST, rest="reject"), status=404)
    assert client.get("/anomaly/reviews/a").status_code == 404
    assert not app.store.get_labels_by_image_id("a")


@pytest.mark.parametrize("reader", ["x" * 81, "a\x07b"])
def test_a_reader_whose_name_no_lease_takes_is_refused_before_anything_is_written(app, client, reader):
    put(client, decided(FIRST, rest="reject", reader=reader), status=400)
    assert not app.store.get_labels_by_image_id("a")


def test_a_lease_that_another_reader_takes_meanwhile_does_not_undo_a_finished_review(app, client, monkeypatch):
    def taken(*args):
        raise StudyTaken("Ben works on this study")

    monkeypatch.setattr("lib.leases.free", taken)
    assert put(client, decided(FIRST, rest="reject"))["final"] is True


def test_a_token_reviews_no_study_that_another_one_has_by_writing_its_readers_name(app, client):
    tokens = TokenStore(f"{app.app_dir}/model/tokens.json")
    annas, berts = ({"Authorization": f"Bearer {tokens.create(name, 'reader')[0]}"} for name in ("annas", "berts"))
    where, free = "/anomaly/studies/a/lease", {"reader": "anna"}
    assert client.post(where, json={"reader": "anna"}, headers=annas).json()["account"] == "annas"
    assert client.post(where, json={"reader": "anna"}, headers=berts).status_code == 409
    assert client.delete(where, params=free, headers=berts).status_code == 409
    for final in (False, True):
        body = decided(rest="reject", final=final)
        assert client.put("/anomaly/reviews/a", json=body, headers=berts).status_code == 409
    assert client.put("/anomaly/reviews/a", json=decided(rest="reject"), headers=annas).status_code == 200
    assert client.get("/anomaly/studies/a", headers=berts).json()["lease"] is None


def test_whose_token_a_review_came_with_is_kept_whatever_name_is_written_in_it(app, client):
    """Readers may share a token, and a token's holder may write another reader's name."""
    token = TokenStore(f"{app.app_dir}/model/tokens.json").create("berts-token", "reader")[0]
    client.headers["Authorization"] = f"Bearer {token}"
    put(client, decided(FIRST, reader="anna", final=False))
    assert client.get("/anomaly/reviews/a").json()["account"] == "berts-token"
    kept = put(client, decided(FIRST, reader="anna", rest="reject"))
    assert (kept["reader"], kept["account"]) == ("anna", "berts-token")


def test_a_review_killed_at_any_writing_of_the_table_has_its_label_and_its_record_or_neither(app, client, tmp_path):
    if not hasattr(os, "fork"):
        pytest.skip("needs processes that start as copies")
    put(client, decided(FIRST, final=False))
    context, seen = multiprocessing.get_context("fork"), set()
    for number in range(20):
        child = context.Process(target=_finish_mortally, args=(client, number))
        child.start()
        child.join(300)
        store = AnomalyLocalDatastore(str(tmp_path / "studies"), extensions=["*.nii.gz", "*.nii"])
        kept = review_of(store.get_image_info("a"))
        label = (tmp_path / "studies" / "labels" / "final" / "a.nii.gz").is_file()
        assert kept["final"] is label is bool(store.get_label_uri("a", "final"))
        seen.add(label)
        if child.exitcode == 0:
            assert seen == {True, False}
            return
        assert child.exitcode == -signal.SIGKILL
    raise AssertionError("it never ends")


def _finish_mortally(client, left):
    rename = os.replace

    def replace(source, target):
        nonlocal left
        if str(target).endswith("datastore_v2.json"):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
        rename(source, target)

    os.replace = replace
    put(client, decided(FIRST, rest="reject"))
    os._exit(0)
