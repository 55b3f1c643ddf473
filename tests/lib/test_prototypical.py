import threading

import numpy as np
import pytest

from lib.strategies import Prototypical, prototypical
from monailabel_app.errors import CorruptModel, UnreadableVolume


class Store:
    """A datastore of files; ``labelled`` maps an image to the number of voxels of its final label."""

    def __init__(self, folder, names):
        self.folder, self.info, self.labelled = folder, {name: {} for name in names}, {}
        for name in names:
            (folder / name).write_text(name)

    def list_images(self):
        return list(self.info)

    def get_unlabeled_images(self):
        return [name for name in self.info if name not in self.labelled]

    def get_image_info(self, image_id):
        return self.info[image_id]

    def update_image_info(self, image_id, info):
        # Leases are not kept: every request here chooses among all scans.
        self.info[image_id] |= {key: value for key, value in info.items() if key != "lease"}

    def get_image_uri(self, image_id):
        return str(self.folder / image_id)

    def final_labels(self, image_id, inspect):
        return {"final": self.labelled[image_id]} if image_id in self.labelled else {}


class Embedding:
    """One number per scan; counts what it is asked for."""

    def __init__(self, values, bad=()):
        self.values, self.bad, self.asked = values, bad, []

    def __call__(self, path):
        self.asked.append(path.name)
        if path.name in self.bad:
            raise UnreadableVolume("expected a scan, got noise")
        return np.array([self.values[path.name]], dtype=np.float32), False


LINE = {"a": 0.0, "b": 1.0, "c": 2.0, "d": 3.5, "e": 5.5}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path, LINE)


def strategy(tmp_path, embedding, conf=None, **budget):
    made = Prototypical(str(tmp_path), conf or {}, **{"max_new": 100, "seconds": 100.0, **budget})
    made._embedding = lambda: embedding
    return made


def test_starts_with_the_scan_most_like_the_others(tmp_path, store):
    answer = strategy(tmp_path, Embedding(LINE))({}, store)
    assert answer["id"] == "c"
    assert answer["reason"] == "most like the other scans"
    assert answer["embedded"] == "5 of 5"


def test_goes_on_with_the_scan_farthest_from_the_healthy_ones(tmp_path, store):
    store.info["b"]["healthy"] = True
    answer = strategy(tmp_path, Embedding(LINE))({}, store)
    assert answer["id"] == "e"
    assert answer["reason"] == "least like the healthy scans known so far (1)"
    assert answer["distance"] > 0


def test_an_empty_final_label_makes_a_centre_and_another_label_takes_a_scan_out(tmp_path, store):
    store.labelled = {"a": 0, "e": 40}
    store.info["e"]["healthy"] = True
    answer = strategy(tmp_path, Embedding(LINE))({}, store)
    assert answer["id"] == "d"
    assert answer["embedded"] == "4 of 4"


def test_a_folder_declared_healthy_confirms_no_single_scan(tmp_path, store):
    assert strategy(tmp_path, Embedding(LINE), {"healthy": "all"})({}, store)["id"] == "c"


def test_nothing_left_gives_nothing(tmp_path, store):
    store.labelled = dict.fromkeys(LINE, 0)
    assert strategy(tmp_path, Embedding(LINE))({}, store) is None


def test_a_request_compares_few_scans_and_the_next_goes_on(tmp_path, store):
    embedding = Embedding(LINE)
    asked = strategy(tmp_path, embedding, max_new=2)
    assert [asked({}, store)["embedded"] for _ in range(4)] == ["2 of 5", "4 of 5", "5 of 5", "5 of 5"]
    assert sorted(embedding.asked) == list("abcde")


def test_no_scan_is_begun_after_the_time_is_over(tmp_path, store, monkeypatch):
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(prototypical.time, "monotonic", lambda: next(clock))
    assert strategy(tmp_path, Embedding(LINE), seconds=10.0)({}, store)["embedded"] == "1 of 5"


def test_healthy_scans_and_candidates_are_compared_in_turn(tmp_path, store):
    for name in "de":
        store.info[name]["healthy"] = True
    embedding = Embedding(LINE)
    strategy(tmp_path, embedding, max_new=4)({}, store)
    assert embedding.asked == ["a", "d", "b", "e"]


def test_a_changed_file_is_compared_anew(tmp_path, store):
    embedding = Embedding(LINE)
    asked = strategy(tmp_path, embedding)
    asked({}, store)
    (tmp_path / "a").write_text("longer than before")
    asked({}, store)
    assert embedding.asked.count("a") == 2
    assert embedding.asked.count("b") == 1


def test_unusable_scans_are_tried_once_and_do_not_use_up_the_budget(tmp_path, store):
    embedding = Embedding(LINE, bad="ab")
    asked = strategy(tmp_path, embedding, max_new=2)
    first = asked({}, store)
    expected = {"id": "c", "reason": "no scan has been compared yet: in the order of the ids", "distance": None,
                "embedded": "0 of 5"}  # fmt: skip
    assert {key: first[key] for key in expected} == expected
    assert asked({}, store)["embedded"] == "2 of 5"
    assert embedding.asked == ["a", "b", "c", "d"]


def test_a_scan_that_the_archive_does_not_give_is_left_out(tmp_path, store):
    (tmp_path / "c").unlink()
    answer = strategy(tmp_path, Embedding(LINE))({}, store)
    assert answer["embedded"] == "4 of 5"
    assert answer["id"] != "c"


def test_without_its_model_the_order_of_the_ids_is_kept(tmp_path, store):
    made = Prototypical(str(tmp_path), {})

    def broken():
        raise CorruptModel("expected model_weights/ddpm_t1, found none")

    made._embedding = broken
    assert made({}, store)["id"] == "a"
    assert not made._known


def test_a_second_request_does_not_wait_for_the_first(tmp_path, store):
    inside, go_on = threading.Event(), threading.Event()

    def slow(path):
        inside.set()
        assert go_on.wait(120)
        return Embedding(LINE)(path)

    asked = strategy(tmp_path, slow)
    first = threading.Thread(target=asked, args=({}, store))
    first.start()
    assert inside.wait(120)
    assert asked({}, store)["embedded"] == "0 of 5"
    go_on.set()
    first.join(120)
    assert asked({}, store)["embedded"] == "5 of 5"


def test_the_shipped_model_chooses_among_real_scans(tmp_path, studies_dir):
    """The whole way: prepare, embed, keep, choose."""
    from tests.conftest import ROOT

    store = Store(tmp_path, [])
    for path in studies_dir.glob("*.nii.gz"):
        store.info[path.name] = {}
        (tmp_path / path.name).write_bytes(path.read_bytes())
    made = Prototypical(str(tmp_path), {}, seconds=600.0)
    made._models = ROOT / "model_weights"
    answer = made({}, store)
    assert answer["embedded"] == f"{len(store.info)} of {len(store.info)}"
    assert answer["id"] in store.info
    assert list((tmp_path / "cache").glob("embeddings-*.safetensors"))


def test_what_is_chosen_is_lent_to_the_reader_and_not_given_to_another(tmp_path, store):
    store.update_image_info = lambda image, info: store.info[image].update(info)
    asked = strategy(tmp_path, Embedding(LINE))
    one, other = asked({"client_id": "one"}, store), asked({"client_id": "other"}, store)
    assert one["id"] != other["id"]
    assert one["lease"]["reader"] == "one"
    assert store.info[one["id"]]["lease"]["reader"] == "one"
