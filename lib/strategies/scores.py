"""By the scans' anomaly scores: the most anomalous first, or those at the edge of what healthy scans have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lib.healthy_limit import HealthyLimits
from lib.infers import AnomalyInferTask
from lib.scoring.records import anomaly_rank
from lib.strategies.worklist import Infos, WorklistStrategy, newest

NOT_SCORED = "no unreviewed scan has a score: in the order of the ids; run the scoring `anomaly_scores` or a batch"


class MostAnomalous(WorklistStrategy):
    """The unreviewed scan with the lowest p-value, among these the highest score, by its last analysis.

    Scans that were not analysed, or could not be, come last.
    """

    def __init__(self):
        super().__init__("Most anomalous unreviewed scan, by the scores at hand")

    def choose(self, request: Mapping[str, Any], studies: Sequence[str], infos: Infos) -> dict[str, Any] | None:
        records = {image: (newest(infos[image]) or (None, None))[1] for image in studies}
        image = min(studies, key=lambda image: (*anomaly_rank(records[image]), image))
        scored = sum((record or {}).get("score") is not None for record in records.values())
        if not scored:
            return {"id": image, "reason": NOT_SCORED, "score": None, "p_value": None}
        score, p_value = records[image]["score"], records[image].get("p_value")
        p_words = "" if p_value is None else f", p {p_value:.3g}"
        reason = f"most anomalous of {scored} scored unreviewed scans: score {score:.3g}{p_words}"
        return {"id": image, "reason": reason, "score": score, "p_value": p_value}


class Borderline(WorklistStrategy):
    """The unreviewed scan whose score is nearest to the 95th percentile of the model's healthy scans.

    There a scan-wise decision at a false alarm rate of 5 % changes, so that a reader's word teaches most. The distance
    is in units of what lies between the healthy median and that percentile, so that models can be compared
    (``lib.healthy_limit``). tasks: the models that serve, by name.
    """

    def __init__(self, tasks: Callable[[], Mapping[str, AnomalyInferTask]]):
        super().__init__("Unreviewed scan whose score is nearest to the limit of healthy scans")
        self._limits = HealthyLimits(tasks)

    def choose(self, request: Mapping[str, Any], studies: Sequence[str], infos: Infos) -> dict[str, Any] | None:
        limits, distances = self._limits.now(), {}
        for image in studies:
            held = newest(infos[image])
            distance = None if held is None else limits.distance(*held)
            if distance is not None:
                distances[image] = distance
        if not distances:
            return {"id": studies[0], "reason": NOT_SCORED, "score": None, "limit": None}
        image = min(distances, key=lambda image: (distances[image], image))
        model, record = newest(infos[image])
        limit = limits.of(model, record)[0]
        reason = (
            f"nearest of {len(distances)} scored unreviewed scans to the healthy limit of {model}: score "
            f"{record['score']:.3g}, 95 % of healthy scans are below {limit:.3g}"
        )
        return {"id": image, "reason": reason, "score": record["score"], "limit": round(limit, 4)}
