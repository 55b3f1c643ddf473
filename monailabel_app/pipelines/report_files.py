"""Reports written to files: of one scan, or of each scan in a folder."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from monailabel_app.errors import InvalidSettings
from monailabel_app.files import replace_file
from monailabel_app.io.images import read_volume
from monailabel_app.types import Finding, Volume

from .anomaly_model import AnomalyModel
from .cohort.scans import list_cohort, stem
from .predict import predict
from .predict_settings import PredictSettings
from .study_report import StudyReport, study_report

_PAGES = (".html", ".htm")


class Reporter:
    """Analyses scans with one model and writes their reports. pixel_mm: of pictures that state none."""

    def __init__(self, model: AnomalyModel, settings: PredictSettings, pixel_mm: float | None = None) -> None:
        self._model, self._settings, self._pixel_mm = model, settings, pixel_mm

    def analyse(
        self,
        path: Path,
        report: Path | None = None,
        scan_id: str | None = None,
        progress: Callable[[str, float], None] | None = None,
    ) -> tuple[Volume, Finding]:
        """The scan and its finding; ``report`` is written too where it is given, with its facts beside it.

        scan_id: what the report calls the scan, by default its file's name without its ending. A folder of a DICOM
        series is called by a checksum of its content, because such folders are often named after the patient. progress:
        told the stage and its share done.
        """
        volume = read_volume(path, slices=True, pixel_mm=self._pixel_mm)
        finding = predict(volume, self._model, self._settings, images=report is not None, progress=progress)
        if report is not None:
            model = self._model.with_calibration(self._settings.calibration)
            name = scan_id or (stem(path.name) if path.is_file() else volume.name)
            write_report(report, study_report(volume, finding, model, image_id=name))
        return volume, finding


def write_report(page: Path, report: StudyReport) -> None:
    """``page`` and beside it the JSON of the same name, each whole or not at all. Raises InvalidSettings."""
    page = checked_report(page)
    page.parent.mkdir(parents=True, exist_ok=True)
    replace_file(page, report.html(), lasting=True)
    replace_file(page.with_suffix(".json"), report.json_text(), lasting=True)


def checked_report(page: Path) -> Path:
    """``page``. Raises InvalidSettings unless its name ends as that of a page, before anything is analysed."""
    if page.suffix.lower() not in _PAGES:
        raise InvalidSettings(f"expected the name of a report to end with {' or '.join(_PAGES)}, got {page.name!r}")
    return page


def scans_of(path: Path, pattern: str = "*") -> dict[str, Path] | None:
    """The scans in and below a folder by a name that is safe for files; None for a single scan.

    Raises UnreadableVolume for a folder without scans.
    """
    if not path.is_dir():
        return None
    scans = list_cohort(path, pattern).scans
    if len(scans) == 1 and scans[0].path == path:
        return None
    found: dict[str, Path] = {}
    for scan in scans:
        name = re.sub(r"[^A-Za-z0-9_.@-]+", "_", stem(scan.key)).lstrip(".") or "scan"
        while name in found:
            name += "_"
        found[name] = scan.path
    return found
