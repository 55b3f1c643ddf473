"""One finished tiny model per method: trained, exported and calibrated on small synthetic brains."""

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import pytest

from monailabel_app.pipelines import calibrate
from monailabel_app.pipelines.analysis import Analysis
from monailabel_app.pipelines.calibrate import calibrate_model
from monailabel_app.pipelines.fit import export_model, fit
from monailabel_app.registry import TRAINABLE, load_method
from tests.monailabel_app.synthetic import TINY, TINY_TRAINING, person, random_cache, save_template, scan

HEALTHY = 10
real_prepare = calibrate.prepare


@dataclass(frozen=True)
class Made:
    """Where a tiny model lies, and what it was made from. healthy: its calibration scans in model space."""

    method_id: str
    folder: Path
    run_folder: Path
    healthy: list[Analysis]


@lru_cache(maxsize=16)
def healthy_scan_of(number: int):
    """The scan of one healthy person and its brain mask; read only."""
    return scan(person(number))[:2]


def healthy_loaders(count: int = HEALTHY):
    """Loaders of healthy volumes and of their brain masks."""
    volumes = [partial(lambda i: healthy_scan_of(i)[0], 100 + i) for i in range(count)]
    brains = [partial(lambda i: healthy_scan_of(i)[1], 100 + i) for i in range(count)]
    return volumes, brains


@pytest.fixture(scope="session")
def make_model(tmp_path_factory):
    """Makes the model of a method once per session: ``make_model(method_id) -> Made``; copy it before changing it."""
    made: dict[str, Made] = {}
    prepared: dict[tuple, object] = {}

    def prepare(volume, model, device, *, brain):
        """As the app does, and once: all models have the same template and calibrate on the same people."""
        key = (volume.digest, str(model.prepare_settings), str(model.levels))
        if key not in prepared:
            prepared[key] = real_prepare(volume, model, device, brain=brain)
        return prepared[key]

    def make(method_id: str) -> Made:
        if method_id in made:
            return made[method_id]
        base = tmp_path_factory.mktemp(method_id)
        save_template(base)
        random_cache(2).save(base / "cache.safetensors")
        presets = load_method(method_id).PRESETS
        presets["synthetic"] = TINY[method_id]
        try:
            settings = replace(TINY_TRAINING, steps=20, checkpoint_every=10)
            fit(method_id, base / "cache.safetensors", base / "run", settings, preset="synthetic")
        finally:
            del presets["synthetic"]
        folder = export_model(base / "run", base / "tiny", modality="t1", training_data={"name": "synthetic"})
        volumes, brains = healthy_loaders()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(calibrate, "prepare", prepare)
            _, healthy = calibrate_model(folder, volumes, healthy={"data": "synthetic"}, brains=brains)
        made[method_id] = Made(method_id, folder, base / "run", healthy)
        return made[method_id]

    return make


@pytest.fixture(params=list(TRAINABLE))
def each_model(request, make_model) -> Made:
    """The finished model of every method that learns from scans, in turn."""
    return make_model(request.param)


@pytest.fixture
def model_folder(make_model) -> Path:
    """The finished tiny ``ddpm`` model, read only."""
    return make_model("ddpm").folder
