"""A study is with one reader at a time, whoever asks how fast."""

import threading
from datetime import datetime, timedelta, timezone

import pytest

from lib.datastore import AnomalyLocalDatastore
from lib.errors import InvalidRequest, NotAllowed, StudyTaken, UnknownImage
from lib.leases import free, held_by, take
from lib.strategies import First


@pytest.fixture
def store(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.nii.gz").write_bytes(b"scan")
    return AnomalyLocalDatastore(str(tmp_path), extensions=["*.nii.gz"])


def test_a_study_that_is_lent_is_refused_to_others(store):
    lease = take(store, "a", "Ada")
    assert held_by(store.get_image_info("a")) == lease
    with pytest.raises(StudyTaken, match="Ada"):
        take(store, "a", "Ben")
    assert take(store, "b", "Ben")["reader"] == "Ben"


def test_the_same_reader_gets_it_for_longer(store):
    first = take(store, "a", "Ada", minutes=1)
    assert take(store, "a", "Ada", minutes=60)["until"] > first["until"]


def test_a_lease_ends_by_itself(store):
    take(store, "a", "Ada", minutes=30)
    info = store.get_image_info("a")
    assert held_by(info, datetime.now(timezone.utc) + timedelta(minutes=31)) is None
    store.update_image_info("a", {"lease": {"reader": "Ada", "until": "2020-01-01T00:00:00+00:00"}})
    assert take(store, "a", "Ben")["reader"] == "Ben"


def test_a_lease_is_given_back_by_its_reader_only(store):
    take(store, "a", "Ada")
    with pytest.raises(StudyTaken):
        free(store, "a", "Ben")
    assert free(store, "a", "Ada") is True
    assert free(store, "a", "Ada") is False
    assert take(store, "a", "Ben")


@pytest.mark.parametrize("reader", ["", "  ", None, "x" * 81, "a\nb"])
def test_a_reader_has_a_name(store, reader):
    with pytest.raises(InvalidRequest, match="name"):
        take(store, "a", reader)


@pytest.mark.parametrize("minutes", [0, -1, 10**6, 10**400])
def test_a_lease_has_a_length(store, minutes):
    with pytest.raises(InvalidRequest, match="minutes"):
        take(store, "a", "Ada", minutes)


def test_an_unknown_study_cannot_be_lent(store):
    with pytest.raises(UnknownImage):
        take(store, "gone", "Ada")


def test_of_many_who_ask_at_once_one_gets_it(store, tmp_path):
    stores = [store, *(AnomalyLocalDatastore(str(tmp_path), extensions=["*.nii.gz"]) for _ in range(3))]
    won, together = [], threading.Barrier(len(stores))

    def ask(number):
        together.wait()
        try:
            take(stores[number], "a", f"reader {number}")
            won.append(number)
        except StudyTaken:
            pass

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(stores))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


def test_in_a_folder_that_cannot_be_written_no_study_is_lent_but_the_next_one_is_told(store, monkeypatch):
    def refused(*args, **kwargs):
        raise PermissionError(13, "read-only")

    monkeypatch.setattr(store, "_update_datastore_file", refused)
    with pytest.raises(NotAllowed, match="cannot be written"):
        take(store, "a", "Ada")
    answer = First()({"client_id": "Ada"}, store)
    assert (answer["id"], answer["lease"]) == ("a", None)
