"""A model folder, opened and verified: the network, its calibration, and what prepares a scan for it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from copy import copy
from pathlib import Path
from types import ModuleType
from typing import Any

from monailabel_app.calibration.calibrated_map import Calibration
from monailabel_app.calibration.voxel_statistics import PRIOR_SCANS
from monailabel_app.errors import CorruptModel
from monailabel_app.preprocessing.brain_mask import BrainExtractor
from monailabel_app.preprocessing.normalize import NORMALIZATIONS
from monailabel_app.preprocessing.pipeline import PrepareSettings
from monailabel_app.preprocessing.template import Template
from monailabel_app.registry import load_method
from monailabel_app.weights.model_folder import SUMS, open_model_folder, result_hash

from .calibration_choice import CalibrationChoice, Pinned
from .config_io import config_from_plain
from .find_model import companion
from .input_gate import FOLDER as GATE_FOLDER
from .input_gate import InputGate, find_gate
from .levels import levels_of_config
from .members import check_members, load_members

_TEMPLATE, _EXTRACTOR = "template", "brain_extraction"


class AnomalyModel:
    """A loaded model folder with its calibration, template and brain extraction.

    calibration: the folder's own; ``with_calibration`` gives the model with the site's. decides: a hash of what an
    analysis depends on in the folder; prepared_by: a short name of the template and the brain extraction, which it
    depends on, too.
    """

    def __init__(self, folder: Path, *, calibrated: bool = True) -> None:
        opened = open_model_folder(folder)
        self.id, self.hash, self.meta = opened.id, opened.hash, opened.config
        try:
            self.method: ModuleType = load_method(str(opened.config["method"]))
            self.config = config_from_plain(self.method.Config, dict(opened.config["config"]))
            self.modality = str(opened.config["modality"])
            self.description = str(opened.config["description"])
        except KeyError as error:
            raise CorruptModel(
                f"expected the key {error} in {opened.id}/config.yaml, it is missing; restore the model folder"
            ) from error
        self.network = self.method.build(self.config)
        try:
            self.network.load_state_dict(opened.weights())
        except RuntimeError as error:
            raise CorruptModel(
                f"expected the weights of the network that {opened.id}/config.yaml describes, got those of another "
                "one; restore the model folder"
            ) from error
        self.network.eval()
        self.members: tuple[AnomalyModel, ...] = ()
        if hasattr(self.method, "combine"):
            self.members = load_members(Path(folder), self.config.members, self.config.hashes, AnomalyModel)
        self.calibration = Calibration.load(folder) if calibrated else Calibration({}, 0.0, {})
        self.template = Template.load(companion(folder, _TEMPLATE))
        self.folder = Path(folder)
        self.prepare_settings = PrepareSettings(
            bool(opened.config.get("bias_field", False)), str(opened.config.get("normalization", "percentile"))
        )
        if self.prepare_settings.normalization not in NORMALIZATIONS:
            raise CorruptModel(
                f"expected normalization out of {', '.join(NORMALIZATIONS)} in {opened.id}/config.yaml, got "
                f"{self.prepare_settings.normalization!r}; restore the model folder"
            )
        self.levels = levels_of_config(opened.config, self.template, opened.id)
        check_members(self)
        self.prior_scans = float(opened.config.get("prior_scans", PRIOR_SCANS))
        self.illumination_mm = float(opened.config.get("illumination_mm", 0.0))
        self.labels = {"anomaly": 1}
        self.calibration_id: Mapping[str, Any] = {}
        self._choice: CalibrationChoice | Pinned | None = None
        if calibrated:
            depth = self.template.shape[2] if self.levels is None else 1
            self._choice = CalibrationChoice(folder, self.scores, (*self.template.shape[:2], depth))
        self._extractors: dict[str, BrainExtractor] = {}
        self.prepared_by = _checksums(folder, (_TEMPLATE, _EXTRACTOR))
        # Not the folder's hash: a card that is written anew would cost every analysis at hand.
        self.decides = result_hash(folder)

    @property
    def gate(self) -> InputGate | None:
        """The input gate among the shipped models; None, said once in the log, where it is missing."""
        try:
            return find_gate(companion(self.folder, GATE_FOLDER))
        except CorruptModel:
            return find_gate(None)

    @property
    def scores(self) -> tuple[str, ...]:
        """The calibrated scores, default first."""
        return tuple(self.calibration.scores)

    def with_calibration(self, wanted: str) -> AnomalyModel:
        """The same model with the site's calibration (``site``, where one is in use) or its own (``shipped``).

        Members of an ensemble keep their own: an analysis does not depend on the choice. Raises what
        ``CalibrationChoice.get`` raises.
        """
        if self._choice is None:
            return self
        chosen = self._choice.get(wanted)
        made = copy(self)
        made.calibration, made.calibration_id = chosen.calibration or self.calibration, chosen.to_json()
        return made

    def pinned(self, calibration_id: str) -> AnomalyModel:
        """The same model that always uses the calibration of this id, as a run manifest names it.

        Raises CorruptModel where the model does not have that calibration any more.
        """
        if self._choice is None or isinstance(self._choice, Pinned):
            return self
        made = copy(self)
        made._choice = Pinned(self._choice.of(calibration_id))
        return made

    def extractor(self, device: str) -> BrainExtractor:
        """The brain extraction network on a device, loaded when first needed."""
        if device not in self._extractors:
            folder = companion(self.folder, _EXTRACTOR)
            self._extractors[device] = BrainExtractor.load(folder, device=device)
        return self._extractors[device]


def load_model(folder: str | Path) -> AnomalyModel:
    """Open, verify and build the model in ``folder``. Raises CorruptModel and UnknownModel."""
    return AnomalyModel(Path(folder))


def _checksums(folder: Path, names: Iterable[str]) -> str:
    """A short name of what lies beside a model, by its own lists of checksums; what is missing counts as empty."""
    digest = hashlib.sha256()
    for name in names:
        with suppress(CorruptModel, FileNotFoundError):
            digest.update(name.encode() + (companion(folder, name) / SUMS).read_bytes())
    return digest.hexdigest()[:16]
