"""What holds for the whole repository: its top level, safe loading of files, and complete shipped models."""

import ast
import re
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from monailabel_app.pipelines.doctor import folder_faults, pins

ROOT = Path(__file__).resolve().parent.parent
TOP_LEVEL = {
    "main.py",
    "lib",
    "monailabel_app",
    "model_weights",
    "tests",
    "requirements.txt",
    "README.md",
    "docs",
    "extras",
} | {
    *(
        "requirements-dev.txt",
        "requirements-nodeps.txt",
        "requirements-ray.txt",
        "requirements.lock",
        "requirements-cuda.lock",
        "pyproject.toml",
        "Makefile",
        "LICENSE",
        "CHANGELOG.md",
        "SECURITY.md",
    ),
    *(".ci", ".gitignore", ".gitattributes", ".pre-commit-config.yaml", ".editorconfig", ".github"),
}
# A template is arrays without a network: no method, so no model.safetensors is asked of it.
MODEL_FILES = ("config.yaml", "card.md", "sha256sums.txt")
DOCUMENTS = (".md", ".png")  # the card and its pictures may be edited without a new model hash
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_LICENCE = re.compile(r"\b(A?GPL|GNU (Affero )?General Public)", re.IGNORECASE)


def code_files() -> list[Path]:
    return [
        ROOT / "main.py",
        *sorted((ROOT / "lib").rglob("*.py")),
        *sorted((ROOT / "monailabel_app").rglob("*.py")),
    ]


def tracked_files() -> list[str]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return done.stdout.split("\0")[:-1]


def call_name(node: ast.Call) -> str:
    return ast.unparse(node.func) if isinstance(node.func, (ast.Name, ast.Attribute)) else ""


def unsafe_lines(source: str) -> list[tuple[int, str]]:
    """Line and reason of each way a source text could run code out of a file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = getattr(node, "module", None)
            names = [module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [(node.lineno, f"imports {n}") for n in names if n.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.Call):
            name, given = call_name(node), {k.arg: ast.unparse(k.value) for k in node.keywords}
            if name in ("eval", "exec"):
                found.append((node.lineno, f"calls {name}"))
            if name in ("torch.load", "torch.jit.load") and given.get("weights_only") != "True":
                found.append((node.lineno, f"calls {name} without weights_only=True"))
            if name.endswith(("np.load", "numpy.load")) and given.get("allow_pickle", "False") != "False":
                found.append((node.lineno, f"calls {name} with allow_pickle"))
            if name in ("yaml.load", "yaml.unsafe_load", "yaml.full_load"):
                found.append((node.lineno, f"calls {name}; use yaml.safe_load"))
    return found


@pytest.mark.parametrize(
    ("source", "safe"),
    [
        ("import pickle", False),
        ("from joblib import load", False),
        ("eval('1')", False),
        ("model.eval()", True),
        ("torch.load(f)", False),
        ("torch.load(f, weights_only=False)", False),
        ("torch.load(f, weights_only=True)", True),
        ("np.load(f, allow_pickle=True)", False),
        ("np.load(f)", True),
        ("yaml.load(f)", False),
        ("yaml.safe_load(f)", True),
    ],
)
def test_the_check_for_unsafe_loading_sees_what_it_should(source, safe):
    assert (not unsafe_lines(source)) is safe


def test_no_code_of_ours_runs_code_out_of_a_file():
    faults = [
        f"{path.relative_to(ROOT)}:{line}: {reason}"
        for path in code_files()
        for line, reason in unsafe_lines(path.read_text())
    ]
    assert not faults, "\n".join(faults)


def test_the_top_level_holds_what_was_agreed_and_nothing_else():
    assert {name.split("/")[0] for name in tracked_files()} <= TOP_LEVEL


def test_the_files_a_user_starts_from_are_there():
    for name in (
        "main.py",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "Makefile",
        "requirements.txt",
        ".ci/run",
    ):
        assert (ROOT / name).is_file(), name


def test_the_code_licence_is_the_whole_apache_licence():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert len(text) > 11_000


def model_folders() -> list[Path]:
    return sorted(folder for folder in (ROOT / "model_weights").iterdir() if folder.is_dir())


def test_every_shipped_model_is_complete_and_matches_its_hashes():
    folders = model_folders()
    assert folders
    faults = []
    for folder in folders:
        faults += [f"{folder.name}: no {name}" for name in MODEL_FILES if not (folder / name).is_file()]
        faults += [f"{folder.name}: {fault}" for fault in folder_faults(folder)]
        faults += [] if list(folder.glob("*.safetensors")) else [f"{folder.name}: no .safetensors file"]
        listed = (folder / "sha256sums.txt").read_text() if (folder / "sha256sums.txt").is_file() else ""
        unlisted = [
            f
            for f in folder.iterdir()
            if f.name not in listed and f.name != "sha256sums.txt" and f.suffix not in DOCUMENTS
        ]
        faults += [f"{folder.name}: {file.name} has no hash" for file in unlisted]
    assert not faults, "\n".join(faults)


def test_no_pinned_package_is_under_the_gpl():
    # The licence a package declares of itself; the LGPL, which lets a program import it, is not matched.
    faults = {}
    for name in pins(ROOT):
        try:
            about = metadata.metadata(name)
        except metadata.PackageNotFoundError:
            pytest.skip(f"{name} is not installed here")
        declared = [about.get("License-Expression") or "", (about.get("License") or "").split("\n")[0]]
        declared += [c for c in about.get_all("Classifier", []) if c.startswith("License")]
        if any(FORBIDDEN_LICENCE.search(text) for text in declared):
            faults[name] = declared
    assert not faults
