"""A reader's decisions about the lesions of a result: accepted or rejected, one by one or all that are left.

Kept in the scan's information under ``review``: ``draft``, saved at every click, and ``final``, which is what the final
label was made of. A decision belongs to the lesion with the voxel of its highest value (``peak_voxel``), which stays
while thresholds move: a decision counts for the lesion at whose settings the review is finished that holds its voxel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, ValidationError, field_validator
from scipy import ndimage

from lib.errors import InvalidRequest
from monailabel_app.postprocessing.boxes import bounding_box
from monailabel_app.types import CONNECTIVITY_26, Finding, Lesion

KEY = "review"
ACCEPT, REJECT, UNDECIDED = "accept", "reject", "undecided"
LONGEST_COMMENT = 4000
MOST_LESIONS = 2000
_Decision = Literal["accept", "reject", "undecided"]
_Index = Annotated[StrictInt, Field(ge=0, lt=2**31)]


class LesionDecision(BaseModel):
    """About the lesion with its highest value at ``peak_voxel``; a comment alone is ``undecided``."""

    model_config = ConfigDict(extra="forbid")

    peak_voxel: tuple[_Index, _Index, _Index]
    decision: _Decision = UNDECIDED
    comment: str = Field("", max_length=LONGEST_COMMENT)


class ReviewRequest(BaseModel):
    """What a reader sends. params: the settings of the result that was looked at. rest: of lesions not listed.

    scan: the result's ``scan``, which tells whether the scan is still the one that was looked at.
    """

    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    model: str = Field(min_length=1, max_length=200)
    params: dict[str, Any] = {}
    scan: str = Field("", max_length=100)
    reader: str = Field("", max_length=100)
    comment: str = Field("", max_length=LONGEST_COMMENT)
    final: StrictBool = False
    lesions: list[LesionDecision] = Field([], max_length=MOST_LESIONS)
    rest: _Decision = UNDECIDED

    @field_validator("lesions")
    @classmethod
    def _once_each(cls, lesions: list[LesionDecision]) -> list[LesionDecision]:
        twice = [voxel for voxel, count in Counter(lesion.peak_voxel for lesion in lesions).items() if count > 1]
        if twice:
            raise ValueError(f"peak_voxel {list(twice[0])} is listed twice")
        return lesions


def read_review(body: Mapping[str, Any]) -> ReviewRequest:
    """Raises InvalidRequest that names the first field that is not as it should be."""
    try:
        return ReviewRequest.model_validate(dict(body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"])) or "review"
        raise InvalidRequest(
            f"expected a review (model, params, reader, comment, final, lesions, rest); {field[:80]}: {first['msg']}"
        ) from error


@dataclass(frozen=True)
class Verdict:
    """accepted: (x, y, z) uint8, the lesions to keep. lesions: every lesion with its decision, as plain JSON.

    not_marked: decisions about lesions that these settings do not mark.
    """

    accepted: np.ndarray
    lesions: list[dict[str, Any]]
    not_marked: list[dict[str, Any]]


def settle(finding: Finding, review: ReviewRequest) -> Verdict:
    """What a finished review says of each lesion of the finding.

    Raises InvalidRequest while a lesion is undecided, where decisions about parts of one lesion differ, and where an
    accepted lesion is not marked at these settings: it would silently be missing from the final label.
    """
    labels = _label(finding.mask, finding.lesions)
    said: dict[int, list[LesionDecision]] = {}
    outside = []
    for decision in review.lesions:
        if decision.decision == UNDECIDED:
            continue
        lesion = _at(labels, decision.peak_voxel)
        (said.setdefault(lesion, []) if lesion else outside).append(decision)
    lost = [list(decision.peak_voxel) for decision in outside if decision.decision == ACCEPT]
    if lost:
        raise InvalidRequest(
            f"the lesion accepted at voxel {lost[0]} is not marked at these settings ({len(lost)} such): finish the "
            "review with the settings it was accepted at, or take the decision back"
        )
    comments = {decision.peak_voxel: decision.comment for decision in review.lesions}
    rows, undecided = [], []
    for lesion in finding.lesions:
        given = {decision.decision for decision in said.get(lesion.index, ())}
        if len(given) > 1:
            raise InvalidRequest(
                f"lesion {lesion.index} was accepted in one part and rejected in another, which run together at these "
                "settings: decide it again as a whole, or finish the review with the settings it was decided at"
            )
        decision = next(iter(given), review.rest)
        if decision == UNDECIDED:
            undecided.append(lesion.index)
        peak = lesion.peak_voxel and tuple(int(v) for v in lesion.peak_voxel)
        rows.append({**_figures(lesion), "decision": decision, "comment": comments.get(peak, "")})
    if undecided:
        some = ", ".join(map(str, undecided[:10])) + (", ..." if len(undecided) > 10 else "")
        raise InvalidRequest(
            f"{len(undecided)} of {len(finding.lesions)} lesions are undecided (number {some}): accept or reject them, "
            "or send rest=accept or rest=reject for all that are left"
        )
    keep = np.zeros(len(finding.lesions) + 1, dtype=np.uint8)
    for row in rows:
        keep[row["index"]] = row["decision"] == ACCEPT
    return Verdict(keep[labels], rows, [decision.model_dump(mode="json") for decision in outside])


def draft_entry(review: ReviewRequest) -> dict[str, Any]:
    """What is kept of an unfinished review."""
    return {**review.model_dump(mode="json"), "final": False, "time": _now()}


def final_entry(review: ReviewRequest, finding: Finding, verdict: Verdict) -> dict[str, Any]:
    """What is kept of a finished review: the decisions, and the result they are about."""
    return {
        **review.model_dump(mode="json", exclude={"lesions"}),
        "final": True,
        "time": _now(),
        "model_id": finding.model_id,
        "model_hash": finding.model_hash,
        "calibration": (finding.calibration or {}).get("id"),
        "settings": {key: value for key, value in finding.settings.items() if key != "device"},
        "threshold": finding.threshold,
        "score": finding.anomaly_score,
        "p_value": finding.p_value,
        "lesions": verdict.lesions,
        "not_marked": verdict.not_marked,
        "voxels": int(np.count_nonzero(verdict.accepted)),
    }


def review_of(info: Mapping[str, Any]) -> dict[str, Any] | None:
    """The review to go on with: the draft, else the final one; None where there is none.

    ``signed`` is who finished the review and when, also beside a later draft; None where nobody did.
    """
    draft, final = _kept(info)
    current = draft or final
    if current is None:
        return None
    return {**current, "signed": final and {key: final.get(key) for key in ("reader", "time", "model", "voxels")}}


def summary_of(info: Mapping[str, Any]) -> dict[str, Any] | None:
    """For lists: reader, time, model, whether final, and how many lesions were decided how."""
    current = review_of(info)
    if current is None:
        return None
    counts = Counter(lesion.get("decision") for lesion in current.get("lesions") or ())
    return {
        **{key: current.get(key) for key in ("reader", "time", "model", "final", "signed")},
        "accepted": counts[ACCEPT],
        "rejected": counts[REJECT],
        "commented": bool(current.get("comment")) or any(row.get("comment") for row in current.get("lesions") or ()),
    }


# The columns of the feedback, in their order.
COLUMNS = (
    "image", "reader", "time", "final", "model", "model_hash", "calibration", "operating_point", "threshold", "score",
    "smoothing", "min_volume_ml", "seed", "scan_score", "p_value", "lesion", "decision", "peak_i", "peak_j", "peak_k",
    "x_mm", "y_mm", "z_mm", "volume_ml", "mean_score", "peak_score", "region", "comment", "review_comment",
)  # fmt: skip


def feedback_rows(image: str, info: Mapping[str, Any], drafts: bool = True) -> Iterator[dict[str, Any]]:
    """One row per lesion with the columns COLUMNS; one without a lesion for a scan on which nothing was marked.

    drafts: also of reviews that are not finished; beside a finished one that was taken up again, both.
    """
    draft, final = _kept(info)
    for entry in (final, draft if drafts else None):
        if entry is not None:
            lesions = [*(entry.get("lesions") or ()), *(entry.get("not_marked") or ())]
            for lesion in lesions or ({},):
                yield _row(image, entry, lesion)


def _row(image: str, entry: Mapping[str, Any], lesion: Mapping[str, Any]) -> dict[str, Any]:
    settings = entry.get("settings") or entry.get("params") or {}
    peak, place = lesion.get("peak_voxel") or (None,) * 3, lesion.get("centroid_ras_mm") or (None,) * 3
    row = {
        **{key: settings.get(key) for key in ("operating_point", "threshold", "score", "smoothing", "min_volume_ml")},
        "seed": settings.get("seed"),
        **{key: entry[key] for key in ("reader", "time", "final", "model_hash", "calibration", "p_value", "threshold")
           if key in entry},
        "image": image,
        "model": entry.get("model_id") or entry.get("model"),
        "scan_score": entry.get("score"),
        "lesion": lesion.get("index"),
        **dict(zip(("peak_i", "peak_j", "peak_k"), peak, strict=True)),
        **dict(zip(("x_mm", "y_mm", "z_mm"), place, strict=True)),
        **{key: lesion.get(key) for key in ("decision", "volume_ml", "mean_score", "peak_score", "region", "comment")},
        "review_comment": entry.get("comment"),
    }  # fmt: skip
    return {column: row.get(column) for column in COLUMNS}


def _kept(info: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """Draft and final review; what was put there by other means is left out."""
    held = info.get(KEY)
    if not isinstance(held, Mapping):
        return None, None
    draft, final = (held.get(name) if _is_entry(held.get(name)) else None for name in ("draft", "final"))
    return draft, final


def _is_entry(held: Any) -> bool:
    """Whether it has the parts that lists and tables are made of: one odd entry must not spoil them for all scans."""
    if not isinstance(held, Mapping) or not isinstance(held.get("settings") or {}, Mapping):
        return False
    rows = [held.get(name) or [] for name in ("lesions", "not_marked")]
    return isinstance(held.get("params") or {}, Mapping) and all(
        isinstance(part, list) and all(isinstance(row, Mapping) and _is_row(row) for row in part) for part in rows
    )


def _is_row(row: Mapping[str, Any]) -> bool:
    places = [row.get(name) or [0, 0, 0] for name in ("peak_voxel", "centroid_ras_mm")]
    return isinstance(row.get("decision", ""), str) and all(isinstance(p, list) and len(p) == 3 for p in places)


def _label(mask: np.ndarray, lesions: Sequence[Lesion]) -> np.ndarray:
    """(x, y, z) int32: 0 outside, else the index of the lesion."""
    labels = np.zeros(mask.shape, dtype=np.int32)
    box = bounding_box(mask > 0)
    if box is None:
        return labels
    parts, count = ndimage.label(mask[box] > 0, structure=CONNECTIVITY_26)
    index = np.zeros(count + 1, dtype=np.int32)
    for lesion in lesions:
        place = tuple(int(v) - part.start for v, part in zip(lesion.peak_voxel, box, strict=True))
        index[parts[place]] = lesion.index
    labels[box] = index[parts]
    return labels


def _at(labels: np.ndarray, voxel: Sequence[int]) -> int:
    """The lesion at a voxel; 0 where there is none, also outside of the scan."""
    if any(v >= size for v, size in zip(voxel, labels.shape, strict=True)):
        return 0
    return int(labels[tuple(voxel)])


def _figures(lesion: Lesion) -> dict[str, Any]:
    return {
        "index": lesion.index,
        "peak_voxel": lesion.peak_voxel and [int(v) for v in lesion.peak_voxel],
        "volume_ml": round(lesion.volume_ml, 4),
        "centroid_ras_mm": [round(float(v), 2) for v in lesion.centroid_ras_mm],
        "mean_score": round(lesion.mean_score, 4),
        "peak_score": round(lesion.peak_score, 4),
        "region": lesion.region,
    }


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
