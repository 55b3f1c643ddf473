"""The input gate: says, before any mask is shown, that a scan is unlike those the models were trained on, and why.

The score is that of the oddest feature, in healthy standard deviations: plain features that a person can check
(``gate_features``) and the distances of the 3-D latent diffusion (Graham et al., MICCAI 2023), averaged over its noise
levels as z-scores. Thresholds come from held-out healthy scans, each measured against the others. The gate judges T1
scans; of another sequence it judges the outline of the brain only, which looks the same in all of them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monailabel_app.errors import CorruptModel
from monailabel_app.metrics.imagewise import rank_p_value
from monailabel_app.preprocessing.template import Template
from monailabel_app.registry import load_method
from monailabel_app.training.cache import TrainingCache
from monailabel_app.types import GateReport, PreparedVolume
from monailabel_app.weights.model_folder import CARD, WEIGHTS, open_model_folder, seal, sha256_of, write_config

from .config_io import config_from_plain
from .gate_features import FEATURES, NETWORK, HealthyLook, measure, network_figures, pooled_shape
from .gate_statistics import KINDS, SETS, Healthy, Measured, with_network

_LOG = logging.getLogger(__name__)
FOLDER, NETWORK_FOLDER = "input_gate_t1", "latent_ddpm_3d_t1"
_REASON_Z = 2.5
_MAX_REASONS = 4
_told: set[str] = set()


class WholeBrainNetwork:
    """The 3-D latent diffusion of a model folder."""

    def __init__(self, folder: Path) -> None:
        opened = open_model_folder(folder)
        self._method = load_method(str(opened.config["method"]))
        self._config = config_from_plain(self._method.Config, dict(opened.config["config"]))
        self._network = self._method.build(self._config)
        self._network.load_state_dict(opened.weights())
        self._network.eval()
        self._lock = threading.Lock()

    def levels(self, image: np.ndarray, brain_mask: np.ndarray, device: str, seed: int = 0) -> dict[str, np.ndarray]:
        """Distances per noise level by kind, of an image (X, Y, Z) on the model grid."""
        with self._lock:
            figures = self._method.analyse(
                self._network.to(device),
                self._config,
                torch.from_numpy(np.ascontiguousarray(image)).to(device),
                torch.from_numpy(np.ascontiguousarray(brain_mask)).to(device),
                torch.Generator().manual_seed(seed),
            ).figures
        return {kind: network_figures(figures, kind) for kind in KINDS.values()}


class InputGate:
    """A loaded gate. The network is used where it is the one that the gate was calibrated with."""

    def __init__(self, folder: Path) -> None:
        opened = open_model_folder(folder)
        self.hash = opened.hash
        try:
            self.healthy = Healthy.from_json(opened.config["healthy"])
            self.volumes_ml = tuple(float(value) for value in opened.config["volumes_ml"])
            wanted = str(opened.config.get("network_weights", ""))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise CorruptModel(
                f"expected healthy figures in {opened.id}/config.yaml, got {type(error).__name__}; restore the folder"
            ) from error
        self.look = HealthyLook.load(folder / WEIGHTS)
        self.network = _network(folder.parent / NETWORK_FOLDER, wanted) if wanted else None

    def check(
        self, prepared: PreparedVolume, template: Template, *, modality: str = "t1", device: str = "cpu", seed: int = 0
    ) -> GateReport | None:
        """Judge a prepared scan, by all features where it went through the T1 preparation, else by its outline.

        None for what is no whole brain on the template's grid, such as a single slice, and for another grid than the
        gate's own.
        """
        if prepared.brain_mask.shape != template.shape or not prepared.brain_mask.any():
            return None
        if self.look.mean.shape != pooled_shape(template.shape):
            return None
        started = time.perf_counter()
        t1 = modality == "t1"
        scan = measured(
            prepared.image[0],
            prepared.brain_mask,
            native_volume_ml(prepared),
            template,
            self.look,
            self.network if t1 else None,
            device=device,
            seed=seed,
        )
        kind = "outline" if not t1 else "full" if scan.levels else "plain"
        return replace(self.judge(scan, kind), seconds=round(time.perf_counter() - started, 4))

    def judge(self, scan: Measured, kind: str) -> GateReport:
        """The verdict on what was measured, by one set of features: ``full``, ``plain`` or ``outline``."""
        z = self.healthy.deviations(scan)
        z = {name: z[name] for name in SETS[kind] if name in z}
        score, scores = max(z.values()), self.healthy.scores[kind]
        threshold = max(scores)
        passed = score <= threshold
        values = with_network(scan, self.healthy.levels)
        # What a person can check comes first; that the network objects, too, explains nothing.
        oddest = sorted((name for name in z if z[name] > _REASON_Z), key=lambda name: (name in NETWORK, -z[name]))
        reasons = tuple(
            FEATURES[name].reason.format(value=values[name], place=scan.places.get(name, "")).replace("  ", " ")
            for name in oddest[:_MAX_REASONS]
        )
        return GateReport(
            score=score,
            p_value=rank_p_value(score, scores),
            threshold=threshold,
            passed=passed,
            reasons=() if passed else reasons,
            figures={**{name: values[name] for name in z}, **{f"{name}_z": z[name] for name in z}},
            judged_by=kind,
        )


def measured(
    image: np.ndarray,
    brain_mask: np.ndarray,
    volume_ml: float,
    template: Template,
    look: HealthyLook,
    network: WholeBrainNetwork | None,
    *,
    device: str = "cpu",
    seed: int = 0,
) -> Measured:
    """All features of a scan on the template's grid."""
    values, places = measure(image, brain_mask, volume_ml, template, look)
    levels = network.levels(image, brain_mask, device, seed) if network is not None else {}
    return Measured(values, places, levels)


