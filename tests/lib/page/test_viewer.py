"""The viewer in a real browser, judged by what is seen: pixels of the window and places of crosshair and tiles."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from .viewer_page import viewer_browser, viewer_missing

nibabel = pytest.importorskip("nibabel")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(viewer_missing() is not None, reason=str(viewer_missing())),
]

SHAPE = (60, 72, 48)
SPACING = (3.0, 3.0, 3.0)
AFFINE = np.diag([*SPACING, 1.0])
AFFINE[:3, 3] = [-88.5, -106.5, -70.5]
LESION = (-43.5, 1.5, 19.5)  # in the left hemisphere
EYE = (43.5, 61.5, -28.5)  # a bright spot right, in front, below: tells every direction
EDGES = [2.0, 3.0, 4.0]


def distance_from(point: tuple[float, float, float]) -> np.ndarray:
    """Of every voxel in mm."""
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1) @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    return np.linalg.norm(grid - np.asarray(point), axis=-1)


def packed(data: np.ndarray, affine: np.ndarray = AFFINE) -> bytes:
    return gzip.compress(nibabel.Nifti1Image(data, affine).to_bytes())


def flipped(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same image with its first axis to the left, its last two swapped, as another writer would store it."""
    affine = AFFINE @ np.array([[-1, 0, 0, SHAPE[0] - 1], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=float)
    return np.ascontiguousarray(data[::-1].transpose(0, 2, 1)), affine


BRAIN = (distance_from((0, 0, 0)) < 62).astype(np.uint8)
SCAN = (300 * (distance_from((0, 0, 0)) < 80) + 500 * (distance_from(EYE) < 9)).astype(np.int16)
MAP = (8 * np.clip(1 - distance_from(LESION) / 24, 0, 1)).astype(np.float32)  # 8 in the middle, 2 at 18 mm
HEALTHY = (600 * BRAIN).astype(np.float32)

STUDY = {
    "scan": "/images/scan",  # an address that tells nothing about the file
    "name": "study",
    "map": "/images/map.nii.gz",
    "reconstruction": "/images/healthy.nii.gz",
    "brain": "/images/brain.nii.gz",
    "window": [0, 800],
    "edges": EDGES,
    "threshold": 2.0,
}


@pytest.fixture(scope="module")
def open_window():
    turned, turned_affine = flipped(MAP)
    one = AFFINE.copy()
    one[2, 3] = LESION[2]
    level = round((LESION[2] - AFFINE[2, 3]) / SPACING[2])
    images = {
        "scan": packed(SCAN),
        "map.nii.gz": packed(MAP),
        "turned.nii.gz": packed(turned, turned_affine),
        "spread.nii.gz": packed(MAP / 4),
        "healthy.nii.gz": packed(HEALTHY),
        "brain.nii.gz": packed(BRAIN),
        "slice.nii.gz": packed(SCAN[:, :, [level]], one),
        "slice_map.nii.gz": packed(MAP[:, :, [level]], one),
        "cut.nii.gz": packed(MAP)[:2000],
        "words": b"<html>not an image at all, but long enough to be looked at as one: " + b"." * 400,
    }
    with viewer_browser(images) as opened:
        yield opened


@pytest.fixture
def window(open_window):
    opened = open_window()
    assert opened.load(**STUDY) == ""
    yield opened
    opened.page.context.close()


def coloured(picture: np.ndarray) -> np.ndarray:
    """Which pixels belong to the map, violet to yellow; the crosshair is cyan, and letters lie at the rim."""
    red, green = picture[..., 0], picture[..., 1]
    return (np.ptp(picture, axis=-1) > 40) & (red > green - 10)


def middle_of(seen: np.ndarray) -> tuple[float, float]:
    rows, columns = np.nonzero(seen)
    return float(rows.mean()) / seen.shape[0], float(columns.mean()) / seen.shape[1]


def inner(picture: np.ndarray, tile: tuple[slice, slice], rim: int = 26) -> np.ndarray:
    """A tile without the rim where letters stand."""
    return picture[tile][rim:-rim, rim:-rim]


def test_a_study_opens_under_the_pages_own_policy_without_a_complaint(window):
    window.call("setLayout", "all")
    window.compare("side")
    window.call("setLayer", "bands", True)
    assert window.console == []
    assert all("127.0.0.1" in address for address in window.requests)


def test_left_is_left(window):
    window.call("goTo", LESION)
    picture = window.picture()
    for plane in ("axial", "coronal"):
        assert middle_of(coloured(inner(picture, window.tile(plane))))[1] > 0.6  # radiological: left is right on screen
    window.call("setConvention", "neurological")
    picture = window.picture()
    for plane in ("axial", "coronal"):
        assert middle_of(coloured(inner(picture, window.tile(plane))))[1] < 0.4
    letters = window.page.locator(".av-scan .av-letter").all_inner_texts()
    assert letters[:4] == ["L", "R", "A", "P"]


def test_front_and_top_are_where_the_letters_say(window):
    window.call("setLayer", "none", True)
    window.call("goTo", EYE)
    picture = window.picture()
    bright = picture.min(-1) > 200
    axial = middle_of(inner(bright, window.tile("axial")))
    sagittal = middle_of(inner(bright, window.tile("sagittal")))
    assert axial[0] < 0.4
    assert axial[1] < 0.4
    assert sagittal[0] > 0.6
    assert sagittal[1] < 0.4
    assert window.page.locator(".av-scan .av-letter").all_inner_texts()[-4:] == ["A", "P", "S", "I"]


def test_the_threshold_hides_what_lies_below_it_without_asking_the_server(window):
    window.call("setLayout", "axial")
    window.call("setInterpolation", False)
    window.call("goTo", LESION)
    asked = len(window.requests)
    tile = window.tile("axial")
    level = MAP[:, :, round((LESION[2] - AFFINE[2, 3]) / SPACING[2])]
    thresholds = (1.1, 2.1, 4.1, 6.1)
    shown = []
    for threshold in (*thresholds, 8.5):
        window.call("setThreshold", threshold)
        shown.append(int(coloured(inner(window.picture(), tile)).sum()))
    assert shown.pop() == 0
    # As many voxels as exceed the threshold in the file; some are crossed by the hairlines.
    voxels = [int((level >= threshold).sum()) for threshold in thresholds]
    assert np.divide(shown, shown[0]) == pytest.approx(np.divide(voxels, voxels[0]), rel=0.1)
    assert len(window.requests) == asked


def test_a_colour_means_the_same_at_any_threshold(window):
    window.call("setLayout", "axial")
    window.call("setInterpolation", False)
    window.call("setOpacity", 1)
    window.call("goTo", LESION)
    tile = window.tile("axial")
    before = inner(window.picture(), tile)
    window.call("setThreshold", 4.0)
    after = inner(window.picture(), tile)
    kept = coloured(after)
    assert kept.sum() > 500
    assert (np.abs(before - after).max(-1) <= 2)[kept].mean() > 0.99


def test_bands_are_flat_colours(window):
    window.call("setLayout", "axial")
    window.call("setInterpolation", False)
    window.call("setOpacity", 1)
    window.call("goTo", LESION)
    window.call("setLayer", "bands", True)
    seen = inner(window.picture(), window.tile("axial"))
    colours, counts = np.unique(seen[coloured(seen)], axis=0, return_counts=True)
    flat = {tuple(int(v) for v in colour) for colour, count in zip(colours, counts, strict=True) if count > 100}
    assert flat == {(203, 65, 73), (249, 142, 9), (252, 243, 120)}


def test_jumping_to_a_lesion_goes_there_and_says_what_is_there(window):
    told = "() => { window.told = []; viewer.onMove((...given) => told.push(given)); }"
    window.page.evaluate(told)
    window.call("goTo", LESION)
    state = window.state()
    assert state["ras_mm"] == pytest.approx(LESION, abs=0.01)
    ras_mm, voxel, value, deviation = window.page.evaluate("() => told.at(-1)")
    assert ras_mm == pytest.approx(LESION, abs=0.01)
    assert voxel == [15, 36, 30]
    assert value == 300
    assert deviation == pytest.approx(8.0, abs=0.01)
    said = window.page.inner_text(".av-readout")
    assert "L 43.5" in said
    assert "A 1.5" in said
    assert "S 19.5" in said
    assert "8.00" in said


def test_a_click_a_wheel_and_a_right_drag_do_what_readers_expect(window):
    window.call("goTo", (1.5, 1.5, 1.5))
    rows, columns = window.tile("axial")
    mouse = window.page.mouse
    # Half-way between the middle and the left side of the screen: the patient's right.
    mouse.click(columns.start + (columns.stop - columns.start) / 4, (rows.start + rows.stop) / 2)
    window.drawn()
    x, _, z = window.state()["ras_mm"]
    assert x == pytest.approx(45, abs=4)
    assert z == pytest.approx(1.5, abs=0.01)
    mouse.wheel(0, 120)
    window.drawn()
    assert window.state()["ras_mm"][2] == pytest.approx(1.5 - SPACING[2], abs=0.01)
    lo, hi = window.state()["window"]
    mouse.down(button="right")
    mouse.move(columns.start + (columns.stop - columns.start) / 4 + 60, (rows.start + rows.stop) / 2)
    mouse.up(button="right")
    window.drawn()
    after = window.state()["window"]
    assert after[1] - after[0] > hi - lo
    assert window.state()["ras_mm"][0] == pytest.approx(x)


def test_side_by_side_shows_the_same_place_twice(window):
    window.compare("side")
    window.call("goTo", LESION)
    state = window.state()
    assert state["crosshair"]["scan"] == pytest.approx(state["crosshair"]["healthy"], abs=1e-4)
    rows, columns = window.tile("coronal", "healthy")
    window.page.mouse.click((columns.start + columns.stop) / 2 + 30, (rows.start + rows.stop) / 2 - 20)
    window.drawn()
    moved = window.state()["crosshair"]
    assert moved["scan"] == pytest.approx(moved["healthy"], abs=1e-4)
    assert moved["scan"] != pytest.approx(LESION, abs=1)
    # The reconstruction is brighter than the scan in the brain, and the scan is darkened outside.
    window.call("goTo", (1.5, 1.5, 1.5))
    picture = window.picture()
    scan, healthy = (inner(picture, window.tile("axial", side)) for side in ("scan", "healthy"))
    middle = tuple(slice(int(n * 0.38), int(n * 0.46)) for n in scan.shape[:2])
    assert np.median(healthy[middle]) > np.median(scan[middle]) + 50


def test_the_divider_is_dragged_and_moved_with_keys(window):
    window.call("setLayout", "axial")
    window.call("setLayer", "none", True)
    window.compare("swipe")
    window.call("goTo", (1.5, 1.5, -40.5))

    def parted_at() -> float:
        rows, _columns = window.tile("axial")
        picture = window.picture()
        row = picture[int(rows.start + (rows.stop - rows.start) * 0.4), :, 0]
        inside = np.nonzero(row > 0.25 * 255)[0]
        bright = inside[row[inside] > 0.6 * 255]  # 600 of 800: the pseudo-healthy image; the scan has 300
        return bright.min() / picture.shape[1] if len(bright) else 1.0

    assert parted_at() == pytest.approx(0.5, abs=0.02)
    box = window.page.locator(".av-divider").bounding_box()
    window.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    window.page.mouse.down()
    window.page.mouse.move(550, 300, steps=4)
    window.page.mouse.up()
    window.drawn()
    assert window.state()["swipe"] == pytest.approx(0.55, abs=0.01)
    assert parted_at() == pytest.approx(0.55, abs=0.02)
    for _ in range(4):
        window.page.keyboard.press("ArrowLeft")
    window.drawn()
    assert window.state()["swipe"] == pytest.approx(0.47, abs=0.01)
    assert parted_at() == pytest.approx(0.47, abs=0.02)


def test_a_map_in_another_orientation_lies_where_it_belongs(window):
    window.call("goTo", LESION)
    straight = window.picture()
    assert window.load(**{**STUDY, "map": "/images/turned.nii.gz", "name": "turned"}) == ""
    window.call("goTo", LESION)
    # Voxels that hit the threshold to the last digit may fall on either side.
    assert (np.abs(straight - window.picture()).max(-1) > 8).mean() < 2e-3


def test_the_lesion_shines_through_the_brain_in_3d(window):
    window.call("setLayout", "3d")
    without = window.picture()
    assert coloured(without).sum() > 200
    window.call("setLayer", "none", True)
    tile = window.tile("3d")
    assert not coloured(inner(window.picture(), tile)).any()
    assert inner(window.picture(), tile).max() > 40  # the brain itself


def test_one_slice_is_shown_large_in_every_layout(window):
    study = {**STUDY, "scan": "/images/slice.nii.gz", "map": "/images/slice_map.nii.gz", "name": "slice"}
    assert window.load(**{**study, "brain": "", "reconstruction": ""}) == ""
    window.call("goTo", LESION)
    for layout in ("planes", "3d", "all"):
        window.call("setLayout", layout)
        assert [tile["plane"] for tile in window.state()["tiles"]["scan"]] == ["axial"]
        assert coloured(inner(window.picture(), window.tile("axial"))).sum() > 500


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"scan": "/images/nothing"}, "404"),
        ({"map": "/images/cut.nii.gz"}, "damaged"),
        ({"scan": "/images/words"}, "neither NIfTI nor NRRD"),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_words(window, wrong, word):
    said = window.load(**{**STUDY, **wrong, "name": "wrong"})
    assert word in said
    assert window.load(**STUDY) == ""  # and the next study opens


