"""What the app is made of at run time: name, version, licence, use and hashes of each part.

Names, versions and hashes of Python packages come from the locks, their licences from the metadata of the environment
that runs this; those of the page from the file of licences that its build writes; those of the weights from their
folders. A licence that cannot be told is an error, never left out.
"""

import importlib.metadata
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parent))

import lock

ROOT = Path(__file__).resolve().parents[1]
THIRD_PARTY = ROOT / "lib/page/dist/THIRD-PARTY-LICENSES.txt"

# Whole words of licence names as they stand in metadata, and the SPDX identifier; the first that fits.
SPDX = (
    (r"Apache-2\.0 AND BSD-2-Clause|Apache-2\.0 OR BSD-[23]-Clause|MPL-2\.0 AND MIT", None),
    (r"Mozilla Public License 2\.0.*|MPL-2\.0", "MPL-2.0"),
    (r"Apache( Software)?( License)?[ ,-]*(Version )?(2\.0)?( License)?", "Apache-2.0"),
    (r"(3-Clause BSD|BSD[ -]3-Clause)( License)?", "BSD-3-Clause"),
    (r"BSD-2-Clause", "BSD-2-Clause"),
    (r"MIT-0|MIT-CMU|PSF-2\.0|ISC|0BSD", None),
    (r"MIT( License)?", "MIT"),
    (r"ISC License.*", "ISC"),
)
# Metadata that says only "BSD": which one, as in the licence file of the package.
BY_NAME = {
    "jinja2": "BSD-3-Clause",
    "mpmath": "BSD-3-Clause",
    "numpy": "BSD-3-Clause",
    "passlib": "BSD-3-Clause",
    "pyasn1-modules": "BSD-2-Clause",
    "pytorch-ignite": "BSD-3-Clause",
    "scikit-image": "BSD-3-Clause",
    "scipy": "BSD-3-Clause",
    "sympy": "BSD-3-Clause",
    "torch": "BSD-3-Clause",
}
# Shared libraries inside wheels whose licence is not that of the package.
INSIDE = {
    "numpy": "carries OpenBLAS (BSD-3-Clause) and libgfortran (GPL-3.0 with the GCC runtime exception)",
    "scipy": "carries OpenBLAS (BSD-3-Clause) and libgfortran (GPL-3.0 with the GCC runtime exception)",
    "torch": "carries libgomp (GPL-3.0 with the GCC runtime exception)",
    "shapely": "carries GEOS (LGPL-2.1), a shared library",
    "pillow": "carries libraries of its own (JPEG, PNG, TIFF, WebP, FreeType and others), all permissive",
    "dcmqi": "programs, started by MONAI Label and not linked; they carry DCMTK and ITK",
    "monailabel": "carries OHIF, see below",
}
DATA_LICENCES = {"CC BY-SA 3.0": "CC-BY-SA-3.0", "CC0": "CC0-1.0"}


@dataclass(frozen=True)
class Part:
    """One part of the product.

    ``kind`` is python, cuda, page, weights or data; ``licence`` an SPDX expression; ``hashes`` are SHA-256 of the files
    that may be installed for it, or of the files of a folder of weights.
    """

    kind: str
    name: str
    version: str
    licence: str
    use: str = ""
    hashes: dict[str, str] | tuple[str, ...] = field(default=(), compare=False)


def spdx(name: str, texts: list[str]) -> str:
    """The SPDX expression for what a package says of its licence. Raises ValueError if none of it is known."""
    if name in BY_NAME:
        return BY_NAME[name]
    for text in texts:
        for pattern, identifier in SPDX:
            if re.fullmatch(pattern, text.strip()):
                return identifier or text.strip()
    raise ValueError(
        f"{name}: expected a licence that .ci/inventory.py knows, found {texts}. Read it and add it there."
    )


def licence_of(name: str) -> str:
    """The licence of an installed package, as an SPDX expression."""
    about = importlib.metadata.metadata(name)
    if about.get("License-Expression"):
        return about["License-Expression"]
    classifiers = [c.split(" :: ")[-1] for c in about.get_all("Classifier") or [] if c.startswith("License")]
    first_line = (about.get("License") or "").strip().split("\n")[0]
    return spdx(name, [first_line, *classifiers])


