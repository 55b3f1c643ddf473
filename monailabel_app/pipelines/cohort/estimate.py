"""What a large cohort would cost, from what the scans of a finished or running one took."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monailabel_app.errors import InvalidSettings

SCANS = 100_000
WORKERS = (1, 4, 16, 64)
_LOADING = "load_model"


@dataclass(frozen=True)
class Estimate:
    """What ``scans`` would take by one model on one kind of worker. per_hour: of one worker, the mean of ``measured``
    scans, without the loading of models, which happens once.
    """

    model: str
    device: str
    per_hour: float
    measured: int
    scans: int

    @property
    def worker_days(self) -> float:
        """Days that one worker would need; divided by the number of workers, days of waiting."""
        return self.scans / self.per_hour / 24

    def lines(self, workers: Sequence[int] = WORKERS) -> list[str]:
        """In words."""
        days = ", ".join(f"{count} worker{'s' * (count > 1)}: {self.worker_days / count:.1f} days" for count in workers)
        return [
            f"{self.model} on {self.device}: {self.per_hour:.1f} scans per hour and worker (mean of {self.measured})",
            f"  {self.scans:,} scans: {self.worker_days:.1f} worker-days ({days})",
        ]


def estimates(records: Iterable[Mapping[str, Any]], scans: int = SCANS) -> list[Estimate]:
    """One per model and kind of device of the analysed ``records``. Raises InvalidSettings where there is none."""
    if scans < 1:
        raise InvalidSettings(f"expected a number of scans to estimate for, got {scans}")
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for record in records:
        told = record.get("seconds") or {}
        if record.get("state") == "analysed" and told.get("total"):
            device = str(record.get("worker") or "").rpartition(" ")[2].partition(":")[0] or "cpu"
            seconds[str(record.get("model")), device].append(told["total"] - told.get(_LOADING, 0.0))
    if not seconds:
        raise InvalidSettings("expected analysed scans to estimate from, got none: run `cohort` on some of them first")
    return [
        Estimate(model, device, 3600 * len(values) / max(sum(values), 1e-9), len(values), scans)
        for (model, device), values in sorted(seconds.items())
    ]
