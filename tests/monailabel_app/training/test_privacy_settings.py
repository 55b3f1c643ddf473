"""A budget is read from a viewer's line of text, and what cannot be read is named."""

from dataclasses import asdict

import pytest

from monailabel_app.errors import InvalidSettings
from monailabel_app.training.privacy_settings import PrivacySettings


@pytest.mark.parametrize("text", [None, "", "  ", "none", "None", "off"])
def test_no_budget_is_none(text):
    assert PrivacySettings.parse(text) is None


def test_a_line_sets_what_it_names_and_nothing_else():
    parsed = PrivacySettings.parse(" epsilon=3, delta=1e-6 steps=200;trainable=all ")
    assert parsed == PrivacySettings(epsilon=3, delta=1e-6, steps=200, trainable="all")
    assert isinstance(parsed.steps, int)
    assert PrivacySettings.parse("patients_per_step=16").patients_per_step == 16
    assert PrivacySettings(**asdict(parsed)) == parsed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8", "such as 'epsilon=8 delta=1e-5' or 'none', got '8'"),
        ("epsilon=8 sigma=2", "got 'sigma=2'"),
        ("epsilon=", "got 'epsilon='"),
        ("seed=1", "got 'seed=1'"),
        ("epsilon=much", "epsilon of the privacy budget as a finite number, got 'much'"),
        ("epsilon=inf", "finite number"),
        ("steps=2.5", "steps of the privacy budget as a whole number"),
        ("epsilon=1 epsilon=2", "epsilon once"),
        ("epsilon=-1", "epsilon as a finite number above 0"),
        ("delta=1", "delta below 1"),
        ("steps=0", "steps of at least 1"),
        ("patients_per_step=0", "at least 1 patient"),
        ("trainable=encoder", "attention_and_last, last, all"),
    ],
)
def test_what_cannot_be_read_is_named(text, message):
    with pytest.raises(InvalidSettings, match=message):
        PrivacySettings.parse(text)
