"""Writes requirements.lock and requirements-cuda.lock anew from requirements.txt and requirements-nodeps.txt.

    python .ci/lock.py [--upgrade]      (make lock; needs uv, a network and .ci/requirements-tools.txt)

requirements.lock       every package but PyTorch, by version and SHA-256, for Linux x86-64 and Python 3.10, 3.11, 3.12.
                        It is complete: installed with ``pip install --no-deps --require-hashes``.
requirements-cuda.lock  PyPI's PyTorch and the CUDA packages it brings, by version and SHA-256, for machines with a GPU.

PyTorch's CPU build is not on PyPI. It is locked by version only (``torch==...+cpu``): it comes from
download.pytorch.org, a local folder or a mirror, whose builds of one version differ in their bytes.
Without ``--upgrade`` what is locked already stays, as far as the requirements allow it.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK, CUDA_LOCK = ROOT / "requirements.lock", ROOT / "requirements-cuda.lock"
CUDA = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)$")
HEADER = """\
# Written by `make lock`; not for editing. {what}
# For Linux x86-64 and Python 3.10, 3.11, 3.12:  pip install --no-deps --require-hashes -r {name}
"""
WHAT = {
    LOCK: "Every package but PyTorch, whose CPU build is locked by version only (see .ci/lock.py).",
    CUDA_LOCK: "PyTorch with CUDA as on PyPI, and what it brings; the others are in requirements.lock.",
}


def blocks(text: str) -> list[str]:
    """The requirements of a compiled file, each with the lines of its hashes and its comments."""
    return re.findall(r"^[A-Za-z0-9].*\n(?:[ \t].*\n)*", text, flags=re.MULTILINE)


def name_of(block: str) -> str:
    """The name of a requirement, normalised as PyPI does: lower case, with hyphens."""
    return re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", block).group()).lower()


def version_of(block: str) -> str:
    """The version that a requirement is pinned to."""
    return re.match(r"[^=]+==([^ ;\\]+)", block).group(1)


def marker_of(block: str) -> str:
    """The condition after the semicolon of a requirement, or an empty string."""
    match = re.match(r"[^\n]*?;\s*(.*?)\s*\\?\n", block)
    return match.group(1) if match else ""


def needed(block: str) -> bool:
    """True where a requirement is for Linux on x86-64 with CPython 3.10, 3.11 or 3.12."""
    from packaging.markers import Marker

    if not (marker := marker_of(block)):
        return True
    linux = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64",
             "implementation_name": "cpython", "platform_python_implementation": "CPython"}  # fmt: skip
    versions = ({"python_version": f"3.{minor}", "python_full_version": f"3.{minor}.1"} for minor in (10, 11, 12))
    return any(Marker(marker).evaluate({**linux, **version}) for version in versions)


def compiled(source: str, before: str, *options: str) -> list[str]:
    """The requirements that uv makes of a file of requirements, with hashes, those for other machines left out.

    ``before`` are the pins to keep. uv takes them from the file that it writes: as preferences, so that a pin that
    changed in ``source`` wins.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "lock.txt")
        path.write_text(before)
        command = [
            sys.executable,
            "-m",
            "uv",
            "pip",
            "compile",
            source,
            "--output-file",
            str(path),
            "--no-config",
            "--universal",
            "--quiet",
        ]
        command += ["--python-version", "3.10", "--generate-hashes", "--no-header", *options]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return [block for block in blocks(path.read_text()) if needed(block)]


def locked(path: Path) -> str:
    """The pins of a lock: names, versions and conditions, without hashes."""
    if not path.is_file():
        return ""
    pins = ((block, marker_of(block)) for block in blocks(path.read_text()))
    return "".join(f"{name_of(b)}=={version_of(b)}{f' ; {m}' if m else ''}\n" for b, m in pins)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="take the newest of what requirements.txt leaves open")
    upgrade = parser.parse_args().upgrade
    before = "" if upgrade else locked(LOCK) + locked(CUDA_LOCK)
    rest = compiled("requirements.txt", before) + compiled("requirements-nodeps.txt", "", "--no-deps")
    for path, chosen in ((LOCK, [b for b in rest if not CUDA.match(name_of(b))]),
                         (CUDA_LOCK, [b for b in rest if CUDA.match(name_of(b))])):  # fmt: skip
        path.write_text(HEADER.format(what=WHAT[path], name=path.name) + "".join(sorted(chosen, key=name_of)))
        print(f"{path.name}: {len(chosen)} packages", file=sys.stderr)


if __name__ == "__main__":
    main()
