"""OHIF in a real browser, on a real archive: the mask is where the lesion is, in every plane."""

import numpy as np
import pytest
import requests
from PIL import Image

from monailabel_app.io.images import read_volume
from tests.real.conftest import STAND_IN
from tests.real.ohif_driver import PLANES
from tests.real.phantom import SERIES, hook_points_lps, mask_points_lps, same_points, share_of, write_hook_series

pytestmark = [pytest.mark.browser, pytest.mark.orthanc]

# The patient's directions at the left and top border of each view, as radiologists have them.
RADIOLOGICAL = {
    "mpr-axial": {"left": "R", "top": "A"},
    "mpr-sagittal": {"left": "A", "top": "H"},
    "mpr-coronal": {"left": "R", "top": "H"},
}


def overlay(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(rows, columns) bool: where two pictures of one view differ."""
    return np.abs(before.astype(int) - after.astype(int)).max(axis=-1) > 10


def see(ohif, point_lps, window):
    """The three views through a point, without and with the segmentation, and where the point is in them."""
    views = ohif.look_at(point_lps, window)
    ohif.show_segmentation(False)
    before = ohif.drawn()
    ohif.show_segmentation(True)
    return views, before, ohif.drawn()


def test_panel_offers_the_server_it_came_from_and_takes_another_address(ohif, server, hook_series):
    ohif.open_study(server.url, hook_series("axial").study_uid)
    assert ohif.server_url().rstrip("/") == server.url
    assert ohif.connect(server.url.replace("127.0.0.1", "localhost") + "/") == [STAND_IN, f"{STAND_IN}_bands"]


@pytest.mark.parametrize("kind", SERIES)
def test_mask_lies_over_the_hook_in_all_three_planes(ohif, server, hook_series, screenshots, kind):
    series = hook_series(kind)
    truth = hook_points_lps(series)
    ohif.open_study(server.url, series.study_uid)
    ohif.connect()
    ohif.run(STAND_IN)

    assert same_points(ohif.label().points_lps(), truth)

    assert ohif.orientation_markers() == RADIOLOGICAL
    brightest = float(series.volume.data.max())
    # Through the bend of the hook all three planes cut two arms.
    bend = truth[np.argmin(np.linalg.norm(truth - hook_bend(truth), axis=1))]
    views, before, after = see(ohif, bend, (0, brightest))
    name = "_".join(kind.replace(",", "").split())
    Image.fromarray(ohif.picture()).save(screenshots / f"hook_{name}.png")
    for plane in PLANES:
        bright = before[plane].min(axis=-1) > 180
        drawn = overlay(before[plane], after[plane])
        both = (bright & drawn).sum()
        assert bright.sum() > 200, f"{plane}: the hook is not in the picture"
        assert 2 * both / (bright.sum() + drawn.sum()) > 0.85, f"{plane}: the mask is not over the hook"
        row, column = round(views[plane].y), round(views[plane].x)
        assert drawn[row, column], f"{plane}: the bend of the hook is not covered"
        assert mirrored_overlap(bright, drawn) < 0.8, f"{plane}: the picture would not show a mirrored mask"


def hook_bend(points_lps: np.ndarray) -> np.ndarray:
    """Where the arms meet: the hook's leftmost, rearmost, lowest part."""
    return np.array([points_lps[:, 0].max() - 4, points_lps[:, 1].max() - 4, points_lps[:, 2].min() + 2])


def mirrored_overlap(a: np.ndarray, b: np.ndarray) -> float:
    """The best Dice of ``a`` with ``b`` turned over left-right or up-down about the middle of ``a``."""
    best = 0.0
    rows, columns = np.nonzero(a)
    for axis, places in ((0, rows), (1, columns)):
        flipped = np.flip(b, axis)
        middle = (places.min() + places.max()) / 2
        flipped = np.roll(flipped, round(2 * middle - (b.shape[axis] - 1)), axis)
        best = max(best, 2 * (a & flipped).sum() / (a.sum() + flipped.sum()))
    return best


def test_options_of_the_panel_reach_the_analysis_and_an_empty_finding_is_no_error(ohif, server, hook_series):
    ohif.open_study(server.url, hook_series("axial").study_uid)
    ohif.connect()
    ohif.run(STAND_IN)
    ohif.choose_option(STAND_IN, "operating_point", "specific")
    ohif.start(STAND_IN)
    # A failed run would leave the first label in place.
    ohif.wait(lambda: not ohif.label().mask.any(), "the empty label")


def test_stored_segmentation_is_read_by_ohif_and_does_not_disturb_the_panel(
    ohif, orthanc, server, healthy_scan, tmp_path
):
    series = write_hook_series(tmp_path / "series", read_volume(healthy_scan), "sagittal", seed=900)
    orthanc.upload(series.files)
    query = {"image": series.series_uid, "output": "image"}
    answer = server.infer(STAND_IN, params=query, data={"params": '{"result_extension": ".nrrd"}'})
    reply = requests.put(
        f"{server.url}/datastore/label",
        params={"image": series.series_uid, "tag": "final"},
        files={"label": ("label.nrrd", answer.content)},
        timeout=300,
    )
    assert reply.status_code == 200, reply.text

    ohif.open_study(server.url, series.study_uid)
    stored = ohif.label(ohif.open_segmentation())
    assert same_points(stored.points_lps(), hook_points_lps(series))

    ohif.open_study(server.url, series.study_uid)
    ohif.connect()
    ohif.run(STAND_IN)
    assert same_points(ohif.label().points_lps(), hook_points_lps(series))


@pytest.mark.slow
@pytest.mark.parametrize("plane", ["axial", "sagittal"])
def test_shipped_model_marks_the_lesion_in_ohif(
    ohif, shipped_server, shipped_model, lesion_series, lesion_mask, screenshots, tmp_path, plane
):
    series = lesion_series(plane)
    truth = mask_points_lps(lesion_mask)
    ohif.open_study(shipped_server.url, series.study_uid)
    assert shipped_model in ohif.connect()
    ohif.run(shipped_model)
    label = ohif.label()
    centre = truth.mean(axis=0)
    views, before, after = see(ohif, centre, (0, 0.8 * float(series.volume.data.max())))
    Image.fromarray(ohif.picture()).save(screenshots / f"lesion_{plane}.png")

    answer = tmp_path / "label.nrrd"
    query = {"image": series.series_uid, "output": "image"}
    reply = shipped_server.infer(shipped_model, params=query, data={"params": '{"result_extension": ".nrrd"}'})
    answer.write_bytes(reply.content)
    assert same_points(label.points_lps(), mask_points_lps(answer))
    covered, right = share_of(truth, label.points_lps()), share_of(label.points_lps(), truth)
    assert covered > 0.5, f"only {covered:.0%} of the lesion is marked"
    assert right > 0.25, f"only {right:.0%} of the mask is lesion"
    for name in PLANES:
        drawn = overlay(before[name], after[name])
        row, column = round(views[name].y), round(views[name].x)
        assert drawn[row, column], f"{name}: the middle of the lesion is not covered"
