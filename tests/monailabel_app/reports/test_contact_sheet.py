"""A sheet shows every slice the same way up and with the same greys, whatever is in it."""

import numpy as np

from monailabel_app.reports.contact_sheet import contact_sheet


def tile(sheet: np.ndarray) -> np.ndarray:
    """The one slice of a sheet with one row and one column: (2 Y, 2 X)."""
    return sheet[32:-4, 4:-4, 0]


def sheet_of(kind: str, values: np.ndarray) -> np.ndarray:
    return tile(contact_sheet([[(kind, values)]], ["column"], ["held-out 1"]))


def test_front_is_up_and_the_patients_right_is_on_the_left():
    values = np.zeros((6, 8), np.float32)
    values[5, 7] = 0.9  # x to the patient's right, y to the front
    shown = sheet_of("image", values)
    assert shown.shape == (16, 12)
    assert np.argwhere(shown == 255).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_a_residual_of_zero_is_mid_grey():
    assert set(np.unique(sheet_of("residual", np.zeros((6, 8))))) == {128}


def test_the_window_does_not_follow_the_picture():
    faint, strong = np.full((6, 8), 0.3), np.full((6, 8), 0.3)
    strong[0, 0] = 1.0
    assert sheet_of("image", faint)[0, 0] == sheet_of("image", strong)[0, 0]
    assert sheet_of("image", strong).max() == 255


def test_captions_and_columns_leave_the_slices_untouched():
    row = [("image", np.full((20, 30), 0.9)), ("residual", np.full((20, 30), 0.2))]
    sheet = contact_sheet([row, row], ["healthy", "residual"], ["held-out 1", "held-out 2"])
    assert sheet.dtype == np.uint8
    assert (sheet == 255).all(axis=2).sum() == 2 * 2 * 40 * 60
