"""Several clients at once on a real server with a real model: none gets another's result, and nothing is lost.

The short form of ``tests/benchmarks/load.py``, without a word about how long anything takes.
"""

import pytest

from tests.benchmarks.load import load, table

CLIENTS, BURST = 5, 22
_GROWTH_MB = 1500


@pytest.fixture(scope="module")
def told():
    """What was measured in less than a minute of use."""
    return load("atlas_zscore_t1", CLIENTS, 0.4, burst=BURST, slow=2, patient=True)


@pytest.mark.slow
def test_every_client_gets_its_own_lesion_back(told):
    assert told["wrong"] == []
    assert told["hanging clients"] == 0
    assert told["analyses per client"]["least"] >= 1
    assert len(told["model hashes"]) == 1
    assert told["errors in the log"] == 0


@pytest.mark.slow
def test_what_was_acknowledged_is_there_to_the_byte(told):
    kept = told["acknowledged"]
    assert kept["acknowledged"] > 0
    assert (kept["read back"], kept["lost"]) == (kept["acknowledged"], 0)


@pytest.mark.slow
def test_more_than_the_line_takes_are_told_when_to_come_back_and_all_get_through(told):
    many = told["too many at once"]
    assert many["wrong"] == []
    assert set(many["first answers"]) <= {"200", "503"}
    # Others stand in line before them: for some there is no place, however slowly they arrive.
    assert many["first answers"]["503"] >= 1
    assert many["first answers"].get("200", 0) + many["later answers"]["200"] == BURST
    assert 2 <= many["retry_after_s"][0] <= many["retry_after_s"][1] <= 300


@pytest.mark.slow
def test_whoever_goes_while_waiting_gives_the_place_up(told):
    left = told["left in line"]
    assert left["seen in line"] == left["gone"] > 0
    assert left["ran for nobody"] == 0
    assert left["place given up"] + left["stopped while running"] == left["gone"]


@pytest.mark.slow
def test_analyses_begin_in_the_order_in_which_they_came(told):
    assert told["order"]["analyses"] >= CLIENTS
    assert told["order"]["furthest"] <= 2


@pytest.mark.slow
def test_the_server_answers_others_throughout_and_holds_nothing_in_the_end(told):
    assert told["info_s"]["unanswered"] == 0
    assert told["info_s"]["count"] > 0
    resources = told["resources"]
    assert resources["temporary"]["at the end"] <= 3, told["temporary files at the end"]
    assert resources["files"]["at the end"] <= resources["files"]["second quarter"] + 20
    assert resources["threads"]["at the end"] <= 64
    assert resources["rss_mb"]["last quarter"] - resources["rss_mb"]["second quarter"] < _GROWTH_MB


@pytest.mark.slow
def test_the_table_says_what_was_measured(told):
    text = table(told)
    assert f"{told['clients']}, {told['minutes']:g}" in text
    assert "Retry-After" in text
