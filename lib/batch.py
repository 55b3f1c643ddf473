"""Batch inference over the datastore: one scan after the other, and a bad one does not stop the rest."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.batch_infer import BatchInferTask

from monailabel_app.errors import AnomalyAppError
from monailabel_app.types import to_json

logger = logging.getLogger(__name__)

_MONAI_LABEL_ONLY = {"multi_gpu", "gpus", "max_workers", "max_batch_size"}


class AnomalyBatchInfer(BatchInferTask):
    """MONAI Label's own divides by the number of GPUs and fails without one."""

    def __call__(self, request: dict[str, Any], datastore: Datastore, infer: Callable) -> dict[str, Any]:
        """Result (or ``{"error": text}``) by image id; labels are saved under ``label_tag`` (original)."""
        limit = int(request.get("max_batch_size") or 0)
        image_ids = sorted(self.get_images(request, datastore))
        image_ids = image_ids[:limit] if limit > 0 else image_ids
        shared = {key: value for key, value in request.items() if key not in _MONAI_LABEL_ONLY}
        shared |= {
            "save_label": True,
            "label_tag": request.get("label_tag") or DefaultLabelTag.ORIGINAL.value,
        }
        results: dict[str, Any] = {}
        for number, image_id in enumerate(image_ids, start=1):
            try:
                result = infer({**shared, "image": image_id}, datastore)
                Path(result.pop("file")).unlink(missing_ok=True)
                results[image_id] = to_json(result)
            except AnomalyAppError as error:
                results[image_id] = {"error": str(error)}
            logger.info("batch: %d of %d done", number, len(image_ids))
        return results
