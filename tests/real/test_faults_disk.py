"""Disks of a few megabytes that fill up, under a real server: a named refusal, nothing lost, and it goes on."""

import json

import pytest
import requests

from tests.real.faults import MODEL, Killable, count, few_models, filled, label, leftovers, scan, small_disk

pytestmark = pytest.mark.slow


@pytest.fixture
def app(tmp_path):
    (tmp_path / "app").mkdir()
    return few_models(tmp_path / "app", MODEL)


def refused_for_space(server, answer, folder):
    assert answer.status_code == 507, answer.text
    assert folder in server.detail(answer)
    assert "full" in server.detail(answer)


def test_a_full_studies_folder_refuses_by_name_keeps_what_was_there_and_works_again(app, tmp_path, lesion_scan):
    with small_disk(tmp_path / "studies", 12) as studies:
        scan(studies / "small.nii.gz", 1)
        (studies / "head.nii.gz").write_bytes(lesion_scan.read_bytes())
        with Killable(studies, app) as server:
            assert server.submit("small", label(tmp_path / "one.nii.gz", 11)).status_code == 200
            before = (studies / "datastore_v2.json").read_bytes()
            with filled(studies):
                for answer in (
                    server.submit("small", label(tmp_path / "two.nii.gz", 12)),
                    server.submit("small", label(tmp_path / "two.nii.gz", 12), tag="final_anna"),
                    server.upload("new", scan(tmp_path / "new.nii.gz", 2)),
                    server.upload("small", scan(tmp_path / "other.nii.gz", 3)),
                    requests.put(
                        f"{server.url}/datastore/image/info",
                        params={"image": "small"},
                        data={"info": json.dumps({"healthy": True, "note": "x" * 20000})},
                        timeout=60,
                    ),
                ):
                    refused_for_space(server, answer, "the studies folder")
                # An analysis does not need the folder: its map and record are not kept, which the result says.
                result = server.infer("head")
                assert result.status_code == 200, result.text
                assert any("could not be kept" in warning for warning in result.json()["warnings"])
                assert server.label("small").status_code == 200
                assert requests.get(f"{server.url}/info/", timeout=60).status_code == 200
            assert (studies / "datastore_v2.json").read_bytes() == before
            assert count(studies / "labels" / "final" / "small.nii.gz") == 11
            assert not leftovers(studies)
            assert set(server.images()) == {"small", "head"}

            assert server.submit("small", label(tmp_path / "two.nii.gz", 12)).status_code == 200
            assert server.upload("new", scan(tmp_path / "new.nii.gz", 2)).status_code == 200
            assert count(studies / "labels" / "final" / "small.nii.gz") == 12
            result = server.infer("head")
            assert not any("kept" in warning for warning in result.json()["warnings"])
            assert (studies / "labels" / "anomaly_map" / "head.nii.gz").is_file()


def test_a_disk_that_fills_up_in_the_middle_of_a_file_leaves_the_former_file(app, tmp_path):
    """Room for the first part of what is sent only."""
    with small_disk(tmp_path / "studies", 4) as studies:
        large = (96, 96, 96)
        scan(studies / "a.nii.gz", 1, large)
        with Killable(studies, app) as server:
            assert server.submit("a", label(tmp_path / "one.nii.gz", 11, large)).status_code == 200
            with filled(studies, leave_kb=200):
                refused_for_space(server, server.upload("b", scan(tmp_path / "b.nii.gz", 2, large)), "studies folder")
                refused_for_space(server, server.upload("a", scan(tmp_path / "c.nii.gz", 3, large)), "studies folder")
                assert server.submit("a", label(tmp_path / "two.nii.gz", 12, large)).status_code == 200
                assert not leftovers(studies)
            assert set(server.images()) == {"a"}
            assert count(studies / "labels" / "final" / "a.nii.gz") == 12


def test_a_full_temporary_folder_refuses_uploads_and_results_by_name_and_works_again(app, tmp_path, lesion_scan):
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "head.nii.gz").write_bytes(lesion_scan.read_bytes())
    with (
        small_disk(tmp_path / "small_tmp", 8) as temporary,
        Killable(tmp_path / "studies", app, env={"TMPDIR": str(temporary)}) as server,
    ):
        with filled(temporary):
            # Beyond a megabyte a form lies on the disk while it is read.
            refused_for_space(
                server, server.upload("new", scan(tmp_path / "new.nii.gz", 2, (96, 96, 96))), "temporary files"
            )
            refused_for_space(server, server.upload("new", scan(tmp_path / "new.nii.gz", 2)), "temporary files")
            refused_for_space(server, server.submit("head", label(tmp_path / "l.nii.gz", 1)), "temporary files")
            for extension in (".nrrd", ".nii.gz"):
                refused_for_space(server, server.infer("head", result_extension=extension), "temporary files")
            assert requests.get(f"{server.url}/info/", timeout=60).status_code == 200
        assert set(server.images()) == {"head"}
        assert server.infer("head").status_code == 200
        assert server.upload("new", scan(tmp_path / "new.nii.gz", 2, (96, 96, 96))).status_code == 200


def test_full_folders_of_the_app_cost_no_analysis_and_no_start(app, tmp_path, lesion_scan):
    """The caches, the logs and the folder of trained models, each full: the server starts, analyses and says so."""
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "head.nii.gz").write_bytes(lesion_scan.read_bytes())
    with small_disk(app / "cache", 1), small_disk(app / "model", 1), small_disk(app / "logs", 1):
        full = filled(app / "cache"), filled(app / "model"), filled(app / "logs")
        with full[0], full[1], full[2], Killable(tmp_path / "studies", app) as server:
            assert server.infer("head").status_code == 200
            assert requests.get(f"{server.url}/info/", timeout=60).status_code == 200
            assert server.submit("head", head_label(lesion_scan, tmp_path)).status_code == 200
        assert not leftovers(app / "cache", app / "model")


def head_label(head, tmp_path):
    import SimpleITK as sitk

    image = sitk.ReadImage(str(head))
    empty = sitk.Image(image.GetSize(), sitk.sitkUInt8)
    empty.CopyInformation(image)
    sitk.WriteImage(empty, str(tmp_path / "empty.nii.gz"))
    return tmp_path / "empty.nii.gz"
