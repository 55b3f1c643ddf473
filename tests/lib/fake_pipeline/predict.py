"""Stand-in for ``monailabel_app.pipelines.predict``: an intensity threshold.

``balanced`` marks voxels above 90 % of the brightest, ``specific`` nothing. While the file named in FAKE_HOLD
exists, the computation goes on, of every scan if the file is empty, else of those that were not analysed before; a
file of that name with ``.busy`` at the end says that one has begun.
"""

import hashlib
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from monailabel_app.errors import NotAnalysed
from monailabel_app.types import Finding, Lesion

_DONE = set()


THRESHOLDS = {"sensitive": 0.5, "balanced": 0.9, "specific": 2.0, "bounded": 0.95}


@dataclass(frozen=True)
class PredictSettings:
    operating_point: str = "balanced"
    score: str = "l1"
    smoothing: str = "standard"
    min_volume_ml: float = 0.1
    seed: int = 0
    device: str = "cpu"
    uncertainty: bool = False
    gate: str = "warn"
    calibration: str = "site"
    threshold: float | None = None


@dataclass
class Model:
    id: str
    hash: str

    def with_calibration(self, wanted):
        return self

    @property
    def calibration(self):
        """Bands from 0.6, 0.8 and 0.95 of the brightest."""
        tails = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.8, 0.85, 0.9, 0.95)
        points = {name: SimpleNamespace(threshold=value) for name, value in THRESHOLDS.items()}
        smoothing = ("standard", "none", "strong")
        score = SimpleNamespace(
            tails=dict.fromkeys(smoothing, tails),
            points=dict.fromkeys(smoothing, points),
            scan_scores=dict.fromkeys(smoothing, (0.1, 0.2)),
        )
        return SimpleNamespace(score=lambda name: score)


def load_model(folder):
    content = b"".join(path.read_bytes() for path in sorted(Path(folder).iterdir()))
    return Model(Path(folder).name, hashlib.sha256(content).hexdigest())


def _everything_is_new():
    """While the hold file is empty, no analysis is at hand, so that a test can hold up any; with a word in it, some."""
    hold = Path(os.environ.get("FAKE_HOLD") or "/nowhere")
    return hold.exists() and not hold.read_text()


def predict(volume, model, settings, progress=None, cache=None, images=False, run=True):
    key = (volume.digest, model.hash, settings.seed)
    if not run and (key not in _DONE or _everything_is_new()):
        raise NotAnalysed("no analysis at hand; run the analysis first")
    if progress is not None:
        progress("reconstruction", 0.0)
    hold = os.environ.get("FAKE_HOLD")
    deadline = time.monotonic() + 600
    if run and hold and Path(hold).exists():
        Path(f"{hold}.busy").touch()
    while run and hold and Path(hold).exists() and time.monotonic() < deadline:
        np.linalg.svd(np.random.default_rng(0).random((300, 300)))
        if progress is not None:
            progress("reconstruction", 0.5)
    _DONE.add(key)
    data = volume.data[0]
    values = (data / data.max()).astype(np.float32)
    threshold = THRESHOLDS[settings.operating_point]
    threshold = settings.threshold if settings.threshold is not None else threshold
    mask = (values > threshold).astype(np.uint8)
    lesions = ()
    if mask.any():
        centre = tuple(float(c) for c in np.argwhere(mask).mean(axis=0))
        world = tuple(float(c) for c in (volume.affine @ [*centre, 1.0])[:3])
        size = float(mask.sum()) * volume.voxel_volume_mm3 / 1000
        lesions = (Lesion(1, size, centre, world, float(values[mask > 0].mean()), float(values.max())),)
        peak = tuple(int(i) for i in np.unravel_index(np.argmax(values * mask), mask.shape))
        lesions = (replace(lesions[0], peak_voxel=peak),)
    return Finding(
        mask=mask,
        anomaly_map=values,
        brain_mask=data > 0,
        affine=volume.affine,
        lesions=lesions,
        anomaly_score=np.float32(mask.mean()),
        p_value=float("nan"),
        threshold=threshold,
        model_id=model.id,
        model_hash=model.hash,
        settings=vars(settings),
        seconds={"reconstruct": np.float64(0.5)},
        calibration={"kind": "shipped", "id": "shipped"},
        reconstruction=(data * 0.5).astype(np.float32) if images else None,
        uncertainty_map=(values * 0.1).astype(np.float32) if images and settings.uncertainty else None,
        drift={"distance": np.float32(0.25), "drifted": np.bool_(False)},
    )
