"""The budget of a differentially private training, and how it is spent."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import Any

from monailabel_app.errors import InvalidSettings

TRAINABLE = ("attention_and_last", "last", "all")
_NONE = {"", "none", "off", "no"}


@dataclass(frozen=True)
class PrivacySettings:
    """A budget and how it is spent. Raises InvalidSettings when made with values outside their range.

    max_grad_norm: C, the norm a patient's gradient is clipped to; Adam does not see its size, so it is small and nearly
    every patient is clipped to the same length. slices_per_patient: k random slices a patient's gradient is the mean
    of; augmentations: copies of each. patients_per_step: *expected* number (None: 64, or half of the patients).
    trainable: part of the network that is tuned. learning_rate, warmup: take the place of TrainSettings'. seed: for
    tests only, None in earnest: a known seed voids the guarantee.
    """

    epsilon: float = 8.0
    delta: float = 1e-5
    max_grad_norm: float = 0.01
    slices_per_patient: int = 8
    augmentations: int = 1
    patients_per_step: int | None = None
    steps: int = 500
    trainable: str = "attention_and_last"
    learning_rate: float = 1e-4
    warmup: int = 20
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("epsilon", "delta", "max_grad_norm", "learning_rate"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and 0 < value < math.inf):
                raise InvalidSettings(f"expected {name} as a finite number above 0, got {value}")
        if self.delta >= 1:
            raise InvalidSettings(
                f"expected delta below 1, far below one over the number of patients, got {self.delta}"
            )
        for name in ("slices_per_patient", "augmentations", "steps"):
            if getattr(self, name) < 1:
                raise InvalidSettings(f"expected {name} of at least 1, got {getattr(self, name)}")
        if self.patients_per_step is not None and self.patients_per_step < 1:
            raise InvalidSettings(f"expected at least 1 patient per step, got {self.patients_per_step}")
        if self.trainable not in TRAINABLE:
            raise InvalidSettings(f"expected trainable out of {', '.join(TRAINABLE)}, got {self.trainable!r}")

    @classmethod
    def parse(cls, text: str | None) -> PrivacySettings | None:
        """``epsilon=8 delta=1e-5`` (blanks or commas between, any field but seed); ``none`` or nothing is None.

        Raises InvalidSettings that names what could not be read.
        """
        if text is None or text.strip().lower() in _NONE:
            return None
        kinds = {field.name: str(field.type) for field in fields(cls) if field.name != "seed"}
        values: dict[str, Any] = {}
        for part in re.split(r"[\s,;]+", text.strip()):
            name, _, value = part.partition("=")
            if name not in kinds or not value:
                raise InvalidSettings(
                    f"expected a privacy budget such as 'epsilon=8 delta=1e-5' or 'none', got {part[:40]!r}; known are "
                    f"{', '.join(kinds)}"
                )
            if name in values:
                raise InvalidSettings(f"expected {name} once in the privacy budget, got it twice")
            values[name] = _number(name, value, kinds[name])
        return cls(**values)


def _number(name: str, value: str, kind: str) -> Any:
    if kind == "str":
        return value
    try:
        number = float(value)
        if not math.isfinite(number) or ("int" in kind and number != int(number)):
            raise ValueError(value)
    except ValueError:
        what = "a whole number" if "int" in kind else "a finite number"
        raise InvalidSettings(f"expected {name} of the privacy budget as {what}, got {value[:40]!r}") from None
    return int(number) if "int" in kind else number