def test_a_newer_study_overtakes_an_older_one(window):
    first, second = window.page.evaluate(
        "study => Promise.all([viewer.load({...study, name: 'a'}).catch((e) => e.name),"
        " viewer.load({...study, name: 'b'}).then(() => 'shown')])",
        STUDY,
    )
    assert (first, second) == ("Superseded", "shown")


def test_another_map_of_the_same_scan_keeps_the_place_and_fetches_the_map_only(window):
    window.call("goTo", LESION)
    window.call("setWindow", 100, 500)
    asked = len(window.requests)
    assert window.load(**{**STUDY, "map": "/images/turned.nii.gz"}) == ""
    state = window.state()
    assert state["ras_mm"] == pytest.approx(LESION, abs=0.01)
    assert state["window"] == [100, 500]
    assert not any(address.endswith("/images/scan") for address in window.requests[asked:])


def test_a_lost_context_is_said_and_comes_back(window):
    window.call("goTo", LESION)
    before = window.picture()
    window.page.evaluate(
        "() => { const gl = document.querySelector('.av-scan canvas').getContext('webgl2');"
        " window.lost = gl.getExtension('WEBGL_lose_context'); lost.loseContext(); }"
    )
    window.page.wait_for_selector(".av-message:not([hidden])")
    assert "graphics card" in window.page.inner_text(".av-message")
    window.page.evaluate("() => lost.restoreContext()")
    window.page.wait_for_selector(".av-message", state="hidden")
    window.page.wait_for_function("() => viewer.state().tiles.scan.length === 3")
    window.drawn()
    assert window.state()["ras_mm"] == pytest.approx(LESION, abs=0.01)
    assert np.abs(before - window.picture()).mean() < 1


