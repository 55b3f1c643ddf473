"""The app's addresses over a folder of small scans, without MONAI Label's start-up and without a network.

What a model found is made up here: blobs of known height, thresholded and measured by the library's own functions. The
datastore, the routes and the guard are those of the server.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
from fastapi import FastAPI
from fastapi.testclient import TestClient
from monailabel.interfaces.utils.app import apps

from lib import options
from lib.analyses import Analysed
from lib.datastore import AnomalyLocalDatastore
from lib.endpoints.install import install
from lib.errors import UnknownImage
from monailabel_app.calibration.calibrated_map import ScoreCalibration
from monailabel_app.calibration.operating_points import OperatingPoint
from monailabel_app.calibration.tails import TAIL_SHARES
from monailabel_app.errors import NotAnalysed
from monailabel_app.io import images
from monailabel_app.postprocessing.components import find_lesions
from monailabel_app.types import Finding
from monailabel_app.weights.listing import read_entry
from monailabel_app.weights.model_folder import seal, write_config

SCORES = ("signed", "l1")
SHAPE = (20, 22, 24)
AFFINE = np.array([[-2.0, 0, 0, 20], [0, 2, 0, -22], [0, 0, 2, -24], [0, 0, 0, 1.0]])
# Centre and height of what is found; the last two run together below 4.
BLOBS = (((5, 5, 5), 9.0), ((14, 5, 5), 6.0), ((8, 15, 15), 7.0), ((13, 15, 15), 5.0))
POINTS = {"balanced": 3.5, "sensitive": 2.0, "specific": 8.0, "bounded": 4.0}
TAILS = tuple(float(n) for n in range(1, len(TAIL_SHARES) + 1))


def anomaly_map():
    """(x, y, z) float32: a cone of slope 1 around each of BLOBS."""
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    cones = [height - np.linalg.norm(grid - np.array(centre), axis=-1) for centre, height in BLOBS]
    return np.maximum(np.max(cones, axis=0), 0).astype(np.float32)


def calibration(tails=TAILS):
    points = {name: OperatingPoint(0.01, value, 0.01, (0.0, 0.02), 0.02, 4) for name, value in POINTS.items()}
    scores = {name: points for name in options.SMOOTHING}
    healthy = {name: (1.0, 2.0, 3.0, 4.0) for name in options.SMOOTHING}
    return ScoreCalibration(None, scores, healthy, {name: tails for name in options.SMOOTHING} if tails else {})


class Task:
    """As ``AnomalyInferTask``, of a sealed model folder."""

    def __init__(self, folder: Path, modality="t1", method="ddpm"):
        folder.mkdir(parents=True)
        write_config(folder, {"kind": "anomaly", "method": method, "modality": modality, "scores": list(SCORES)})
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "calibration.json").write_text('{"scores": {"signed": {"points": {}}, "l1": {"points": {}}}}')
        seal(folder)
        self.entry = read_entry(folder.name, folder)

    def calibration(self):
        return "shipped"

    def read(self, request):
        return options.read(request, SCORES)

    def config(self):
        return options.for_viewers(SCORES)


@dataclass
class SmallApp:
    """What the addresses ask of ``AnomalyApp``. done: images that were analysed."""

    app_dir: str
    store: AnomalyLocalDatastore
    models: dict
    done: set = field(default_factory=set)
    working: dict = field(default_factory=dict)
    warnings: list = field(default_factory=list)
    score: ScoreCalibration = field(default_factory=calibration)
    p_value: float = float("nan")
    conf: dict = field(default_factory=dict)

    @property
    def jobs(self):
        return SimpleNamespace(working=lambda: self.working)

    def datastore(self):
        return self.store

    def tasks(self):
        return self.models

    def final_label_changed(self, image):
        return self.warnings

    def analysed(self, image, model=None, params=None, *, run=False, images=False, progress=None):
        path = self.store.get_image_uri(image)
        if not Path(path).exists():
            raise UnknownImage("gone")
        task = self.models[model or next(iter(self.models))]
        settings = task.read(params or {})
        if image not in self.done:
            raise NotAnalysed("expected a scan that was analysed, found none: POST /anomaly/jobs")
        volume = _read(path)
        threshold = settings.get("threshold") or self.score.point("standard", settings["operating_point"]).threshold
        values, brain = anomaly_map(), volume.data[0] > 0
        smallest = settings["min_volume_ml"] * 1000
        mask, lesions = find_lesions(values, brain, volume.affine, threshold=threshold, min_volume_mm3=smallest)
        finding = Finding(
            mask=mask,
            anomaly_map=values,
            brain_mask=brain,
            affine=volume.affine,
            lesions=lesions,
            anomaly_score=np.float32(8.5),
            p_value=self.p_value,
            threshold=threshold,
            model_id=task.entry.id,
            model_hash=task.entry.hash,
            settings=settings,
            seconds={"scoring": np.float64(0.1)},
            reconstruction=volume.data[0] * 0.5 if images else None,
            uncertainty={"runs": 4} if settings["uncertainty"] else None,
            uncertainty_map=values * 0.1 if images and settings["uncertainty"] else None,
            calibration={"id": "shipped"},
        )
        scores = {name: self.score for name in SCORES}
        model = SimpleNamespace(
            id=task.entry.id, folder=task.entry.folder, meta=task.entry.config, modality="t1", description="a model",
            calibration=SimpleNamespace(score=scores.__getitem__, scores=scores, warnings=()),
        )  # fmt: skip
        return Analysed(image, Path(path), volume, finding, task, model)


def _read(path):
    return images.read_volume(path, slices=True)


def write_scan(path, seed=0):
    """A block of brain in a dark surrounding."""
    data = np.zeros(SHAPE, np.int16)
    data[2:-2, 2:-2, 2:-2] = np.random.default_rng(seed).integers(100, 200, [n - 4 for n in SHAPE])
    nib.save(nib.Nifti1Image(data, AFFINE), path)


def small_app(folder: Path, scans=("a", "b"), models=("ddpm_t1", "ddpm_flair")) -> SmallApp:
    """An app over ``folder``: scans of those ids, and a model of each of those names."""
    studies = folder / "studies"
    studies.mkdir(parents=True)
    for seed, name in enumerate(scans):
        write_scan(studies / f"{name}.nii.gz", seed)
    store = AnomalyLocalDatastore(str(studies), extensions=["*.nii.gz", "*.nii"])
    tasks = {name: Task(folder / "models" / name, name.rpartition("_")[2]) for name in models}
    return SmallApp(str(folder), store, tasks)


def client_of(app: SmallApp, monkeypatch) -> TestClient:
    """The addresses as they are installed, answered by ``app``."""
    from monailabel.config import settings

    monkeypatch.setattr(settings, "MONAI_LABEL_APP_DIR", app.app_dir)
    monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", "studies")
    monkeypatch.setitem(apps, f"{app.app_dir}studies", app)
    server = FastAPI()
    install(server)
    return local_client(server, raise_server_exceptions=False)


def local_client(server: FastAPI, **options) -> TestClient:
    """A client that asks as one on the server's own machine does: from a loopback address, for a loopback host."""
    return TestClient(server, base_url="http://127.0.0.1", client=("127.0.0.1", 50000), **options)
