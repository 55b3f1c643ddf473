"""What a user can choose about a training on the scans of a site, read from a viewer's request or the command line."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from monailabel_app.errors import InvalidSettings
from monailabel_app.registry import METHODS, load_method, method_info
from monailabel_app.training.privacy_settings import PrivacySettings
from monailabel_app.training.settings import TrainSettings

PROMOTE = ("if better", "always", "never")
MODALITIES = ("t1", "t2", "flair", "pd")
SCRATCH, SERVING = "scratch", "serving model"
NO_LIMIT = "no limit"
_SLICES, _VOLUMES = 16, 4
_BUDGETS = ("epsilon=8 delta=1e-5", "epsilon=3 delta=1e-5")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_WORD = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


@dataclass(frozen=True)
class SiteOptions:
    """One training on a site's healthy scans.

    modality: sequence of the scans, in small letters. model_name: what is trained (default: method_modality).
    preset: size of the network; a run that starts from weights takes their network instead. max_epochs, minutes,
    steps: whichever is reached first ends the run; infinite or None is no limit, but one must be given.
    validation_share: share of the patients held out for calibration and comparison. start_from: ``serving model`` (the
    weights that serve under this name, random ones where there are none), ``scratch``, or NAME or NAME@VERSION.
    privacy: None, or the budget of a differentially private fine-tuning. promote: whether the result serves.
    processes: one per GPU; 0 takes every GPU of this machine.
    """

    method: str = "ddpm"
    modality: str = "t1"
    model_name: str = ""
    preset: str = "compact"
    max_epochs: float = math.inf
    minutes: float = 60.0
    steps: int | None = None
    batch_size: int = _SLICES
    learning_rate: float = 4e-4
    validation_share: float = 0.2
    seed: int = 0
    start_from: str = SERVING
    privacy: PrivacySettings | None = None
    promote: str = "if better"
    device: str = "auto"
    processes: int = 1
    workers: int = 2
    resume: bool = False

    def __post_init__(self) -> None:
        load_method(method_info(self.method).id)
        if not _WORD.fullmatch(self.modality):
            raise InvalidSettings(
                f"expected the modality as a short word such as t1, t2 or flair, got {self.modality[:40]!r}"
            )
        if self.model_name and not _NAME.fullmatch(self.model_name):
            raise InvalidSettings(
                f"expected a model name of letters, digits, '.', '_' and '-', got {self.model_name[:40]!r}"
            )
        if self.promote not in PROMOTE:
            raise InvalidSettings(f"expected promote to be one of {', '.join(PROMOTE)}, got {self.promote[:40]!r}")
        if method_info(self.method).composed:
            raise InvalidSettings(
                f"expected a method that learns from scans, got {self.method}, whose models are made of others; see: "
                "python main.py models ensemble --help"
            )
        presets = load_method(self.method).PRESETS
        if self.preset not in presets:
            raise InvalidSettings(f"expected a preset out of {', '.join(presets)}, got {self.preset[:40]!r}")
        if self.privacy is not None and not method_info(self.method).private:
            able = ", ".join(info.id for info in METHODS.values() if info.private)
            raise InvalidSettings(
                f"expected a method whose training can be private ({able}), got {self.method}: it learns more from a "
                "batch than one bounded gradient per patient"
            )
        if math.isinf(self.max_epochs) and math.isinf(self.minutes) and self.steps is None and not self.privacy:
            raise InvalidSettings("expected a limit for the training, got none: give max_epochs, minutes or steps")
        for name, low, high in (
            ("max_epochs", 0, math.inf),
            ("minutes", 0, math.inf),
            ("learning_rate", 0, 1),
            ("validation_share", 0, 0.9),
        ):
            value = getattr(self, name)
            if not low < value <= high:
                raise InvalidSettings(f"expected {name} above {low:g} and at most {high:g}, got {value:g}")
        if not 1 <= self.batch_size <= 4096:
            raise InvalidSettings(f"expected a batch size from 1 to 4096, got {self.batch_size}")
        if self.steps is not None and self.steps < 1:
            raise InvalidSettings(f"expected at least 1 step, got {self.steps}")

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model_name or f"{self.method}_{self.modality}"

    def train_settings(self, device: str) -> TrainSettings:
        """The loop's settings."""
        steps = self.steps if self.steps is not None else 10**7
        return TrainSettings(
            steps=steps,
            minutes=self.minutes,
            max_epochs=self.max_epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            seed=self.seed,
            device=device,
            checkpoint_every=250 if self.steps is None else min(250, max(1, self.steps // 4)),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; infinity becomes None."""
        values = asdict(self)
        return {k: None if isinstance(v, float) and math.isinf(v) else v for k, v in values.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SiteOptions:
        """The inverse of ``to_json``."""
        given = dict(values)
        given["privacy"] = PrivacySettings(**given["privacy"]) if given.get("privacy") else None
        for key in ("max_epochs", "minutes"):
            given[key] = math.inf if given.get(key) is None else given[key]
        return cls(**given)


def usual_batch(method_id: str) -> int:
    """Samples per step unless somebody says otherwise: a whole brain takes the memory of many slices."""
    return _VOLUMES if getattr(load_method(method_id), "SAMPLES", "slices") == "volumes" else _SLICES


def for_viewers(method_id: str, start_points: tuple[str, ...] = ()) -> dict[str, Any]:
    """The options of a method's trainer as Slicer and OHIF show them: lists become drop-downs, first is the default.

    Numbers are offered as text: OHIF's panel takes everything but digits out of a number, so that 0.2 becomes 2, and
    shows nothing for 0.
    """
    default = SiteOptions(method=method_id)
    return {
        "modality": list(MODALITIES),
        "model_name": "",
        "start_from": [SERVING, SCRATCH, *start_points],
        "preset": list(load_method(method_id).PRESETS),
        "minutes": f"{default.minutes:g}",
        "max_epochs": NO_LIMIT,
        "train_batch_size": str(usual_batch(method_id)),
        "learning_rate": str(default.learning_rate),
        "val_split": str(default.validation_share),
        "seed": str(default.seed),
        "promote": list(PROMOTE),
        "privacy": ["none", *(_BUDGETS if method_info(method_id).private else ())],
        "multi_gpu": False,
        "resume": False,
    }


def from_request(method_id: str, request: Mapping[str, Any]) -> SiteOptions:
    """The options in a viewer's request; what is absent, empty or the whole list as offered means the default.

    Zero minutes or epochs, or ``no limit``, mean no limit of that kind. Raises InvalidSettings.
    """
    offered = for_viewers(method_id)

    def given(key: str) -> Any:
        value = request.get(key)
        if isinstance(value, (list, tuple)):
            value = value[0] if value else None
        return None if isinstance(value, str) and not value.strip() else value

    def text(key: str) -> str:
        value = given(key)
        first = offered[key][0] if isinstance(offered[key], list) else offered[key]
        return str(first if value is None else value).strip()

    minutes = _limit("minutes", given("minutes"), offered["minutes"])
    epochs = _limit("max_epochs", given("max_epochs"), offered["max_epochs"])
    steps = _number("max_steps", given("max_steps"), 0)
    options = SiteOptions(
        method=method_id,
        modality=text("modality").lower(),
        model_name=text("model_name"),
        preset=text("preset"),
        max_epochs=epochs,
        minutes=minutes,
        steps=int(steps) or None,
        batch_size=int(_number("train_batch_size", given("train_batch_size"), offered["train_batch_size"])),
        learning_rate=_number("learning_rate", given("learning_rate"), offered["learning_rate"]),
        validation_share=_number("val_split", given("val_split"), offered["val_split"]),
        seed=int(_number("seed", given("seed"), offered["seed"])),
        start_from=text("start_from"),
        privacy=PrivacySettings.parse(text("privacy")),
        promote=text("promote").lower(),
        device=str(given("device") or "auto"),
        processes=0 if _yes(given("multi_gpu")) else 1,
        resume=_yes(given("resume")),
    )
    return options if options.privacy is None else _private(options, given("promote"))


def _private(options: SiteOptions, promote: Any) -> SiteOptions:
    """A comparison on private scans would be a statistic outside the budget, so it is not made unless asked for."""
    return options if promote is not None and options.promote == "always" else replace(options, promote="never")


def _limit(name: str, value: Any, default: str) -> float:
    value = default if value is None else value
    if isinstance(value, str) and value.strip().lower() == NO_LIMIT:
        return math.inf
    number = _number(name, value, 0)
    return number if number > 0 else math.inf


def _number(name: str, value: Any, default: float | str) -> float:
    if value is None:
        return float(default)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise InvalidSettings(f"expected {name} as a number, got {str(value)[:40]!r}")
    return number


def _yes(value: Any) -> bool:
    return value is True or str(value).strip().lower() in {"true", "1", "yes", "on"}
