"""The report of one scan: the finding's own numbers, nothing from elsewhere, nothing taken for HTML."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from monailabel_app.errors import InvalidSettings
from monailabel_app.pipelines import report_files
from monailabel_app.pipelines.report_files import Reporter, scans_of, write_report
from monailabel_app.pipelines.study_report import input_hash, study_report
from monailabel_app.reports.study_page import KEY_IMAGES
from tests.monailabel_app.study_factory import FALSE_ML, FLAT, REGION, SHAPE, study

MANY = [(x, y, z) for x in (4, 12, 20, 28) for y in (4, 14, 24, 34) for z in (4, 14)]


class Page(HTMLParser):
    """Tags with their attributes, and the text without style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.words, self._open = [], [], []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "br", "col", "img", "wbr"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))

    def named(self, tag, **wanted):
        found = [attributes for name, attributes in self.tags if name == tag]
        return [a for a in found if all(a.get(key) == value for key, value in wanted.items())]


def made(folder, *, review=None, image_id="scan-1", **options):
    volume, finding, model = study(folder, **options)
    report = study_report(volume, finding, model, image_id=image_id, review=review)
    return report, Page(report.html()), finding


def test_every_fact_of_the_finding_is_in_the_json_and_the_page_shows_it(tmp_path):
    report, page, finding = made(tmp_path)
    assert report.json()["finding"] == finding.to_json()
    assert json.loads(report.json_text()) == report.json()
    assert report.json()["schema_version"] == 1
    total = sum(lesion.volume_ml for lesion in finding.lesions)
    assert f"Marked volume{total:.1f} ml" in page.text
    assert "Anomaly score3.00" in page.text
    for lesion in finding.lesions:
        assert f"{lesion.peak_score:.2f}" in page.text
        assert f"{lesion.mean_score:.2f}" in page.text
    assert finding.model_hash in page.text
    assert report.json()["scan"]["sha256"] in page.text


def test_the_summary_says_how_many_healthy_scans_are_as_high(tmp_path):
    _, page, finding = made(tmp_path)
    total = sum(lesion.volume_ml for lesion in finding.lesions)
    as_much = sum(value >= total for value in FALSE_ML)
    assert "1 of 4 healthy scans of the calibration score as high or higher" in page.text
    assert f"{as_much} of 4 healthy scans have as much or more marked" in page.text


def test_nothing_is_fetched_and_no_script_is_there(tmp_path):
    report, page, _ = made(tmp_path)
    assert page.named("script") == []
    sources = [value for _, a in page.tags for key, value in a.items() if key in ("href", "src", "xlink:href")]
    assert sources
    assert all(value.startswith(("data:image/", "#")) for value in sources)
    assert "url(" not in report.html()
    assert "default-src 'none'" in page.named("meta")[1]["content"]


def test_a_picture_used_twice_is_embedded_once_and_found_by_its_id(tmp_path):
    _, page, _ = made(tmp_path)
    marks = [a["id"] for _, a in page.tags if "id" in a]
    assert len(marks) == len(set(marks))
    used = [a["href"].removeprefix("#") for a in page.named("use")]
    assert len(used) == 2 * 3
    assert set(used) <= set(marks)


def test_what_comes_from_outside_is_taken_as_text(tmp_path):
    evil = "</style><script>alert(1)</script>\"'\\"
    review = {"reader": evil, "comment": evil, "final": False, "rest": "undecided", "lesions": []}
    report, page, finding = made(tmp_path, image_id=evil, review=review, warnings=(evil,))
    assert page.named("script") == []
    assert page.named("b") == []
    assert page.text.count("<script>alert(1)</script>") >= 4
    assert REGION in page.text
    assert report.html().count("</style>") == 1
    assert "scan" in report.json()["warnings"][0]["about"]
    assert finding.warnings == (evil,)


