"""Numbers written as text are read piece by piece, each of them as it stands."""

import tracemalloc

import numpy as np
import pytest

from monailabel_app.errors import UnreadableVolume
from monailabel_app.io import stored
from monailabel_app.io.stored import Stored, read_stored


def read(folder, text, count, packing="ascii", dtype="<f4"):
    path = folder / "numbers"
    path.write_bytes(text)
    return read_stored(Stored(path, np.dtype(dtype), count, packing=packing))


@pytest.mark.parametrize("piece", [4, 20, 64, 2**20])
def test_numbers_are_whole_wherever_a_piece_ends(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(stored, "_PIECE", piece)
    wanted = np.random.default_rng(0).normal(0, 1e3, 200).astype(np.float32)
    for between in (" ", "\n", ", ", "\t\r\n"):
        text = between.join(repr(float(value)) for value in wanted)
        np.testing.assert_array_equal(read(tmp_path, text.encode(), 200), wanted)
    text = wanted.tobytes().hex().encode()
    np.testing.assert_array_equal(read(tmp_path, text, 200, "hex"), wanted)
    lines = b"\n".join(text[at : at + 7] for at in range(0, len(text), 7))
    np.testing.assert_array_equal(read(tmp_path, lines, 200, "hex"), wanted)


def test_a_number_with_many_digits_is_that_number(tmp_path):
    text = b"1" + b"0" * 50 + b"e-50 0." + b"0" * 60 + b"5e61 7"
    np.testing.assert_array_equal(read(tmp_path, text, 3), [1, 5, 7])


@pytest.mark.parametrize(
    ("text", "count", "why"),
    [
        (b"1 2", 3, "fewer"),
        (b"1 2 x", 3, "no number"),
        (b"1 2 " + b"3" * 5000, 3, "no number"),
        (b"1 2 3 " + b" " * (2 * 2**20), 3, "more"),
    ],
)
def test_what_is_not_so_many_numbers_is_refused(tmp_path, text, count, why):
    with pytest.raises(UnreadableVolume, match=why):
        read(tmp_path, text, count)


def test_text_takes_no_more_memory_than_other_voxels(tmp_path):
    count = 400_000
    (tmp_path / "numbers").write_bytes(b"1 " * count)
    asked = Stored(tmp_path / "numbers", np.dtype("u1"), count, packing="ascii")
    tracemalloc.start()
    try:
        assert read_stored(asked).sum() == count
        assert tracemalloc.get_traced_memory()[1] < 32 * count
    finally:
        tracemalloc.stop()
