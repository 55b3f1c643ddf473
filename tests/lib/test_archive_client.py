"""Answers of an archive are read within limits, whatever it sends and says of its length."""

import gzip
import io
import json
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pydicom
import pytest

from lib import archive_client
from lib.archive_client import connect
from lib.archive_fetch import fetch_series, find_series, understood
from lib.errors import ArchiveUnreachable, UnknownImage
from monailabel_app.errors import UnreadableVolume
from monailabel_app.io import dicom_limits
from monailabel_app.io.dicom_seg import is_multi_frame, read_series_headers
from tests.dicom_results import small_series

UID = "1.2.3"


class _Archive(BaseHTTPRequestHandler):
    """Answers every question with ``server.answer``: a content type, and pieces that are sent without a length."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append(self.path)
        kind, packed, pieces = self.server.answer
        self.send_response(200)
        self.send_header("Content-Type", kind)
        if packed:
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for piece in pieces:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.server.hung_up = True
        self.close_connection = True

    do_POST = do_GET

    def log_message(self, *_):
        """Nothing."""


@pytest.fixture
def archive():
    with ThreadingHTTPServer(("127.0.0.1", 0), _Archive) as server:
        server.daemon_threads, server.asked, server.hung_up = True, [], False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        server.client = connect(f"http://127.0.0.1:{server.server_port}/dicom-web")
        yield server
        server.shutdown()


def parts(*objects):
    """A multipart answer."""
    body = b"".join(b"--x\r\nContent-Type: application/dicom\r\n\r\n" + item + b"\r\n" for item in objects)
    return 'multipart/related; type="application/dicom"; boundary=x', False, [body + b"--x--\r\n"]


def test_a_list_that_does_not_end_is_given_up_once(archive, monkeypatch):
    monkeypatch.setattr(archive_client, "LONGEST_LIST", 2**20)
    archive.answer = "application/dicom+json", False, (b"[" + b" " * 2**16 for _ in range(10**9))
    with pytest.raises(ArchiveUnreachable, match="at most 1 MiB"):
        find_series(archive.client, UID)
    assert len(archive.asked) == 1


def test_a_packed_list_counts_unpacked(archive, monkeypatch):
    monkeypatch.setattr(archive_client, "LONGEST_LIST", 2**20)
    archive.answer = "application/dicom+json", True, [gzip.compress(b"[" + b" " * 2**23 + b"]")]
    with pytest.raises(ArchiveUnreachable, match="at most 1 MiB"):
        find_series(archive.client, UID)


def test_a_series_may_be_as_long_as_an_upload(archive, tmp_path, monkeypatch):
    series = small_series(tmp_path / "series")
    archive.answer = parts(*(file.read_bytes() for file in series.files))
    uid = str(pydicom.dcmread(series.files[0], stop_before_pixels=True).SeriesInstanceUID)
    assert len(archive.client.retrieve_series(UID, uid)) == len(series.files)
    monkeypatch.setattr(archive_client.platform, "MONAI_LABEL_APP_CONF", {"max_upload_mb": "1"})
    archive.answer = parts(bytes(2**20))
    with pytest.raises(ArchiveUnreachable, match="max_upload_mb"):
        archive.client.retrieve_series(UID, UID)


def with_block(whole, block):
    """An object with more elements before the patient's name."""
    place = whole.index(struct.pack("<HH", 0x0010, 0x0010))
    return whole[:place] + block + whole[place:]


def many_elements(whole):
    block = b"".join(struct.pack("<HH2sH", 9, 0x1010 + n, b"SH", 2) + b"ab" for n in range(5000))
    return with_block(whole, block)


