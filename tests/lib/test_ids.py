import pytest

from lib import ids
from lib.errors import InvalidRequest


@pytest.mark.parametrize("image_id", ["T1", "6: t1_mprage sag", "sub-01_ses-2.run", "Müller (2)", "1.2.840.1"])
def test_names_that_viewers_give_pass(image_id):
    assert ids.check_image_id(image_id) == image_id


@pytest.mark.parametrize(
    "image_id",
    ["", "..", "a/b", "a\\b", "/abs", "../x", "a..b", ".hidden", "~root", "a\nb", "a\x00", "x" * 129, "é" * 101, " a"],
)
def test_names_that_lead_elsewhere_do_not(image_id):
    with pytest.raises(InvalidRequest, match="image id"):
        ids.check_image_id(image_id)


@pytest.mark.parametrize("tag", ["", ".", "..", "a/b", "a b", "final/../x", "x" * 65])
def test_tags_are_plain_words(tag):
    assert ids.check_tag("anomaly_map") == "anomaly_map"
    with pytest.raises(InvalidRequest, match="tag"):
        ids.check_tag(tag)


@pytest.mark.parametrize("uid", ["", "1..2", "1.2/../..", "a.b", ".1", "1." + "2" * 70])
def test_uids_are_digits_and_dots(uid):
    assert ids.check_uid("1.2.826.0.1") == "1.2.826.0.1"
    with pytest.raises(InvalidRequest, match="SeriesInstanceUID"):
        ids.check_uid(uid)
