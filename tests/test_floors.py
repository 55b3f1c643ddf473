"""The library is built in floors: an import goes down, never up, never sideways, and never to MONAI Label."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "monailabel_app"

FLOORS = (
    {"types", "errors", "registry", "client", "files"},
    {"io", "preprocessing", "noise", "networks", "access", "audit", "monitoring"},
    {"methods", "scoring", "postprocessing", "metrics", "uncertainty"},
    {"training", "calibration", "weights", "reports"},
    {"pipelines"},
    {
        "cli_audit",
        "cli_calibrate",
        "cli_cohort",
        "cli_curate",
        "cli_encoder",
        "cli_evaluate",
        "cli_fairness",
        "cli_forget",
        "cli_models",
        "cli_predict",
        "cli_prototypes",
        "cli_purge",
        "cli_report",
        "cli_selftest",
        "cli_tokens",
        "cli_train",
    },
    {"cli"},
)
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
# The arithmetic of grids, without any reading of files, which every resampling needs.
SHARED_WITH_SIBLINGS = "monailabel_app.io.geometry"
LONGEST_FILE = 450


def imported_modules(source: str, package: str) -> list[str]:
    """Every module a source text imports, as absolute dotted names; ``package`` resolves relative ones."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [node.module])])
            found += [f"{base}.{alias.name}" for alias in node.names]
    return found


def fault_of(importer: str, imported: str) -> str | None:
    """Why ``importer`` (a part of the library) may not import ``imported`` (a dotted name), or None."""
    top, *rest = imported.split(".")
    if top in ("monailabel", "lib", "main"):
        return f"{importer} imports {imported}: MONAI Label belongs in lib/"
    if top != "monailabel_app" or not rest or rest[0] not in FLOOR_OF or rest[0] == importer:
        return None
    mine, theirs = FLOOR_OF[importer], FLOOR_OF[rest[0]]
    if theirs > mine:
        return f"{importer} (floor {mine}) imports {rest[0]} (floor {theirs}), which is above it"
    if theirs == mine and mine > 0 and not f"{imported}.".startswith(f"{SHARED_WITH_SIBLINGS}."):
        return f"{importer} imports {rest[0]} beside it (floor {mine})"
    return None


def part_of(path: Path) -> str:
    """The part of the library a file belongs to: a package's name or a top module's."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def library_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def dotted_package(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).parent.parts)


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("pipelines", "monailabel_app.scoring.residual", True),
        ("scoring", "monailabel_app.scoring.inputs", True),
        ("scoring", "monailabel_app.errors.InvalidSettings", True),
        ("errors", "monailabel_app.types.Volume", True),
        ("scoring", "numpy", True),
        ("scoring", "monailabel_app.pipelines.predict", False),
        ("scoring", "monailabel_app.methods.ddpm", False),
        ("io", "monailabel_app.preprocessing", False),
        ("preprocessing", "monailabel_app.io.geometry.resample", True),
        ("preprocessing", "monailabel_app.io.images.read_volume", False),
        ("types", "monailabel_app.io", False),
        ("pipelines", "monailabel.client", False),
        ("pipelines", "lib.app", False),
    ],
)
def test_the_rule_itself(importer, imported, allowed):
    assert (fault_of(importer, imported) is None) is allowed


def test_imports_are_found_inside_functions_and_when_relative():
    source = "import a.b\ndef f():\n    from ..methods import ddpm\n    from . import inputs\n"
    found = imported_modules(source, "monailabel_app.scoring")
    assert found == ["a.b", "monailabel_app.methods.ddpm", "monailabel_app.scoring.inputs"]


def test_every_part_of_the_library_has_a_floor():
    assert {part_of(path) for path in library_files()} - {"__init__"} <= set(FLOOR_OF)


def test_no_import_goes_up_or_sideways_or_to_monai_label():
    faults = [
        f"{path.relative_to(ROOT)}: {fault}"
        for path in library_files()
        if part_of(path) in FLOOR_OF
        for name in imported_modules(path.read_text(), dotted_package(path))
        if (fault := fault_of(part_of(path), name))
    ]
    assert not faults, "\n".join(faults)


def test_no_file_is_too_long():
    ours = [
        ROOT / "main.py",
        *library_files(),
        *(ROOT / "lib").rglob("*.py"),
        *(ROOT / "tests").rglob("*.py"),
    ]
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in ours}
    too_long = {str(path): length for path, length in lengths.items() if length > LONGEST_FILE}
    assert not too_long
