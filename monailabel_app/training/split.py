"""Who is trained on and who is held out: by patient, repeatable, and stable while scans are added."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import NamedTuple

from monailabel_app.errors import InvalidSettings, TrainingFailed

MIN_HELD_OUT_PATIENTS = 5
MIN_TRAINING_PATIENTS = 5
TRUSTWORTHY_HELD_OUT = 20


class Split(NamedTuple):
    """Indices of the scans of either side, ascending; no patient is on both."""

    training: tuple[int, ...]
    held_out: tuple[int, ...]


def split_by_patient(
    patients: Sequence[str], share: float, *, key: bytes, minimum: int = MIN_HELD_OUT_PATIENTS
) -> Split:
    """Hold out about ``share`` of the patients, at least ``minimum``, with all their scans.

    Each patient has a fixed place in [0, 1): HMAC-SHA256(key, patient). Held out are those below ``share`` and, where
    they are too few, the next ones. Adding patients never moves one from training to the held-out side (a model that
    goes on from earlier weights is not judged on what those have seen), and whoever lies below ``share`` stays held
    out for good. The price is that the number varies around ``share`` as a draw does. The one exception: with so few
    patients that a large ``share`` would leave under 5 to train on, some of those below it are trained on for now.

    patients: one entry per scan. key: secret of the site, so that the order tells nothing about the ids.
    Raises InvalidSettings for a share outside (0, 1) or a minimum below 1, TrainingFailed for too few patients.
    """
    if not 0 < share < 1 or minimum < 1:
        raise InvalidSettings(f"expected a held-out share above 0 and below 1, got {share:g} (at least {minimum})")
    known = set(patients)
    needed = minimum + MIN_TRAINING_PATIENTS
    if len(known) < needed:
        raise TrainingFailed(
            f"expected healthy scans of at least {needed} patients ({MIN_TRAINING_PATIENTS} to train on, {minimum} to "
            f"hold out; {TRUSTWORTHY_HELD_OUT} held-out ones or more make the thresholds trustworthy), got "
            f"{len(patients)} scans of {len(known)} patients; add healthy scans"
        )
    place = {patient: _place(patient, key) for patient in known}
    order = sorted(known, key=lambda patient: (place[patient], patient))
    below = sum(value < share for value in place.values())
    count = min(max(below, minimum), len(known) - MIN_TRAINING_PATIENTS)
    held_out = set(order[:count])
    return Split(
        tuple(i for i, patient in enumerate(patients) if patient not in held_out),
        tuple(i for i, patient in enumerate(patients) if patient in held_out),
    )


def _place(patient: str, key: bytes) -> float:
    digest = hmac.new(key, patient.encode(), hashlib.sha256).digest()
    return int.from_bytes(digest[:7], "big") / 2**56
