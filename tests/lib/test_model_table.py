"""The table of tasks follows the model folders, and a table once taken does not change."""

import threading

import pytest

from lib.model_table import ModelTable
from monailabel_app.errors import UnknownModel
from monailabel_app.weights import listing
from monailabel_app.weights.versions import new_staging, promote, publish, remove_model, rollback
from tests.lib.conftest import MODEL
from tests.lib.published import publish_model, write_model


@pytest.fixture
def app(tmp_path):
    for name in ("one", "two"):
        write_model(tmp_path / "model_weights" / name)
    return tmp_path


class Task:
    def __init__(self, entry):
        self.entry = entry


def served(table):
    return {name: task.entry.id for name, task in table.tasks().items()}


def test_what_is_published_rolled_back_and_removed_is_in_the_next_table(app):
    table = ModelTable(app, "all", Task)
    assert served(table) == {"one": "one", "two": "two"}
    publish_model(app, "one")
    publish_model(app, "new")
    assert served(table) == {"one": "one@0001", "two": "two", "new": "new@0001"}
    publish_model(app, "new", promote=False)
    assert served(table)["new"] == "new@0001"
    promote(app, "new", "2")
    rollback(app, "one")
    assert served(table) == {"one": "one", "two": "two", "new": "new@0002"}
    remove_model(app, "new")
    assert served(table) == {"one": "one", "two": "two"}


def test_a_list_of_models_is_exact_also_for_what_was_trained_here(app):
    publish_model(app, "before")
    table = ModelTable(app, "two", Task)
    assert list(served(table)) == ["two"]
    publish_model(app, "after")
    write_model(app / "model" / "copied")
    publish_model(app, "one")
    assert served(table) == {"two": "two"}
    publish_model(app, "two")
    assert served(table) == {"two": "two@0001"}
    assert list(served(ModelTable(app, "before,two", Task))) == ["before", "two"]


@pytest.mark.parametrize("wanted", [None, "all"])
def test_without_a_list_what_is_trained_here_is_offered_too(app, wanted):
    publish_model(app, "before")
    table = ModelTable(app, wanted, Task)
    publish_model(app, "after")
    assert set(served(table)) == {"one", "two", "before", "after"}


def test_a_name_asked_for_must_be_there_at_the_start_but_may_go_later(app):
    with pytest.raises(UnknownModel, match="Available: one, two"):
        ModelTable(app, "one,tree", Task)
    publish_model(app, "new")
    table = ModelTable(app, "one,new", Task)
    remove_model(app, "new")
    assert list(served(table)) == ["one"]


@pytest.mark.parametrize("wanted", [None, "all", "one,two"])
def test_a_model_offered_first_that_is_missing_is_told_at_the_start_and_when_it_goes(app, wanted, caplog):
    caplog.set_level("WARNING")
    names = ("cold_diffusion_t1", "cold_diffusion_any", "cold_diffusion_flair")
    for name in names:
        publish_model(app, name)
    table = ModelTable(app, wanted, Task)
    assert not caplog.messages
    remove_model(app, names[0])
    table.tasks()
    ModelTable(app, wanted, Task)
    told = [text for text in caplog.messages if "cold_diffusion_t1, is missing" in text]
    # A list of names is what somebody wanted.
    assert len(told) == (0 if wanted == "one,two" else 2)
    assert told == caplog.messages


def test_a_table_in_use_is_never_changed(app):
    table = ModelTable(app, "all", Task)
    held = table.tasks()
    before = dict(held)
    publish_model(app, "one")
    assert table.tasks() is not held
    assert held == before
    assert held["one"].entry.id == "one"


def test_without_a_change_no_list_is_read(app, monkeypatch):
    table = ModelTable(app, "all", Task)
    held = table.tasks()
    monkeypatch.setattr("lib.catalogue.list_models", None)
    monkeypatch.setattr(listing, "read_entry", None)
    assert table.tasks() is held


def test_a_model_of_a_method_that_is_not_known_is_left_out(app):
    table = ModelTable(app, "all", Task)
    publish_model(app, "later", MODEL.replace("ddpm", "method_of_a_newer_version"))
    assert "later" not in served(table)


def test_many_requests_during_a_publish_see_the_old_or_the_new_version(app):
    table = ModelTable(app, "all", Task)
    staged = [write_model(new_staging(app, "one"), weights=str(n).encode()) for n in range(10)]
    seen, done = set(), threading.Event()

    def ask():
        while not done.is_set():
            tasks = table.tasks()
            seen.add(tuple(tasks))
            folder = tasks["one"].entry.folder
            assert (folder / "config.yaml").is_file()

    failures = []

    def guarded():
        try:
            ask()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded) for _ in range(4)]
    for thread in threads:
        thread.start()
    for folder in staged:
        publish(app, "one", folder, promote=True)
    done.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert seen == {("one", "two")}
    assert served(table)["one"] == "one@0010"
