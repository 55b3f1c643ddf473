"""Where runs are kept: runs/<model name>/<time>, and which of them a trainer used last."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

from monailabel_app.errors import TrainingFailed
from monailabel_app.files import replace_file

_ATTEMPTS = 100


def new_run_folder(root: Path, name: str) -> Path:
    """An empty folder runs/<name>/<UTC time>, made exclusively. Raises TrainingFailed."""
    parent = Path(root) / "runs" / name
    stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for extra in ("", *(f"-{number}" for number in range(2, _ATTEMPTS))):
            try:
                (parent / (stamp + extra)).mkdir()
                return parent / (stamp + extra)
            except FileExistsError:
                continue
    except OSError as error:
        raise TrainingFailed(
            f"expected to make a folder for the run under runs/, got {error.strerror}; make the app's folder writable"
        ) from error
    raise TrainingFailed(f"expected a free folder name beside {stamp}, found none; try again in a second")


def has_unfinished_run(root: Path, name: str) -> bool:
    """Whether a run of a model has a checkpoint and no result; whether somebody works on it is not looked at."""
    runs = Path(root) / "runs" / name
    return any(not (file.parent / "result.json").is_file() for file in runs.glob("*/last.safetensors"))


def note_latest_run(root: Path, method: str, run_folder: Path) -> None:
    """Remember the run that a method's trainer works on."""
    replace_file(_pointer(root, method), f"{run_folder.parent.name}/{run_folder.name}\n")


def latest_run(root: Path, method: str) -> Path | None:
    """The run folder that a method's trainer used last."""
    try:
        run = Path(root) / "runs" / _pointer(root, method).read_text().strip()
    except OSError:
        return None
    return run if run.is_dir() else None


def _pointer(root: Path, method: str) -> Path:
    return Path(root) / "runs" / f"latest-{method}"
