"""Writes docs/licences.md: name, version, licence and use of everything that there is at run time (make licences)."""

import re
import sys
from itertools import groupby
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import inventory

PAGE = inventory.ROOT / "docs/licences.md"
# Copyleft that reaches what it is combined with. LGPL and MPL do not reach beyond the library, the file.
REFUSED = re.compile(r"\b(A?GPL)-|UNKNOWN|NONE|NOASSERTION", re.IGNORECASE)
TITLES = {
    "python": "Python packages",
    "cuda": "With PyTorch's CUDA build only",
    "page": "In the browser",
    "weights": "Model weights",
    "data": "Sample scans",
}
NOTES = {
    "python": "As locked in `requirements.lock`, for Python {python}; on other Pythons a few versions differ.",
    "cuda": "Fetched by whoever installs it, from PyPI; not shipped here. NVIDIA's packages have terms of their own,\n"
    "which this table does not judge: read them before you distribute an image that holds them.",
    "page": "Texts: `lib/page/dist/THIRD-PARTY-LICENSES.txt`; OHIF's are in MONAI Label's wheel.",
    "weights": "Weights carry the licence of the data they are learnt from; version: the first digits of the SHA-256.\n"
    "CC BY-SA 3.0 asks for attribution (each folder's `card.md` has it), and for the same licence on what is derived.\n"
    "`brain_extraction` and `template` also used DLMUSE region labels, made for research use.",
    "data": "Sources and changes: `tests/data/README.md`.",
}


def everything() -> list[inventory.Part]:
    """All parts, in the order of the page."""
    groups = (inventory.python_parts, inventory.cuda_parts, inventory.page_parts, inventory.weights_parts)
    return [part for group in (*groups, inventory.data_parts) for part in group()]


def refused(parts: list[inventory.Part]) -> list[str]:
    """The parts whose licence may not be in the product: 'name: licence'."""
    return [f"{part.name}: {part.licence}" for part in parts if not part.licence or REFUSED.search(part.licence)]


def as_page(parts: list[inventory.Part]) -> str:
    """The page in Markdown."""
    lines = [
        "# Licences",
        "",
        "This app is under the Apache License 2.0 (`LICENSE`). Written by `make licences`; a test compares it with the",
        "locks, and refuses GPL, AGPL and unknown licences.",
    ]
    for kind, group in groupby(parts, key=lambda part: part.kind):
        note = NOTES[kind].format(python=f"{sys.version_info.major}.{sys.version_info.minor}")
        lines += ["", f"## {TITLES[kind]}", "", note, "", "| name | version | licence | use |", "|---|---|---|---|"]
        lines += [f"| {part.name} | {part.version} | {part.licence} | {part.use} |" for part in group]
    return "\n".join(lines) + "\n"


def main() -> None:
    parts = everything()
    if bad := refused(parts):
        sys.exit("expected no GPL, AGPL or unknown licence, found " + "; ".join(bad))
    PAGE.write_text(as_page(parts))
    print(f"{PAGE.relative_to(inventory.ROOT)}: {len(parts)} parts")


if __name__ == "__main__":
    main()
