"""A model folder that came from outside: looked through file by file before anything in it is built, then published.

Nothing of it is executed: configuration and figures are plain YAML and JSON, tensors are safetensors. Weights in other
formats (.pt, .pth, .ts, .onnx) can hold programs and are refused by name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open

from monailabel_app.calibration.calibrated_map import SMOOTHING_MM
from monailabel_app.errors import AnomalyAppError, CorruptModel, InvalidSettings, UnknownModel
from monailabel_app.registry import load_method
from monailabel_app.weights import versions
from monailabel_app.weights.model_folder import CARD, CONFIG, SUMS, WEIGHTS, open_model_folder, verify
from monailabel_app.weights.version_layout import Version, shipped_folder

from .anomaly_model import AnomalyModel
from .config_io import config_from_plain

CALIBRATION = ("calibration.json", "calibration.safetensors")
REQUIRED = (CONFIG, WEIGHTS, *CALIBRATION, SUMS)
ALLOWED = (*REQUIRED, CARD, "measured.json", "training.json")
_PROGRAMS = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".ts", ".bin", ".onnx", ".npy", ".npz", ".py")
_TENSORS = (WEIGHTS, "calibration.safetensors")
_LONGEST_TEXT, _LONGEST_CONFIG = 8 * 2**20, 128 * 1024
_LARGEST_NUMBER, _LARGEST_IN_NETWORK, _MOST_ITEMS, _DEEPEST = 1e6, 4096, 256, 12
# What a network has beyond its file: buffers that are not kept.
_SPARE_VALUES = 2**20


def check_names(names: Collection[str]) -> None:
    """Raises InvalidSettings naming a file that no model folder has, or that is missing."""
    strange = sorted(name for name in names if name not in ALLOWED)
    if strange:
        why = " (weights in that format can hold a program)" if strange[0].lower().endswith(_PROGRAMS) else ""
        raise InvalidSettings(
            f"expected a model folder of {', '.join(ALLOWED)} and nothing else; got {strange[0][:60]!r}{why}"
        )
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise InvalidSettings(f"expected a whole model folder, {', '.join(missing)} missing: send the folder as it is")


def check_folder(folder: Path) -> AnomalyModel:
    """The model in a folder from outside, loaded. Raises AnomalyAppError that says which file is at fault and why."""
    names = {path.name for path in folder.iterdir()}
    check_names(names)
    for path in sorted(folder.iterdir()):
        longest = _LONGEST_CONFIG if path.name == CONFIG else _LONGEST_TEXT
        if path.name not in _TENSORS and path.stat().st_size > longest:
            raise InvalidSettings(f"expected {path.name} of at most {longest // 1024} KiB, got a longer one")
    with _as_refusal():
        verify(folder, [name for name in names if name != SUMS])
        _check_yaml(folder / CONFIG)
        for name in names:
            if name.endswith(".json"):
                _check_json(folder / name)
        opened = open_model_folder(folder)
        _check_config(opened.config)
        _check_tensors(folder, opened.config)
        model = AnomalyModel(folder)
        if not model.scores:
            raise InvalidSettings("expected a calibrated model, got one without a calibrated score")
        _check_calibration(model)
        unknown = sorted(set(model.scores) - set(map(str, opened.config.get("scores") or model.scores)))
        if unknown:
            raise InvalidSettings("expected a calibration of the scores in config.yaml, got one of others")
    return model


def publish_upload(root: Path, name: str, folder: Path, *, promote: bool | None = None) -> Version:
    """Check ``folder`` and let it in as the next version of ``name``.

    promote: whether it serves at once; None: only where no model of that name does. Raises AnomalyAppError.
    """
    versions.check_name(name)
    check_folder(folder)
    new = versions.serving_version(root, name) is None and shipped_folder(root, name) is None
    return versions.publish(root, name, folder, promote=new if promote is None else promote, reason="uploaded")


class _as_refusal:
    """Whatever a made-up folder breaks is that folder's fault, and no fault of the server."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: Any, error: BaseException | None, _trace: Any) -> bool:
        if isinstance(error, (CorruptModel, UnknownModel)):
            raise InvalidSettings(f"the uploaded model is refused: {error}") from error
        if isinstance(error, AnomalyAppError) or not isinstance(error, Exception):
            return False
        raise InvalidSettings(
            f"the uploaded model is refused: it cannot be loaded ({type(error).__name__}); send a folder that this "
            "app has written"
        ) from error


