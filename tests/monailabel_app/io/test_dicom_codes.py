import pytest
from pydicom.sr._concepts_dict import concepts

from monailabel_app.io import dicom_codes
from monailabel_app.io.dicom_codes import STRUCTURES, site_of
from monailabel_app.preprocessing.regions import REGION_NAMES

BRAIN, FRONTAL, LEFT = "12738006", "83251001", "7771000"
WITHOUT_A_STRUCTURE = {
    "basal forebrain",
    "central operculum",
    "fusiform gyrus",
    "parahippocampal gyrus",
    "subcallosal area",
}


def standard_meanings(code) -> set[str]:
    """What DICOM PS3.16, as pydicom carries it, calls this code."""
    found = concepts[code.scheme_designator].values()
    return {of_code[code.value][0].lower() for of_code in found if code.value in of_code}


@pytest.mark.parametrize("code", set(STRUCTURES.values()) | {dicom_codes.NUMBER_OF_LESIONS, site_of("").structure})
def test_every_code_is_one_of_the_standard_with_its_meaning(code):
    assert code.meaning.lower() in standard_meanings(code)


def test_every_region_of_the_table_is_one_of_the_template():
    known = {name.removeprefix("left ").removeprefix("right ") for name in REGION_NAMES.values()}
    assert set(STRUCTURES) <= known
    assert known - set(STRUCTURES) == WITHOUT_A_STRUCTURE


@pytest.mark.parametrize(
    ("region", "structure", "side"),
    [
        ("left middle frontal gyrus", FRONTAL, LEFT),
        ("right subcallosal area", BRAIN, "24028007"),
        ("third ventricle", "49841001", None),
        ("cerebellar vermis, lobules VI-VII", "113305005", None),
        ("left internal capsule, anterior limb", "85637007", LEFT),
        ("", BRAIN, None),
        ("left", BRAIN, LEFT),
        ("somewhere else", BRAIN, None),
    ],
)
def test_a_region_is_told_by_structure_and_side(region, structure, side):
    site = site_of(region)
    assert site.structure.value == structure
    assert (site.side and site.side.value) == side


def test_what_no_standard_names_is_in_a_private_scheme():
    private = [v for v in vars(dicom_codes).values() if getattr(v, "scheme_designator", "") == dicom_codes.LOCAL_SCHEME]
    assert dicom_codes.LOCAL_SCHEME.startswith("99")
    assert len({code.value for code in private}) == len(private) > 0
    assert all(len(code.value) <= 16 and len(code.meaning) <= 64 for code in private)