def test_the_name_of_the_scan_stands_at_the_foot_of_every_printed_page(tmp_path):
    report, _, _ = made(tmp_path, image_id='a"b')
    foot = re.search(r"@bottom-left \{ content: \"(.*?)\";", report.html())[1]
    text = re.sub(r"\\([0-9a-f]+) ", lambda found: chr(int(found[1], 16)), foot)
    assert text == 'Scan a"b'
    assert "counter(page)" in report.html()


def test_an_empty_finding_says_so_and_what_could_have_been_missed(tmp_path):
    report, page, _ = made(tmp_path, corners=())
    assert "No region was marked" in page.text
    assert "What could have been missed" in page.text
    assert "The highest value of the map, which was not marked" in page.text
    assert report.json()["highest"]["value"] == pytest.approx(0.3)
    assert page.named("tbody")[1:] == []  # no table of regions: at most that of the model's measurements


def test_of_many_regions_all_are_in_the_table_and_the_highest_have_pictures(tmp_path):
    values = [3.0 + 0.01 * (i * 7 % len(MANY)) for i in range(len(MANY))]
    report, page, finding = made(tmp_path, corners=MANY, values=values)
    assert len(finding.lesions) == len(MANY)
    # Region tables are the only ones whose rows are numbered.
    rows = re.findall(r'<tr><th scope="row">(\d+)</th>', report.html())
    assert [int(row) for row in rows] == list(range(1, len(MANY) + 1))
    shown = [int(n) for n in re.findall(r"<h3>(\d+)\. ", report.html())]
    highest = sorted(finding.lesions, key=lambda lesion: -lesion.peak_score)[:KEY_IMAGES]
    assert shown == sorted(lesion.index for lesion in highest)
    assert f"{len(MANY) - KEY_IMAGES} more with lower peaks" in page.text
    assert len(report.html()) < 3e6


def test_a_single_slice_is_shown_as_one_and_compared_in_slices_of_the_calibration(tmp_path):
    shape, corners = (60, 70, 1), ((20, 30, 0),)
    report, page, finding = made(tmp_path, corners=corners, shape=shape, affine=FLAT, false_volume_of="a slice of 2 mm")
    record = report.json()
    assert record["scan"]["slice"]
    assert record["healthy"]["scan_marked_ml"] == pytest.approx(finding.to_json()["anomaly_volume_ml"] * 2 / 5)
    assert "which is 0.03 ml in a slice of 2 mm" in page.text
    assert "Whole brain" not in page.text
    assert len(page.named("svg", **{"class": "tile"})) == 3
    assert "at L 9, P 4 mm" in page.text  # no place along the direction that a slice does not have


def test_a_method_without_reconstruction_has_two_pictures_per_plane(tmp_path):
    _, page, _ = made(tmp_path, reconstruction=False, corners=((8, 10, 10),))
    assert "This method makes no pseudo-healthy image" in page.text
    assert len(re.findall("pseudo-healthy", page.text)) == 1


def test_a_threshold_of_ones_own_promises_no_volume(tmp_path):
    report, page, _ = made(tmp_path, operating_point="custom")
    assert "How much it marks in a healthy scan was not measured" in page.text
    assert report.json()["healthy"]["marked_ml"] == []
    assert len(page.named("svg", **{"class": "chart"})) == 1


def test_decisions_belong_to_the_region_with_their_peak_or_around_their_voxel(tmp_path):
    _, found, _ = study(tmp_path)
    first, second = found.lesions
    inside = tuple(int(v) for v in np.argwhere(found.mask)[-1])
    assert inside != second.peak_voxel
    review = {
        "reader": "A",
        "comment": "",
        "final": True,
        "rest": "undecided",
        "lesions": [
            {"peak_voxel": list(first.peak_voxel), "decision": "accept", "comment": "new"},
            {"peak_voxel": list(inside), "decision": "reject", "comment": ""},
            {"peak_voxel": [0, 0, 0], "decision": "reject", "comment": "rim"},
            {"peak_voxel": [999, 0, 0], "decision": "reject", "comment": "of another grid"},
        ],
    }
    report, page, _ = made(tmp_path, review=review)
    assert [region["decision"] for region in report.json()["regions"]] == ["accept", "reject"]
    assert len(report.json()["review"]["elsewhere"]) == 2
    assert "1 accepted, 1 rejected" in page.text
    assert "rejected at voxel 0, 0, 0: rim" in page.text


