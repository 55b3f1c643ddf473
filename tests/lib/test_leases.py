"""A study is with one reader at a time, whoever asks how fast."""

import threading
from datetime import datetime, timedelta, timezone

import pytest

from lib.access.principal import Principal, acting
from lib.datastore import AnomalyLocalDatastore
from lib.errors import InvalidRequest, NotAllowed, StudyTaken, UnknownImage
from lib.leases import as_told, check, free, held_by, take
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


ANNA, BERT = Principal("annas-token", "reader", "token"), Principal("berts-token", "reader", "token")
KEYCLOAK = Principal("annas-token", "reader", "keycloak")
COOKIE = Principal("annas-token", "reader", "cookie")
LOCAL = Principal("local", "admin", "local")


@pytest.mark.parametrize("other", [BERT, KEYCLOAK, LOCAL])
def test_no_other_account_takes_or_frees_a_lease_by_writing_its_readers_name(store, other):
    with acting(ANNA):
        lease = take(store, "a", "Ada")
    assert held_by(store.get_image_info("a")) == lease
    with acting(other):
        with pytest.raises(StudyTaken, match="another account"):
            take(store, "a", "Ada")
        with pytest.raises(StudyTaken, match="another account"):
            free(store, "a", "Ada")
        with pytest.raises(StudyTaken, match="another account"):
            check(store.get_image_info("a"), "Ada")
    assert held_by(store.get_image_info("a")) == lease
    with acting(COOKIE):  # The same token, in a browser.
        check(store.get_image_info("a"), "Ada")
        assert free(store, "a", "Ada") is True


def test_readers_who_share_an_account_are_told_apart_by_their_names(store):
    with acting(ANNA):
        take(store, "a", "Ada")
        with pytest.raises(StudyTaken, match=r"^Ada works"):
            take(store, "a", "Ben")


def told(store):
    return as_told(held_by(store.get_image_info("a")))["yours"]


def test_whose_a_lease_is_is_said_as_far_as_accounts_tell(store):
    with acting(ANNA):
        take(store, "a", "Ada")
        assert told(store) is None  # Several readers may use a token.
    for other in (BERT, KEYCLOAK, LOCAL):
        with acting(other):
            assert told(store) is False
    with acting(COOKIE):
        assert told(store) is None
        free(store, "a", "Ada")
    with acting(KEYCLOAK):
        take(store, "a", "annas-token")
        assert told(store) is True
        free(store, "a", "annas-token")
    with acting(LOCAL):
        take(store, "a", "Ada")
        assert told(store) is None
    with acting(KEYCLOAK):
        assert told(store) is None  # Taken by nobody's account.


def test_where_nobody_is_asked_for_a_token_the_name_tells_the_reader(store):
    with acting(LOCAL):
        assert set(take(store, "a", "Ada")) == {"reader", "until"}
        with pytest.raises(StudyTaken):
            take(store, "a", "Ben")
        assert free(store, "a", "Ada") is True


def test_the_next_study_is_not_one_that_another_account_of_the_same_name_has(store):
    with acting(ANNA):
        assert First()({"client_id": "Ada"}, store)["id"] == "a"
    with acting(BERT):
        assert First()({"client_id": "Ada"}, store)["id"] == "b"
        assert First()({"client_id": "Ada"}, store)["id"] == "b"  # handed out before, to this account


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
