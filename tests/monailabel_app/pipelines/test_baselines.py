"""The baselines find what deviates, in either direction, and forget their training cache's order."""

import numpy as np
import pytest

from monailabel_app.errors import CorruptModel
from monailabel_app.pipelines.baselines import IntensityAtlas, atlas_z, smoothed_magnitude
from monailabel_app.preprocessing.pipeline import Preprocessor
from tests.monailabel_app.synthetic import person, scan, template, training_cache


@pytest.fixture(scope="module")
def atlas():
    return IntensityAtlas.fit(training_cache(range(6)))


def _prepared(contrast: float):
    volume, brain, lesion = scan(person(50), lesion_mm=(-12, 12, 6), contrast=contrast)
    return Preprocessor(template()).prepare(volume, brain=brain), lesion


@pytest.mark.parametrize("contrast", [-0.45, 0.45])
def test_a_lesion_of_either_sign_scores_above_the_rest(atlas, contrast):
    prepared, _ = _prepared(contrast)
    z = smoothed_magnitude(atlas_z(prepared, atlas), prepared, 3.0, erosion_mm=2.0)
    centre = np.linalg.inv(prepared.model_affine) @ [-12, 12, 6, 1]
    x, y, zed = np.round(centre[:3]).astype(int)
    assert z[x, y, zed] > np.percentile(z[prepared.brain_mask], 97)


def test_the_atlas_survives_its_file(atlas, tmp_path):
    atlas.save(tmp_path)
    loaded = IntensityAtlas.load(tmp_path)
    np.testing.assert_allclose(loaded.mean, atlas.mean, atol=1e-3)
    assert (loaded.std > 0).all()


def test_a_missing_atlas_is_named(tmp_path):
    with pytest.raises(CorruptModel, match=r"atlas\.safetensors"):
        IntensityAtlas.load(tmp_path)
