"""No archive makes more of itself on the disk than was allowed, or writes anywhere else."""

import bz2
import gzip
import io
import tarfile
import tracemalloc
import zipfile

import pytest

from lib.errors import InvalidRequest, TooLarge
from lib.unpacking import UnpackLimits, entries_of, unpack

LIMITS = UnpackLimits(entries=10, total=2**20, ratio=50, small=2**16, depth=3)


def zipped(path, files, **kinds):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files:
            info = zipfile.ZipInfo(name)
            info.compress_type = kinds.get("packing", zipfile.ZIP_DEFLATED)
            info.external_attr = kinds.get("mode", 0o644) << 16
            archive.writestr(info, content)
    return path


def tarred(path, files, mode="w:gz", kind=tarfile.REGTYPE, form=tarfile.PAX_FORMAT):
    with tarfile.open(path, mode, format=form) as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = "/etc/passwd" if kind in {tarfile.SYMTYPE, tarfile.LNKTYPE} else ""
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(content))
    return path


SERIES = [("series/1.dcm", b"a" * 1000), ("series/2.dcm", b"b" * 700), ("notes.txt", b"")]


@pytest.mark.parametrize("write", [zipped, tarred])
def test_what_is_in_an_archive_comes_out(tmp_path, write):
    (tmp_path / "out").mkdir()
    paths = unpack(write(tmp_path / "archive", SERIES), tmp_path / "out", LIMITS)
    assert [(path.relative_to(tmp_path / "out").as_posix(), path.read_bytes()) for path in paths] == SERIES


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2"])
def test_long_names_of_both_kinds_of_tar_are_read(tmp_path, mode, form):
    name = "s" * 90 + "/" + "n" * 110 + ".dcm"
    archive = tarred(tmp_path / "archive", [(name, b"abc")], mode, form=form)
    assert [(entry.name, entry.size) for entry in entries_of(archive, LIMITS)] == [(name, 3)]


def test_names_that_are_not_plain_are_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    paths = unpack(zipped(tmp_path / "a.zip", [("MÜLLER^HANS\n.dcm", b"x")]), tmp_path / "out", LIMITS)
    assert [path.name for path in paths] == ["000000.dcm"]


def test_a_folder_whose_name_is_replaced_stays_one_folder_and_no_number_is_taken_twice(tmp_path):
    (tmp_path / "out").mkdir()
    files = [("MR#1/1.dcm", b"a"), ("MR#1/2.dcm", b"b"), ("000001", b"c"), ("x#", b"d"), ("\U00010400" * 100, b"e")]
    paths = unpack(zipped(tmp_path / "a.zip", files), tmp_path / "out", LIMITS)
    assert [path.read_bytes() for path in paths] == [content for _, content in files]
    assert [path.relative_to(tmp_path / "out").as_posix() for path in paths] == [
        "000000/1.dcm", "000000/2.dcm", "000001", "000002", "000003",
    ]  # fmt: skip


@pytest.mark.parametrize("write", [zipped, tarred])
@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a"), ("s/a", "s/a/b"), ("x#/1", "x#")])
def test_a_name_of_a_file_and_of_a_folder_is_refused_before_anything_is_written(tmp_path, write, names):
    (tmp_path / "out").mkdir()
    with pytest.raises(InvalidRequest, match="a file and of a folder"):
        unpack(write(tmp_path / "archive", [(name, b"x") for name in names]), tmp_path / "out", LIMITS)
    assert list((tmp_path / "out").iterdir()) == []


NAMES = ["../x", "a/../../x", "/etc/x", "a\\..\\x", "C:/x", "..", "a/b/c/d/x"]


@pytest.mark.parametrize("write", [zipped, tarred])
@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leads_out_is_refused_before_anything_is_written(tmp_path, write, name):
    (tmp_path / "out").mkdir()
    archive = write(tmp_path / "archive", [("good.dcm", b"x"), (name, b"x")])
    with pytest.raises(InvalidRequest):
        unpack(archive, tmp_path / "out", LIMITS)
    assert list((tmp_path / "out").iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"out", "archive"}


def test_links_and_devices_are_refused(tmp_path):
    for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)):
        with pytest.raises(InvalidRequest, match="link or a device"):
            entries_of(tarred(tmp_path / f"{number}.tar.gz", [("x", b"")], kind=kind), LIMITS)
    with pytest.raises(InvalidRequest, match="link or a device"):
        entries_of(zipped(tmp_path / "x.zip", [("x", b"/etc/passwd")], mode=0o120777), LIMITS)


