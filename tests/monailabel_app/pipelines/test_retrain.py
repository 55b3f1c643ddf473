"""Real, tiny trainings on synthetic brains: a patient is forgotten, and nothing of it is left in what serves."""

import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from monailabel_app.errors import TrainingFailed
from monailabel_app.pipelines import retrain as module
from monailabel_app.pipelines import site_training
from monailabel_app.pipelines.config_io import config_to_plain
from monailabel_app.pipelines.forget import forget
from monailabel_app.pipelines.forget_plan import PreparedScan, plan_removal
from monailabel_app.pipelines.predict import AnomalyModel
from monailabel_app.pipelines.prepared_cache import ScanSource, prepare_sources
from monailabel_app.pipelines.prepared_store import PreparedStore
from monailabel_app.pipelines.retrain import options_of, plan_of, recover, retrain
from monailabel_app.pipelines.site_options import SiteOptions
from monailabel_app.pipelines.site_scans import named_scans
from monailabel_app.pipelines.site_training import carry_out
from monailabel_app.pipelines.training_run import Plan, PlannedScan, run_plan
from monailabel_app.preprocessing.pipeline import Preprocessor
from monailabel_app.training.forgotten import ForgottenList
from monailabel_app.training.manifest import Ancestor, Manifest, fingerprint, keyed_hash, site_key
from monailabel_app.training.privacy_settings import PrivacySettings
from monailabel_app.types import BrainMask
from monailabel_app.weights import versions
from monailabel_app.weights.model_folder import open_model_folder
from tests.monailabel_app.synthetic import TINY, person, save_template, scan, template

TRAIN, HELD_OUT = range(6), range(6, 12)
OPTIONS = SiteOptions(
    model_name="mine",
    preset="tiny",
    steps=6,
    minutes=math.inf,
    batch_size=4,
    start_from="scratch",
    promote="always",
    device="cpu",
)


def patient(number) -> str:
    return f"PATIENT-{number:02d}"


def digest(number) -> str:
    return f"{number:064x}"


def planned(root, numbers) -> tuple[PlannedScan, ...]:
    """In the order of a manifest, which is also that of a replacement: the order decides which slices are drawn."""
    key = site_key(root)
    scans = [
        PlannedScan(keyed_hash(key, "patient", patient(n)), keyed_hash(key, "scan", f"s{n}"), digest(n))
        for n in numbers
    ]
    return tuple(sorted(scans, key=lambda scan: scan.patient))


def plan_for(train, held_out, root, start=None) -> Plan:
    ancestor = Ancestor(start.name, start.version, start.hash) if start else None
    folder = str(start.folder.relative_to(root)) if start else ""
    return Plan(OPTIONS, config_to_plain(TINY["ddpm"]), planned(root, train), planned(root, held_out), ancestor, folder)


