import json
from dataclasses import replace

import numpy as np
import pytest

from monailabel_app.errors import CorruptModel
from monailabel_app.training.manifest import (
    MANIFEST,
    Ancestor,
    Manifest,
    config_digest,
    fingerprint,
    keyed_hash,
    made_here,
    record_scans,
)

KEY = bytes(range(32))
IDS = [(f"PATIENT-{i}", f"scan-{i}-t1w", f"{i:02x}" * 32) for i in range(6)]


def manifest(**changes) -> Manifest:
    made = Manifest(
        method="ddpm",
        modality="flair",
        site=fingerprint(KEY),
        train=record_scans(KEY, IDS[:4]),
        held_out=record_scans(KEY, IDS[4:]),
        preset="compact",
        config_digest=config_digest({"a": 1}),
        settings={"steps": np.int64(20), "minutes": float("inf"), "device": "cpu"},
        seed=3,
        contaminated=2,
        left_out={"not tagged as healthy": 5},
        privacy={"epsilon": 8.0, "delta": 1e-5, "mu": 1.9, "sigma": 0.8, "q": 0.1, "steps": 100},
        quality={"quality": 0.4, "healthy_fpr": float("nan")},
        versions={"torch": "2.13.0+cpu"},
        commit="abc",
        seconds=12.5,
        run="20260101-120000",
    )
    return replace(made, **changes)


def test_what_is_written_is_read_back(tmp_path):
    parent = Ancestor("ddpm_t1", "shipped", "f" * 64)
    written = manifest().started_from(parent, None)
    written.write(tmp_path)
    read = Manifest.read(tmp_path)
    assert read.train == tuple(sorted(written.train))
    assert read.held_out == tuple(sorted(written.held_out))
    assert read.start_from == parent
    assert read.privacy == written.privacy
    assert read.settings == {"steps": 20, "minutes": None, "device": "cpu"}
    assert read.quality == {"quality": 0.4, "healthy_fpr": None}
    assert read.date == written.date
    read.write(tmp_path)
    assert Manifest.read(tmp_path) == read


def test_the_same_manifest_is_the_same_file_whatever_the_order_of_scans(tmp_path):
    one = manifest(date="2026-01-01T00:00:00+00:00")
    one.write(tmp_path)
    text = (tmp_path / MANIFEST).read_text()
    replace(one, train=tuple(reversed(one.train))).write(tmp_path)
    assert (tmp_path / MANIFEST).read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


def test_no_plain_id_digest_or_path_is_in_the_file(tmp_path):
    made = manifest(
        settings={"run": "/data/PATIENT-1", "windows": "C:\\PATIENT-2", "nested": [{"x": "a/PATIENT-3"}]},
        left_out={"unreadable /data/PATIENT-1.nii.gz": 1, "cut off: /x/PATIENT-2": 2, "too small": 4},
        quality={"worst": "/data/PATIENT-5"},
        run="/srv/app/runs/PATIENT/20260101",
    )
    text = made.write(tmp_path).read_text()
    for patient, scan, digest in IDS:
        assert patient not in text
        assert scan not in text
        assert digest not in text
    assert "/" not in text
    assert "\\" not in text
    assert Manifest.read(tmp_path).left_out == {"other reasons": 3, "too small": 4}


def test_a_patients_role_is_told(tmp_path):
    child = manifest().started_from(Ancestor("m", "0001", "0" * 64), replace(manifest(), train=(), held_out=()))
    assert child.roles(keyed_hash(KEY, "patient", "PATIENT-0")) == ("training",)
    assert child.roles(keyed_hash(KEY, "patient", "PATIENT-5")) == ("held_out",)
    assert child.roles(keyed_hash(KEY, "patient", "PATIENT-9")) == ()


def test_lineage_and_earlier_patients_are_handed_down():
    shipped = Ancestor("ddpm_t1", "shipped", "a" * 64)
    first = manifest(train=record_scans(KEY, IDS[:1]), held_out=()).started_from(shipped, None)
    second = manifest(train=record_scans(KEY, IDS[1:2]), held_out=()).started_from(Ancestor("m", "0001", "b"), first)
    third = manifest(train=record_scans(KEY, IDS[2:3]), held_out=()).started_from(Ancestor("m", "0002", "c"), second)
    assert [parent.id for parent in (third.start_from, *third.ancestors)] == ["m@0002", "m@0001", "ddpm_t1@shipped"]
    assert third.roles(keyed_hash(KEY, "patient", "PATIENT-0")) == ("inherited",)
    assert third.roles(keyed_hash(KEY, "patient", "PATIENT-1")) == ("inherited",)


def test_thresholds_are_not_handed_down_but_weights_are():
    child = manifest(train=(), held_out=()).started_from(Ancestor("m", "0001", "b"), manifest())
    assert child.roles(keyed_hash(KEY, "patient", "PATIENT-0")) == ("inherited",)
    assert child.roles(keyed_hash(KEY, "patient", "PATIENT-5")) == ()


def test_counts_are_of_scans_and_of_patients(tmp_path):
    scans = [("P1", "s1", "00"), ("P1", "s2", "01"), ("P2", "s3", "02")]
    manifest(train=record_scans(KEY, scans)).write(tmp_path)
    counts = json.loads((tmp_path / MANIFEST).read_text())["counts"]
    assert counts == {"train_scans": 3, "train_patients": 2, "held_out_scans": 2, "held_out_patients": 2}


@pytest.mark.parametrize(
    "damage",
    [
        lambda payload: payload.pop("train"),
        lambda payload: payload["train"].pop(),
        lambda payload: payload["train"][0].update(patient="PATIENT-0"),
        lambda payload: payload["train"][0].pop("scan"),
        lambda payload: payload.update(format=99),
        lambda payload: payload.update(train=None),
        lambda payload: payload.update(unknown=1),
        lambda payload: payload.update(start_from="m"),
        lambda payload: payload.update(inherited=[3]),
    ],
)
def test_a_damaged_manifest_is_refused_by_name(tmp_path, damage):
    manifest().write(tmp_path)
    payload = json.loads((tmp_path / MANIFEST).read_text())
    damage(payload)
    (tmp_path / MANIFEST).write_text(json.dumps(payload))
    with pytest.raises(CorruptModel, match=r"training\.json"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\x00"])
def test_a_file_that_is_no_manifest_is_refused_by_name(tmp_path, content):
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(CorruptModel, match=r"training\.json"):
        Manifest.read(tmp_path)


def test_a_folder_without_manifest_is_refused(tmp_path):
    with pytest.raises(CorruptModel, match="found none"):
        Manifest.read(tmp_path)


def test_a_manifest_of_another_site_is_known_as_such():
    assert made_here(manifest(), KEY)
    assert not made_here(manifest(), bytes(32))
