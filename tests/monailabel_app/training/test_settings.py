"""Settings: refused where they make no sense, recorded where they make a run what it is."""

import json
import math
from dataclasses import replace

import pytest

from monailabel_app.errors import InvalidSettings
from monailabel_app.training.settings import TrainSettings, identity, same_run
from tests.monailabel_app.synthetic import TINY


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"batch_size": 0},
        {"minutes": -1},
        {"minutes": math.nan},
        {"max_epochs": 0},
        {"learning_rate": math.inf},
        {"ema": 1.0},
        {"lanes": 17},
        {"checkpoint_every": 0},
    ],
)
def test_senseless_settings_are_refused_by_name(wrong):
    with pytest.raises(InvalidSettings, match=next(iter(wrong))):
        TrainSettings(**wrong)


def test_a_run_is_recorded_in_plain_json():
    record = identity("ddpm", TINY["ddpm"], TrainSettings())
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_a_run_is_the_same_elsewhere_longer_and_in_more_lanes_but_not_with_another_seed():
    settings = TrainSettings()
    record = identity("ddpm", TINY["ddpm"], settings)
    moved = replace(settings, device="cuda", minutes=5, lanes=4, checkpoint_every=7)
    assert same_run(record, identity("ddpm", TINY["ddpm"], moved))
    for changed in ({"seed": 1}, {"max_epochs": 3.0}, {"batch_size": 8}):
        assert not same_run(record, identity("ddpm", TINY["ddpm"], replace(settings, **changed)))


def test_a_record_made_before_a_setting_existed_stands_for_its_default():
    record = identity("ddpm", TINY["ddpm"], TrainSettings())
    del record["settings"]["max_epochs"]
    assert same_run(record, identity("ddpm", TINY["ddpm"], TrainSettings()))
    assert not same_run(record, identity("ddpm", TINY["ddpm"], TrainSettings(max_epochs=2)))
