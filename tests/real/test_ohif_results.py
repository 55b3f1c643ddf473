"""Stored results in OHIF's basic viewer: the segmentation, the map and the report are seen where the lesion is."""

import numpy as np
import pytest
import requests
from PIL import Image

from lib.archive_labels import write_label
from monailabel_app.calibration.bands import BANDS, COLOURS, LABELS
from monailabel_app.io import images
from tests.dicom_factory import PATIENT_NAME
from tests.dicom_results import small_series
from tests.real.ohif_viewer import (
    colours,
    go_to,
    numbered_segments,
    open_panel,
    open_series,
    open_viewer,
    segments,
    series_kinds,
    written,
)
from tests.real.phantom import mask_points_lps

pytestmark = [pytest.mark.browser, pytest.mark.orthanc, pytest.mark.slow]

MODEL = "cold_diffusion_t1"


@pytest.fixture(scope="module")
def stored(shipped_server, lesion_series):
    """A lesion's series with all three objects in the archive, and the result."""
    series = lesion_series("sagittal")
    query = {"image": series.series_uid, "output": "json"}
    result = shipped_server.infer(MODEL, params=query, timeout=900).json()
    body = {"model": MODEL}
    reply = requests.post(f"{shipped_server.url}/anomaly/dicom/{series.series_uid}", json=body, timeout=300)
    assert reply.status_code == 200, reply.text
    assert [item["object"] for item in reply.json()["stored"]] == ["segmentation", "parametric_map", "report"]
    return series, result


@pytest.fixture
def centre(lesion_mask):
    """Where the implanted lesion is, mm to L, P, S."""
    return mask_points_lps(lesion_mask).mean(axis=0)


def seen_at(ohif, point_lps) -> np.ndarray:
    """(r, g, b) in the picture at a point, over 5 by 5 pixels."""
    column, row = go_to(ohif, point_lps)
    (picture,) = ohif.drawn().values()
    return picture[row - 2 : row + 3, column - 2 : column + 3].reshape(-1, 3).astype(int).mean(axis=0)


def is_red(colour: np.ndarray) -> bool:
    """A scan is grey, so colour is what was laid over it."""
    return colour[0] > colour[1] + 30 and colour[0] > colour[2] + 30


def test_the_segmentation_lies_on_the_lesion_and_its_segments_are_named(
    ohif, shipped_server, stored, centre, screenshots
):
    series, result = stored
    open_viewer(ohif, shipped_server.url, series.study_uid)
    # One after the other, as their headers come in.
    ohif.wait(lambda: {"MR", "SEG", "PMAP", "SR"} <= set(series_kinds(ohif)), "all four kinds in the list of series")
    assert not is_red(seen_at(ohif, centre))
    open_series(ohif, "SEG")
    named = [f"anomaly {lesion['index']}: {lesion['region']}" for lesion in result["lesions"]]
    assert segments(ohif) == named
    assert ohif.wait(lambda: is_red(seen_at(ohif, centre)), "the segment on the lesion")
    panel = open_panel(ohif, len(named))
    Image.fromarray(ohif.picture()).save(screenshots / "ohif_seg.png")
    assert all(name in panel for name in named)


def test_the_map_is_drawn_in_the_window_of_its_file(ohif, shipped_server, stored, centre, screenshots):
    series, _ = stored
    open_viewer(ohif, shipped_server.url, series.study_uid)
    open_series(ohif, "PMAP")
    ohif.wait(lambda: is_red(seen_at(ohif, centre)), "the map on the lesion")
    Image.fromarray(ohif.picture()).save(screenshots / "ohif_map.png")
    # At the other side's mirror point nothing was implanted; OHIF's own window paints healthy brain, too.
    # It may still be the slice of before for a moment; where the map marks, it stays red.
    ohif.wait(lambda: not is_red(seen_at(ohif, centre * [-1, 1, 1])), "the other side without the map")