def locked_versions(path: Path, python: str | None = None) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Name -> (version, SHA-256 of its files) of a lock, for one version of Python ('3.11'; default: this one)."""
    from packaging.markers import Marker

    python = python or f"{sys.version_info.major}.{sys.version_info.minor}"
    environment = {"python_version": python, "python_full_version": f"{python}.1", "sys_platform": "linux"}
    found = {}
    for block in lock.blocks(path.read_text()):
        marker = lock.marker_of(block)
        if not marker or Marker(marker).evaluate({**environment, "platform_machine": "x86_64"}):
            hashes = tuple(re.findall(r"--hash=sha256:([0-9a-f]{64})", block))
            found[lock.name_of(block)] = (lock.version_of(block), hashes)
    return found


def named_in(path: Path) -> set[str]:
    """The packages that a requirements file names itself."""
    return {lock.name_of(line) for line in path.read_text().splitlines() if re.match(r"[A-Za-z]", line)}


def python_parts() -> list[Part]:
    """The Python packages, PyTorch among them. Raises PackageNotFoundError where one is not installed."""
    direct = named_in(ROOT / "requirements.txt") | named_in(ROOT / "requirements-nodeps.txt")
    versions = locked_versions(lock.LOCK)
    versions["torch"] = (locked_versions(lock.CUDA_LOCK)["torch"][0], ())
    parts = []
    for name, (version, hashes) in sorted(versions.items()):
        use = "named in requirements" if name in direct else "needed by others"
        parts.append(
            Part("python", name, version, licence_of(name), "; ".join(filter(None, (use, INSIDE.get(name)))), hashes)
        )
    return parts


def cuda_parts() -> list[Part]:
    """What comes along with PyTorch's CUDA build: not in the CPU installation, and never shipped by this repository."""
    versions = locked_versions(lock.CUDA_LOCK)
    return [
        Part("cuda", name, version, "MIT" if name == "triton" else "LicenseRef-NVIDIA", "only with a CUDA GPU", hashes)
        for name, (version, hashes) in sorted(versions.items())
        if name != "torch"
    ]


def page_parts() -> list[Part]:
    """What the built pages carry: packages of the page /anomaly/, a font, and OHIF inside MONAI Label."""
    text = THIRD_PARTY.read_text()
    packages = re.findall(r"^(@?[\w./-]+) (\d\S+) \(([^)]+)\)$", text, flags=re.MULTILINE)
    parts = [Part("page", name, version, licence, "in lib/page/dist") for name, version, licence in packages]
    if "\nRoboto (Apache-2.0)" in text:
        parts.append(Part("page", "roboto", "2011", "Apache-2.0", "font in a picture that NiiVue carries"))
    parts.append(Part("page", "ohif-viewer", "3.10.0-beta.5", "MIT", "inside MONAI Label's wheel, served at /ohif/"))
    swagger = re.search(r"swagger-ui-dist (\d[\d.]*\d) \(([^,)]+)", (ROOT / "lib/api_docs/README.md").read_text())
    parts.append(
        Part("page", "swagger-ui-dist", swagger.group(1), swagger.group(2), "in lib/api_docs, served at /docs")
    )
    return parts


def weights_parts() -> list[Part]:
    """The model folders, each under the licence of the data that it was learnt from."""
    parts = []
    for sums in sorted(ROOT.glob("model_weights/*/sha256sums.txt")):
        folder = sums.parent
        about = yaml.safe_load((folder / "config.yaml").read_text())
        told = about.get("training_data", {}).get("licence") or (folder / "card.md").read_text()
        licence = next((licence for words, licence in DATA_LICENCES.items() if words in told), None)
        if licence is None:
            raise ValueError(
                f"{folder.name}: expected training_data.licence in config.yaml, one of {list(DATA_LICENCES)}."
            )
        hashes = dict(reversed(line.split(maxsplit=1)) for line in sums.read_text().splitlines() if line)
        # The weights have no version number of their own: their content is their version.
        version = hashes.get("model.safetensors", next(iter(hashes.values())))[:12]
        parts.append(Part("weights", folder.name, version, licence, f"in model_weights/{folder.name}", hashes))
    return parts


def data_parts() -> list[Part]:
    """The sample scans of the repository."""
    return [
        Part("data", "IXI samples", "2", "CC-BY-SA-3.0", "tests/data/studies, tests/data/ixi_lesion_mask.nii.gz"),
        Part("data", "MSLUB patient 26", "2", "CC-BY-4.0", "tests/data/mslub_*.nii.gz"),
        Part("data", "SOOP slices", "1", "CC0-1.0", "tests/data/soop"),
    ]