def test_peaks_beyond_the_table_are_bounded_not_extrapolated(tmp_path):
    report, page, _ = made(tmp_path, values=(50.0, 3.0))
    first, second = report.json()["regions"]
    assert first["peak_beyond_table"]
    assert first["peak_healthy_share"] == 0.0001
    assert "< 0.01 %" in page.text
    assert 0.0001 < second["peak_healthy_share"] < 0.05


def test_the_hash_of_a_scan_is_of_voxels_and_place(tmp_path):
    volume, _, _ = study(tmp_path)
    assert input_hash(volume) == input_hash(replace(volume, name="another name"))
    assert input_hash(volume) != input_hash(replace(volume, affine=volume.affine + np.eye(4)))
    other = volume.data.copy()
    other[0, 0, 0, 0] += 1
    assert input_hash(volume) != input_hash(replace(volume, data=other))


def test_the_page_and_its_facts_are_written_beside_each_other(tmp_path):
    report, _, _ = made(tmp_path)
    write_report(tmp_path / "new" / "a.html", report)
    assert (tmp_path / "new/a.html").read_text() == report.html()
    assert json.loads((tmp_path / "new/a.json").read_text()) == report.json()
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.html", "a.json"]
    with pytest.raises(InvalidSettings, match=r"\.html"):
        write_report(tmp_path / "a.pdf", report)


def test_a_folder_of_scans_gives_names_that_are_safe_for_files(tmp_path):
    (tmp_path / "a b").mkdir()
    for name in ("x.nii.gz", "a b/x.nii.gz", "a_b_x.nrrd"):
        (tmp_path / name).write_bytes(b"1")
    found = scans_of(tmp_path)
    assert sorted(found) == ["a_b_x", "a_b_x_", "x"]
    assert scans_of(tmp_path / "x.nii.gz") is None


def test_the_reporter_calls_a_file_by_its_name_and_asks_for_pictures_only_for_a_report(tmp_path, monkeypatch):
    volume, finding, model = study(tmp_path)
    model.with_calibration = lambda wanted: model
    asked = []

    def predict(volume, model, settings, *, images, progress):
        asked.append(images)
        return finding

    monkeypatch.setattr(report_files, "read_volume", lambda path, **options: volume)
    monkeypatch.setattr(report_files, "predict", predict)
    scan = tmp_path / "sub-7.nii.gz"
    scan.write_bytes(b"1")
    settings = report_files.PredictSettings()
    reporter = Reporter(model, settings)
    reporter.analyse(scan)
    reporter.analyse(scan, tmp_path / "r.html")
    assert asked == [False, True]
    assert json.loads((tmp_path / "r.json").read_text())["scan"]["id"] == "sub-7"
    assert finding.mask.shape == SHAPE


def test_a_side_is_told_by_letters_only_where_the_origin_lies_in_the_brain(tmp_path):
    report, page, finding = made(tmp_path)
    assert report.json()["scan"]["origin_in_brain"]
    centre = finding.lesions[0].centroid_ras_mm
    assert f"{'L' if centre[0] < 0 else 'R'} {abs(centre[0]):.0f}, " in page.text
    corner = np.diag([-2.0, -2.0, 2.0, 1.0])  # all of the head is left of and behind this origin
    report, page, finding = made(tmp_path, affine=corner)
    assert not report.json()["scan"]["origin_in_brain"]
    centre = finding.lesions[0].centroid_ras_mm
    assert f"x {centre[0]:+.0f}, y {centre[1]:+.0f}, z {centre[2]:+.0f}" in page.text
    assert not re.search(r"\b[LP] \d+,", page.text)