def test_the_report_is_written_beside_the_lesion(ohif, shipped_server, stored, screenshots):
    series, result = stored
    open_viewer(ohif, shipped_server.url, series.study_uid)
    open_series(ohif, "SR")
    largest = result["lesions"][0]
    place = np.array(largest["centroid_ras_mm"]) * [-1, -1, 1]
    wanted = f"Volume: {largest['volume_ml']:.2f} ml"
    ohif.wait(lambda: go_to(ohif, place) and wanted in written(ohif), f"{wanted!r} on the picture")
    Image.fromarray(ohif.picture()).save(screenshots / "ohif_report.png")


def test_the_monai_label_mode_still_works_beside_stored_results(ohif, shipped_server, stored):
    series, _ = stored
    ohif.open_study(shipped_server.url, series.study_uid)
    assert MODEL in ohif.connect()
    ohif.run(MODEL)
    assert ohif.label().mask.any()
    assert PATIENT_NAME not in shipped_server.log.read_text(errors="replace")


def test_bands_of_suspicion_are_three_labels_in_the_panel(ohif, shipped_server, stored, centre, screenshots):
    series, _ = stored
    ohif.open_study(shipped_server.url, series.study_uid)
    assert f"{MODEL}_bands" in ohif.connect()
    ohif.run(f"{MODEL}_bands")
    ohif.look_at(centre, (0, 0.8 * float(series.volume.data.max())))
    Image.fromarray(ohif.picture()).save(screenshots / "ohif_bands.png")
    label = ohif.label()
    bands = label.mask[label.mask > 0]
    names = numbered_segments(ohif)
    assert {names[value] for value in np.unique(bands)} == set(BANDS)
    # In the middle of a lesion of many healthy standard deviations is the highest band.
    nearest = np.linalg.norm(label.points_lps() - centre, axis=1).argmin()
    assert names[bands[nearest]] == BANDS[-1]


def test_the_map_is_also_shown_in_the_monai_label_mode(ohif, shipped_server, stored, centre, screenshots):
    series, _ = stored
    ohif.open_study(shipped_server.url, series.study_uid)
    open_series(ohif, "PMAP")

    def coloured() -> bool:
        views = ohif.look_at(centre, (0, 0.8 * float(series.volume.data.max())))
        drawn = ohif.drawn()
        # While one view takes another's place, not all are there.
        shown = {name: view for name, view in views.items() if name in drawn}
        seen = [drawn[name][round(view.y), round(view.x)].astype(int) for name, view in shown.items()]
        return any(is_red(colour) for colour in seen)

    try:
        ohif.wait(coloured, "the map on the lesion")
    finally:
        Image.fromarray(ohif.picture()).save(screenshots / "ohif_map_monai_label.png")


def test_bands_in_a_stored_segmentation_have_the_pages_colours(ohif, orthanc, shipped_server, tmp_path, screenshots):
    series = small_series(tmp_path / "series", seed=77)
    label = np.zeros(series.volume.shape, np.uint8)
    for value in LABELS.values():
        label[2 + 2 * value : 4 + 2 * value, 3:11, 2:8] = value
    images.write_labelmap(tmp_path / "label.nrrd", label, series.volume)
    named = [{"name": name, "idx": value} for name, value in LABELS.items()]
    path = write_label(tmp_path / "label.nrrd", tmp_path / "series", named, {"label_names": dict(LABELS)})
    orthanc.upload([*series.files, path])
    open_viewer(ohif, shipped_server.url, series.study_uid)
    open_series(ohif, "SEG")
    ohif.wait(lambda: len(colours(ohif)) == len(BANDS), "the colours of three segments")
    Image.fromarray(ohif.picture()).save(screenshots / "ohif_seg_bands.png")
    shown = colours(ohif)
    assert set(shown) == set(BANDS)
    for name, colour in COLOURS.items():
        np.testing.assert_allclose(shown[name][:3], colour, atol=2)
