"""``<model>_bands``: what the model found as three bands of suspicion, from the same analysis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lib.infers.anomaly import AnomalyInferTask, Looked
from monailabel_app.calibration.bands import BAND_SHARES, BANDS, band_edges, band_map
from monailabel_app.calibration.bands import LABELS as BAND_LABELS

SUFFIX = "_bands"


class BandsInferTask(AnomalyInferTask):
    """The twin of a model's task: another label map of the same finding, which never runs the network twice.

    An edge of a band means a share of healthy voxels, so there is no operating point to choose.
    """

    labels_of_task = BAND_LABELS

    def describe(self) -> str:
        """One line for the viewers. The model's limits are told in its own."""
        shares = ", ".join(f"{share:.2%}".rstrip("%").rstrip("0").rstrip(".") + " %" for share in BAND_SHARES)
        return (
            f"What {self.entry.name} finds as three bands: values that at most {shares} of healthy brain voxels "
            f"exceed ({', '.join(BANDS)}). Same analysis as {self.entry.name}, see there for its limits. Research use "
            "only; not a medical device."
        )

    def config(self) -> dict[str, Any]:
        """The drop-downs without the operating point."""
        return {key: values for key, values in super().config().items() if key != "operating_point"}

    def label(self, looked: Looked) -> np.ndarray:
        """The bands (x, y, z) uint8 0 to 3. Raises InvalidSettings for a calibration without healthy tails."""
        finding = looked.finding
        return band_map(
            finding.anomaly_map,
            self._edges(looked),
            looked.volume.spacing_mm,
            finding.brain_mask,
            float(finding.settings["min_volume_ml"]),
        )

    def about_label(self, looked: Looked) -> Mapping[str, Any]:
        """The bands' names, values and shares, for the result."""
        edges = self._edges(looked)
        listed = zip(BANDS, BAND_SHARES, edges, strict=True)
        return {"bands": [{"name": name, "share": share, "value": value} for name, share, value in listed]}

    def _edges(self, looked: Looked) -> tuple[float, float, float]:
        used = looked.model.with_calibration(looked.settings.calibration).calibration
        return band_edges(used.score(looked.finding.settings["score"]), looked.settings.smoothing)
