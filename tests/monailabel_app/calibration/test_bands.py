"""Bands of suspicion: edges from the healthy tails, nested, delineated and freed of specks as a mask is."""

from types import SimpleNamespace

import numpy as np
import pytest

from monailabel_app.calibration.bands import BAND_SHARES, BANDS, COLOURS, band_edges, band_map
from monailabel_app.calibration.tails import TAIL_SHARES, rarity, tail_table, value_of
from monailabel_app.errors import InvalidSettings
from monailabel_app.postprocessing.components import find_lesions
from monailabel_app.postprocessing.delineate import delineated
from monailabel_app.reports import overlay

SHAPE = (24, 20, 16)
SPACING = (2.0, 2.0, 2.0)


def calibrated_on(values):
    return SimpleNamespace(tails={"standard": tail_table(values)})


def blob(centre, peak, sigma):
    at = np.indices(SHAPE) - np.array(centre)[:, None, None, None]
    return (peak * np.exp(-(at**2).sum(axis=0) / (2 * sigma**2))).astype(np.float32)


def test_the_edges_are_what_these_shares_of_healthy_voxels_exceed():
    values = np.abs(np.random.default_rng(0).normal(size=(3, 200_000)))
    edges = band_edges(calibrated_on(list(values)), "standard")
    for edge, share in zip(edges, BAND_SHARES, strict=True):
        assert (values > edge).mean() == pytest.approx(share, rel=0.05)
    assert list(edges) == sorted(edges)


def test_a_calibration_without_tails_says_that_it_is_too_old():
    with pytest.raises(InvalidSettings, match="calibrate the model again"):
        band_edges(SimpleNamespace(tails={}), "standard")


def test_whatever_is_in_a_band_is_what_a_mask_at_the_lowest_edge_marks():
    made = blob((8, 9, 8), 12, 2.5) + blob((18, 5, 5), 4, 1.5)
    brain = np.ones(SHAPE, bool)
    brain[:4] = False
    edges = (2.0, 3.0, 6.0)
    bands = band_map(made, edges, SPACING, brain, 0.1)
    mask, lesions = find_lesions(
        delineated(made, SPACING), brain, np.diag([*SPACING, 1]), threshold=2.0, min_volume_mm3=100
    )
    assert len(lesions) == 2
    np.testing.assert_array_equal(bands > 0, mask > 0)
    for number, edge in enumerate(edges, start=1):
        np.testing.assert_array_equal(bands >= number, (mask > 0) & (made > edge))
    assert bands.dtype == np.uint8
    assert set(np.unique(bands)) == {0, 1, 2, 3}


def test_specks_are_dropped_and_a_small_core_within_a_large_region_stays():
    made = np.zeros(SHAPE, np.float32)
    made[3:9, 3:9, 3:9] = 2.5
    made[5, 5, 5] = 5.0
    made[20, 15, 12] = 5.0
    bands = band_map(made, (2.0, 3.0, 4.0), SPACING, np.ones(SHAPE, bool), 0.1)
    assert bands[5, 5, 5] == 3
    assert bands[3, 3, 3] == 1
    assert bands[20, 15, 12] == 0


def test_nothing_found_is_an_empty_map():
    assert not band_map(np.ones(SHAPE, np.float32), (2.0, 3.0, 4.0), SPACING, np.ones(SHAPE, bool)).any()


def test_equal_edges_give_the_higher_band():
    made = np.full(SHAPE, 3.0, np.float32)
    assert (band_map(made, (2.0, 2.0, 4.0), SPACING, np.ones(SHAPE, bool)) == 2).all()


def test_colours_differ_in_brightness_too():
    brightness = [np.dot((0.2126, 0.7152, 0.0722), np.array(COLOURS[name]) / 255) for name in BANDS]
    assert brightness[1] - brightness[0] > 0.15
    assert brightness[2] - brightness[1] > 0.15


def test_value_of_is_the_inverse_of_rarity_within_and_beyond_the_table():
    table = tail_table([np.abs(np.random.default_rng(1).normal(size=100_000))])
    values = np.array([0.3, 1.0, table[TAIL_SHARES.index(0.01)], table[-1], 9.0])
    found = [value_of(float(rare), table) for rare in rarity(values, table)]
    np.testing.assert_allclose(found, values, rtol=1e-5)


def test_a_band_has_the_colour_that_the_map_has_at_its_edge_in_reports():
    scale = dict(overlay.COLOURS)
    assert list(COLOURS.values()) == [scale[share] for share in BAND_SHARES]
