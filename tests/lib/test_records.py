"""The record of an analysis: when it is current, when it is not kept, and how scans are ranked by it."""

import os

import pytest

from lib.errors import ServerBusy
from lib.scoring.records import (
    Basis,
    anomaly_rank,
    known_stamp,
    newest_record,
    record_result,
    records_of,
    stamp_of,
)
from monailabel_app.errors import InvalidVolume
from tests.lib.results_app import small_app, write_scan

RESULT = {"anomaly_score": 2.0, "p_value": 0.5, "threshold": 1.9, "lesion_count": 3, "anomaly_volume_ml": 4.0}


@pytest.fixture
def app(tmp_path):
    return small_app(tmp_path)


def record(app, result=RESULT, given=None, **kwargs):
    path = app.store.get_image_uri("a")
    return record_result(app.store, "a", app.models["ddpm_t1"], given or {}, result, 1.0, path, **kwargs)


def current(app, held, given=None):
    return Basis(app.models["ddpm_t1"], given or {}).is_current(held, known_stamp(app.store.get_image_info("a")))


def test_a_record_is_current_for_the_same_settings_only(app):
    held = record(app)
    assert records_of(app.store.get_image_info("a")) == {"ddpm_t1": held}
    assert current(app, held)
    # Neither changes what was found.
    assert current(app, held, {"uncertainty": "on"})
    for other in ({"operating_point": "specific"}, {"threshold": 1.9}, {"smoothing": "none"}, {"seed": 1}):
        assert not current(app, held, other), other
    assert current(app, record(app, given={"threshold": 1.9}), {"threshold": 1.9})
    assert not current(app, None)


def test_a_scan_that_changed_while_it_was_analysed_gets_no_record(app, tmp_path):
    before = stamp_of(app.store.get_image_uri("a"))
    write_scan(tmp_path / "studies" / "a.nii.gz", seed=5)
    assert record(app, stamp=before) is None
    assert records_of(app.store.get_image_info("a")) == {}
    os.remove(tmp_path / "studies" / "a.nii.gz")
    assert record(app) is None


def test_an_error_of_the_scan_is_kept_and_one_that_passes_is_tried_again(app):
    lasting = record(app, InvalidVolume("expected contrast"))
    assert (lasting["error"], lasting["kind"]) == ("expected contrast", "InvalidVolume")
    assert current(app, lasting)
    assert not current(app, record(app, ServerBusy("too many")))
    unknown = record(app, ValueError("/data/Doe_Jane.nii"))
    assert "Doe" not in unknown["error"]


@pytest.mark.parametrize("info", [{}, {"anomaly": None}, {"anomaly": [1]}, {"anomaly": {"m": "text"}}])
def test_what_others_wrote_into_the_information_is_left_out(info):
    assert records_of(info) == {}
    assert newest_record(records_of(info)) is None


def test_ranks_put_scans_without_a_score_last_whatever_their_record_holds():
    extreme, mild = {"score": 9.0, "p_value": 0.05, "threshold": 3.0}, {"score": 4.0, "p_value": 0.4, "threshold": 3.0}
    odd = [None, {}, {"error": "broken"}, {"score": None}, {"score": "9"}]
    assert all(anomaly_rank(extreme) < anomaly_rank(mild) < anomaly_rank(other) for other in odd)
