import json

import pytest

from lib import catalogue
from lib.configs import METHODS
from monailabel_app import registry
from monailabel_app.errors import UnknownModel
from monailabel_app.registry import method_info
from monailabel_app.weights.model_folder import result_hash, seal
from monailabel_app.weights.site_calibrations import place
from monailabel_app.weights.version_layout import use_file


def add(app, name, text, parent="model_weights"):
    folder = app / parent / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(text)
    return folder


@pytest.fixture
def app(tmp_path):
    add(tmp_path, "ddpm_t1", "kind: anomaly\nmethod: ddpm\nmodality: t1\nscores: [a, b]\n")
    add(tmp_path, "brain", "kind: brain_extraction\n")
    add(tmp_path, "broken", "kind: [anomaly\n")
    add(tmp_path, "list", "- kind\n- anomaly\n")
    add(tmp_path, "mine", "kind: anomaly\nmethod: ddpm\n", parent="model")
    (tmp_path / "model_weights" / "notes").mkdir()
    (tmp_path / "model_weights" / "file.txt").write_text("x")
    return tmp_path


def test_only_anomaly_models_are_listed(app):
    assert list(catalogue.list_models(app)) == ["ddpm_t1", "mine"]


def test_a_trained_model_replaces_the_shipped_one_of_its_name(app):
    folder = add(app, "ddpm_t1", "kind: anomaly\nmethod: ddpm\nmodality: flair\n", parent="model")
    entry = catalogue.list_models(app)["ddpm_t1"]
    assert (entry.folder, entry.modality) == (folder, "flair")


def test_an_app_without_models_has_none(tmp_path):
    assert catalogue.list_models(tmp_path) == {}


@pytest.mark.parametrize("wanted", [None, "", "all", " all ", "mine,all"])
def test_all_is_the_default(app, wanted):
    assert list(catalogue.choose(catalogue.list_models(app), wanted)) == ["ddpm_t1", "mine"]


def test_names_are_taken_in_the_order_given(app):
    assert list(catalogue.choose(catalogue.list_models(app), "mine, ddpm_t1")) == ["mine", "ddpm_t1"]


def test_an_unknown_name_is_refused_with_the_known_ones(app):
    with pytest.raises(UnknownModel, match=r"'other'.*Available: ddpm_t1, mine"):
        catalogue.choose(catalogue.list_models(app), "mine,other")


def test_every_method_describes_its_models(app):
    entry = catalogue.list_models(app)["ddpm_t1"]
    for config in METHODS.values():
        text = config.describe(entry)
        assert "T1" in text
        assert "Research use only" in text
        assert config.scores_of(entry) == ("a", "b")


def test_the_scores_are_those_the_model_is_calibrated_for(app):
    config = METHODS["ddpm"]
    entry = catalogue.list_models(app)["mine"]
    assert config.scores_of(entry) == method_info("ddpm").scores
    (entry.folder / "calibration.json").write_text('{"scores": {"signed": {}, "l1": {}}}')
    assert config.scores_of(entry) == ("signed", "l1")


def test_every_registered_method_has_a_configuration():
    assert set(METHODS) == set(registry.METHODS)


def test_the_default_of_each_sequence_comes_first(app, monkeypatch):
    add(app, "another_t1", "kind: anomaly\nmethod: ddpm\n")
    monkeypatch.setattr(catalogue, "DEFAULTS", {"t1": "ddpm_t1", "flair": "not_here"})
    models = catalogue.list_models(app)
    assert next(iter(models)) == "another_t1"
    assert list(catalogue.choose(models, None)) == ["ddpm_t1", "another_t1", "mine"]
    assert list(catalogue.still_chosen(models, None)) == ["ddpm_t1", "another_t1", "mine"]
    assert list(catalogue.choose(models, "mine,ddpm_t1")) == ["mine", "ddpm_t1"]


def measured(folder, answer, **changed):
    sequence = {"modality": "t1", "answer": answer, "baselines": ["intensity"], "compared": ["intensity", "atlas"]}
    sequence |= {"set": "our_lesions", "patients": 20, "pooled_ap": 0.123}
    record = {"result_hash": result_hash(folder), "baseline": False, "sets": [{}], "sequences": [sequence], **changed}
    (folder / "measured.json").write_text(json.dumps(record))


def test_a_model_that_does_not_beat_a_baseline_says_so(app):
    entry = catalogue.list_models(app)["ddpm_t1"]
    (entry.folder / "model.safetensors").write_bytes(b"weights")
    seal(entry.folder)
    before = METHODS["ddpm"].describe(entry)
    assert "baseline" not in before
    measured(entry.folder, "no")
    said = METHODS["ddpm"].describe(entry)
    assert "T1: does NOT beat the intensity baseline (our_lesions: AP 0.12, 20 patients)." in said
    assert len(said) < len(before) + 100
    measured(entry.folder, "unclear")
    assert "not shown to beat" in METHODS["ddpm"].describe(entry)
    measured(entry.folder, "yes")
    assert METHODS["ddpm"].describe(entry) == before
    measured(entry.folder, "no", baseline=True)
    assert "A baseline that other models have to beat." in METHODS["ddpm"].describe(entry)


@pytest.mark.parametrize("record", ["{", "[]", '{"sets": [1]}', None])
def test_what_cannot_be_read_or_belongs_to_other_weights_is_not_said(app, record):
    entry = catalogue.list_models(app)["ddpm_t1"]
    (entry.folder / "model.safetensors").write_bytes(b"weights")
    seal(entry.folder)
    before = METHODS["ddpm"].describe(entry)
    measured(entry.folder, "no")
    if record is None:
        (entry.folder / "model.safetensors").write_bytes(b"others")
        seal(entry.folder)
    else:
        (entry.folder / "measured.json").write_text(record)
    assert METHODS["ddpm"].describe(entry) == before


def test_the_sites_own_calibration_is_named_while_it_is_used(app):
    entry = catalogue.list_models(app)["ddpm_t1"]
    assert "Thresholds: its own calibration." in METHODS["ddpm"].describe(entry)
    base, version = place(entry.folder)
    use_file(base, version).parent.mkdir(parents=True)
    use_file(base, version).write_text("2026-11-21-3fa2b1\n")
    assert "Thresholds: this site's calibration 2026-11-21-3fa2b1." in METHODS["ddpm"].describe(entry)


@pytest.mark.parametrize("wanted", [None, "", "all", "mine,all", "ddpm_t1, mine"])
def test_nothing_is_said_of_a_model_that_is_offered(wanted):
    assert catalogue.not_offered("mine", wanted) == ""


def test_who_publishes_a_model_that_is_not_in_the_list_is_told():
    assert "does not offer it: --conf models names ddpm_t1, other" in catalogue.not_offered("mine", "ddpm_t1,other")
