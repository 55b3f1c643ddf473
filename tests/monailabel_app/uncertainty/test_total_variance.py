"""The parts add up to the whole, and each names its own source."""

import numpy as np
import pytest

from monailabel_app.errors import InvalidSettings
from monailabel_app.uncertainty.total_variance import SOURCES, decompose, pooled_variance


def test_the_parts_add_up_to_the_variance_of_all_samples():
    samples = np.random.default_rng(0).normal(size=(5, 3, 4)) * 7 + 100
    found = decompose(samples)
    assert found.total == pytest.approx(samples.var(), abs=1e-9)
    assert sum(found.shares().values()) == pytest.approx(1, abs=1e-6)
    assert found.std == pytest.approx(samples.std())


@pytest.mark.parametrize(("axis", "source"), enumerate(SOURCES))
def test_what_varies_along_one_axis_only_is_blamed_on_its_source(axis, source):
    values = np.random.default_rng(axis).normal(size=4)
    samples = np.broadcast_to(np.expand_dims(values, [a for a in range(3) if a != axis]), (4, 4, 4))
    shares = decompose(samples).shares()
    assert shares[source] == pytest.approx(1)
    assert sum(shares[other] for other in SOURCES if other != source) == pytest.approx(0, abs=1e-12)


def test_additive_sources_get_their_own_variances():
    generator = np.random.default_rng(3)
    p, m, s = (generator.normal(size=n) * scale for n, scale in ((50, 3.0), (40, 2.0), (30, 1.0)))
    found = decompose(p[:, None, None] + m[None, :, None] + s)
    assert (found.preprocessing, found.model, found.noise) == pytest.approx((p.var(), m.var(), s.var()))


def test_nothing_that_varies_has_no_shares():
    found = decompose(np.full((2, 1, 2), 3.0))
    assert found.total == 0
    assert set(found.shares().values()) == {0.0}


def test_a_mixture_is_as_wide_as_its_parts_together():
    generator = np.random.default_rng(4)
    parts = [generator.normal(mean, std, size=200_000) for mean, std in ((0, 1), (3, 2))]
    made = pooled_variance(np.array([v.mean() for v in parts]), np.array([v.var() for v in parts]))
    assert made == pytest.approx(np.concatenate(parts).var(), rel=1e-9)


@pytest.mark.parametrize("samples", [np.zeros((2, 2)), np.zeros((0, 1, 1)), np.full((1, 1, 1), np.nan)])
def test_samples_that_are_no_grid_are_refused(samples):
    with pytest.raises(InvalidSettings, match="samples without NaN"):
        decompose(samples)
