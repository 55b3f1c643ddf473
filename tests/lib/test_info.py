"""How ``/info/`` is answered."""

import json

from fastapi import FastAPI, Response
from fastapi.testclient import TestClient

from lib.endpoints import data

TOLD = {"models": {"a": {"labels": ("x", "ü"), "share": 1e-07, "none": None}}, "train_stats": {}, "n": float("nan")}


def test_the_text_is_made_in_the_thread_that_asks_and_is_what_the_framework_would_write(monkeypatch):
    monkeypatch.setattr(data.info, "app_info", lambda: TOLD)
    answer = data.app_info(user=None)
    assert isinstance(answer, Response), "the event loop would have to write it"
    straight = FastAPI()

    @straight.get("/")
    def told() -> dict:
        return TOLD

    assert TestClient(straight).get("/").content == answer.body
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(answer.body)["models"]["a"] == {"labels": ["x", "ü"], "share": 1e-07, "none": None}
