import numpy as np
import pytest

from monailabel_app.errors import InvalidSettings
from monailabel_app.pipelines.analysis import Evidence

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
