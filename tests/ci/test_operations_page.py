"""What docs/operations.md tells people to type is there: commands, options of the scripts, files, links."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from monailabel_app.cli import app

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/operations.md").read_text()


def commands() -> set[str]:
    groups = {group.name: {c.name or c.callback.__name__ for c in group.typer_instance.registered_commands}
              for group in app.registered_groups}  # fmt: skip
    names = {(c.name or c.callback.__name__).replace("_", "-") for c in app.registered_commands}
    return names | set(groups) | {f"{group} {name}" for group, names in groups.items() for name in names}


def test_every_command_it_names_exists():
    told = set(re.findall(r"main\.py ((?:audit|tokens|models) [a-z-]+|[a-z]{4,})", TEXT))
    assert len(told) > 10
    assert told <= commands()


def test_every_make_target_it_names_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    told = set(re.findall(r"`?\bmake (setup|doctor|wheelhouse|lock|audit|licences|sbom)\b", TEXT))
    assert {"setup", "wheelhouse", "lock", "audit", "licences", "sbom"} <= told <= targets


def test_every_file_of_the_repository_that_it_names_exists():
    told = set(re.findall(r"(?<![\w/])((?:extras|tests|lib|docs)/[\w./-]*\w)", TEXT))
    # Results are written by whoever measures.
    told = {name for name in told if not name.startswith("tests/benchmarks/results/")}
    missing = [name for name in told if not list(ROOT.glob(f"{name}*"))]
    assert len(told) > 10
    assert not missing


def test_every_link_within_it_leads_somewhere():
    titles = {
        re.sub(r"[^\w -]", "", t.lower()).strip().replace(" ", "-")
        for t in re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= titles
    assert all((ROOT / "docs" / target).exists() for target in re.findall(r"\]\(([^)#]+)\)", TEXT))


@pytest.mark.parametrize("what", ["make", "verify", "restore"])
def test_the_back_up_script_understands_what_it_shows(what):
    shown = re.search(rf"backup\.py {what} \S+(.*)", TEXT).group(1)
    script = [sys.executable, str(ROOT / "extras/deploy/backup.py")]
    options = subprocess.run([*script, "--help"], capture_output=True, text=True).stdout
    assert all(option in options for option in re.findall(r"--[a-z-]+", shown))
