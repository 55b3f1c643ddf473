import json
import shutil

import pytest

from monailabel_app.pipelines.patient_search import versions_with_patient
from monailabel_app.training.manifest import Ancestor
from tests.monailabel_app.pipelines.site_factory import Site, digest, patient


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def roles(site, number):
    return {seen.version.id: seen.roles for seen in versions_with_patient(site.root, patient(number)).affected}


def test_the_role_of_a_patient_in_each_version_is_told(site):
    site.publish("m", train=[1, 2], held_out=[3])
    site.publish("m", train=[2], held_out=[1, 3])
    assert roles(site, 1) == {"m@0001": ("training",), "m@0002": ("held_out",)}
    assert roles(site, 4) == {}
    found = versions_with_patient(site.root, patient(2))
    assert [(seen.version.id, seen.version.serving) for seen in found.affected] == [("m@0001", False), ("m@0002", True)]


def test_versions_that_started_from_its_weights_are_found_across_names_and_generations(site):
    first = site.publish("m", train=[1, 2])
    second = site.publish("n", train=[3], start=first)
    site.publish("o", train=[4], start=second)
    site.publish("p", train=[5])
    assert roles(site, 1) == {"m@0001": ("training",), "n@0001": ("inherited",), "o@0001": ("inherited",)}


def test_they_are_found_by_lineage_when_their_manifest_names_nobody(site):
    first = site.publish("m", train=[1])
    site.publish("n", train=[3], start=Ancestor("m", "0001", first.hash))
    site.publish("o", train=[4], start=Ancestor("m", "0001", ""))
    assert set(roles(site, 1)) == {"m@0001", "n@0001", "o@0001"}


def test_they_are_found_when_the_ancestor_is_gone(site):
    first = site.publish("m", train=[1])
    second = site.publish("n", train=[2], start=first)
    site.publish("o", train=[3], start=second)
    shutil.rmtree(site.root / "model" / "m")
    assert set(roles(site, 1)) == {"n@0001", "o@0001"}


def test_thresholds_are_not_inherited(site):
    first = site.publish("m", train=[2], held_out=[1])
    site.publish("n", train=[3], start=first)
    found = versions_with_patient(site.root, patient(1))
    assert [seen.version.id for seen in found.affected] == ["m@0001"]
    assert not found.affected[0].weights_depend


def test_the_same_scan_under_another_id_is_found(site):
    site.publish("m", train=[1, 2])
    site.publish("n", train=[1, 3], whose={1: "NEW-PSEUDONYM"})
    found = {seen.version.id: seen.roles for seen in versions_with_patient(site.root, patient(1)).affected}
    assert found["n@0001"][0] == "training"
    assert "another id" in found["n@0001"][1]


def test_runs_are_found_by_plan_and_by_manifest(site):
    by_plan = site.run("m", "20260101-000000", [1, 2], [3])
    site.run("m", "20260102-000000", [2], [3])
    named = site.root / "runs" / "m" / "named"
    named.mkdir(parents=True)
    site.publish("m", train=[1], run="named")
    assert versions_with_patient(site.root, patient(1)).runs == (by_plan, named)


def test_a_run_that_started_from_affected_weights_is_found(site):
    first = site.publish("m", train=[1])
    run = site.run("n", "20260101-000000", [2], [3])
    plan = json.loads((run / "plan.json").read_text())
    plan["start"] = {"name": "m", "version": "0001", "hash": first.hash}
    (run / "plan.json").write_text(json.dumps(plan))
    assert versions_with_patient(site.root, patient(1)).runs == (run,)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"train": [], "held_out": [], "start": {"x": 1}}',
        '{"train": 3}',
        '{"train": [{}], "held_out": []}',
    ],
)
def test_a_damaged_plan_hides_nothing_and_is_reported(site, text):
    good = site.run("m", "20260101-000000", [1], [3])
    bad = site.run("m", "20260102-000000", [1], [3])
    (bad / "plan.json").write_text(text)
    found = versions_with_patient(site.root, patient(1))
    assert found.runs == (good,)
    assert any("20260102-000000" in entry for entry in found.unknown)


def test_what_a_killed_publication_left_is_found(site):
    version = site.publish("m", train=[1])
    left = version.folder.with_name(".staging-1-abc")
    version.folder.rename(left)
    removed = site.root / "model" / ".removed-m-x" / "versions" / "0001"
    site.fill(removed, None)
    (left / "training.json").rename(removed / "training.json")
    found = versions_with_patient(site.root, patient(1))
    assert found.leftovers == (removed,)
    assert found.affected == ()


def test_models_that_cannot_be_searched_are_reported(site):
    site.publish("foreign", train=[1], site="0" * 16)
    site.fill(site.root / "model" / "flat", None)
    version = site.publish("damaged", train=[1])
    (version.folder / "training.json").write_text("{")
    found = versions_with_patient(site.root, patient(1))
    assert found.affected == ()
    assert len(found.unknown) == 3
    text = "\n".join(found.unknown)
    assert "foreign@0001: its manifest was made with the key of another site" in text
    assert "flat: no training manifest" in text
    assert "damaged@0001" in text


def test_shipped_models_are_listed_apart(site):
    site.ship("ddpm_t1")
    assert versions_with_patient(site.root, patient(1)).shipped == ("ddpm_t1",)


def test_contents_are_those_of_the_patient_only(site):
    site.publish("m", train=[1, 2], held_out=[3])
    found = versions_with_patient(site.root, patient(1))
    assert found.contents == {record.content for record in site.records([1])}
    assert digest("1") not in found.contents


def test_an_empty_app_folder_has_nothing(site):
    found = versions_with_patient(site.root, patient(1))
    assert not found.found
    assert found.unknown == ()
