import logging
import re

import pytest

from lib.app import AnomalyApp
from monailabel_app.errors import InvalidSettings
from monailabel_app.pipelines.conf_keys import KEYS, check_keys
from monailabel_app.pipelines.reach import conf_of


def test_a_misspelt_key_is_refused_and_the_one_that_was_meant_is_named():
    with pytest.raises(InvalidSettings, match=r"'aut' \(meant: auth\?\)"):
        check_keys(["models", "aut"])
    with pytest.raises(InvalidSettings, match=r"'Tokens' .meant: tokens"):
        check_keys(["Tokens"])


def test_a_key_of_other_apps_is_told_and_not_refused(caplog):
    with caplog.at_level(logging.WARNING):
        check_keys(["use_pretrained_model"])
    assert "use_pretrained_model" in caplog.text


def test_the_app_does_not_start_with_a_key_that_there_is_not(tmp_path):
    with pytest.raises(InvalidSettings, match="session_hour"):
        AnomalyApp(str(tmp_path), str(tmp_path), {"session_hour": "1"})


def test_every_key_is_documented_with_the_app_and_no_other():
    documented = set(re.findall(r"``([a-z_]+)``", AnomalyApp.__doc__))
    assert documented == KEYS


def test_a_misspelt_key_is_found_on_the_command_line():
    with pytest.raises(InvalidSettings):
        check_keys(conf_of(["--conf", "audit_require", "true"]))
