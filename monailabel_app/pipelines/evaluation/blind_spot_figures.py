"""From judged anomalies to the map of what a model cannot see: recall per cell, smallest visible contrast, sentences.

Intervals of single cells are Wilson's (lesions taken as independent); those of aggregates and of the smallest visible
contrast are bootstrapped over healthy scans. Recall against contrast is fitted by isotonic regression: more contrast
never makes a lesion harder to see, and nothing else is assumed; 50 % is read off by interpolation over log contrast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .blind_spot_plan import CONTRAST, NOTHING

_RESAMPLES = 500
_Z = 1.959964
HALF = 0.5
_UNSEEN = 0.1
_SIGNS = ("either", "darker", "brighter")


def wilson(found: int, n: int) -> list[float] | None:
    """95 % score interval of a share; None without trials."""
    if n == 0:
        return None
    share, z2 = found / n, _Z**2 / n
    middle, half = share + z2 / 2, _Z * np.sqrt(share * (1 - share) / n + z2 / (4 * n))
    return [float(max(0.0, (middle - half) / (1 + z2))), float(min(1.0, (middle + half) / (1 + z2)))]


def isotonic(shares: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The rising sequence nearest to ``shares`` in weighted squares (pool adjacent violators); NaN-free input."""
    blocks: list[tuple[float, float, int]] = []
    for share, weight in zip(np.asarray(shares).tolist(), np.asarray(weights).tolist(), strict=True):
        block = (share, weight, 1)
        while blocks and blocks[-1][0] > block[0]:
            before = blocks.pop()
            total = block[1] + before[1]
            block = ((block[0] * block[1] + before[0] * before[1]) / total, total, block[2] + before[2])
        blocks.append(block)
    return np.repeat([share for share, _, _ in blocks], [count for _, _, count in blocks])


def smallest_contrast(found: np.ndarray, n: np.ndarray, contrasts: np.ndarray) -> float:
    """The contrast from which half are found, between the smallest and the largest tried; inf where it is not reached.

    found, n: counts at the rising absolute ``contrasts``. At the smallest contrast tried if more are found there.
    """
    used = n > 0
    if not used.any():
        return float("inf")
    fit = isotonic(found[used] / n[used], n[used].astype(float))
    levels = contrasts[used]
    if fit[0] >= HALF:
        return float(levels[0])
    above = np.flatnonzero(fit >= HALF)
    if not len(above):
        return float("inf")
    i = int(above[0])
    share = (HALF - fit[i - 1]) / (fit[i] - fit[i - 1])
    return float(np.exp(np.log(levels[i - 1]) + share * np.log(levels[i] / levels[i - 1])))


def aggregate(rows: Sequence[Mapping[str, Any]], point: str, *, seed: int = 0) -> dict[str, Any]:
    """Everything the page shows at one operating point; see ``selftest`` for its keys."""
    judged = [row for row in rows if row["points"][point]["found"] is not None]
    lesions = [row for row in judged if row["kind"] == CONTRAST]
    nothing = [row for row in judged if row["kind"] == NOTHING]
    iso = [row for row in judged if row["kind"] not in (CONTRAST, NOTHING)]
    picks = _picks(rows, seed)

    def table(of: Sequence[Mapping[str, Any]], *keys: str) -> list[dict[str, Any]]:
        values = sorted({tuple(row[key] for key in keys) for row in of})
        return [
            {**dict(zip(keys, value, strict=True)), **_recall(_where(of, keys, value), point, picks)}
            for value in values
        ]

    return {
        "matrix": _matrix(lesions, point),
        "smallest_contrast": _smallest(lesions, point, picks),
        "by_volume": table(lesions, "volume_ml"),
        "by_sign": table([{**row, "sign": _sign(row)} for row in lesions], "sign"),
        "by_texture": table(lesions, "texture"),
        "by_region": table(lesions, "region"),
        "by_region_and_volume": table(lesions, "region", "volume_ml"),
        "by_texture_and_volume": table(lesions, "texture", "volume_ml"),
        "by_kind": table(iso, "kind"),
        "by_kind_and_volume": table(iso, "kind", "volume_ml"),
        "chance": {
            **_recall(nothing, point, picks),
            "by_volume": table(nothing, "volume_ml"),
            "marked_before": float(np.mean([row["points"][point]["before"] for row in rows])) if rows else None,
        },
        "not_judged": len(rows) - len(judged),
    }


def cells(rows: Sequence[Mapping[str, Any]], points: Sequence[str]) -> list[dict[str, Any]]:
    """Recall of every combination of kind, volume, contrast, texture and region at every operating point."""
    keys = ("kind", "volume_ml", "contrast", "texture", "region")
    made = []
    for value in sorted({tuple(row[key] for key in keys) for row in rows}):
        of = _where(rows, keys, value)
        found = {}
        for point in points:
            verdicts = [row["points"][point]["found"] for row in of if row["points"][point]["found"] is not None]
            found[point] = {"n": len(verdicts), "found": sum(verdicts)}
        made.append({**dict(zip(keys, value, strict=True)), "points": found})
    return made


