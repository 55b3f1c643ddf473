"""Every code that the DICOM objects of this package use beyond those that highdicom sets, in one place.

Structures of the brain are coded as in the context groups of DICOM PS3.16 (CID 4030, 7140 "Brain Structures for
Volumetric Measurements", 7153 "CNS Segmentation Types", 7710): none is made up. A region of the template without a
code of its own gets that of the structure it is a part of; its exact name travels as text beside it. What no standard
names is coded in a private scheme, whose designator starts with 99 as PS3.16 section 8.2 asks for, and every object
that uses it says so in its Coding Scheme Identification.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

LOCAL_SCHEME = "99MLANOMALY"
SCAN_SCORE = Code("SCAN_SCORE", LOCAL_SCHEME, "Anomaly score of the scan")
P_VALUE = Code("P_VALUE", LOCAL_SCHEME, "Rank p-value among held-out healthy scans")
INTENDED_USE = Code("INTENDED_USE", LOCAL_SCHEME, "Intended use")
WARNING = Code("WARNING", LOCAL_SCHEME, "Warning")
REGION = Code("REGION", LOCAL_SCHEME, "Region of the template")
LOCATION = Code("LOCATION", LOCAL_SCHEME, "Centre of the lesion")

CENTRE = Code("111010", "DCM", "Center")
NUMBER_OF_LESIONS = Code("246206008", "SCT", "Number of lesions (observable entity)")
HEALTHY_SD = Code("{SD}", "UCUM", "standard deviations of healthy scans")
MILLILITRE = Code("ml", "UCUM", "milliliter")
NO_UNITS = Code("1", "UCUM", "no units")

_SIDES = MappingProxyType({"left": Code("7771000", "SCT", "Left"), "right": Code("24028007", "SCT", "Right")})

BRAIN = Code("12738006", "SCT", "Brain")
_FRONTAL = Code("83251001", "SCT", "Frontal lobe")
_PARIETAL = Code("16630005", "SCT", "Parietal lobe")
_TEMPORAL = Code("78277001", "SCT", "Temporal lobe")
_OCCIPITAL = Code("31065004", "SCT", "Occipital lobe")
_LIMBIC = Code("279215006", "SCT", "Limbic lobe")
_INSULA = Code("36169008", "SCT", "Insula")
_CAPSULE = Code("85637007", "SCT", "internal capsule")
_WHITE = Code("68523003", "SCT", "Cerebral White Matter")

# Region of the template, without its side -> the narrowest structure of the standard that holds all of it.
STRUCTURES: Mapping[str, Code] = MappingProxyType(
    {
        "third ventricle": Code("49841001", "SCT", "Third ventricle"),
        "fourth ventricle": Code("35918002", "SCT", "Fourth ventricle"),
        "lateral ventricle": Code("66720007", "SCT", "Lateral ventricle"),
        "inferior lateral ventricle": Code("53118009", "SCT", "Inferior Horn of Lateral Ventricle"),
        "cerebrospinal fluid": Code("65216001", "SCT", "Cerebrospinal Fluid"),
        "brain stem": Code("119238007", "SCT", "Brain stem"),
        "corpus callosum": Code("88442005", "SCT", "Corpus callosum"),
        "fornix": Code("87463005", "SCT", "Cerebral fornix"),
        "nucleus accumbens": Code("427667007", "SCT", "Nucleus accumbens"),
        "amygdala": Code("4958002", "SCT", "Amygdala"),
        "caudate": Code("11000004", "SCT", "Caudate nucleus"),
        "hippocampus": Code("5366008", "SCT", "Hippocampus"),
        "pallidum": Code("14738005", "SCT", "Globus pallidus"),
        "putamen": Code("89278009", "SCT", "Putamen"),
        "thalamus": Code("42695009", "SCT", "Thalamus"),
        "ventral diencephalon": Code("110700", "DCM", "Ventral Diencephalon"),
        "entorhinal area": Code("3937002", "SCT", "Entorhinal Cortex"),
        "cerebellar cortex": Code("25991003", "SCT", "Cerebellar Cortex"),
        "cerebellar white matter": Code("33060004", "SCT", "Cerebellar white matter"),
        **{
            f"cerebellar vermis, lobules {lobules}": Code("113305005", "SCT", "Cerebellum")
            for lobules in ("I-V", "VI-VII", "VIII-X")
        },
        **{f"{part} insula": _INSULA for part in ("anterior", "posterior")},
        **{f"internal capsule, {limb} limb": _CAPSULE for limb in ("anterior", "posterior")},
        **{f"{lobe} white matter": _WHITE for lobe in ("frontal", "occipital", "parietal", "temporal")},
        **{f"{part} cingulate gyrus": _LIMBIC for part in ("anterior", "middle", "posterior")},
        **dict.fromkeys(
            (
                "anterior orbital gyrus",
                "frontal operculum",
                "frontal pole",
                "gyrus rectus",
                "lateral orbital gyrus",
                "medial frontal cortex",
                "middle frontal gyrus",
                "medial orbital gyrus",
                "precentral gyrus, medial segment",
                "superior frontal gyrus, medial segment",
                "inferior frontal gyrus, opercular part",
                "inferior frontal gyrus, orbital part",
                "inferior frontal gyrus, triangular part",
                "posterior orbital gyrus",
                "precentral gyrus",
                "superior frontal gyrus",
                "supplementary motor cortex",
            ),
            _FRONTAL,
        ),
        **dict.fromkeys(
            (
                "angular gyrus",
                "parietal operculum",
                "postcentral gyrus",
                "postcentral gyrus, medial segment",
                "precuneus",
                "superior parietal lobule",
                "supramarginal gyrus",
            ),
            _PARIETAL,
        ),
        **dict.fromkeys(
            (
                "inferior temporal gyrus",
                "middle temporal gyrus",
                "planum polare",
                "planum temporale",
                "superior temporal gyrus",
                "temporal pole",
                "transverse temporal gyrus",
            ),
            _TEMPORAL,
        ),
        **dict.fromkeys(
            (
                "calcarine cortex",
                "cuneus",
                "inferior occipital gyrus",
                "lingual gyrus",
                "middle occipital gyrus",
                "occipital fusiform gyrus",
                "occipital pole",
                "superior occipital gyrus",
            ),
            _OCCIPITAL,
        ),
    }
)


@dataclass(frozen=True)
class Site:
    """A place in the brain. side: None on the midline and where it is not known."""

    structure: Code
    side: Code | None


def site_of(region: str) -> Site:
    """The coded place of a region of the template such as ``left caudate``; the brain where nothing narrower is sure.

    Regions that lie in two lobes (central operculum, fusiform and parahippocampal gyrus, subcallosal area) and those of
    no one structure of the standard (basal forebrain) are "Brain" with their side.
    """
    side, _, rest = region.partition(" ")
    if side not in _SIDES:
        return Site(STRUCTURES.get(region, BRAIN), None)
    return Site(STRUCTURES.get(rest, BRAIN), _SIDES[side])


def name_local_scheme(dataset: Dataset) -> None:
    """Say in ``dataset`` whose private codes it uses (PS3.3 C.12.1.1.3)."""
    scheme = Dataset()
    scheme.CodingSchemeDesignator = LOCAL_SCHEME
    scheme.CodingSchemeName = "Codes of monailabel-anomaly"
    scheme.CodingSchemeResponsibleOrganization = "monailabel-anomaly"
    dataset.CodingSchemeIdentificationSequence = [scheme]
