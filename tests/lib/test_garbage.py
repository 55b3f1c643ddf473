"""What the start has made is left out of the looks for garbage; what comes later is not."""

import gc
import importlib
import weakref

import pytest
from fastapi import FastAPI

from lib import garbage


class Node:
    def __init__(self):
        self.itself = self


@pytest.fixture
def nothing_left_out():
    """As in a process that has just been started, and so afterwards."""
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_what_is_there_at_the_start_is_never_looked_at_again_and_what_comes_later_is(nothing_left_out):
    old, lost = Node(), weakref.ref(Node())
    garbage.prepare()
    assert lost() is None, "garbage of the start would stay for ever"
    later, also_lost = Node(), weakref.ref(Node())
    garbage.prepare()  # A reload.
    looked_at = {id(held) for held in gc.get_objects()}
    assert id(old) not in looked_at
    assert id(later) in looked_at
    gc.collect()
    assert also_lost() is None


def test_what_python_leaves_out_by_itself_is_not_taken_for_it(nothing_left_out):
    gc.freeze()  # As Python 3.12 begins.
    try:
        importlib.reload(garbage)
        old = Node()
        garbage.prepare()
        assert id(old) not in {id(held) for held in gc.get_objects()}
    finally:
        gc.unfreeze()
        importlib.reload(garbage)


def test_a_server_prepares_it_at_its_start(nothing_left_out, monkeypatch, tmp_path):
    from monailabel.config import settings

    from lib.endpoints import install

    monkeypatch.setattr(settings, "MONAI_LABEL_APP_DIR", str(tmp_path))
    monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", "studies")
    assert install(FastAPI())
    assert gc.get_freeze_count()