def train(root, run, train, held_out, start=None):
    """A training as the server would do it, on prepared scans."""
    ancestor = Ancestor(start.name, start.version, start.hash) if start else None
    folder = str(start.folder.relative_to(root)) if start else ""
    plan = Plan(OPTIONS, config_to_plain(TINY["ddpm"]), planned(root, train), planned(root, held_out), ancestor, folder)
    run_folder = root / "runs" / "mine" / run
    plan.write(run_folder)
    carry_out(root, run_folder, plan)
    return versions.versions(root, "mine")[-1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An app folder with twelve prepared patients and two versions; patient 2 trained the second one only."""
    root = tmp_path_factory.mktemp("site")
    save_template(root / "model_weights")
    store, preprocessor = PreparedStore(root / "cache"), Preprocessor(template())
    for number in (*TRAIN, *HELD_OUT):
        volume, brain, _ = scan(person(number))
        store.write(digest(number), preprocessor.prepare(volume, brain=brain))
    first = train(root, "20260101-000000", [n for n in TRAIN if n != 2], HELD_OUT)
    train(root, "20260102-000000", TRAIN, HELD_OUT, first)
    return root


@pytest.fixture
def site(trained, tmp_path):
    """A copy of ``trained`` to work in."""
    return shutil.copytree(trained, tmp_path / "app")


def test_what_serves_afterwards_is_what_training_without_the_patient_gives(site):
    forget(site, patient(2), retrain=retrain)
    folder = versions.current(site, "mine")
    assert [version.version for version in versions.versions(site, "mine")] == ["0001", "0003"]
    assert folder.name == "0003"
    manifest = Manifest.read(folder)
    assert keyed_hash(site_key(site), "patient", patient(2)) not in manifest.patients()
    assert manifest.start_from.id == "mine@0001"
    assert manifest.left_out == {"to be forgotten": 1}
    assert not (site / "runs" / "mine" / "20260102-000000").exists()
    assert not PreparedStore(site / "cache").path(digest(2)).exists()

    first = versions.versions(site, "mine")[0]
    never_seen = plan_for([n for n in TRAIN if n != 2], HELD_OUT, site, first)
    never_seen.write(site / "runs" / "mine" / "again")
    state = run_plan(site, site / "runs" / "mine" / "again", resume=False, monitor=None)
    weights = open_model_folder(folder).weights()
    assert all(torch.equal(weights[name], state.ema[name].bfloat16().float()) for name in weights)
    assert AnomalyModel(folder).scores


def test_a_held_out_patient_changes_the_thresholds_and_not_the_weights(site):
    old = versions.current(site, "mine")
    before = AnomalyModel(old)
    weights = (old / "model.safetensors").read_bytes()
    forget(site, patient(7), retrain=retrain)
    new = versions.current(site, "mine")
    assert [version.version for version in versions.versions(site, "mine")] == ["0003"]
    assert (new / "model.safetensors").read_bytes() == weights
    after = AnomalyModel(new)
    score = before.scores[0]
    assert not np.array_equal(
        before.calibration.score(score).statistics.mean, after.calibration.score(score).statistics.mean
    )
    manifest = Manifest.read(new)
    assert len(manifest.held_out) == 5
    assert keyed_hash(site_key(site), "patient", patient(7)) not in manifest.patients()
    assert manifest.quality["mean_ap"] >= 0
    assert "history" not in open_model_folder(new).config["training"]
    assert "5" in (new / "card.md").read_text()


def test_a_killed_training_goes_on_from_its_checkpoint(site, monkeypatch):
    def power_cut(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("monailabel_app.pipelines.site_training.publish_run", power_cut)
        with pytest.raises(KeyboardInterrupt):
            forget(site, patient(2), retrain=retrain)
    assert versions.serving_version(site, "mine") == "0002"
    runs = {path.name for path in (site / "runs" / "mine").iterdir()}
    forget(site, patient(2), retrain=retrain)
    assert versions.serving_version(site, "mine") == "0003"
    assert {path.name for path in (site / "runs" / "mine").iterdir()} == runs - {"20260102-000000"}


def test_the_plan_of_a_replacement_has_the_options_of_the_old_training(site):
    key = site_key(site)
    (item,) = plan_removal(site, keyed_hash(key, "patient", patient(2))).replacements
    plan = plan_of(site, item)
    assert plan.options == replace(OPTIONS, start_from="mine@0001")
    assert plan.start_folder == "model/mine/versions/0001"
    assert {scan.digest for scan in plan.train} == {digest(n) for n in TRAIN if n != 2}
    assert {scan.digest for scan in plan.held_out} == {digest(n) for n in HELD_OUT}


def test_a_privacy_budget_is_read_back_from_the_manifest():
    manifest = Manifest(
        "ddpm",
        "t1",
        fingerprint(bytes(32)),
        (),
        (),
        settings={**SiteOptions(promote="never").to_json(), "privacy": None, "steps_done": 3},
        privacy={"epsilon": 7.9, "epsilon_target": 8.0, "delta": 1e-5, "trainable": "last", "mu": 1.2, "sigma": 0.9},
    )
    assert options_of(manifest).privacy == PrivacySettings(8.0, 1e-5, trainable="last")


def test_settings_of_another_kind_are_a_named_error():
    manifest = Manifest("ddpm", "t1", "0" * 16, (), (), settings={"batch_size": None})
    with pytest.raises(TrainingFailed, match="options of the earlier training"):
        options_of(manifest)


@dataclass(frozen=True)
class WithMask(ScanSource):
    """A synthetic scan, too small for the brain extraction, with its mask in the next folder."""

    def read(self):
        mask = self.path.parent.with_name("masks") / self.path.name
        return ScanSource.read(self)[0], BrainMask(np.asarray(nib.load(mask).dataobj) > 0, "given")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of scans sub-0 to sub-10, prepared with the synthetic template."""
    extractor = tmp_path / "brain_extraction"
    for path in (extractor, tmp_path / "scans", tmp_path / "masks"):
        path.mkdir()
    for name in ("config.yaml", "model.safetensors"):
        (extractor / name).write_text("not needed for scans with a mask")
    for number in range(11):
        volume, brain, _ = scan(person(50 + number))
        nib.save(nib.Nifti1Image(volume.data[0], volume.affine), tmp_path / "scans" / f"sub-{number}.nii")
        nib.save(nib.Nifti1Image(brain.mask.astype(np.uint8), volume.affine), tmp_path / "masks" / f"sub-{number}.nii")
    options = {"template_folder": save_template(tmp_path), "extractor_folder": extractor, "workers": 0}

    def prepare(*arguments, **more):
        return prepare_sources(*arguments, **{**more, **options})

    for part in (module, site_training):
        monkeypatch.setattr(part, "ScanSource", WithMask)
        monkeypatch.setattr(part, "prepare_sources", prepare)
    return tmp_path / "scans"


def test_gone_entries_are_prepared_again_and_nothing_else_is_kept(tmp_path, folder):
    key = site_key(tmp_path)
    sources = [WithMask(path, path.stem, "") for path in sorted(Path(folder).iterdir())[:3]]
    digests = module.prepare_sources(sources, "t1", tmp_path / "elsewhere").digests

    def wanted(number, digest):
        plain = (patient(number), f"sub-{number}", digest)
        record = module.ScanRecord.of(key, *plain)
        return PreparedScan(record, "")

    # In the order of their names: sub-0, sub-1, sub-10.
    same, changed = wanted(1, digests[1]), wanted(10, "made by an earlier preparation")
    found = recover(tmp_path, folder, (same, changed), "t1")
    assert found == {same.record.content: digests[1], changed.record.scan: digests[2]}
    left = {path.stem for path in (tmp_path / "cache" / "prepared").glob("*.safetensors")}
    assert left == {digests[1], digests[2]}


def test_entries_that_were_there_before_a_recovery_stay(tmp_path, folder):
    sources = [WithMask(path, path.stem, "") for path in sorted(Path(folder).iterdir())[:1]]
    (kept,) = module.prepare_sources(sources, "t1", tmp_path / "cache").digests
    assert recover(tmp_path, folder, (), "t1") == {}
    assert {path.stem for path in (tmp_path / "cache" / "prepared").glob("*.safetensors")} == {kept}


def test_a_forgotten_patients_scan_that_comes_back_under_another_id_is_not_trained_on(tmp_path, folder):
    app = tmp_path / "app"
    key, scans = site_key(app), named_scans(folder)
    sources = [WithMask(scans[3].path, "s", "p")]
    (digest,) = site_training.prepare_sources(sources, "t1", app / "cache").digests
    listed = ForgottenList(app)
    listed.add(keyed_hash(key, "patient", "THE-PATIENT")).contents = [keyed_hash(key, "content", digest)]
    listed.save()
    made = site_training.train_site(app, scans, OPTIONS, plan_only=True)
    plan = Plan.read(made.run_folder)
    planned = {scan.digest for scan in (*plan.train, *plan.held_out)}
    assert len(planned) == 10
    assert digest not in planned
    assert plan.left_out == {"to be forgotten": 1}
    assert not PreparedStore(app / "cache").path(digest).exists()


def test_a_forgotten_patient_is_not_even_prepared(tmp_path, folder):
    app, scans = tmp_path / "app", named_scans(folder)
    ForgottenList(app).add(keyed_hash(site_key(app), "patient", scans[3].patient))
    made = site_training.train_site(app, scans, OPTIONS, plan_only=True)
    assert Plan.read(made.run_folder).left_out == {"to be forgotten": 1}
    assert len(list((app / "cache" / "prepared").glob("*.safetensors"))) == 10
