"""The bias field is found, is smooth, and leaves the mean alone."""

import numpy as np

from monailabel_app.preprocessing.bias_field import n4_bias_field
from tests.monailabel_app.synthetic import Person, scan


def test_a_known_field_is_taken_out():
    volume, brain, _ = scan(Person(), noise=4.0)
    shape = volume.shape
    true = np.exp(0.35 * np.linspace(-1, 1, shape[1]))[None, :, None] * np.ones(shape)
    found = n4_bias_field(volume.data[0] * true.astype(np.float32), brain.mask, volume.spacing_mm)
    none = n4_bias_field(volume.data[0], brain.mask, volume.spacing_mm)
    assert found.shape == shape
    assert found.dtype == np.float32
    assert abs(found[brain.mask].mean() - 1) < 1e-4
    assert (found > 0).all()
    # What is left of the field after division, against the image without one.
    left = np.log(true * none / found)[brain.mask]
    assert left.std() < 0.35 * np.log(true)[brain.mask].std()