@pytest.mark.parametrize("write", [zipped, tarred])
def test_too_much_is_refused_before_anything_is_written(tmp_path, write):
    (tmp_path / "out").mkdir()
    noise = bytes(range(256)) * 5000
    for name, files in {
        "too many": [(f"{n}.dcm", b"x") for n in range(11)],
        "too large": [("x.dcm", noise)],
        "packed too tight": [("x.dcm", b"\0" * 600_000)],
    }.items():
        with pytest.raises(TooLarge):
            unpack(write(tmp_path / name, files), tmp_path / "out", LIMITS)
        assert list((tmp_path / "out").iterdir()) == [], name


@pytest.mark.parametrize("write", [zipped, tarred])
def test_an_archive_in_an_archive_is_refused_but_a_packed_scan_is_not(tmp_path, write):
    assert entries_of(write(tmp_path / "scan", [("scan.nii.gz", b"x")]), LIMITS)[0].name == "scan.nii.gz"
    for name in ("inner.zip", "inner.tar.gz", "INNER.ZIP", "x.gz"):
        with pytest.raises(InvalidRequest, match="another archive in it"):
            entries_of(write(tmp_path / name, [(name, b"x")]), LIMITS)


def test_a_list_that_says_less_than_there_is_is_found_out(tmp_path):
    path = zipped(tmp_path / "x.zip", [("x.dcm", b"\0" * 600_000)])
    content = path.read_bytes().replace((600_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    path.write_bytes(content)
    (tmp_path / "out").mkdir()
    with pytest.raises(InvalidRequest):
        unpack(path, tmp_path / "out", LIMITS)


def test_overlapping_entries_and_the_same_name_twice_are_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = zipped(tmp_path / "x.zip", [("x.dcm", b"1"), ("x.dcm", b"2")])
    with pytest.raises(InvalidRequest, match="twice"):
        entries_of(path, LIMITS)


def test_a_name_of_gigabytes_is_not_read_into_memory(tmp_path):
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 2**28
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(header.tobuf() + b"\0" * 2**20))
    tracemalloc.start()
    with pytest.raises(TooLarge):
        entries_of(tmp_path / "x.tar.gz", UnpackLimits())
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    tracemalloc.stop()


def test_a_list_of_millions_of_files_is_not_read(tmp_path):
    end = b"PK\x05\x06" + b"\0" * 8 + (2**31).to_bytes(4, "little") + b"\0" * 6
    (tmp_path / "x.zip").write_bytes(b"PK\x03\x04" + b"\0" * 100 + end)
    with pytest.raises(TooLarge):
        entries_of(tmp_path / "x.zip", LIMITS)


def test_what_is_no_archive_is_refused(tmp_path):
    damaged = zipped(tmp_path / "d.zip", SERIES).read_bytes()
    for number, content in enumerate(
        (b"", b"PK no zip", b"x" * 2000, gzip.compress(b"x" * 2000), bz2.compress(b"y" * 600), damaged[:-30],
         b"\x1f\x8b\x08broken", tarred(tmp_path / "t.tar.gz", SERIES).read_bytes()[:80])
    ):  # fmt: skip
        (tmp_path / str(number)).write_bytes(content)
        with pytest.raises(InvalidRequest, match="archive"):
            entries_of(tmp_path / str(number), LIMITS)


def test_a_list_with_names_that_are_none_is_a_damaged_archive(tmp_path):
    named = zipped(tmp_path / "a.zip", [("é.dcm", b"x")]).read_bytes()
    # no UTF-8, though it says so; and no name at all
    (tmp_path / "b.zip").write_bytes(named.replace("é".encode(), b"\xff\xfe"))
    place = named.index(b"PK\x01\x02")
    (tmp_path / "c.zip").write_bytes(named[:place] + named[place:].replace("é.dcm".encode(), b"\0" * 6))
    for name in ("b.zip", "c.zip"):
        with pytest.raises(InvalidRequest):
            entries_of(tmp_path / name, LIMITS)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_size_below_zero_is_a_damaged_archive(tmp_path, kind):
    info = tarfile.TarInfo("x")
    info.type = kind
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = tarfile.itn(-1024, 12, tarfile.GNU_FORMAT)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "x.tar").write_bytes(bytes(header) + b"\0" * 1024)
    with pytest.raises(InvalidRequest, match="damaged"):
        entries_of(tmp_path / "x.tar", LIMITS)


def test_an_encrypted_archive_and_one_packed_by_lzma_are_refused(tmp_path):
    path = zipped(tmp_path / "x.zip", [("x.dcm", b"x" * 100)])
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    (tmp_path / "out").mkdir()
    with pytest.raises(InvalidRequest, match="password"):
        unpack(path, tmp_path / "out", LIMITS)
    with pytest.raises(InvalidRequest, match="packed in another way"):
        entries_of(zipped(tmp_path / "l.zip", [("x", b"x")], packing=zipfile.ZIP_LZMA), LIMITS)
