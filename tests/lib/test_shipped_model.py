"""The whole way, nothing replaced: stock command, shipped weights, the client of 3D Slicer, the sample scan.

The scan carries an implanted lesion, and its mask is known.
"""

import nibabel as nib
import numpy as np
import pytest

from lib import catalogue
from monailabel_app.pipelines.shipped_models import DEFAULTS
from tests.server_fixture import ROOT, copy_studies, running_server

SHIPPED = list(catalogue.list_models(ROOT))

pytestmark = pytest.mark.skipif(not SHIPPED, reason="no trained model in model_weights/")


@pytest.fixture(scope="module")
def client(tmp_path_factory, studies_dir):
    from monailabel.client import MONAILabelClient

    folder = tmp_path_factory.mktemp("shipped")
    studies = copy_studies(studies_dir, folder / "studies")
    with running_server(studies, conf={"models": "all"}, cwd=folder) as server:
        yield MONAILabelClient(server.url, str(folder))


def infer(client, **options):
    model = next(name for name, info in client.info()["models"].items() if info["modality"] == "t1")
    file, result = client.infer(model, "ixi_lesion", options)
    return nib.load(file), result


def test_the_shipped_models_are_offered(client):
    offered = list(client.info()["models"])
    plain = offered[: len(SHIPPED)]
    assert sorted(plain) == sorted(SHIPPED)
    assert offered[len(SHIPPED) :] == [f"{name}_bands" for name in plain]
    assert offered[0] == DEFAULTS["t1"]


def test_from_scan_to_submitted_label(client, lesion_scan, lesion_mask):
    assert client.next_sample("first", {})["id"] == "ixi_healthy"
    # Another seed than anybody else's here: an analysis that is at hand has no seconds of its stages.
    label, result = infer(client, seed=20261)
    scan = nib.load(lesion_scan)
    assert label.shape == scan.shape
    np.testing.assert_allclose(label.affine, scan.affine, atol=1e-4)
    assert set(np.unique(np.asarray(label.dataobj))) <= {0, 1}
    assert 0 < result["p_value"] <= 1
    assert len(result["model"]["hash"]) == 64
    assert {"brain_extraction", "alignment", "reconstruction", "scoring"} <= set(result["seconds"])
    for lesion in result["lesions"]:
        assert lesion["volume_ml"] >= 0.1
        assert lesion["peak_score"] >= lesion["mean_score"] >= result["threshold"]

    client.save_label("ixi_lesion", label.get_filename(), "final", {"label_info": [{"name": "anomaly", "idx": 1}]})
    assert client.info()["datastore"]["completed"] == 1

    lesion = np.asarray(nib.load(lesion_mask).dataobj) > 0
    values = nib.load(client.download_label("ixi_lesion", "anomaly_map")).get_fdata()
    assert values[lesion].mean() > values[(values > 0) & ~lesion].mean()


def test_bands_need_no_second_run(client, lesion_scan):
    began = infer(client)[1]
    file, result = client.infer(f"{DEFAULTS['t1']}_bands", "ixi_lesion", {})
    assert "reconstruction" not in result["seconds"]
    assert result["anomaly_score"] == began["anomaly_score"]
    bands = nib.load(file)
    np.testing.assert_allclose(bands.affine, nib.load(lesion_scan).affine, atol=1e-4)
    assert set(np.unique(np.asarray(bands.dataobj))) == {0, 1, 2, 3}
    assert [band["value"] for band in result["bands"]] == sorted(band["value"] for band in result["bands"])


def test_the_reconstruction_is_kept_in_the_scans_own_grey_values(client, lesion_scan):
    infer(client)
    made = nib.load(client.download_label("ixi_lesion", "reconstruction")).get_fdata()
    scan = nib.load(lesion_scan).get_fdata()
    inside = made > 0
    assert inside.mean() > 0.05
    assert np.corrcoef(made[inside], scan[inside])[0, 1] > 0.8
    assert 0.8 < np.median(made[inside]) / np.median(scan[inside]) < 1.2


def test_another_operating_point_does_not_run_the_network_again(client):
    infer(client)
    _, sensitive = infer(client, operating_point="sensitive")
    _, specific = infer(client, operating_point="specific")
    assert "reconstruction" not in sensitive["seconds"]
    assert "reconstruction" not in specific["seconds"]
    assert sensitive["threshold"] < specific["threshold"]
    assert sensitive["anomaly_volume_ml"] >= specific["anomaly_volume_ml"]


def test_the_dark_lesion_is_marked_by_the_score_that_keeps_the_sign(client, lesion_mask):
    offered = next(iter(client.info()["models"].values()))["config"]["score"]
    if "signed" not in offered:
        pytest.skip("the shipped model has no signed score")
    label, _ = infer(client, score="signed")
    lesion = np.asarray(nib.load(lesion_mask).dataobj) > 0
    marked = np.asarray(label.dataobj) > 0
    assert (marked & lesion).sum() > 0.3 * lesion.sum()
