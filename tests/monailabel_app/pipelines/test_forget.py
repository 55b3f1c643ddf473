import os
import shutil

import pytest

from monailabel_app.errors import TrainingFailed
from monailabel_app.pipelines.forget import forget
from monailabel_app.training import forgotten
from monailabel_app.training.forgotten import ForgottenList, is_forgotten, only_one
from monailabel_app.training.manifest import Ancestor, Manifest, fingerprint
from monailabel_app.training.monitor import Monitor
from monailabel_app.weights import versions
from monailabel_app.weights.model_folder import result_hash, seal, write_config
from monailabel_app.weights.version_layout import recorded_hash
from tests.monailabel_app.pipelines.site_factory import Site, digest, patient

TRAIN, HELD_OUT = tuple(range(1, 8)), tuple(range(8, 14))
EVERYBODY = (*TRAIN, *HELD_OUT)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """A thousand small files are written here; that they outlast a power cut is not what is shown."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path)
    made.prepare(EVERYBODY)
    return made


def patients(site, version) -> set[str]:
    return Manifest.read(version.folder if hasattr(version, "folder") else version).patients()


def serving_manifest(site, name) -> Manifest:
    return Manifest.read(versions.current(site.root, name))


def tree(root):
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
        if path.name != "site.key"
    }


def test_the_model_that_serves_is_replaced_by_one_without_the_patient(site):
    shipped = site.ship("ddpm_t1")
    site.publish("ddpm_t1", TRAIN, HELD_OUT, start=shipped, run="r1")
    site.run("ddpm_t1", "r1", TRAIN, HELD_OUT)
    removal = forget(site.root, patient(3), retrain=site.retrain)
    assert site.numbers("ddpm_t1") == ["0002"]
    assert site.serving("ddpm_t1") == "0002"
    manifest = serving_manifest(site, "ddpm_t1")
    assert {scan.patient for scan in manifest.train} == {site.hash_of(n) for n in TRAIN if n != 3}
    assert {scan.patient for scan in manifest.held_out} == {site.hash_of(n) for n in HELD_OUT}
    assert manifest.start_from.id == "ddpm_t1@shipped"
    assert not (site.root / "runs" / "ddpm_t1" / "r1").exists()
    assert site.prepared() == {digest(f"{n}") for n in EVERYBODY if n != 3}
    assert is_forgotten(site.root, patient(3))
    assert removal.state == "complete"
    assert removal.replaced == {"ddpm_t1": "0002"}
    assert removal.prepared == 1
    assert set(removal.removed) == {"ddpm_t1@0001", "run ddpm_t1/r1"}


def test_neither_id_nor_hash_of_the_prepared_scan_is_left_anywhere(site):
    site.publish("m", TRAIN, HELD_OUT, run="r1")
    site.run("m", "r1", TRAIN, HELD_OUT)
    kept = site.root / "cache" / "analyses" / ("a" * 64 + ".safetensors")
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"somebody's brain")
    forget(site.root, patient(3), retrain=site.retrain)
    assert not kept.exists()  # whose it is cannot be told
    text = site.text_of_all_files()
    assert patient(3) not in text
    assert digest("3") not in text
    assert digest("4") in text


def test_the_record_names_what_was_affected_and_what_replaced_it(site):
    first = site.publish("m", TRAIN, HELD_OUT, run="r1")
    forget(site.root, patient(3), retrain=site.retrain)
    (removal,) = ForgottenList(site.root).removals
    assert removal.patient == site.hash_of(3)
    assert removal.affected == [
        {"name": "m", "version": "0001", "hash": first.hash, "roles": ["training"], "run": "r1"}
    ]
    assert removal.completed >= removal.started > "2020"


def test_training_starts_from_the_last_version_that_never_saw_the_patient(site):
    shipped = site.ship("ddpm_t1")
    first = site.publish("m", TRAIN[1:], HELD_OUT, start=shipped)
    second = site.publish("m", TRAIN, HELD_OUT, start=first)
    site.publish("m", TRAIN, HELD_OUT, start=second)
    forget(site.root, patient(1), retrain=site.retrain)
    (item,) = site.trained
    assert item.start.id == "m@0001"
    assert item.parent == first.folder
    assert site.numbers("m") == ["0001", "0004"]


def test_it_starts_from_scratch_when_every_ancestor_saw_the_patient(site):
    first = site.publish("m", TRAIN, HELD_OUT)
    site.publish("m", TRAIN, HELD_OUT, start=first)
    forget(site.root, patient(1), retrain=site.retrain)
    assert site.trained[0].start is None
    assert site.trained[0].parent is None


def test_it_does_not_start_from_a_model_that_cannot_be_searched(site):
    flat = site.root / "model" / "byhand"
    site.fill(flat, None)
    site.publish("m", TRAIN, HELD_OUT, start=Ancestor("byhand", "", recorded_hash(flat)))
    forget(site.root, patient(1), retrain=site.retrain)
    assert site.trained[0].start is None


def test_descendants_under_other_names_are_replaced_too(site):
    first = site.publish("m", TRAIN, HELD_OUT)
    site.publish("n", TRAIN[1:], HELD_OUT, start=first)
    forget(site.root, patient(1), retrain=site.retrain)
    assert {item.name for item in site.trained} == {"m", "n"}
    for name in ("m", "n"):
        assert site.numbers(name) == ["0002"]
        assert site.hash_of(1) not in serving_manifest(site, name).patients()


def test_thresholds_alone_are_calibrated_anew_and_descendants_stay(site):
    first = site.publish("m", TRAIN, HELD_OUT)
    site.publish("n", TRAIN, HELD_OUT[1:], start=first)
    forget(site.root, patient(8), retrain=site.retrain)
    (item,) = site.trained
    assert item.name == "m"
    assert item.recalibrate
    assert {scan.record.patient for scan in item.held_out} == {site.hash_of(n) for n in HELD_OUT[1:]}
    assert site.numbers("n") == ["0001"]


def test_too_few_held_out_patients_are_filled_up_from_those_the_weights_have_not_seen(site):
    parent = site.publish("m", [1, 2], [])
    site.publish("m", TRAIN, HELD_OUT[:5], start=parent)
    forget(site.root, patient(8), retrain=site.retrain)
    (item,) = site.trained
    held_out = {scan.record.patient for scan in item.held_out}
    train = {scan.record.patient for scan in item.train}
    assert len(held_out) == 5
    assert {site.hash_of(1), site.hash_of(2)} <= train
    assert not held_out & train
    assert not item.recalibrate


def test_with_too_few_patients_left_the_model_is_kept_and_the_reason_is_told(site):
    site.publish("m", TRAIN[:5], HELD_OUT[:5])
    with pytest.raises(TrainingFailed, match="9 are left"):
        forget(site.root, patient(1), retrain=site.retrain)
    assert site.serving("m") == "0001"
    assert site.trained == []
    assert is_forgotten(site.root, patient(1))
    versions.remove_model(site.root, "m")
    assert forget(site.root, patient(1), retrain=site.retrain).state == "complete"


def test_versions_that_do_not_serve_are_removed_without_training(site):
    site.publish("m", TRAIN, HELD_OUT)
    site.publish("m", TRAIN[1:], HELD_OUT)
    forget(site.root, patient(1), retrain=None)
    assert site.numbers("m") == ["0002"]


def test_an_ensemble_of_a_removed_version_is_named(site):
    version, told = site.publish("ddpm_t1", TRAIN, HELD_OUT), []
    folder = site.root / "model" / "both"
    site.fill(folder, None)
    config = {"kind": "anomaly", "method": "ensemble", "config": {"hashes": [result_hash(version.folder)]}}
    write_config(folder, config)
    seal(folder)
    forget(site.root, patient(3), retrain=site.retrain, tell=told.append)
    assert [line for line in told if line.startswith("both: combines ddpm_t1@0001")]


def test_a_dry_run_changes_nothing_and_tells_what_would_be_done(site):
    site.ship("ddpm_t1")
    site.publish("ddpm_t1", TRAIN, HELD_OUT, start=site.ship("ddpm_t1"), run="r1")
    site.run("ddpm_t1", "r1", TRAIN, HELD_OUT)
    before = tree(site.root)
    text = "\n".join(forget(site.root, patient(3), retrain=None, dry_run=True).lines())
    assert tree(site.root) == before
    assert not is_forgotten(site.root, patient(3))
    assert "ddpm_t1@0001 (serving): trained on" in text
    assert "trained anew from ddpm_t1@shipped on 6 scans, calibrated on 6" in text
    assert "with --withdraw shipped serves meanwhile" in text
    assert "run ddpm_t1/r1" in text
    assert "ddpm_t1: shipped weights: trained on public data, see card" in text
    assert patient(3) not in text


def test_a_patient_in_no_model_is_excluded_all_the_same(site):
    site.publish("m", TRAIN, HELD_OUT)
    before = tree(site.root / "model" / "m")
    assert forget(site.root, "NEVER-SEEN", retrain=site.retrain).state == "complete"
    assert tree(site.root / "model" / "m") == before
    assert is_forgotten(site.root, "NEVER-SEEN")


def test_patients_forgotten_earlier_stay_out_of_later_replacements(site):
    site.publish("m", TRAIN, HELD_OUT)
    forget(site.root, patient(1), retrain=site.retrain)
    forget(site.root, patient(2), retrain=site.retrain)
    left = {site.hash_of(n) for n in EVERYBODY if n not in (1, 2)}
    assert serving_manifest(site, "m").patients() == left


def test_the_same_scan_under_another_id_goes_too(site):
    site.publish("m", TRAIN, HELD_OUT)
    site.publish("n", TRAIN, HELD_OUT, whose={1: "NEW-PSEUDONYM"})
    forget(site.root, patient(1), retrain=site.retrain)
    contents = {scan.content for scan in serving_manifest(site, "n").train}
    assert not contents & {record.content for record in site.records([1])}
    assert site.numbers("n") == ["0002"]


def test_missing_prepared_scans_are_counted_and_asked_for(site):
    site.publish("m", TRAIN, HELD_OUT)
    for n in (2, 9):
        (site.root / "cache" / "prepared" / f"{digest(f'{n}')}.safetensors").unlink()
    with pytest.raises(TrainingFailed, match=r"2 of 12 are gone.*--data FOLDER"):
        forget(site.root, patient(1), retrain=site.retrain)
    assert site.serving("m") == "0001"
    asked = []

    def recover(root, folder, wanted, modality):
        asked.append((folder.name, len(wanted), modality))
        return {record.content: digest(f"{n}") for n in (2, 9) for record in site.records([n])}

    forget(site.root, patient(1), retrain=site.retrain, data=site.root / "scans", recover=recover)
    assert asked == [("scans", 2, "t1")]
    assert all(scan.digest for scan in site.trained[0].train)
    assert site.serving("m") == "0002"


def test_a_damaged_prepared_scan_counts_as_gone(site):
    site.publish("m", TRAIN, HELD_OUT)
    (site.root / "cache" / "prepared" / f"{digest('2')}.safetensors").write_bytes(b"cut")
    with pytest.raises(TrainingFailed, match="1 of 12 are gone"):
        forget(site.root, patient(1), retrain=site.retrain)


def fail(root, item):
    raise TrainingFailed("expected a finite loss, got nan")


def test_when_training_fails_the_affected_version_is_kept_and_serves(site):
    site.publish("m", TRAIN[1:], HELD_OUT)
    site.publish("m", TRAIN, HELD_OUT)
    with pytest.raises(TrainingFailed, match="Still serving"):
        forget(site.root, patient(1), retrain=fail)
    assert site.serving("m") == "0002"
    assert ForgottenList(site.root).removals[0].failed == {"m": "expected a finite loss, got nan"}
    assert digest("1") not in site.prepared()
    assert forget(site.root, patient(1), retrain=site.retrain).state == "complete"
    assert site.numbers("m") == ["0001", "0003"]


@pytest.mark.parametrize("earlier", [True, False])
def test_with_withdraw_the_last_unaffected_version_serves_when_training_fails(site, earlier):
    site.ship("m")
    if earlier:
        site.publish("m", TRAIN[1:], HELD_OUT)
    site.publish("m", TRAIN, HELD_OUT)
    with pytest.raises(TrainingFailed) as error:
        forget(site.root, patient(1), retrain=fail, withdraw=True)
    assert "Still serving" not in str(error.value)
    assert site.serving("m") == ("0001" if earlier else "shipped")
    affected = "0002" if earlier else "0001"
    assert affected in site.numbers("m")
    forget(site.root, patient(1), retrain=site.retrain)
    assert affected not in site.numbers("m")
    assert site.serving("m") == ("0003" if earlier else "0002")


def test_withdrawal_comes_before_training(site):
    site.ship("m")
    site.publish("m", TRAIN, HELD_OUT)
    seen = []

    def retrain(root, item):
        seen.append(site.serving("m"))
        return site.retrain(root, item)

    forget(site.root, patient(1), retrain=retrain, withdraw=True)
    assert seen == ["shipped"]
    assert site.serving("m") == "0002"


def test_a_replacement_that_holds_the_patient_does_not_serve(site):
    site.publish("m", TRAIN, HELD_OUT)

    def retrain(root, item):
        return site.publish("m", TRAIN, HELD_OUT, promote=False)

    with pytest.raises(TrainingFailed, match="forgotten patients"):
        forget(site.root, patient(1), retrain=retrain)
    assert site.serving("m") == "0001"


def test_flat_folders_are_replaced(site):
    version = site.publish("m", TRAIN, HELD_OUT)
    flat = site.root / "model" / "flat"
    shutil.copytree(version.folder, flat)
    forget(site.root, patient(1), retrain=site.retrain)
    assert site.serving("flat") == "0002"
    assert site.numbers("flat") == ["0002"]
    assert not (flat / "training.json").exists()


def test_site_calibrations_outlive_a_flat_folder_beside_versions(site):
    version = site.publish("m", TRAIN[1:], HELD_OUT)
    home = version.folder.parent.parent
    records = site.records(TRAIN), site.records(HELD_OUT)
    site.fill(home, Manifest("ddpm", "t1", fingerprint(site.key), *records))
    kept = home / "site_calibrations"
    (kept / "2026-01-01-abcdef").mkdir(parents=True)
    for marker in ("USED-0001", "USED-flat"):
        (kept / marker).write_text("2026-01-01-abcdef")
    forget(site.root, patient(1), retrain=site.retrain)
    assert not (home / "config.yaml").exists()
    assert sorted(path.name for path in kept.iterdir()) == ["2026-01-01-abcdef", "USED-0001"]


def test_a_training_with_the_patient_must_be_stopped_first(site):
    run = site.run("m", "r1", TRAIN, HELD_OUT)
    monitor = Monitor(run, tensorboard=False)
    monitor.stage("preparing", 1, 2)
    with pytest.raises(TrainingFailed, match="stop it"):
        forget(site.root, patient(1), retrain=site.retrain)
    assert run.is_dir()
    assert is_forgotten(site.root, patient(1))
    monitor.failed("stopped")
    forget(site.root, patient(1), retrain=site.retrain)
    assert not run.exists()


def test_one_removal_at_a_time(site):
    with only_one(site.root), pytest.raises(TrainingFailed, match="no other"):
        forget(site.root, patient(1), retrain=site.retrain)


class Killed(BaseException):
    """The power cut."""


@pytest.mark.parametrize(("withdraw", "flat"), [(False, False), (True, True)])
def test_a_removal_killed_at_any_step_goes_on_and_ends_the_same(tmp_path, monkeypatch, withdraw, flat):
    """Dies before and after every write of the record, at every rename and removal; then runs once more."""
    plain_replace, plain_rmtree = forgotten.ForgottenList.save, shutil.rmtree
    step = 0
    while True:
        step += 1
        site = Site(tmp_path / f"{step}")
        site.prepare(EVERYBODY)
        site.ship("m")
        first = site.publish("m", TRAIN[1:], HELD_OUT)
        second = site.publish("m", TRAIN, HELD_OUT, start=first, run="r1")
        site.publish("n", TRAIN[1:], HELD_OUT, start=second)
        if flat:
            shutil.copytree(second.folder, site.root / "model" / "f")
        site.run("m", "r1", TRAIN, HELD_OUT)
        count = 0

        def tick():
            nonlocal count
            count += 1
            if count == step:  # noqa: B023 - called within this turn of the loop
                raise Killed

        def save(listed, tick=tick):
            tick()
            plain_replace(listed)
            tick()

        def rmtree(path, *args, tick=tick, **kwargs):
            tick()
            plain_rmtree(path, *args, **kwargs)

        def retrain(root, item, site=site, tick=tick):
            tick()
            made = site.retrain(root, item)
            tick()
            return made

        with monkeypatch.context() as patch:
            patch.setattr(forgotten.ForgottenList, "save", save)
            patch.setattr(shutil, "rmtree", rmtree)
            try:
                forget(site.root, patient(1), retrain=retrain, withdraw=withdraw)
                killed = False
            except Killed:
                killed = True
        removal = forget(site.root, patient(1), retrain=site.retrain)
        assert removal.state == "complete"
        assert removal.failed == {}
        names = ("m", "n", "f") if flat else ("m", "n")
        for name in names:
            manifest = serving_manifest(site, name)
            assert {scan.patient for scan in manifest.train} == {site.hash_of(n) for n in TRAIN[1:]}, (step, name)
            assert site.serving(name) != "shipped"
            for number in site.numbers(name):
                assert site.hash_of(1) not in Manifest.read(versions.locate(site.root, name, number)).patients()
        assert sorted(item.name for item in site.trained).count("m") == 1, step
        assert digest("1") not in site.prepared()
        assert not (site.root / "runs" / "m" / "r1").exists()
        assert patient(1) not in site.text_of_all_files()
        if not killed:
            break
    assert step > 15
