"""The inference task: a file goes to the library, its finding comes back as a label file and JSON."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from lib import metrics, options
from lib.catalogue import ModelEntry
from lib.configs.base import MethodConfig, site_calibration
from lib.errors import ServerBusy
from lib.runner import ModelRunner, choose_device, list_devices
from monailabel_app.errors import InvalidSettings, NotAnalysed, UnknownModel
from monailabel_app.io import images
from monailabel_app.pipelines import predict as pipeline
from monailabel_app.pipelines.out_of_memory import give_back, is_out_of_memory
from monailabel_app.pipelines.read_volumes import ReadVolumes
from monailabel_app.types import Finding, Volume, to_json

logger = logging.getLogger(__name__)

LABELS = {"anomaly": 1}
# Arrays of a finding that can be written beside the label.
IMAGES = ("anomaly_map", "reconstruction", "uncertainty_map")
Progress = Callable[[str, float], None]
EXTENSIONS = (".nii.gz", ".nii", ".nrrd")


@dataclass(frozen=True)
class Looked:
    """A scan, what was found in it, and by which model with which settings. seconds: of reading and loading."""

    volume: Volume
    finding: Finding
    model: Any
    settings: Any
    seconds: Mapping[str, float]


class AnomalyInferTask(InferTask):
    """Anomaly segmentation with one model folder, whatever its method.

    The folder is that of one version: when another is published, the server makes another task (``lib.model_table``).
    """

    labels_of_task: Mapping[str, int] = LABELS

    def __init__(
        self,
        entry: ModelEntry,
        method: MethodConfig,
        runner: ModelRunner,
        cache: Any,
        volumes: ReadVolumes | None = None,
    ):
        super().__init__(
            type=InferType.SEGMENTATION,
            labels=dict(self.labels_of_task),
            dimension=3,
            description="",
            config=options.for_viewers(method.scores_of(entry)),
        )
        self.entry = entry
        self._method = method
        self._scores = method.scores_of(entry)
        self._runner = runner
        self._cache = cache
        self._volumes = volumes or ReadVolumes()

    def info(self) -> dict[str, Any]:
        """What ``/info/`` says about the model; plain JSON types.

        The description is made anew: measurements and site calibrations come and go without a new version.
        """
        self.description = self.describe()
        return to_json({**super().info(), "type": InferType.SEGMENTATION.value, "modality": self.entry.modality})

    def describe(self) -> str:
        """One line for the viewers."""
        return self._method.describe(self.entry)

    def config(self) -> dict[str, Any]:
        """The drop-downs; device and calibration are offered only where there is a choice."""
        devices = list_devices()
        offered = {**self._config, **({"device": ["auto", *devices]} if len(devices) > 1 else {})}
        return {**offered, **({"calibration": list(options.CALIBRATIONS)} if site_calibration(self.entry) else {})}

    def read(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The settings that an analysis of this request would have. Raises InvalidSettings."""
        return options.read(request, self._scores)

    def calibration(self) -> str:
        """The id of the calibration made on this site's scans that is used now; ``shipped`` for the model's own."""
        return site_calibration(self.entry) or "shipped"

    def is_valid(self) -> bool:
        """Whether the model's folder is still there."""
        return (self.entry.folder / "config.yaml").is_file()

    def __call__(self, request: Mapping[str, Any], progress: Progress | None = None) -> tuple[str, dict[str, Any]]:
        """Analyse ``request["image"]``, a file or a folder of DICOM files on this machine.

        Returns the label file (the caller removes it) and the result as JSON. ``request["files"]``: where to write
        images of the result, by name (``IMAGES``); those that there are not are left out. progress: told the stage and
        its share done; what it raises ends the work. Raises AnomalyAppError for bad input, settings or models.
        """
        extension = _extension(request.get("result_extension"))
        compress = str(request.get("result_compress", True)).lower() not in {"false", "0", "no"}
        wanted = dict(request.get("files") or {})
        started = time.perf_counter()
        values = self.read(request)
        looked = self.look(
            str(request["image"]), values, device=request.get("device"), images=bool(wanted), progress=progress
        )
        writing = time.perf_counter()
        file = _temporary_file(extension)
        try:
            if progress is not None:
                progress("writing", 0.0)
            images.write_labelmap(file, self.label(looked), looked.volume, compress=compress)
            for name, path in wanted.items():
                values = getattr(looked.finding, name)
                if values is not None:
                    images.write_map(path, values, looked.volume)
        except BaseException:
            Path(file).unlink(missing_ok=True)
            raise
        result = looked.finding.to_json()
        result["seconds"] |= to_json({**looked.seconds, "write": time.perf_counter() - writing})
        result |= {"label_names": dict(self.labels_of_task), **self.about_label(looked)}
        result["latencies"] = {"total": round(time.perf_counter() - started, 3)}
        return file, result

    def label(self, looked: Looked) -> np.ndarray:
        """The label map (x, y, z) uint8 that viewers get."""
        return looked.finding.mask

    def about_label(self, looked: Looked) -> Mapping[str, Any]:
        """What a result says about its label beside its names; plain JSON types."""
        return {}

    def look(
        self,
        path: str,
        values: Mapping[str, Any],
        *,
        device: Any = None,
        images: bool = False,
        run: bool = True,
        progress: Progress | None = None,
    ) -> Looked:
        """The finding of a scan with the settings ``values`` (of ``read``); images: its images, too.

        An analysis that is at hand is looked at without waiting for a device. run: False never runs a network. Raises
        AnomalyAppError, NotAnalysed among it.
        """
        device = choose_device(device)
        tell = progress or (lambda stage, share: None)
        try:
            looked = self._look(path, values, device, images, progress, run=False)
            return replace(looked, seconds={**looked.seconds, "waiting": 0.0})
        except NotAnalysed:
            if not run:
                raise
        started = time.perf_counter()
        tell("waiting", 0.0)
        with self._runner.device(device, lambda: tell("waiting", 0.0)):
            waited = time.perf_counter() - started
            tell("reading", 0.0)
            looked = self._look(path, values, device, images, progress, run=True)
        looked = replace(looked, seconds={**looked.seconds, "waiting": waited})
        found = looked.finding
        seconds = {**found.seconds, **looked.seconds}
        metrics.observe_analysis(self.entry.name, seconds, found.anomaly_score, found.p_value, device)
        return looked

    def _look(
        self, path: str, values: Mapping[str, Any], device: str, images: bool, progress: Progress | None, *, run: bool
    ) -> Looked:
        try:
            return self._looked(path, values, device, images, progress, run)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self._runner.forget()
            metrics.count_error("OutOfMemory")
            logger.error("an analysis on %s was given up: no memory left", device)
        # Only here have the frames of the failed analysis let go of their arrays.
        give_back(device)
        raise ServerBusy(
            "the server has too little memory for this analysis now: send it again later, or a scan of lower resolution"
        )

    def _looked(
        self, path: str, values: Mapping[str, Any], device: str, images: bool, progress: Progress | None, run: bool
    ) -> Looked:
        start = time.perf_counter()
        volume = self._volumes.get(path)
        read = time.perf_counter()
        settings = pipeline.PredictSettings(**values, device=device)
        if not self.is_valid():
            # Removed while this request stood in line; the version that serves now may give another result.
            raise UnknownModel(f"the version {self.entry.id} was removed meanwhile: send the request again")
        folder = self.entry.folder
        model = self._runner.model(folder, device) if run else self._runner.reading(folder)
        loaded = time.perf_counter()
        given = {"cache": self._cache, "progress": progress, "images": images, "run": run}
        finding = pipeline.predict(volume, model, settings, **given)
        return Looked(volume, finding, model, settings, {"read": read - start, "load_model": loaded - read})


def _extension(value: Any) -> str:
    """The label file's extension; viewers send ``.nrrd``. Raises InvalidSettings naming the allowed ones."""
    if isinstance(value, (list, tuple)):
        value = value[0] if value else None
    if not value:
        return EXTENSIONS[0]
    text = "." + str(value).strip().lower().lstrip(".")
    if text in {".seg.nrrd", ".nhdr"}:
        text = ".nrrd"
    if text not in EXTENSIONS:
        raise InvalidSettings(
            f"expected result_extension to be one of {', '.join(EXTENSIONS)}; got {str(value)[:40]!r}"
        )
    return text


def _temporary_file(extension: str) -> str:
    with tempfile.NamedTemporaryFile(prefix="anomaly_", suffix=extension, delete=False) as handle:
        return handle.name