def sentences(figures: Mapping[str, Any], *, point: str, strongest: float) -> list[str]:
    """What the figures of one operating point say, in words; strongest: the largest absolute contrast tried."""
    top = f"{100 * strongest:.0f} %"
    said = _about_sizes(figures, point, top)
    said += [_about_contrast(figures, sign, top) for sign in ("darker", "brighter")]
    said += _about_signs(figures)
    said += _about_kinds(figures)
    said += _about_groups(figures["by_texture"], "texture", "{} lesions")
    named = [{**entry, "region": _REGION_WORDS.get(entry["region"], entry["region"])} for entry in figures["by_region"]]
    said += _about_groups(named, "region", "lesions in {}")
    chance = figures["chance"]
    if chance["n"]:
        said.append(
            f"By chance, places where nothing was put count as found in {chance['found']} of {chance['n']} cases; "
            f"{_percent(chance['marked_before'], 1)} of the places were marked in the unaltered scans already."
        )
    return [sentence for sentence in said if sentence]


def _about_sizes(figures: Mapping[str, Any], point: str, top: str) -> list[str]:
    """The sizes of which, darker and brighter together, less than half are found whatever the contrast."""
    sizes = {entry["volume_ml"]: entry for entry in figures["smallest_contrast"] if entry["sign"] == "either"}
    blind = [volume for volume, entry in sizes.items() if entry["contrast"] is None]
    if not blind:
        return []
    best = max(sizes[volume]["recall_at_strongest"] or 0.0 for volume in blind)
    verb = "Does not see" if best <= _UNSEEN else "Misses most"
    of = "lesions of every size tried" if len(blind) == len(sizes) else f"lesions of {_up_to(blind, sizes)}"
    return [f"{verb} {of} at any contrast up to {top}: finds {_percent(best)} of them at most ({point} point)."]


def _about_contrast(figures: Mapping[str, Any], sign: str, top: str) -> str:
    """From which contrast half of the lesions of a sign are found, by size."""
    sizes = {entry["volume_ml"]: entry for entry in figures["smallest_contrast"] if entry["sign"] == sign}
    blind = [volume for volume, entry in sizes.items() if entry["contrast"] is None]
    seen = [f"{volume:g} ml from {_contrast(entry)}" for volume, entry in sizes.items() if volume not in blind]
    if not seen:
        return ""
    rest = f"; of those of {_up_to(blind, sizes)} at no contrast up to {top}" if blind else ""
    return f"Finds at least half of the {sign} lesions of {_listed(seen)} contrast{rest}."


def _up_to(blind: Sequence[float], sizes: Mapping[float, Any]) -> str:
    """``0.3 ml and smaller`` where these are the smallest ones."""
    rest = [volume for volume in sizes if volume not in blind]
    if len(blind) > 1 and (not rest or max(blind) < min(rest)):
        return f"{max(blind):g} ml and smaller"
    return _listed([f"{volume:g} ml" for volume in blind])


def _about_signs(figures: Mapping[str, Any]) -> list[str]:
    signs = {entry["sign"]: entry for entry in figures["by_sign"]}
    if len(signs) < 2:
        return []
    weak, strong = sorted(signs.values(), key=lambda entry: entry["recall"])
    if weak["interval"][1] >= strong["interval"][0]:
        return []
    return [
        f"Sees {strong['sign']} lesions better than {weak['sign']} ones: {_percent(strong['recall'])} against "
        f"{_percent(weak['recall'])} over all sizes and contrasts."
    ]


def _about_kinds(figures: Mapping[str, Any]) -> list[str]:
    said = []
    chance = figures["chance"]["recall"] or 0.0
    for entry in figures["by_kind"]:
        counted = f"{entry['found']} of {entry['n']} found"
        if entry["recall"] <= max(2 * chance, _UNSEEN):
            said.append(f"Misses {_KIND_WORDS.get(entry['kind'], entry['kind'])}: {counted}.")
        elif entry["recall"] < HALF:
            said.append(f"Misses most {_KIND_WORDS.get(entry['kind'], entry['kind'])}: {counted}.")
        else:
            said.append(f"Sees {_KIND_WORDS.get(entry['kind'], entry['kind'])}: {counted}.")
    return said


_REGION_WORDS = {
    "cortex": "the cortex",
    "deep": "deep structures",
    "posterior fossa": "the posterior fossa",
}
_KIND_WORDS = {
    "swelling": "swelling without a change of grey values",
    "shrinkage": "shrinkage without a change of grey values",
    "shuffled voxels": "tissue whose voxels are shuffled",
    "shuffled blocks": "tissue whose 4 mm blocks are shuffled",
}