def native_volume_ml(prepared: PreparedVolume) -> float:
    """The brain's volume on the scan's own grid."""
    voxel_mm3 = abs(float(np.linalg.det(prepared.native_affine[:3, :3])))
    return float(prepared.native_brain_mask.sum()) * voxel_mm3 / 1000


def build_input_gate(
    folder: Path,
    train: TrainingCache,
    held_out: TrainingCache,
    volumes_ml: Sequence[float],
    template: Template,
    record: Mapping[str, Any],
    *,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Healthy:
    """Make the gate's folder: the healthy look from training scans, thresholds from held-out ones.

    held_out: brains as the app itself finds them. volumes_ml: of healthy brains on their own grids, as many as held_out
    or more. The network is taken from ``latent_ddpm_3d_t1`` beside the folder where there is one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    look = HealthyLook.fit(train)
    network_folder = folder.parent / NETWORK_FOLDER
    weights = network_folder / WEIGHTS
    network = WholeBrainNetwork(network_folder) if weights.is_file() else None
    scans = []
    for index in range(len(held_out)):
        image = held_out.images[index].numpy() / np.float32(255)
        mask = held_out.brain_masks[index].numpy()
        scans.append(measured(image, mask, volumes_ml[index], template, look, network, device=device))
        if progress is not None:
            progress(index + 1, len(held_out))
    healthy = Healthy.of(scans)
    look.save(folder / WEIGHTS)
    write_config(
        folder,
        {
            "kind": "input_gate",
            "modality": "t1",
            "description": "Tells scans that are unlike the healthy T1 scans that the models were trained on",
            "network": NETWORK_FOLDER if network is not None else None,
            "network_weights": sha256_of(weights) if network is not None else "",
            "training_data": dict(record),
            "volumes_ml": [round(float(value), 1) for value in volumes_ml],
            "healthy": json.loads(json.dumps(healthy.to_json())),
        },
    )
    # Numbers measured with another network must not stand beside this one.
    (folder / CARD).write_text(f"# {folder.name}\n\nNot measured yet. Research use only.\n")
    seal(folder)
    return healthy


def find_gate(folder: Path | None) -> InputGate | None:
    """The gate in a folder, loaded once; None, said once in the log, where there is none or it is damaged."""
    if folder is None:
        _say_once("no input gate (model_weights/input_gate_t1): scans are analysed without asking what they are")
        return None
    try:
        return _GATES.get(folder)
    except CorruptModel as error:
        _say_once(f"the input gate cannot be used, scans are analysed without it: {error}")
        return None


class _Gates:
    """Loaded gates by folder and content, for all models of a process."""

    def __init__(self) -> None:
        self._held: dict[str, InputGate] = {}
        self._lock = threading.Lock()

    def get(self, folder: Path) -> InputGate:
        key = hashlib.sha256(str(folder.resolve()).encode()).hexdigest() + _stamp(folder)
        with self._lock:
            if key not in self._held:
                self._held = {key: InputGate(folder)}
            return self._held[key]


def _stamp(folder: Path) -> str:
    files = [folder / name for name in ("sha256sums.txt", f"../{NETWORK_FOLDER}/sha256sums.txt")]
    return "".join(f"|{file.stat().st_mtime_ns}" if file.is_file() else "|" for file in files)


_GATES = _Gates()


def _network(folder: Path, wanted: str) -> WholeBrainNetwork | None:
    """The network that the gate was calibrated with; another one's distances would mean nothing."""
    try:
        if (folder / WEIGHTS).is_file() and sha256_of(folder / WEIGHTS) == wanted:
            return WholeBrainNetwork(folder)
        _say_once(
            f"{NETWORK_FOLDER} is not the model that the input gate was calibrated with: the gate judges without it"
        )
    except (CorruptModel, KeyError, ValueError, RuntimeError) as error:
        _say_once(f"the input gate judges without its network: {error}")
    return None


def _say_once(text: str) -> None:
    if text not in _told:
        _told.add(text)
        _LOG.warning("%s", text)
