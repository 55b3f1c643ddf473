"""Which weights a training starts from, and which ones it may not."""

from dataclasses import replace

import pytest
import yaml

from monailabel_app.errors import InvalidSettings, TrainingFailed, UnknownModel
from monailabel_app.pipelines.site_options import SCRATCH, SiteOptions
from monailabel_app.pipelines.site_start import start_folder
from monailabel_app.pipelines.site_training import _on_this_machine, _unseen
from monailabel_app.training.privacy_settings import PrivacySettings
from monailabel_app.training.split import Split

PRIVATE = PrivacySettings()


@pytest.fixture
def app(tmp_path):
    """A shipped ddpm_t1, a version of it trained here that serves, and a model of another method."""
    for place, method in (
        ("model_weights/ddpm_t1", "ddpm"),
        ("model/ddpm_t1/versions/0001", "ddpm"),
        ("model_weights/other", "other_method"),
    ):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump({"kind": "anomaly", "method": method}))
    (tmp_path / "model/ddpm_t1/versions/0001/training.json").write_text("{}")
    (tmp_path / "model/ddpm_t1/CURRENT").write_text("0001\n")
    return tmp_path


def test_what_serves_is_started_from_and_scratch_is_nothing(app):
    assert start_folder(app, SiteOptions()) == app / "model/ddpm_t1/versions/0001"
    assert start_folder(app, SiteOptions(start_from=SCRATCH)) is None
    assert start_folder(app, SiteOptions(model_name="new")) is None
    assert start_folder(app, SiteOptions(start_from="ddpm_t1@shipped")) == app / "model_weights/ddpm_t1"


def test_a_method_that_is_computed_starts_from_nothing(app):
    folder = app / "model_weights" / "atlas_zscore_t1"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"kind": "anomaly", "method": "atlas_zscore"}))
    assert start_folder(app, SiteOptions(method="atlas_zscore")) is None
    with pytest.raises(InvalidSettings, match="computed from the scans"):
        start_folder(app, SiteOptions(method="atlas_zscore", start_from="atlas_zscore_t1@shipped"))


def test_a_private_training_starts_from_public_weights_only(app):
    assert start_folder(app, SiteOptions(privacy=PRIVATE)) == app / "model_weights/ddpm_t1"
    with pytest.raises(InvalidSettings, match="trained at this site"):
        start_folder(app, SiteOptions(privacy=PRIVATE, start_from="ddpm_t1@0001"))
    for options in (SiteOptions(privacy=PRIVATE, start_from=SCRATCH), SiteOptions(privacy=PRIVATE, model_name="new")):
        with pytest.raises(InvalidSettings, match="public weights"):
            start_folder(app, options)


@pytest.mark.parametrize("other", [{"levels": [44, 50]}, {"normalization": "median"}, {"bias_field": True}])
def test_a_private_training_keeps_no_thresholds_of_scans_prepared_in_another_way(app, other):
    folder = app / "model_weights" / "ddpm_other"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"kind": "anomaly", "method": "ddpm", **other}))
    with pytest.raises(InvalidSettings, match="another way"):
        start_folder(app, SiteOptions(privacy=PRIVATE, start_from="ddpm_other"))
    assert start_folder(app, SiteOptions(start_from="ddpm_other")) == folder


def test_another_method_and_a_model_that_is_not_there_are_refused(app):
    with pytest.raises(InvalidSettings, match="of other_method"):
        start_folder(app, SiteOptions(start_from="other"))
    with pytest.raises(UnknownModel):
        start_folder(app, SiteOptions(start_from="nothing"))


def test_a_resumed_run_keeps_its_plan_but_for_the_machine():
    planned = SiteOptions(minutes=600, promote="never", seed=3)
    resumed = _on_this_machine(planned, SiteOptions(minutes=60, promote="always", device="cpu", processes=2))
    assert resumed == replace(planned, device="cpu", processes=2)
    with pytest.raises(InvalidSettings, match="privacy"):
        _on_this_machine(planned, SiteOptions(privacy=PRIVATE))


def test_nobody_is_held_out_whom_the_start_weights_have_seen():
    patients = [f"p{number}" for number in range(12)]
    split = Split(tuple(range(6)), tuple(range(6, 12)))
    assert _unseen(split, patients, frozenset({"p6"})) == Split((0, 1, 2, 3, 4, 5, 6), (7, 8, 9, 10, 11))
    with pytest.raises(TrainingFailed, match="have not seen, got 4"):
        _unseen(split, patients, frozenset({"p6", "p7"}))
