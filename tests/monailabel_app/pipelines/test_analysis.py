import numpy as np
import pytest

from monailabel_app.errors import InvalidSettings
from monailabel_app.pipelines.analysis import Evidence, examine
from monailabel_app.pipelines.predict import load_model

BRAIN = np.ones((8, 8, 8), dtype=bool)
IMAGE = np.full(BRAIN.shape, 0.5, dtype=np.float32)


def test_a_residual_of_a_method_without_reconstruction_is_refused_by_name():
    evidence = Evidence(IMAGE, BRAIN, maps={"surprise": IMAGE})
    np.testing.assert_array_equal(evidence.raw("surprise"), IMAGE)
    with pytest.raises(InvalidSettings, match=r"out of surprise, got 'signed'"):
        evidence.raw("signed")


def test_a_score_that_needs_several_reconstructions_is_refused_by_name():
    evidence = Evidence(IMAGE, BRAIN, reconstruction=IMAGE)
    assert (evidence.raw("signed") == 0).all()
    with pytest.raises(InvalidSettings, match="mahalanobis"):
        evidence.raw("mahalanobis")


def test_the_map_over_all_draws_is_made_only_where_its_score_is_wanted(make_model):
    made = make_model("ddpm")
    model, prepared = load_model(made.folder), made.healthy[0].prepared
    settings = {"seed": 0, "illumination_mm": model.illumination_mm}
    arguments = model.method, model.network, model.config, prepared.image[0], prepared.brain_mask
    asked = examine(*arguments, **settings)
    spared = examine(*arguments, **settings, scores=("signed", "l1"))
    assert "mahalanobis" in asked.maps
    assert "mahalanobis" not in spared.maps
    np.testing.assert_array_equal(asked.raw("signed"), spared.raw("signed"))
