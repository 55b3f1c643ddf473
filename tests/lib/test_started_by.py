"""What a background task does is done in the name of who started it, and of nobody who only says so."""

import json

import pytest

from lib.access.principal import SERVER, Principal, acting, current
from lib.background import _Line
from lib.started_by import KEY, in_name_of_asker

ANNA, BERTA = Principal("anna", "admin", "token"), Principal("berta", "reader", "cookie")


class App:
    @in_name_of_asker
    def train(self, request):
        return current(), request


def put_in_line(request, who):
    """As MONAI Label does it; returns what the process is given."""
    line = _Line()
    task = {"id": "1", "request": request}
    try:
        with acting(who):
            return json.loads(line.submit(lambda task: json.dumps(task["request"]), task).result(30))
    finally:
        line.shutdown()


@pytest.mark.parametrize("who", [ANNA, BERTA, SERVER])
def test_a_process_works_in_the_name_of_who_started_it(who):
    assert App().train(put_in_line({"model": "ddpm"}, who)) == (who, {"model": "ddpm"})


def test_a_name_that_a_client_writes_into_a_request_is_not_believed():
    forged = {"name": "chief", "role": "admin", "how": "token"}
    assert App().train(put_in_line({"model": "ddpm", KEY: forged}, BERTA))[0] == BERTA
    with acting(BERTA):
        assert App().train({"model": "ddpm", KEY: forged}) == (BERTA, {"model": "ddpm"})


@pytest.mark.parametrize("said", ["anna", {"name": "anna"}, {"name": 1, "role": "admin", "how": "x"},
                                  {"name": "anna", "role": "root", "how": "token"}, None])  # fmt: skip
def test_what_is_no_name_is_nobodys(said):
    assert App().train({"model": "ddpm", KEY: said}) == (SERVER, {"model": "ddpm"})
