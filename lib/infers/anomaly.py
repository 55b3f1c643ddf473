"""The inference task: a file goes to the library, its finding comes back as a label file and JSON."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from lib import options
from lib.catalogue import ModelEntry
from lib.configs.base import MethodConfig, site_calibration
from lib.errors import ServerBusy
from lib.runner import ModelRunner, choose_device, list_devices
from monailabel_app.errors import InvalidSettings, UnknownModel
from monailabel_app.io import images
from monailabel_app.pipelines import predict as pipeline
from monailabel_app.types import Finding, Volume, to_json

logger = logging.getLogger(__name__)

LABELS = {"anomaly": 1}
EXTENSIONS = (".nii.gz", ".nii", ".nrrd")


class AnomalyInferTask(InferTask):
    """Anomaly segmentation with one model folder, whatever its method.

    The folder is that of one version: when another is published, the server makes another task (``lib.model_table``).
    """

    def __init__(self, entry: ModelEntry, method: MethodConfig, runner: ModelRunner, cache: Any):
        super().__init__(
            type=InferType.SEGMENTATION,
            labels=dict(LABELS),
            dimension=3,
            description=method.describe(entry),
            config=options.for_viewers(method.scores_of(entry)),
        )
        self.entry = entry
        self._method = method
        self._scores = method.scores_of(entry)
        self._runner = runner
        self._cache = cache

    def info(self) -> dict[str, Any]:
        """What ``/info/`` says about the model; plain JSON types.

        The description is made anew: measurements and site calibrations come and go without a new version.
        """
        self.description = self._method.describe(self.entry)
        return to_json({**super().info(), "type": InferType.SEGMENTATION.value, "modality": self.entry.modality})

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

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Analyse ``request["image"]``, a file or a folder of DICOM files on this machine.

        Returns the label file (the caller removes it) and the result as JSON. With ``request["map_file"]``
        the anomaly map is written there. Raises AnomalyAppError for bad input, settings or models.
        """
        extension = _extension(request.get("result_extension"))
        compress = str(request.get("result_compress", True)).lower() not in {"false", "0", "no"}
        values = self.read(request)
        device = choose_device(request.get("device"))
        started = time.perf_counter()
        with self._runner.device(device):
            waited = time.perf_counter() - started
            volume, finding, loading = self._analyse(str(request["image"]), values, device)
        writing = time.perf_counter()
        file = _temporary_file(extension)
        try:
            images.write_labelmap(file, finding.mask, volume, compress=compress)
            if request.get("map_file"):
                images.write_map(request["map_file"], finding.anomaly_map, volume)
        except BaseException:
            Path(file).unlink(missing_ok=True)
            raise
        result = finding.to_json()
        result["seconds"] |= to_json({**loading, "write": time.perf_counter() - writing, "waiting": waited})
        result["label_names"] = dict(LABELS)
        result["latencies"] = {"total": round(time.perf_counter() - started, 3)}
        return file, result

    def _analyse(self, path: str, values: dict[str, Any], device: str) -> tuple[Volume, Finding, dict[str, float]]:
        start = time.perf_counter()
        volume = images.read_volume(path, slices=True)
        read = time.perf_counter()
        settings = pipeline.PredictSettings(**values, device=device)
        if not self.is_valid():
            # Removed while this request stood in line; the version that serves now may give another result.
            raise UnknownModel(f"the version {self.entry.id} was removed meanwhile: send the request again")
        try:
            model = self._runner.model(self.entry.folder, device)
            loaded = time.perf_counter()
            finding = pipeline.predict(volume, model, settings, cache=self._cache)
        except torch.cuda.OutOfMemoryError as error:
            self._runner.forget()
            torch.cuda.empty_cache()
            raise ServerBusy(f"{device} ran out of memory: try again later, or send device=cpu") from error
        return volume, finding, {"read": read - start, "load_model": loaded - read}


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