def nested(whole):
    opened = struct.pack("<HH2sHI", 8, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    return with_block(whole, opened * 5000)


def deflated(whole):
    data = pydicom.dcmread(io.BytesIO(whole))
    data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    data.save_as(packed := io.BytesIO())
    return packed.getvalue()


@pytest.mark.parametrize("bad", [many_elements, nested, deflated])
def test_an_object_of_too_many_elements_nested_too_deep_or_deflated_is_not_parsed(archive, tmp_path, monkeypatch, bad):
    monkeypatch.setattr(dicom_limits, "MAX_READS_OF_FRAMES", 10_000)
    whole = small_series(tmp_path / "series").files[0].read_bytes()
    archive.answer = parts(whole, bad(whole))
    with pytest.raises(UnreadableVolume, match="elements"):
        understood(lambda: list(archive.client.retrieve_series(UID, UID)))


def test_a_list_that_is_nested_too_deep_is_the_archives_fault(archive):
    archive.answer = "application/dicom+json", False, [b"[" * 10**6]
    with pytest.raises(ArchiveUnreachable, match="cannot be read"):
        find_series(archive.client, UID)


def test_an_endless_answer_to_a_stored_object_is_no_success(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(archive_client.platform, "MONAI_LABEL_APP_CONF", {"max_upload_mb": "1"})
    archive.answer = "application/dicom+json", False, [json.dumps({}).encode().ljust(2**21)]
    instance = pydicom.dcmread(io.BytesIO(small_series(tmp_path / "series").files[0].read_bytes()))
    with pytest.raises(ArchiveUnreachable, match="at most 1 MiB"):
        archive.client.store_instances([instance])


@pytest.mark.parametrize("bad", [many_elements, nested, deflated])
def test_the_same_holds_for_files_of_a_series(tmp_path, monkeypatch, bad):
    monkeypatch.setattr(dicom_limits, "MAX_READS_OF_FRAMES", 10_000)
    series = small_series(tmp_path / "series")
    series.files[0].write_bytes(bad(series.files[0].read_bytes()))
    assert len(read_series_headers(tmp_path / "series")) == len(series.files) - 1
    for file in series.files[1:]:
        file.unlink()
    assert not is_multi_frame(tmp_path / "series")
    with pytest.raises(UnreadableVolume):
        read_series_headers(tmp_path / "series")


def identified(whole, **values):
    """The same object under other identifiers."""
    data = pydicom.dcmread(io.BytesIO(whole))
    for name, value in values.items():
        setattr(data, name, value)
    data.save_as(changed := io.BytesIO())
    return changed.getvalue()


@pytest.mark.parametrize("name", ["../../beside", "", "1.2/3"])
def test_an_object_whose_identifier_leads_out_of_its_folder_is_not_written(archive, tmp_path, name):
    whole = small_series(tmp_path / "series").files[0].read_bytes()
    about = pydicom.dcmread(io.BytesIO(whole), stop_before_pixels=True)
    archive.answer = parts(whole, identified(whole, SOPInstanceUID=name))
    before = sorted(tmp_path.rglob("*"))
    (cache := tmp_path / "cache" / "series").mkdir(parents=True)
    with pytest.raises(UnreadableVolume, match="identifier"):
        fetch_series(archive.client, about, cache / about.SeriesInstanceUID, by_frame=False)
    assert sorted(set(tmp_path.rglob("*")) - {cache, cache.parent}) == before


def test_objects_of_another_series_are_not_taken_for_those_of_the_one_asked_for(archive, tmp_path):
    whole = small_series(tmp_path / "series").files[0].read_bytes()
    about = pydicom.dcmread(io.BytesIO(whole), stop_before_pixels=True)
    archive.answer = parts(whole, identified(whole, SOPInstanceUID="1.2.9", SeriesInstanceUID="1.2.8"))
    with pytest.raises(UnreadableVolume, match="another series"):
        fetch_series(archive.client, about, tmp_path / str(about.SeriesInstanceUID), by_frame=False)
    assert not (tmp_path / str(about.SeriesInstanceUID)).exists()


@pytest.mark.parametrize("listed", [None, 3, {"00080005": {}}, "x"])
def test_a_list_that_is_none_is_the_archives_fault(archive, listed):
    archive.answer = "application/dicom+json", False, [json.dumps(listed).encode()]
    with pytest.raises((ArchiveUnreachable, UnknownImage)):
        find_series(archive.client, UID)


@pytest.mark.parametrize("number", [float("inf"), "many", [1, 2]])
def test_a_series_with_a_number_that_is_none_hides_no_other(archive, number):
    odd = {"0020000E": {"vr": "UI", "Value": ["1.2.9"]}, "00201209": {"vr": "IS", "Value": [number]}}
    good = {"0020000E": {"vr": "UI", "Value": [UID]}}
    archive.answer = "application/dicom+json", False, [json.dumps([odd, good]).encode()]
    assert find_series(archive.client, UID).SeriesInstanceUID == UID


def test_a_count_of_objects_that_is_none_is_not_counted_on(archive, tmp_path):
    whole = small_series(tmp_path / "series").files[0].read_bytes()
    about = pydicom.dcmread(io.BytesIO(whole), stop_before_pixels=True)
    about.add_new("NumberOfSeriesRelatedInstances", "LO", "many")
    archive.answer = parts(whole)
    folder = tmp_path / str(about.SeriesInstanceUID)
    fetch_series(archive.client, about, folder, by_frame=False)
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("header", [{"00080018": {"vr": "UI", "Value": ["../../x"]}}, {}, 3])
def test_headers_of_frames_that_lead_out_are_refused_before_anything_is_written(archive, tmp_path, header):
    about = pydicom.Dataset()
    about.SeriesInstanceUID, about.StudyInstanceUID = UID, "1.2"
    archive.answer = "application/dicom+json", False, [json.dumps([header]).encode()]
    with pytest.raises(UnreadableVolume, match="identifier"):
        fetch_series(archive.client, about, tmp_path / UID, by_frame=True)
    assert list(tmp_path.iterdir()) == []
