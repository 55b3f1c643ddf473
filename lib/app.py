"""The app that ``monailabel start_server --app .`` loads."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from monailabel.config import settings as platform
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.others.generic import strtobool

from lib import audit, endpoints, retention, settings
from lib.access import itself
from lib.analyses import Analysed, model_of
from lib.analysis_kept import analyse_and_keep
from lib.archive_client import connect
from lib.audit_events import noted_analysis, server_noted
from lib.batch import AnomalyBatchInfer
from lib.catalogue import ModelEntry
from lib.configs import METHODS
from lib.contamination import Contamination
from lib.datastore import AnomalyLocalDatastore
from lib.dicomweb import AnomalyDICOMWebDatastore
from lib.errors import InvalidRequest, UnknownImage
from lib.healthy import HealthySelection, abnormal_scans, check_conf, contradiction, healthy_scans, info_counts
from lib.infers import AnomalyInferTask, BandsInferTask
from lib.infers.anomaly import Progress
from lib.model_table import ModelTable
from lib.plans import end_with_server, jobs_for, keep_jobs
from lib.reviewed import tag_of_analysis
from lib.runner import MAX_LOADED, ModelRunner, list_devices
from lib.scoring import ANOMALY_SCORES, EVALUATE, AnomalyScores, EvaluateLabels
from lib.started_by import in_name_of_asker
from lib.strategies import Borderline, First, MostAnomalous, Prototypical, Random
from lib.table_at_rest import at_rest
from lib.trainers import HealthyTrainTask
from lib.workspace import own_temporary_folder
from monailabel_app.errors import (
    NotAnalysed,
    UnknownModel,
)
from monailabel_app.pipelines.analysis_store import AnalysisStore
from monailabel_app.pipelines.cache import MapCache
from monailabel_app.pipelines.conf_keys import check_keys
from monailabel_app.pipelines.read_volumes import ReadVolumes
from monailabel_app.registry import TRAINABLE
from monailabel_app.training.forgotten import forgotten_test

logger = logging.getLogger(__name__)

NAME = "Brain anomaly segmentation"
DESCRIPTION = (
    "Marks the regions of a head MR scan that a model of healthy brains cannot explain. "
    "Research use only; not a medical device."
)
CACHE_BYTES = 512 * 2**20
DISK_BYTES, CACHE_DAYS = 4096 * 2**20, 7
SCANS_BYTES = 512 * 2**20


class AnomalyApp(MONAILabelApp):
    """Anomaly segmentation for Slicer, OHIF and the Python client.

    ``--conf`` understands: ``models`` (names separated by commas, or all), ``trainers`` (methods, or all; none by
    default), ``healthy`` (all: every scan of the datastore is healthy), ``healthy_list`` (CSV or TSV file that says
    which are), ``keep_map`` (true: keep the anomaly map of images in the datastore), ``max_loaded_models``,
    ``cache_mb`` (memory for analyses), ``disk_cache_mb`` and ``cache_days`` (analyses kept in the folder
    ``disk_cache``, by default cache/analyses/ of the app, readable for its owner only; 0 days: none is kept),
    ``scans_mb`` (memory for scans that were read), ``bands`` (true: every model is offered a second time, as three
    bands of suspicion), ``keep_jobs`` (true: submitted jobs outlive a restart), ``auto_update_scoring``, ``audit`` (the
    file of the audit log, by default logs/audit.jsonl of the app, or off) and ``audit_required`` (true: what cannot be
    noted there is refused with 503).

    Who may use the server: ``auth`` (auto, token or open), ``tokens`` (their file, by default model/tokens.json of the
    app), ``session_hours`` (of a browser's session). What is let in: ``max_upload_mb``, ``cors_origins`` (foreign
    pages, separated by commas), ``viewer_stores`` (true: readers may store in the archive through the viewer). What
    goes by itself: ``retention_days`` (of what users made; 0: nothing), ``retention_cache_days`` (of caches; 7).

    Building one is cheap and touches no GPU: MONAI Label builds another in each of its sub-processes.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]):
        conf = dict(conf or {})
        check_keys(conf)
        settings.apply()
        check_conf(conf)
        retention.check_conf(conf)
        audit.configure(app_dir, conf)
        self._contamination = Contamination(app_dir)
        self._runner = ModelRunner(max_loaded=_whole_number(conf, "max_loaded_models", MAX_LOADED))
        self._cache = MapCache(_whole_number(conf, "cache_mb", CACHE_BYTES // 2**20) * 2**20, _store(app_dir, conf))
        self._volumes = ReadVolumes(_whole_number(conf, "scans_mb", SCANS_BYTES // 2**20) * 2**20)
        # What is at hand without work, for figures and retention.
        self.analyses, self.scans = self._cache, self._volumes
        self._keep_map = strtobool(conf.get("keep_map", "true"))
        bands = strtobool(conf.get("bands", "true"))
        self._table = ModelTable(app_dir, conf.get("models"), self._task_for, self._bands_for if bands else None)
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name=NAME,
            description=DESCRIPTION,
            labels=["anomaly"],
        )
        # MONAI Label would start a scoring process at start-up and at every next sample.
        self._auto_update_scoring = strtobool(conf.get("auto_update_scoring", "false"))
        # What runs, waits and is over; its threads begin with the first job.
        self.jobs = jobs_for(self)
        if own_temporary_folder(endpoints.install()):
            end_with_server(self.jobs)
            keep_jobs(self)
            server_noted(self)

    def _task_for(self, entry: ModelEntry) -> AnomalyInferTask:
        return AnomalyInferTask(entry, METHODS[entry.method], self._runner, self._cache, self._volumes)

    def _bands_for(self, entry: ModelEntry) -> BandsInferTask:
        return BandsInferTask(entry, METHODS[entry.method], self._runner, self._cache, self._volumes)

    def init_infers(self) -> dict[str, InferTask]:
        """One task per model that serves, and one that shows its bands."""
        return dict(self._table.served())

    @property
    def _infers(self) -> Mapping[str, AnomalyInferTask]:
        """The tasks as the model folders are now: MONAI Label reads them here at every request."""
        return self._table.served()

    @_infers.setter
    def _infers(self, tasks: Mapping[str, InferTask]) -> None:
        """MONAI Label's constructor keeps a copy here, which would never change; the table stays the only one."""

    def tasks(self) -> Mapping[str, AnomalyInferTask]:
        """What serves now, by name: the models, then their bands (whose ``entry.name`` is the model's)."""
        return self._infers

    @property
    def runner(self) -> ModelRunner:
        """Which models are loaded, and who uses a device."""
        return self._runner

    @property
    def _models(self) -> dict[str, ModelEntry]:
        return {name: task.entry for name, task in self._table.tasks().items()}

    def init_trainers(self) -> dict[str, TrainTask]:
        """One trainer per method of ``--conf trainers``; none unless asked for, as OHIF's button starts every one.

        Raises UnknownModel naming the methods there are.
        """
        names = [name.strip() for name in str(self.conf.get("trainers") or "").split(",") if name.strip()]
        if "all" in names:
            names = list(TRAINABLE)
        unknown = [name for name in names if name not in TRAINABLE]
        if unknown:
            there_is = ", ".join(TRAINABLE)
            raise UnknownModel(f"--conf trainers asks for {', '.join(map(repr, unknown))}; available: {there_is}, all")
        root = Path(self.app_dir)
        return {
            name: HealthyTrainTask(name, root, self._healthy, lambda name=name: self._start_points(name))
            for name in names
        }

    def trainers(self) -> dict[str, TrainTask]:
        """The trainers of this server, by name."""
        return self._trainers

    def _healthy(self, datastore: Datastore) -> HealthySelection:
        return healthy_scans(datastore, self.conf).without(forgotten_test(Path(self.app_dir)))

    def _start_points(self, method: str) -> tuple[str, ...]:
        """Names of the models of a method, whose weights a training can start from."""
        return tuple(name for name, entry in self._models.items() if entry.method == method)

    def init_strategies(self) -> dict[str, Strategy]:
        """How the next scan is chosen."""
        return {
            "random": Random(),
            "first": First(),
            "prototypical": Prototypical(self.app_dir, self.conf),
            "most_anomalous": MostAnomalous(),
            "borderline": Borderline(self.tasks),
        }

    def init_batch_infer(self) -> AnomalyBatchInfer:
        """Batch inference that also runs without a GPU, and leaves out what is current."""
        return AnomalyBatchInfer(self.app_dir)

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        """What can be done with the whole datastore."""
        return {
            ANOMALY_SCORES: AnomalyScores(self.app_dir, self._table.tasks),
            EVALUATE: EvaluateLabels(self.app_dir, lambda: self._models, self._healthy, self._contamination),
        }

    def scoring_methods(self) -> dict[str, ScoringMethod]:
        """The scoring methods of this server, by name."""
        return self._scoring_methods

    def async_scoring(self, method: str | None, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """What ``auto_update_scoring`` starts by itself is the method that only does what is missing."""
        return super().async_scoring(method or ANOMALY_SCORES, params)

    def init_datastore(self) -> Datastore:
        """The studies folder, or the archive behind an address."""
        if self.studies.startswith(("http://", "https://")):
            return super().init_datastore()
        return AnomalyLocalDatastore(
            self.studies,
            extensions=platform.MONAI_LABEL_DATASTORE_FILE_EXT,
            auto_reload=platform.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=platform.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def _init_dicomweb_datastore(self) -> Datastore:
        return AnomalyDICOMWebDatastore.from_settings(connect(self.studies), platform)

    def info(self) -> dict[str, Any]:
        """MONAI Label's own, with the counts of healthy scans, and models that have learnt from abnormal ones."""
        meta, datastore = super().info(), at_rest(self._datastore)
        meta["datastore"] = info_counts(datastore, self.conf, meta["datastore"], bool(self._trainers))
        abnormal = abnormal_scans(datastore)
        tasks = self._infers
        for name, model in meta["models"].items():
            entry = tasks[name].entry if name in tasks else None
            fault = self._runner.fault(entry.folder) if entry is not None else ""
            if fault:
                model["description"] = f"Damaged, and not used until it is restored: {fault}. {model['description']}"
            seen = self._contamination.of_folder(entry.folder, abnormal) if entry is not None else None
            if seen:
                model["description"] = f"{model['description']} Caution: {seen}; train it anew."
        return meta

    def on_save_label(self, image_id: str, label_id: str) -> None:
        """Nothing: MONAI Label's own writes the id into the log."""

    def final_label_changed(self, image_id: str) -> list[str]:
        """What a submitted or removed final label means for healthy scans and models, in sentences for the client."""
        abnormal = image_id in abnormal_scans(self._datastore)
        warnings = [contradiction(self._datastore, self.conf, image_id)]
        for model, seen in self._contamination.note(image_id, abnormal).items():
            part = "trained" if seen.trained else "calibrated"
            warnings.append(f"the model {model} was {part} on this scan as a healthy one: train it anew")
        if len(warnings) > 1:
            logger.warning("%d models have seen a scan as healthy that is not", len(warnings) - 1)
        return [warning for warning in warnings if warning]

    @noted_analysis
    def infer(
        self,
        request: dict[str, Any],
        datastore: Datastore | None = None,
        *,
        image_file: str | None = None,
        as_dicom_seg: bool = False,
        task: AnomalyInferTask | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Run a model on an image of the datastore (``request["image"]`` is its id) or on ``image_file``.

        Paths in the request are never opened. Returns label, tag, file and params as MONAI Label's own does,
        and ``dicom_seg`` (a path) when asked for. task: instead of the one that serves now. progress: told the stage
        and its share done; what it raises ends the work and nothing is kept. Raises AnomalyAppError.
        """
        request, tag = dict(request), tag_of_analysis(request)
        task = task or self._task(request.get("model"))
        datastore = datastore or self.datastore()
        image_id = None if image_file else str(request.get("image") or "")
        if image_id is not None:
            request["image"] = self._stored_image(datastore, image_id)
        else:
            request["image"] = image_file
        if as_dicom_seg and not (image_id and isinstance(datastore, AnomalyDICOMWebDatastore)):
            raise InvalidRequest(
                "expected an image of a DICOMweb archive for output=dicom_seg; this one has no DICOM series"
            )
        images = bool(image_id) and self._keep_map and isinstance(datastore, LocalDatastore)
        return analyse_and_keep(
            task, request, datastore, image_id, tag, images=images, as_dicom_seg=as_dicom_seg, progress=progress
        )

    def analysed(
        self,
        image: str,
        model: str | None = None,
        params: Mapping[str, Any] | None = None,
        *,
        run: bool = False,
        images: bool = False,
        progress: Progress | None = None,
    ) -> Analysed:
        """What a model found in an image of the datastore, with the settings that ``params`` has as a request has them.

        model: None for that of the newest record, else the default of the image's sequence. run: False only looks at
        an analysis that is at hand, and waits for nobody. images: the finding's reconstruction and uncertainty map,
        too. Raises AnomalyAppError: NotAnalysed where there is no analysis and none may be made, UnknownImage, ...
        """
        datastore = self.datastore()
        path = self._stored_image(datastore, image)
        task = self._task(model or model_of(image, datastore, self._table.tasks()))
        params = dict(params or {})
        device = params.pop("device", None)
        try:
            looked = task.look(path, task.read(params), device=device, images=images, run=run, progress=progress)
        except NotAnalysed as error:
            raise NotAnalysed(f"{error} (Run in a viewer, or POST /anomaly/jobs)") from error
        used = looked.model.with_calibration(looked.settings.calibration)
        return Analysed(image, Path(path), looked.volume, looked.finding, task, used)

    @in_name_of_asker
    def train(self, request: dict[str, Any]) -> dict[str, Any]:
        """MONAI Label's own."""
        return super().train(request)

    @in_name_of_asker
    def scoring(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """MONAI Label's own."""
        return super().scoring(request, datastore)

    @in_name_of_asker
    def batch_infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Every scan with the version that serves when the batch begins, so that its scores can be compared."""
        task = self._task(request.get("model"))
        self._runner.make_room(len(list_devices()))
        return self._batch_infer(request, datastore or self.datastore(), partial(self.infer, task=task), task)

    def _local_request(self, url: str, params: dict[str, Any] | None, action: str) -> Any:
        return itself.ask_for(url, params, action)

    def infer_wsi(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Refused: there are no whole-slide images here."""
        raise InvalidRequest("this app analyses 3-D head scans, not whole-slide images: use POST /infer/{model}")

    def model_file(self, model: str, validate: bool = True) -> None:
        """A model is a folder, so there is no single file to hand out."""

    def cleanup_sessions(self) -> None:
        """Remove expired sessions and analyses; a damaged session folder must not keep the server from starting.

        MONAI Label calls it when the server starts and every few minutes.
        """
        self._cache.purge()
        retention.now_and_then(self)
        try:
            super().cleanup_sessions()
        except (OSError, AttributeError, ValueError) as error:
            logger.warning("old sessions could not be cleaned up: %s", type(error).__name__)

    def _task(self, model: Any) -> AnomalyInferTask:
        """The task that serves now. Raises UnknownModel naming what there is."""
        tasks = self._infers
        if str(model) not in tasks:
            raise UnknownModel(f"no model {str(model)[:80]!r} on this server; available: {', '.join(tasks) or 'none'}")
        return tasks[str(model)]

    @staticmethod
    def _stored_image(datastore: Datastore, image_id: str) -> str:
        if not image_id:
            raise InvalidRequest("expected an image id, got none")
        path = datastore.get_image_uri(image_id)
        if not path or not Path(path).exists():
            raise UnknownImage(f"the datastore lists image {image_id[:80]!r}, but its file is gone: upload it again")
        return path


def _store(app_dir: str, conf: Mapping[str, str]) -> AnalysisStore | None:
    """Where analyses outlive the server; what was kept before is removed where nothing is to be kept any more."""
    size = _whole_number(conf, "disk_cache_mb", DISK_BYTES // 2**20) * 2**20
    days = _whole_number(conf, "cache_days", CACHE_DAYS)
    store = AnalysisStore(conf.get("disk_cache") or Path(app_dir) / "cache" / "analyses", size, days)
    if size and days:
        return store
    store.clear()
    return None


def _whole_number(conf: Mapping[str, str], key: str, default: int) -> int:
    text = str(conf.get(key, default))
    if not text.isdigit():
        raise InvalidRequest(f"expected --conf {key} to be a whole number, got {text!r}")
    return int(text)
