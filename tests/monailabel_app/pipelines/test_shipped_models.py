"""What the app ships: every model of the table is there, whole, calibrated, and says what the table says."""

import json
from pathlib import Path

import pytest

from monailabel_app.pipelines.predict import load_model
from monailabel_app.pipelines.shipped_models import DATA_SETS, DEFAULTS, SHIPPED
from monailabel_app.registry import METHODS
from monailabel_app.weights.listing import list_models

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_is_whole_and_as_the_table_has_it(name):
    shipped = SHIPPED[name]
    model = load_model(ROOT / "model_weights" / name)
    assert model.meta["method"] == shipped.method
    assert shipped.data in DATA_SETS
    assert name.endswith(f"_{model.modality}")
    if shipped.scores:
        assert model.scores == shipped.scores
    for key, value in shipped.config.items():
        assert model.meta[key] == value
    held_out = json.loads((ROOT / "model_weights" / name / "calibration.json").read_text())["healthy"]["patients"]
    assert held_out >= 20
    scores = model.config.scores if shipped.members else ()
    assert tuple((member.id, score) for member, score in zip(model.members, scores, strict=True)) == shipped.members


def test_every_method_is_shipped_for_some_sequence():
    assert {shipped.method for shipped in SHIPPED.values()} == set(METHODS)


def test_members_come_before_their_ensemble_so_that_a_rebuild_meets_them():
    names = list(SHIPPED)
    for name, shipped in SHIPPED.items():
        assert all(names.index(member) < names.index(name) for member, _ in shipped.members)


def test_defaults_are_shipped_models():
    assert set(DEFAULTS.values()) <= set(list_models(ROOT))
