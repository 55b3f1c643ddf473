"""A result made again from its run manifest and the scan, and compared with it to the voxel.

What holds, measured on this app's own models: on the same device, with the same code, libraries and number of threads
the mask and the map are the same to the bit. PyTorch promises that for no other case: other numbers of threads, other
processors and GPUs add in another order. Then this says how far apart the results are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monailabel_app.errors import AnomalyAppError, CorruptModel, InvalidSettings, UnknownModel
from monailabel_app.types import BrainMask, Finding, Volume, digest_of, manifest_id

from .anomaly_model import AnomalyModel, load_model
from .find_model import find_model
from .manifest import FORMAT, differences, provenance
from .predict import predict
from .predict_settings import PredictSettings

SAME, OTHER = "identical", "differs"


class NotReproducible(AnomalyAppError):
    """The scan or the model is not the one that the manifest names, or it is no manifest."""

    status = 409


@dataclass(frozen=True)
class Reproduction:
    """What came of it.

    outputs: ``identical`` or ``differs`` for mask, anomaly_map, brain_mask, figures (scores, lesions, uncertainty).
    mask, anomaly_map: where they differ and how much, where the earlier arrays were given. environment: what differs
    between the environment of then and that of now, preprocessing: between its steps, inputs: between the models.
    """

    outputs: Mapping[str, str]
    finding: Finding
    mask: Mapping[str, Any] | None = None
    anomaly_map: Mapping[str, Any] | None = None
    environment: list[str] = field(default_factory=list)
    preprocessing: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)

    @property
    def identical(self) -> bool:
        """Every voxel and every figure is the same."""
        return set(self.outputs.values()) == {SAME}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; without the arrays."""
        told = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "finding"}
        return {"identical": self.identical, **told, "manifest": self.finding.manifest}

    def lines(self) -> list[str]:
        """For people."""
        lines = ["identical to the voxel" if self.identical else "DIFFERS from the result of the manifest"]
        lines += [f"  {name}: {state}" for name, state in self.outputs.items()]
        for name in ("mask", "anomaly_map"):
            about = getattr(self, name)
            if about:
                lines.append(f"  {name}: " + ", ".join(f"{key} {value}" for key, value in about.items()))
        for title, found in (("model", self.inputs), ("environment", self.environment), ("steps", self.preprocessing)):
            lines += [f"  {title}: {line}" for line in found]
        if not self.identical and not (self.environment or self.inputs):
            lines.append("  nothing of what the manifest records differs: the analysis is not deterministic here")
        return lines


