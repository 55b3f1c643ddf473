"""A small picture of a flagged scan, so that a cohort's page can be skimmed."""

from __future__ import annotations

import io
import logging

from PIL import Image

from monailabel_app.calibration.tails import TAIL_SHARES
from monailabel_app.errors import AnomalyAppError
from monailabel_app.reports.overlay import three_planes_png
from monailabel_app.types import Finding, Volume

from ..predict import AnomalyModel, PredictSettings

logger = logging.getLogger(__name__)

DRAWN, WIDTH, QUALITY = 660, 420, 75


def thumbnail(volume: Volume, finding: Finding, model: AnomalyModel, settings: PredictSettings) -> bytes | None:
    """Three planes through the strongest place, with and without the map, as a JPEG of some 20 kB.

    Colours are fixed by healthy scans. None where the calibration is of an earlier version, which has no such colours.
    """
    score = settings.score or model.scores[0]
    try:
        tails = model.with_calibration(settings.calibration).calibration.score(score).tails.get(settings.smoothing)
        if not tails:
            return None
        picture = three_planes_png(
            volume.data,
            finding.anomaly_map,
            None,
            finding.mask > 0,
            volume.affine,
            dict(zip(TAIL_SHARES, tails, strict=True)),
            width=DRAWN,
        )
    except (AnomalyAppError, ValueError) as error:
        logger.warning("no picture of a scan could be made: %s", type(error).__name__)
        return None
    out = io.BytesIO()
    with Image.open(io.BytesIO(picture)) as drawn:
        size = (WIDTH, round(drawn.height * WIDTH / drawn.width))
        drawn.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(out, format="JPEG", quality=QUALITY)
    return out.getvalue()