def test_missing_webgl_is_said_in_words(open_window):
    window = open_window()
    window.page.evaluate("() => { HTMLCanvasElement.prototype.getContext = () => null; }")
    assert "WebGL" in window.load(**STUDY)
    window.page.context.close()


def test_two_fingers_zoom_and_one_leafs_through_the_slices(open_window):
    window = open_window((1024, 768), touch=True)
    assert window.load(**STUDY) == ""
    window.call("setLayout", "axial")
    window.call("goTo", (1.5, 1.5, 1.5))
    touch = window.page.context.new_cdp_session(window.page)

    def fingers(kind: str, *points: tuple[float, float]) -> None:
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in points]})

    fingers("touchStart", (480, 300))
    fingers("touchStart", (480, 300), (540, 300))
    for spread in (80, 110, 140):
        fingers("touchMove", (510 - spread / 2, 300), (510 + spread / 2, 300))
    fingers("touchEnd")
    window.drawn()
    assert 1.8 < window.state()["zoom"] < 3.0
    rows, columns = window.tile("axial")
    height = window.state()["ras_mm"][2]
    fingers("touchStart", (columns.stop - 8, (rows.start + rows.stop) / 2))
    fingers("touchMove", (columns.stop - 8, rows.start + 60))
    fingers("touchEnd")
    window.drawn()
    assert window.state()["ras_mm"][2] > height + 20
    window.page.context.close()


def test_closing_leaves_nothing_behind(window):
    window.compare("side")
    window.call("destroy")
    assert window.page.evaluate("() => document.getElementById('host').children.length") == 0
    assert window.console == []