def _check_yaml(path: Path) -> None:
    """No references: a few lines of them unfold into gigabytes."""
    text = path.read_text(encoding="utf-8")
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):
            raise InvalidSettings(f"expected plain values in {CONFIG}, got a reference or a tag")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise InvalidSettings(f"expected at most {_DEEPEST} levels in {CONFIG}, got more")


def _check_json(path: Path) -> None:
    def finite(text: str) -> float:
        # Nothing lies above a threshold that is no number: every scan would seem healthy.
        number = float(text)
        if path.name in CALIBRATION and not math.isfinite(number):
            raise InvalidSettings(f"expected finite numbers in {path.name}, got NaN or infinity")
        return number

    value = json.loads(path.read_text(encoding="utf-8"), parse_float=finite, parse_constant=finite)
    if not isinstance(value, Mapping):
        raise InvalidSettings(f"expected an object in {path.name}, got {type(value).__name__}")


def _check_config(config: Mapping[str, Any]) -> None:
    if config.get("kind") != "anomaly":
        raise InvalidSettings(f"expected kind: anomaly in {CONFIG}, got {str(config.get('kind'))[:40]!r}")
    for _, value in _values(config):
        if isinstance(value, (int, float)) and not (math.isfinite(value) and abs(value) <= _LARGEST_NUMBER):
            raise InvalidSettings(f"expected numbers up to {_LARGEST_NUMBER:g} in {CONFIG}, got another one")
    network = config.get("config")
    for place, value in _values(network if isinstance(network, Mapping) else {}):
        whole = isinstance(value, int) and not isinstance(value, bool)
        if whole and "steps" not in place and abs(value) > _LARGEST_IN_NETWORK:
            raise InvalidSettings(
                f"expected whole numbers up to {_LARGEST_IN_NETWORK} of a network in {CONFIG}, got {value} for {place}"
            )


def _check_calibration(model: AnomalyModel) -> None:
    """Maps of the grid that the model looks at, and thresholds for every smoothing that can be asked for."""
    depth = model.template.shape[2] if model.levels is None else 1
    grid = (*model.template.shape[:2], depth)
    for name in model.scores:
        calibration = model.calibration.score(name)
        for values in (calibration.statistics.mean, calibration.statistics.std):
            if values.shape != grid:
                raise InvalidSettings(f"expected calibration maps of {grid} voxels, got {values.shape}")
        for smoothing in SMOOTHING_MM:
            if not calibration.points.get(smoothing) or not calibration.scan_scores.get(smoothing):
                raise InvalidSettings(
                    f"expected operating points and healthy scan scores for the smoothing {smoothing!r}, got none"
                )


def _values(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, (Mapping, list)):
        if len(value) > _MOST_ITEMS:
            raise InvalidSettings(f"expected at most {_MOST_ITEMS} values together in {CONFIG}, got {len(value)}")
        items = value.items() if isinstance(value, Mapping) else ((place, item) for item in value)
        for name, item in items:
            yield from _values(item, str(name)[:60])
    else:
        yield place, value


def _check_tensors(folder: Path, config: Mapping[str, Any]) -> None:
    """No network is built that is larger than its file, and no number in a file is NaN or infinite."""
    sizes = {}
    for name in _TENSORS:
        try:
            with safe_open(str(folder / name), "pt") as file:
                sizes[name] = 0
                for key in file.keys():  # noqa: SIM118  it is no mapping
                    tensor = file.get_tensor(key)
                    sizes[name] += tensor.numel()
                    if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
                        raise InvalidSettings(f"expected finite numbers in {name}, got NaN or infinity")
                    if name != WEIGHTS and key.endswith("/std") and not bool((tensor.float() > 0).all()):
                        raise InvalidSettings(f"expected deviations above zero in {name}, got zero or less")
        except SafetensorError as error:
            raise InvalidSettings(f"expected {name} in the safetensors format, got something else") from error
    method = load_method(str(config.get("method")))
    made = config_from_plain(method.Config, dict(config.get("config") or {}))
    # On this device shapes are known and no memory is taken.
    with torch.device("meta"):
        network = method.build(made)
    described = sum(tensor.numel() for tensor in network.state_dict().values())
    if described > sizes[WEIGHTS] + _SPARE_VALUES:
        raise InvalidSettings(
            f"expected the weights of the network in {CONFIG} ({described} values), {WEIGHTS} has {sizes[WEIGHTS]}"
        )
