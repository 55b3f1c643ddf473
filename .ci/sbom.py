"""Writes extras/deploy/sbom.cdx.json, the parts of the product as CycloneDX 1.6 (make sbom).

    python .ci/sbom.py            writes it; run in the environment that holds the packages
    python .ci/sbom.py --check    checks it against CycloneDX's schema; needs cyclonedx-bom (.ci/requirements-tools.txt)

It has no date, so that the same parts give the same file. Hashes of Python packages are in the locks: a version has one
file for each platform. Weights are machine-learning-model components with the SHA-256 of their files.
"""

import argparse
import importlib.metadata
import json
import re
import sys
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import inventory
import licences
import lock

SBOM = inventory.ROOT / "extras/deploy/sbom.cdx.json"
TYPES = {"python": "library", "cuda": "library", "page": "library", "weights": "machine-learning-model", "data": "data"}
NO_PURL = {"roboto", "ohif-viewer"}


def reference(part: inventory.Part) -> str:
    """The purl of a published package; a name of our own for what is not published."""
    if part.kind in ("python", "cuda"):
        return f"pkg:pypi/{part.name}@{part.version}"
    if part.kind == "page" and part.name not in NO_PURL:
        return f"pkg:npm/{part.name.replace('@', '%40')}@{part.version}"
    return f"{part.kind}:{part.name.replace(' ', '-')}@{part.version}"


def component(part: inventory.Part) -> dict:
    """A part as a component."""
    entry = {"type": TYPES[part.kind], "bom-ref": reference(part), "name": part.name, "version": part.version}
    if part.use:
        entry["description"] = part.use
    if part.kind == "cuda":
        entry["scope"] = "optional"
    if isinstance(part.hashes, dict):
        # Cards and measured numbers are text that may be written anew; what computes is weights and configuration.
        files = {name: h for name, h in part.hashes.items() if name.endswith((".safetensors", "config.yaml"))}
        entry["hashes"] = [{"alg": "SHA-256", "content": files[name]} for name in sorted(files)]
        entry["properties"] = [{"name": f"sha256:{name}", "value": files[name]} for name in sorted(files)]
    if " " in part.licence:
        entry["licenses"] = [{"expression": part.licence}]
    elif part.licence.startswith("LicenseRef"):
        entry["licenses"] = [{"license": {"name": part.licence}}]
    else:
        entry["licenses"] = [{"license": {"id": part.licence}}]
    if entry["bom-ref"].startswith("pkg:"):
        entry["purl"] = entry["bom-ref"]
    return entry


def dependencies(parts: list[inventory.Part], root: str) -> list[dict]:
    """Which part needs which: of Python packages as their metadata says, everything else hangs on the app."""
    from packaging.requirements import Requirement

    refs = {part.name: reference(part) for part in parts if part.kind in ("python", "cuda")}
    graph = {root: [reference(p) for p in parts if p.kind not in ("python", "cuda") or p.use.startswith("named")]}
    for part in parts:
        if part.kind != "python":
            graph.setdefault(reference(part), [])
            continue
        needs = [Requirement(text) for text in importlib.metadata.requires(part.name) or []]
        names = {lock.name_of(n.name) for n in needs if n.marker is None or n.marker.evaluate({"extra": ""})}
        graph[reference(part)] = [refs[name] for name in names if name in refs]
    return [{"ref": ref, "dependsOn": sorted(set(graph[ref]))} for ref in sorted(graph)]


def document() -> dict:
    """The whole SBOM."""
    text = (inventory.ROOT / "pyproject.toml").read_text()
    project = dict(re.findall(r'^(name|version|description) = "(.*)"$', text, flags=re.MULTILINE))
    root = f"{project['name']}@{project['version']}"
    parts = licences.everything()
    body = {
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": root,
                "name": project["name"],
                "version": project["version"],
                "description": project["description"],
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            },
            "properties": [{"name": "python", "value": f"{sys.version_info.major}.{sys.version_info.minor}"}],
        },
        "components": sorted(map(component, parts), key=lambda entry: entry["bom-ref"]),
        "dependencies": dependencies(parts, root),
    }
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(body, sort_keys=True))
    return {"bomFormat": "CycloneDX", "specVersion": "1.6", "serialNumber": f"urn:uuid:{serial}", "version": 1, **body}


def check() -> None:
    """Checks the written file against the schema. Exits with what is wrong."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    if wrong := JsonStrictValidator(SchemaVersion.V1_6).validate_str(SBOM.read_text()):
        sys.exit(f"{SBOM.name} is no CycloneDX 1.6: {wrong}")
    print(f"{SBOM.name} is valid CycloneDX 1.6")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        check()
        return
    SBOM.parent.mkdir(parents=True, exist_ok=True)
    SBOM.write_text(json.dumps(document(), indent=1) + "\n")
    print(f"{SBOM.relative_to(inventory.ROOT)}: {len(json.loads(SBOM.read_text())['components'])} components")


if __name__ == "__main__":
    main()
