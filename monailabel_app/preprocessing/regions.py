"""Names of the template's regions: the MUSE numbering (Doshi et al., NeuroImage 2016) that DLMUSE writes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_MIDLINE = {
    4: "third ventricle",
    11: "fourth ventricle",
    35: "brain stem",
    46: "cerebrospinal fluid",
    71: "cerebellar vermis, lobules I-V",
    72: "cerebellar vermis, lobules VI-VII",
    73: "cerebellar vermis, lobules VIII-X",
    95: "corpus callosum",
}
# First label of each pair and whether it is the right side's; the other side follows.
_RIGHT_FIRST = {
    23: ("nucleus accumbens", 30),
    31: ("amygdala", 32),
    36: ("caudate", 37),
    38: ("cerebellar cortex", 39),
    40: ("cerebellar white matter", 41),
    47: ("hippocampus", 48),
    49: ("inferior lateral ventricle", 50),
    51: ("lateral ventricle", 52),
    55: ("pallidum", 56),
    57: ("putamen", 58),
    59: ("thalamus", 60),
    61: ("ventral diencephalon", 62),
    76: ("basal forebrain", 75),
    81: ("frontal white matter", 82),
    83: ("occipital white matter", 84),
    85: ("parietal white matter", 86),
    87: ("temporal white matter", 88),
    89: ("fornix", 90),
    91: ("internal capsule, anterior limb", 92),
    93: ("internal capsule, posterior limb", 94),
}
_GYRI = {
    100: "anterior cingulate gyrus",
    102: "anterior insula",
    104: "anterior orbital gyrus",
    106: "angular gyrus",
    108: "calcarine cortex",
    112: "central operculum",
    114: "cuneus",
    116: "entorhinal area",
    118: "frontal operculum",
    120: "frontal pole",
    122: "fusiform gyrus",
    124: "gyrus rectus",
    128: "inferior occipital gyrus",
    132: "inferior temporal gyrus",
    134: "lingual gyrus",
    136: "lateral orbital gyrus",
    138: "middle cingulate gyrus",
    140: "medial frontal cortex",
    142: "middle frontal gyrus",
    144: "middle occipital gyrus",
    146: "medial orbital gyrus",
    148: "postcentral gyrus, medial segment",
    150: "precentral gyrus, medial segment",
    152: "superior frontal gyrus, medial segment",
    154: "middle temporal gyrus",
    156: "occipital pole",
    160: "occipital fusiform gyrus",
    162: "inferior frontal gyrus, opercular part",
    164: "inferior frontal gyrus, orbital part",
    166: "posterior cingulate gyrus",
    168: "precuneus",
    170: "parahippocampal gyrus",
    172: "posterior insula",
    174: "parietal operculum",
    176: "postcentral gyrus",
    178: "posterior orbital gyrus",
    180: "planum polare",
    182: "precentral gyrus",
    184: "planum temporale",
    186: "subcallosal area",
    190: "superior frontal gyrus",
    192: "supplementary motor cortex",
    194: "supramarginal gyrus",
    196: "superior occipital gyrus",
    198: "superior parietal lobule",
    200: "superior temporal gyrus",
    202: "temporal pole",
    204: "inferior frontal gyrus, triangular part",
    206: "transverse temporal gyrus",
}


def _all_names() -> dict[int, str]:
    names = dict(_MIDLINE)
    for right, (name, left) in _RIGHT_FIRST.items():
        names |= {right: f"right {name}", left: f"left {name}"}
    for right, name in _GYRI.items():
        names |= {right: f"right {name}", right + 1: f"left {name}"}
    return names


REGION_NAMES: Mapping[int, str] = MappingProxyType(_all_names())
