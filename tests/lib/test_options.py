import pytest

from lib import options
from monailabel_app.calibration.calibrated_map import SMOOTHING_MM
from monailabel_app.calibration.operating_points import POINTS
from monailabel_app.errors import InvalidSettings


def test_absent_empty_and_the_whole_list_mean_the_default():
    for value in (None, "", list(options.SMOOTHING), tuple(options.SMOOTHING)):
        assert options.pick("smoothing", value, options.SMOOTHING) == "standard"


def test_one_choice_is_read_whatever_its_case_and_packing():
    for value in ("strong", " Strong ", ["strong"]):
        assert options.pick("smoothing", value, options.SMOOTHING) == "strong"


@pytest.mark.parametrize("value", ["weak", 1, True, {"a": 1}, ["none", "strong"], float("nan")])
def test_anything_else_is_refused_with_the_choices(value):
    with pytest.raises(InvalidSettings, match="standard, none, strong"):
        options.pick("smoothing", value, options.SMOOTHING)


@pytest.mark.parametrize(
    ("value", "millilitres"),
    [(None, 0.1), ("0 ml", 0.0), ("0.03 ml", 0.03), ("0.5", 0.5), (2, 2.0), (1e-2, 0.01), (["1 ml"], 1.0)],
)
def test_volumes_are_read_with_and_without_unit(value, millilitres):
    assert options.pick_volume_ml("min_lesion_volume", value) == millilitres


@pytest.mark.parametrize("value", ["much", "-1", -0.5, "nan", "inf", "1e9", True, "1 l"])
def test_impossible_volumes_are_refused(value):
    with pytest.raises(InvalidSettings, match="min_lesion_volume"):
        options.pick_volume_ml("min_lesion_volume", value)


def test_read_gives_the_settings_of_a_prediction():
    values = options.read({"score": "l1", "seed": "7", "client_id": "x"}, ("ssim_ensemble", "l1"))
    assert values == {
        "operating_point": "balanced",
        "score": "l1",
        "smoothing": "standard",
        "min_volume_ml": 0.1,
        "seed": 7,
        "uncertainty": False,
        "gate": "warn",
        "calibration": "site",
    }

    assert options.read({"calibration": "shipped"}, ("l1",))["calibration"] == "shipped"
    assert options.read({"input_gate": "Refuse"}, ("l1",))["gate"] == "refuse"
    with pytest.raises(InvalidSettings, match="input_gate to be one of warn, refuse, off"):
        options.read({"input_gate": "maybe"}, ("l1",))


def test_the_choices_are_those_of_the_calibration():
    assert set(options.OPERATING_POINTS) == set(POINTS)
    assert set(options.SMOOTHING) == set(SMOOTHING_MM)


def test_viewers_get_strings_with_the_default_first():
    offered = options.for_viewers(("ssim_ensemble", "l1"))
    assert all(isinstance(choice, str) for choices in offered.values() for choice in choices)
    defaults = {name: choices[0] for name, choices in offered.items()}
    assert options.read(defaults, ("ssim_ensemble", "l1")) == options.read({}, ("ssim_ensemble", "l1"))
