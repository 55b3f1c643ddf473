"""Parameters of a request are a JSON object of finite numbers, or refused by name."""

import json

import pytest

from lib.endpoints import tasks
from lib.endpoints.data import LONGEST_INFO, told
from lib.endpoints.infer import DEEPEST, read_params
from lib.errors import InvalidRequest


def test_an_object_is_read_and_nothing_is_no_parameters():
    assert read_params('{"age": 61.5, "n": 3, "deep": {"x": [1e3, null]}}') == {
        "age": 61.5,
        "n": 3,
        "deep": {"x": [1000.0, None]},
    }
    assert read_params("") == read_params(None) == {}


@pytest.mark.parametrize("text", ['{"age": NaN}', '{"age": [1.0, -Infinity]}', '{"a": {"b": 1e999}}'])
def test_numbers_that_no_client_could_be_sent_back_are_refused(text):
    with pytest.raises(InvalidRequest, match="finite numbers"):
        read_params(text)


@pytest.mark.parametrize("text", ["[1]", "3", "{", "nothing"])
def test_what_is_no_object_is_refused(text):
    with pytest.raises(InvalidRequest, match="JSON object"):
        read_params(text)


@pytest.mark.parametrize("text", ['{"n": ' + "9" * 5000 + "}", "[" * 100_000, '{"a": ["\\ud800"]}', '{"\\udfff": 1}'])
def test_what_no_answer_could_hold_is_refused(text):
    with pytest.raises(InvalidRequest, match="digits, with too many levels, or with text that is no Unicode"):
        read_params(text)


def nested(levels, kind):
    value = None
    for _ in range(levels):
        value = [value] if kind == "list" else {"a": value}
    return value


@pytest.mark.parametrize("kind", ["list", "object"])
@pytest.mark.parametrize("levels", [DEEPEST, 300, 900])
def test_levels_that_the_framework_could_not_list_again_are_refused(levels, kind):
    """What is kept with a job or a scan is in every listing: one of them would be an error from then on."""
    with pytest.raises(InvalidRequest, match="levels"):
        read_params(json.dumps({"note": nested(levels, kind)}))
    assert read_params(json.dumps({"note": nested(DEEPEST - 1, kind)}))


def test_params_of_trainings_and_batches_are_not_too_deep(monkeypatch):
    class App:
        def info(self):
            return {"models": {"one": {}}}

        def trainers(self):
            return {"one": None}

    monkeypatch.setattr(tasks, "app_instance", App)
    for begin in (tasks.run_batch, tasks.run_training):
        with pytest.raises(InvalidRequest, match="levels"):
            begin("one", params={"note": nested(300, "list")})


def test_no_folder_of_programs_is_taken_from_a_request(monkeypatch):
    """MONAI Label would put it on the sub-process's path for modules."""

    class Trainer:
        def check(self, request, datastore):
            pass

    class App:
        def info(self):
            return {"models": {"one": {}}}

        def trainers(self):
            return {"one": Trainer()}

        def datastore(self):
            return None

    begun = []
    monkeypatch.setattr(tasks, "app_instance", App)
    monkeypatch.setattr(tasks.batch_infer, "run", lambda model, images, given, now: begun.append(given))
    tasks.run_batch("one", params={"bundle_path": "/tmp", "seed": 1})
    assert begun == [{"seed": 1}]
    assert tasks.training_request("one", {"bundle_path": "/tmp", "epochs": 1}) == {"epochs": 1, "model": "one"}


def test_information_of_a_scan_is_short():
    assert told(json.dumps({"note": "x" * 1000})) == {"note": "x" * 1000}
    with pytest.raises(InvalidRequest, match="at most 65536 characters"):
        told(json.dumps({"note": "x" * LONGEST_INFO}))
