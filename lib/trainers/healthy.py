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

from monailabel.config import settings
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from lib import audit, catalogue
from lib.healthy import HealthySelection
from lib.runner import choose_device
from monailabel_app.errors import TrainingFailed
from monailabel_app.registry import method_info
from monailabel_app.types import to_json

if TYPE_CHECKING:
    from monailabel_app.training.settings import TrainProgress

logger = logging.getLogger(__name__)
NOT_FETCHED = "could not be fetched"


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
        """Refuse what could not be trained before a process is started. Raises AnomalyAppError."""
        from monailabel_app.pipelines import site_options, site_start
        from monailabel_app.training.run_folders import has_unfinished_run
        from monailabel_app.weights.version_layout import check_name

        options = site_options.from_request(self.method_id, request)
        check_name(options.name)
        choose_device(options.device)
        if options.resume:
            if not has_unfinished_run(self._root, options.name):
                raise TrainingFailed(f"expected an unfinished run of {options.name} to resume, found none")
            return
        site_start.start_folder(self._root, options)
        self._select(datastore).check()

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train, calibrate and publish. Raises AnomalyAppError."""
        from monailabel_app.pipelines import site_options, site_training

        options = site_options.from_request(self.method_id, request)
        selection = self._select(datastore)
        logger.info(
            "%d healthy scans, %d left out for a non-empty label", len(selection.scans), len(selection.contaminated)
        )
        scans, left_out = [], dict(selection.left_out)
        for scan in selection.scans:
            try:
                # A resumed run has its scans already; of an archive's series nothing is fetched then.
                path = Path() if options.resume else scan.path
            except Exception as error:
                # One series that an archive cannot give must not stop the others; its id stays out of the log.
                logger.warning("a scan is left out: it could not be fetched (%s)", type(error).__name__)
                left_out[NOT_FETCHED] = left_out.get(NOT_FETCHED, 0) + 1
                continue
            scans.append(site_training.HealthyScanFile(path, scan.id, scan.patient))

        def healthy_now() -> list[str]:
            # Labels that came in meanwhile were written by the server's process.
            if hasattr(datastore, "refresh"):
                datastore.refresh()
            return [scan.id for scan in self._select(datastore).scans]

        audit.note("training_started", model=options.name, method=self.method_id, scans=len(scans), stage="begun")
        try:
            result = site_training.train_site(
                self._root,
                scans,
                options,
                contaminated=len(selection.contaminated),
                left_out=left_out,
                progress=_log_progress,
                still_healthy=healthy_now,
            )
        except BaseException as error:
            audit.note("training_ended", "failed", model=options.name, method=self.method_id, kind=type(error).__name__)
            raise
        about = {"model": result.name, "version": result.version, "method": self.method_id}
        audit.note("training_ended", **about, promoted=result.promoted)
        audit.note("published", **about, promoted=result.promoted)
        note = catalogue.not_offered(result.name, (settings.MONAI_LABEL_APP_CONF or {}).get("models"))
        if note:
            logger.warning("%s", note)
        return to_json({**result.to_json(), **({"note": note} if note else {})})


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