def read_manifest(file: Path) -> dict[str, Any]:
    """The manifest in a JSON file: alone, or in a result, a report or a label's information.

    Raises NotReproducible for something else, and for one that was changed: its id is a hash of it.
    """
    try:
        found = _manifest_in(json.loads(Path(file).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise NotReproducible(
            f"expected a readable JSON file with a run manifest, got {type(error).__name__}"
        ) from error
    if found is None:
        raise NotReproducible("expected a run manifest, or a result or report that has one; got JSON without one")
    if found["format"] != FORMAT:
        raise NotReproducible(f"expected a run manifest of format {FORMAT}, got {found['format']!r}; update the app")
    if found["id"] != manifest_id(found):
        raise NotReproducible("expected a run manifest as it was written, got one that was changed: its id is another")
    return found


def find_manifest_model(manifest: Mapping[str, Any], root: Path) -> AnomalyModel:
    """The model that a manifest names, among those of an app. Raises NotReproducible where it is gone."""
    name = str(manifest["model"]["id"])
    try:
        return load_model(find_model(name, root))
    except (UnknownModel, CorruptModel) as error:
        raise NotReproducible(f"expected the model {name}, which made the result: {error}") from error


def reproduce(
    manifest: Mapping[str, Any],
    volume: Volume,
    model: AnomalyModel,
    *,
    mask: np.ndarray | None = None,
    anomaly_map: np.ndarray | None = None,
    brain: BrainMask | None = None,
    device: str | None = None,
    threads: int | None = None,
    anyway: bool = False,
    progress: Callable[[str, float], None] | None = None,
) -> Reproduction:
    """Analyse ``volume`` again as the manifest says, and compare.

    mask, anomaly_map: the earlier result's arrays on the scan's grid, to be told where it differs. brain: the mask that
    was given then. device, threads: instead of those of then. anyway: run although scan or model are not the same.
    Raises NotReproducible, and what ``predict`` raises.
    """
    settings = _settings(manifest, device)
    model = model.pinned(str(manifest["calibration"].get("id"))).with_calibration(settings.calibration)
    score = str(manifest["settings"]["score"])
    now = provenance(volume, model, settings, score, (), (), brain)
    inputs = [
        line
        for key in ("input", "model", "calibration", "given_mask")
        for line in differences({key: manifest[key]}, {key: now[key]})
    ]
    # The folder's hash also covers its card, on which no result depends.
    decisive = [line for line in inputs if not line.startswith("model.hash:")]
    if decisive and not anyway:
        raise NotReproducible("this is not what the result was made from: " + "; ".join(decisive))
    then = manifest["made_with"] or [manifest["environment"]]
    with _threads(int(threads or then[0].get("threads") or 0)):
        finding = predict(volume, model, settings, brain=brain, progress=progress)
    made = finding.manifest
    return Reproduction(
        outputs={
            name: SAME if made["output"].get(name) == value else OTHER for name, value in manifest["output"].items()
        },
        finding=finding,
        mask=None if mask is None else _mask_difference(mask, finding.mask),
        anomaly_map=None if anomaly_map is None else _map_difference(anomaly_map, finding.anomaly_map),
        environment=[line for other in then for line in differences(other, made["environment"])],
        preprocessing=_step_differences(manifest["preprocessing"], made["preprocessing"]),
        inputs=inputs,
    )


def _settings(manifest: Mapping[str, Any], device: str | None) -> PredictSettings:
    known = {item.name for item in fields(PredictSettings)}
    given = {key: value for key, value in manifest["settings"].items() if key in known}
    settings = PredictSettings(**given)
    if device is not None:
        settings = replace(settings, device=device)
    if torch.device(settings.device).type == "cuda" and not torch.cuda.is_available():
        raise InvalidSettings(
            f"expected the device {settings.device} of the manifest, there is none here: give --device cpu, "
            "which gives nearly the same"
        )
    return settings


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """PyTorch computes with so many threads; 0: as it is."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _manifest_in(value: Any, depth: int = 0) -> dict[str, Any] | None:
    if not isinstance(value, Mapping) or depth > 3:
        return None
    if {"format", "model", "input", "output", "settings", "environment", "id"} <= set(value):
        return dict(value)
    for key in ("manifest", "finding", "params", "result"):
        found = _manifest_in(value.get(key), depth + 1)
        if found is not None:
            return found
    return None


def _mask_difference(before: np.ndarray, now: np.ndarray) -> dict[str, Any]:
    if before.shape != now.shape:
        return {"shape": f"{before.shape} then, {now.shape} now"}
    before, now = before > 0, now > 0
    other, total = before != now, int(before.sum() + now.sum())
    about = {"differing_voxels": int(other.sum()), "marked_then": int(before.sum()), "marked_now": int(now.sum())}
    about["dice"] = round(2 * float((before & now).sum()) / total, 6) if total else 1.0
    return about | _box(other)


def _map_difference(before: np.ndarray, now: np.ndarray) -> dict[str, Any]:
    if before.shape != now.shape:
        return {"shape": f"{before.shape} then, {now.shape} now"}
    if digest_of(before.astype(now.dtype)) == digest_of(now):
        return {"differing_voxels": 0, "largest": 0.0}
    apart = np.abs(before.astype(np.float64) - now)
    place = np.unravel_index(int(apart.argmax()), apart.shape)
    about = {"differing_voxels": int((apart > 0).sum()), "largest": float(apart.max()), "mean": float(apart.mean())}
    return about | {"largest_at": [int(n) for n in place]} | _box(apart > 0)


def _box(where: np.ndarray) -> dict[str, Any]:
    """First and last voxel along every axis."""
    if not where.any():
        return {}
    places = np.argwhere(where)
    return {"within": [places.min(axis=0).tolist(), places.max(axis=0).tolist()]}


def _step_differences(before: list[Mapping[str, Any]], now: list[Mapping[str, Any]]) -> list[str]:
    if len(before) != len(now):
        return [f"{len(before)} steps then, {len(now)} now"]
    return [
        line
        for number, (old, new) in enumerate(zip(before, now, strict=True))
        for line in differences(old, new, f"{number + 1}.{old.get('step', '')}.")
    ]
