import json
import time
from types import SimpleNamespace

import pytest

from lib.datastore import AnomalyLocalDatastore
from lib.strategies import Borderline, First, MostAnomalous, Random
from lib.strategies.worklist import MOST_SKIPPED
from monailabel_app.errors import InvalidVolume


class Store:
    """As MONAI Label's datastores; ``reviewed`` have a final label."""

    def __init__(self, info, reviewed=(), broken=()):
        self.info, self.reviewed, self.broken, self.opened = info, set(reviewed), set(broken), []

    def get_unlabeled_images(self):
        return [image for image in self.info if image not in self.reviewed]

    def get_image_info(self, image_id):
        return self.info[image_id]

    def get_image_uri(self, image_id):
        self.opened.append(image_id)
        if image_id in self.broken:
            raise InvalidVolume("expected a scan, got a secondary capture")
        return f"/studies/{image_id}"

    def update_image_info(self, image_id, info):
        self.info[image_id] = {**self.info[image_id], **info}


def given(seconds_ago):
    return {"strategy": {"random": {"ts": int(time.time()) - seconds_ago}}}


def scored(score, p_value=0.5, model="one", **more):
    settings = {"score": "l1", "smoothing": "standard"}
    record = {
        "score": score,
        "p_value": p_value,
        "settings": settings,
        "calibration": "shipped",
        "time": "2026",
        **more,
    }
    return {"anomaly": {model: record}}


def ask(chosen, store, reader="Ada", **more):
    answer = chosen({"client_id": reader, **more}, store)
    return answer and answer["id"]


@pytest.fixture
def tasks(tmp_path):
    """Models whose healthy scans score 0 to 10 (limit 9.5, median 5), and 0 to 100."""
    made = {}
    for name, scale in (("one", 1.0), ("wide", 10.0)):
        folder = tmp_path / "model_weights" / name
        folder.mkdir(parents=True)
        scores = {"l1": {"scan_scores": {"standard": [scale * value for value in range(11)]}}}
        (folder / "calibration.json").write_text(json.dumps({"scores": scores}))
        made[name] = SimpleNamespace(entry=SimpleNamespace(folder=folder, name=name))
    return made


def test_first_follows_the_order_of_the_ids():
    answer = First()({"client_id": "Ada"}, Store({"b": {}, "a": {}, "c": {}}))
    assert answer["id"] == "a"
    assert "first of 3" in answer["reason"]


@pytest.mark.parametrize("strategy", [First(), Random(), MostAnomalous(), Borderline(dict)])
def test_nothing_left_gives_nothing(strategy):
    assert strategy({}, Store({})) is None
    assert strategy({}, Store({"a": scored(1.0)}, reviewed="a")) is None


def test_random_works_when_all_were_just_given():
    assert ask(Random(seed=0), Store({"a": given(0), "b": given(0)}), strategy="random") in {"a", "b"}


def test_random_prefers_what_was_given_long_ago():
    strategy = Random(seed=0)
    drawn = [ask(strategy, Store({"recent": given(1), "old": given(10**6)}), strategy="random") for _ in range(50)]
    assert drawn.count("old") == 50


def test_random_reaches_every_scan():
    strategy = Random(seed=0)
    assert {ask(strategy, Store({name: {} for name in "abc"})) for _ in range(50)} == set("abc")


def test_the_most_anomalous_goes_by_p_value_then_by_score_and_unknown_scans_come_last():
    store = Store({
        "new": {}, "failed": {"anomaly": {"one": {"error": "no brain", "time": "2026"}}}, "low": scored(2.0, 0.9),
        "high": scored(5.0, 0.05), "highest": scored(9.0, 0.05), "other scale": scored(40.0, 0.3, "wide"),
    })  # fmt: skip
    order = [ask(MostAnomalous(), store) for _ in range(6)]
    assert order == ["highest", "high", "other scale", "low", "failed", "new"]


def test_the_reason_says_what_was_compared():
    answer = MostAnomalous()({"client_id": "Ada"}, Store({"a": scored(5.0, 0.05), "b": {}}))
    assert answer["reason"] == "most anomalous of 1 scored unreviewed scans: score 5, p 0.05"
    assert (answer["score"], answer["p_value"], answer["unreviewed"], answer["held"]) == (5.0, 0.05, 2, 0)
    assert "no unreviewed scan has a score" in MostAnomalous()({}, Store({"b": {}}))["reason"]


