"""The values that travel: geometry of a volume, and JSON that no client chokes on."""

import json

import numpy as np
import pytest

from monailabel_app.types import Finding, Lesion, Volume, to_json


def test_spacing_and_voxel_volume_hold_for_oblique_and_sheared_grids():
    c, s = np.cos(0.4), np.sin(0.4)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([1.0, 2.0, 3.0])
    volume = Volume(np.zeros((1, 4, 5, 6), np.float32), affine)
    assert volume.shape == (4, 5, 6)
    assert volume.spacing_mm == pytest.approx((1, 2, 3))
    assert volume.voxel_volume_mm3 == pytest.approx(6)
    affine[:3, 1] += 0.5 * affine[:3, 0]
    assert Volume(volume.data, affine).voxel_volume_mm3 == pytest.approx(6)


def test_numpy_values_become_plain_ones():
    value = {
        1: np.float32(0.5),
        "n": np.int64(3),
        "yes": np.bool_(True),
        "array": np.arange(3),
        "nested": (np.float64(1.0), [None, "text"]),
    }
    plain = to_json(value)
    assert plain == {"1": 0.5, "n": 3, "yes": True, "array": [0, 1, 2], "nested": [1.0, [None, "text"]]}
    assert type(plain["yes"]) is bool
    assert type(plain["n"]) is int
    json.dumps(plain, allow_nan=False)


@pytest.mark.parametrize("value", [float("nan"), np.float32("inf"), np.array([-np.inf])])
def test_numbers_json_does_not_know_become_null(value):
    assert to_json(value) in (None, [None])


@pytest.mark.parametrize("value", [object(), b"bytes", 1j, Lesion(1, 1, (0, 0, 0), (0, 0, 0), 1, 1)])
def test_what_has_no_json_form_is_refused(value):
    with pytest.raises(TypeError, match=type(value).__name__):
        to_json({"inside": [value]})


def test_a_finding_is_told_without_its_arrays():
    shape = (2, 2, 2)
    lesion = Lesion(1, np.float64(0.5), (1.0, 2.0, 3.0), (0.0, 0.0, 0.0), 2.0, float("nan"), "left caudate")
    finding = Finding(
        mask=np.zeros(shape, np.uint8),
        anomaly_map=np.zeros(shape, np.float32),
        brain_mask=np.ones(shape, bool),
        affine=np.eye(4),
        lesions=(lesion, lesion),
        anomaly_score=np.float32(2.5),
        p_value=0.05,
        threshold=3.0,
        model_id="ddpm_t1",
        model_hash="ab",
        settings={"seed": np.int64(0), "score": "l1"},
        seconds={"alignment": 1.0},
        steps=({"step": "read", "shape": shape},),
        warnings=("a warning",),
    )
    told = finding.to_json()
    text = json.dumps(told, allow_nan=False)
    assert told["lesion_count"] == 2
    assert told["anomaly_volume_ml"] == 1.0
    assert told["lesions"][0]["peak_score"] is None
    assert told["lesions"][0]["region"] == "left caudate"
    assert told["preprocessing"] == [{"step": "read", "shape": [2, 2, 2]}]
    assert "not a medical device" in text
    assert "mask" not in told
