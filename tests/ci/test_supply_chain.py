"""The locks hold what the requirements ask for, with hashes; licences and SBOM are of what is locked."""

import importlib.util
import json
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}\b")


def _module(name: str):
    path = ROOT / ".ci" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = before
    return module


@pytest.fixture(scope="module")
def lock():
    return _module("lock")


@pytest.fixture(scope="module")
def inventory():
    return _module("inventory")


@pytest.fixture(scope="module")
def licences():
    return _module("licences")


@pytest.fixture(scope="module")
def sbom() -> dict:
    return json.loads((ROOT / "extras/deploy/sbom.cdx.json").read_text())


def pins(*files: str) -> dict[str, str]:
    lines = "\n".join((ROOT / name).read_text() for name in files)
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;#]+)", lines, flags=re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12"])
def test_the_locks_hold_every_pin_of_the_requirements(inventory, lock, python):
    locked = inventory.locked_versions(lock.LOCK, python) | inventory.locked_versions(lock.CUDA_LOCK, python)
    asked = pins("requirements.txt", "requirements-nodeps.txt")
    assert {name: locked.get(name, ("missing",))[0] for name in asked} == asked, "run make lock"


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-cuda.lock"])
def test_every_locked_package_has_hashes_and_one_version(lock, name):
    entries = lock.blocks((ROOT / name).read_text())
    assert entries
    assert not [e.split("\n")[0] for e in entries if not HASH.search(e) or "==" not in e.split("\n")[0]]


def test_pytorch_and_cuda_are_apart_so_that_a_cpu_installation_brings_neither(lock):
    names = {lock.name_of(block) for block in lock.blocks(lock.LOCK.read_text())}
    assert not [name for name in names if lock.CUDA.match(name)]


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12"])
def test_the_lock_is_complete_so_that_nothing_has_to_be_resolved(inventory, lock, python):
    from packaging.requirements import Requirement

    locked = inventory.locked_versions(lock.LOCK, python)
    without_dependencies = pins("requirements-nodeps.txt")
    environment = {"python_version": python, "python_full_version": f"{python}.1", "extra": ""}
    missing = {}
    for name in locked.keys() - without_dependencies.keys():
        try:
            needs = [Requirement(text) for text in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:
            continue  # of another Python
        for need in needs:
            wanted = need.marker is None or need.marker.evaluate(environment)
            if wanted and lock.name_of(need.name) not in {*locked, "torch"}:
                missing[name] = str(need)
    assert not missing


def test_a_lock_is_read_by_name_version_and_condition(lock):
    text = 'numpy==1.26.4 ; python_version < "3.13" \\\n    --hash=sha256:00\n    # via x\nscipy==1\n'
    first, second = lock.blocks(text)
    assert (lock.name_of(first), lock.version_of(first), lock.marker_of(first)) == (
        "numpy",
        "1.26.4",
        'python_version < "3.13"',
    )
    assert (lock.name_of(second), lock.marker_of(second)) == ("scipy", "")
    assert not lock.needed('colorama==0.4.6 ; sys_platform == "win32" \\\n    --hash=sha256:00\n')


def test_the_page_of_licences_names_what_is_locked_and_nothing_else(inventory, lock):
    rows = re.findall(r"^\| (\S+) \| (\S+) \| ([^|]+) \|", (ROOT / "docs/licences.md").read_text(), flags=re.MULTILINE)
    listed = {name: version for name, version, _ in rows}
    python = re.search(r"for Python (3\.\d+)", (ROOT / "docs/licences.md").read_text()).group(1)
    locked = inventory.locked_versions(lock.LOCK, python) | inventory.locked_versions(lock.CUDA_LOCK, python)
    assert {name: listed.get(name) for name in locked} == {n: v for n, (v, _) in locked.items()}, "run make licences"
    others = {part.name for group in (inventory.page_parts, inventory.weights_parts) for part in group()}
    assert others <= listed.keys(), "run make licences"


def test_no_licence_is_gpl_agpl_or_unknown(licences):
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]*) \| [^|]*\|$", licences.PAGE.read_text(), flags=re.MULTILINE)
    rows = [row for row in rows if row[0] not in ("name", "---")]
    assert len(rows) > 100
    assert not [row for row in rows if not row[2].strip() or licences.REFUSED.search(row[2])]


@pytest.mark.parametrize("licence", ["GPL-3.0-only", "AGPL-3.0-or-later", "UNKNOWN", ""])
def test_a_part_under_such_a_licence_is_refused(licences, inventory, licence):
    part = inventory.Part("python", "some", "1", licence)
    assert licences.refused([part])
    assert not licences.refused([inventory.Part("python", "some", "1", "LGPL-2.1-only")])


def test_a_licence_that_cannot_be_told_is_an_error_that_says_where_to_add_it(inventory):
    with pytest.raises(ValueError, match=r"inventory\.py"):
        inventory.spdx("some", ["GNU General Public License v3"])
    assert inventory.spdx("some", ["", "Apache Software License"]) == "Apache-2.0"


def test_the_sbom_holds_the_locked_packages_the_page_and_the_weights(inventory, lock, sbom):
    python = sbom["metadata"]["properties"][0]["value"]
    locked = inventory.locked_versions(lock.LOCK, python) | inventory.locked_versions(lock.CUDA_LOCK, python)
    listed = {entry["bom-ref"]: entry for entry in sbom["components"]}
    expected = {f"pkg:pypi/{name}@{version}" for name, (version, _) in locked.items()}
    assert expected == {ref for ref in listed if ref.startswith("pkg:pypi/")}, "run make sbom"
    for part in inventory.weights_parts():
        model = listed[f"weights:{part.name}@{part.version}"]
        hashes = {p["name"].removeprefix("sha256:"): p["value"] for p in model["properties"]}
        assert model["type"] == "machine-learning-model"
        assert hashes.items() <= part.hashes.items(), f"{part.name}: run make sbom"
        assert any(name.endswith(".safetensors") for name in hashes)
    assert {
        f"pkg:npm/{p.name.replace('@', '%40')}@{p.version}" for p in inventory.page_parts() if p.name == "preact"
    } <= set(listed)


def test_the_sbom_has_a_licence_for_each_part_and_refers_only_to_parts_that_it_has(sbom):
    refs = {entry["bom-ref"] for entry in sbom["components"]} | {sbom["metadata"]["component"]["bom-ref"]}
    assert len(refs) == len(sbom["components"]) + 1
    assert not [entry["name"] for entry in sbom["components"] if not entry["licenses"]]
    assert {ref for edge in sbom["dependencies"] for ref in (edge["ref"], *edge["dependsOn"])} <= refs
    reached, open_refs = set(), [sbom["metadata"]["component"]["bom-ref"]]
    edges = {edge["ref"]: edge["dependsOn"] for edge in sbom["dependencies"]}
    while open_refs:
        ref = open_refs.pop()
        if ref not in reached:
            reached.add(ref)
            open_refs += edges.get(ref, [])
    lost = {entry["bom-ref"] for entry in sbom["components"] if entry.get("scope") != "optional"} - reached
    assert not lost


def test_the_sbom_is_valid_cyclonedx():
    pytest.importorskip("cyclonedx.validation.json", reason="cyclonedx-bom is not installed; make sbom checks this too")
    _module("sbom").check()
