"""The training task: MONAI Label's request goes to the library's site training, its progress comes back as stats.

MONAI Label runs a training in a process of its own, which builds the app anew. ``stats`` is asked in the server's
process and reads the small progress file that the training process writes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from lib.healthy import HealthySelection
from monailabel_app.registry import method_info
from monailabel_app.types import to_json

if TYPE_CHECKING:
    from monailabel_app.training.settings import TrainProgress

logger = logging.getLogger(__name__)


class HealthyTrainTask(TrainTask):
    """Learns a model of one method from the healthy scans of the datastore.

    select: gives the healthy scans of a datastore. start_points: names of models whose weights can be started from.
    """

    def __init__(
        self,
        method_id: str,
        root: Path,
        select: Callable[[Datastore], HealthySelection],
        start_points: Callable[[], tuple[str, ...]] = tuple,
    ):
        title = method_info(method_id).title
        super().__init__(f"{title}: learns from healthy scans only, no label is drawn. Research use only.")
        self.method_id = method_id
        self._root = Path(root)
        self._select = select
        self._start_points = start_points

    def config(self) -> dict[str, Any]:
        """The options in the viewers; the library is imported when a trainer is asked for, not before."""
        from monailabel_app.pipelines import site_options

        return site_options.for_viewers(self.method_id, self._start_points())

    def stats(self) -> dict[str, Any]:
        """Progress of the last training; finite numbers only, ``best_metric`` between 0 and 1."""
        from monailabel_app.training.monitor import read_progress
        from monailabel_app.training.run_folders import latest_run

        run = latest_run(self._root, self.method_id)
        return to_json(read_progress(run)) if run is not None else {}

    def check(self, request: Mapping[str, Any], datastore: Datastore) -> None:
        """Refuse what could not be trained before a process is started. Raises InvalidSettings, TrainingFailed."""
        from monailabel_app.pipelines import site_options
        from monailabel_app.weights import versions

        options = site_options.from_request(self.method_id, request)
        if options.start_from not in (site_options.SERVING, site_options.SCRATCH):
            name, version = versions.split_id(options.start_from)
            versions.locate(self._root, name, version)
        if not options.resume:
            self._select(datastore).check()

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train, calibrate and publish. Raises AnomalyAppError."""
        from monailabel_app.pipelines import site_options, site_training

        options = site_options.from_request(self.method_id, request)
        selection = self._select(datastore)
        logger.info(
            "%d healthy scans, %d left out for a non-empty label", len(selection.scans), len(selection.contaminated)
        )
        scans = [site_training.HealthyScanFile(Path(scan.path), scan.id, scan.patient) for scan in selection.scans]
        result = site_training.train_site(
            self._root,
            scans,
            options,
            contaminated=len(selection.contaminated),
            left_out=selection.left_out,
            progress=_log_progress,
        )
        return to_json(result.to_json())


def _log_progress(now: TrainProgress) -> None:
    """One line per checkpoint: MONAI Label shows the last twenty under GET /train/."""
    if not now.checkpoint:
        return
    # The loss of a private training is not told.
    figures = {"loss": now.loss, **now.figures} if math.isfinite(now.loss) else dict(now.figures)
    logger.info(
        "epoch %d of %d, %s, %.1f images/s, about %.0f s left",
        now.epoch,
        now.total_epochs,
        ", ".join(f"{name} {value:.4f}" for name, value in figures.items()),
        now.slices_per_second,
        now.seconds_left,
    )