def _about_groups(entries: Sequence[Mapping[str, Any]], key: str, phrase: str) -> list[str]:
    """Named only where intervals of the worst and the best group are apart."""
    if len(entries) < 2:
        return []
    worst, best = (pick(entries, key=lambda entry: entry["recall"]) for pick in (min, max))
    if worst["interval"][1] >= best["interval"][0]:
        return []
    first = phrase.format(worst[key])
    return [
        f"Sees {first} least ({_percent(worst['recall'])}) and {phrase.format(best[key])} best "
        f"({_percent(best['recall'])})."
    ]


def _matrix(lesions: Sequence[Mapping[str, Any]], point: str) -> dict[str, Any]:
    volumes = sorted({row["volume_ml"] for row in lesions})
    contrasts = sorted({row["contrast"] for row in lesions})
    n = np.zeros((len(volumes), len(contrasts)), int)
    found = np.zeros_like(n)
    for row in lesions:
        at = volumes.index(row["volume_ml"]), contrasts.index(row["contrast"])
        n[at] += 1
        found[at] += row["points"][point]["found"]
    shares = [[float(f / k) if k else None for f, k in zip(*pair, strict=True)] for pair in zip(found, n, strict=True)]
    return {
        "volumes_ml": volumes,
        "contrasts": contrasts,
        "n": n.tolist(),
        "found": found.tolist(),
        "recall": shares,
        "interval": [[wilson(int(f), int(k)) for f, k in zip(*p, strict=True)] for p in zip(found, n, strict=True)],
    }


def _smallest(lesions: Sequence[Mapping[str, Any]], point: str, picks: np.ndarray) -> list[dict[str, Any]]:
    sizes = sorted({abs(row["contrast"]) for row in lesions})
    made = []
    for volume in sorted({row["volume_ml"] for row in lesions}):
        for sign in _SIGNS:
            of = [row for row in lesions if row["volume_ml"] == volume and sign in ("either", _sign(row))]
            n = np.zeros((picks.shape[1], len(sizes)), int)
            found = np.zeros_like(n)
            for row in of:
                at = row["scan"], sizes.index(abs(row["contrast"]))
                n[at] += 1
                found[at] += row["points"][point]["found"]
            levels = np.array(sizes)
            # Few lesions give few different counts: each is fitted once.
            counts, times = np.unique(np.hstack([picks @ found, picks @ n]), axis=0, return_counts=True)
            fitted = [smallest_contrast(row[: len(sizes)], row[len(sizes) :], levels) for row in counts]
            low, high = np.quantile(np.repeat(fitted, times), (0.025, 0.975), method="nearest")
            total, hits = n.sum(axis=0), found.sum(axis=0)
            value = smallest_contrast(hits, total, levels)
            made.append(
                {
                    "volume_ml": volume,
                    "sign": sign,
                    "contrast": _finite(value),
                    "interval": [_finite(low), _finite(high)],
                    "at_smallest_tried": bool(value == levels[0]),
                    "recall_at_strongest": float(hits[-1] / total[-1]) if total[-1] else None,
                    "n": int(total.sum()),
                }
            )
    return made


def _recall(rows: Sequence[Mapping[str, Any]], point: str, picks: np.ndarray) -> dict[str, Any]:
    """Share found with an interval bootstrapped over scans (Wilson's where all or none are found)."""
    n, found = np.zeros(picks.shape[1], int), np.zeros(picks.shape[1], int)
    for row in rows:
        n[row["scan"]] += 1
        found[row["scan"]] += row["points"][point]["found"]
    total, hits = int(n.sum()), int(found.sum())
    interval = wilson(hits, total)
    if 0 < hits < total:
        counts = picks @ n
        drawn = (picks @ found)[counts > 0] / counts[counts > 0]
        interval = [float(v) for v in np.quantile(drawn, (0.025, 0.975))]
    return {"n": total, "found": hits, "recall": hits / total if total else None, "interval": interval}


def _picks(rows: Sequence[Mapping[str, Any]], seed: int) -> np.ndarray:
    """(resamples, scans) how often each scan is drawn."""
    scans = 1 + max((row["scan"] for row in rows), default=0)
    present = np.unique([row["scan"] for row in rows]).astype(int)
    if not len(present):
        return np.zeros((0, scans), int)
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(len(present), np.full(len(present), 1 / len(present)), size=_RESAMPLES)
    picks = np.zeros((_RESAMPLES, scans), int)
    picks[:, present] = drawn
    return picks


def _where(rows: Sequence[Mapping[str, Any]], keys: Sequence[str], value: Sequence[Any]) -> list[Mapping[str, Any]]:
    return [row for row in rows if tuple(row[key] for key in keys) == tuple(value)]


def _sign(row: Mapping[str, Any]) -> str:
    return "darker" if row["contrast"] < 0 else "brighter"


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _contrast(entry: Mapping[str, Any]) -> str:
    value = f"{100 * entry['contrast']:.0f} %"
    return f"{value} or less" if entry["at_smallest_tried"] else value


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