def test_the_newest_analysis_counts():
    info = {"anomaly": {**scored(9.0, 0.05)["anomaly"], **scored(1.0, 0.9, "wide", time="2027")["anomaly"]}}
    assert ask(MostAnomalous(), Store({"was high": info, "a": scored(3.0, 0.5)})) == "a"


def test_borderline_is_nearest_to_the_limit_of_the_healthy_scans(tasks):
    store = Store(
        {"typical": scored(5.0), "extreme": scored(60.0), "edge": scored(9.9), "below": scored(9.0), "new": {}}
    )
    answer = Borderline(lambda: tasks)({"client_id": "Ada"}, store)
    assert answer["id"] == "edge"
    assert answer["limit"] == 9.5
    assert "95 % of healthy scans are below 9.5" in answer["reason"]
    assert [ask(Borderline(lambda: tasks), store) for _ in range(3)] == ["below", "typical", "extreme"]


def test_borderline_compares_models_on_their_own_scales(tasks):
    store = Store({"one": scored(8.5), "wide": scored(93.0, model="wide")})
    assert ask(Borderline(lambda: tasks), store) == "wide"


def test_without_scores_borderline_goes_by_the_ids(tasks):
    store = Store({"b": {}, "a": scored(1.0, model="removed")})
    answer = Borderline(lambda: tasks)({"client_id": "Ada"}, store)
    assert answer["id"] == "a"
    assert "no unreviewed scan has a score" in answer["reason"]


def test_two_readers_never_get_the_same_study():
    store = Store({name: {} for name in "abcdef"})
    got = [ask(First(), store, reader) for reader in ("Ada", "Ben", "Ada", "Ben")]
    assert got == ["a", "b", "c", "d"]
    assert ask(First(), store, "Cid") == "e"
    assert ask(First(), store, "Cid") == "f"
    assert ask(First(), store, "Dora") is None


def test_when_nothing_else_is_left_a_reader_gets_the_own_ones_again():
    store = Store({name: {} for name in "ab"})
    assert [ask(First(), store, "Ada"), ask(First(), store, "Ben")] == ["a", "b"]
    answer = First()({"client_id": "Ben"}, store)
    assert answer["id"] == "b"
    assert "handed out before" in answer["reason"]


def test_readers_without_a_name_get_different_studies():
    store = Store({name: {} for name in "abc"})
    assert [First()({}, store)["id"] for _ in range(3)] == ["a", "b", "c"]
    assert ask(First(), store, "Ada") is None


def test_a_study_is_free_again_after_its_lease():
    past = {"lease": {"reader": "Ben", "until": "2020-01-01T00:00:00+00:00"}}
    assert ask(First(), Store({"a": past})) == "a"


def test_a_real_datastore_lends_and_leaves_out_what_is_reviewed(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.nii.gz").write_bytes(b"scan")
    (tmp_path / "labels" / "final").mkdir(parents=True)
    (tmp_path / "labels" / "final" / "a.nii.gz").write_bytes(b"label")
    store = AnomalyLocalDatastore(str(tmp_path), extensions=["*.nii.gz"])
    store.add_to_image_info("c", "anomaly", scored(3.0)["anomaly"])
    assert ask(MostAnomalous(), store) == "c"
    other = AnomalyLocalDatastore(str(tmp_path), extensions=["*.nii.gz"])
    assert ask(MostAnomalous(), other, "Ben") == "b"
    assert ask(MostAnomalous(), store, "Cid") is None


def test_what_is_no_scan_does_not_stand_in_the_way_and_is_lent_to_nobody():
    store = Store({name: {} for name in "abcd"}, broken="ab")
    assert First()({"client_id": "Ada"}, store)["id"] == "c"
    assert store.opened == ["a", "b", "c"]
    assert [name for name, info in store.info.items() if "lease" in info] == ["c"]


def test_where_nothing_can_be_opened_the_reason_is_told_after_a_few():
    store = Store({f"scan {number:02}": {} for number in range(30)}, broken={f"scan {n:02}" for n in range(30)})
    with pytest.raises(InvalidVolume, match="secondary capture"):
        First()({"client_id": "Ada"}, store)
    assert len(store.opened) == MOST_SKIPPED
    with pytest.raises(InvalidVolume):
        First()({"client_id": "Ada"}, Store({"only": {}}, broken=["only"]))
