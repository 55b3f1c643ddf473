import io
import logging
import os
import tarfile
import warnings
from types import SimpleNamespace

import pytest
from highdicom.valuerep import check_person_name
from monailabel.config import Settings
from monailabel.config import settings as platform

from lib import settings


@pytest.fixture
def restored():
    names = ("MONAI_LABEL_DICOMWEB_SEARCH_FILTER", "MONAI_LABEL_DATASTORE_FILE_EXT")
    before = {name: getattr(platform, name) for name in names}
    environment = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(environment)
    for name, value in before.items():
        setattr(platform, name, value)


def test_mr_series_are_visible_unless_the_user_says_otherwise(restored):
    platform.MONAI_LABEL_DICOMWEB_SEARCH_FILTER = Settings.model_fields["MONAI_LABEL_DICOMWEB_SEARCH_FILTER"].default
    platform.model_fields_set.discard("MONAI_LABEL_DICOMWEB_SEARCH_FILTER")
    settings.apply()
    assert platform.MONAI_LABEL_DICOMWEB_SEARCH_FILTER == {"Modality": "MR"}
    # As the processes that this one starts read it.
    assert Settings().MONAI_LABEL_DICOMWEB_SEARCH_FILTER == {"Modality": "MR"}
    platform.MONAI_LABEL_DICOMWEB_SEARCH_FILTER = {"PatientID": "1"}
    settings.apply()
    assert platform.MONAI_LABEL_DICOMWEB_SEARCH_FILTER == {"PatientID": "1"}


def test_a_filter_that_the_user_set_to_monai_labels_default_stays(restored, monkeypatch):
    monkeypatch.setenv("MONAI_LABEL_DICOMWEB_SEARCH_FILTER", '{"Modality": "CT"}')
    monkeypatch.setattr(settings, "settings", Settings())
    settings.apply()
    assert settings.settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER == {"Modality": "CT"}
    # A process that this one starts has every setting in its environment (MONAI Label copies them there).
    monkeypatch.setenv("MONAI_LABEL_PROJECT_NAME", "MONAILabel")
    monkeypatch.setattr(settings, "settings", Settings())
    settings.apply()
    assert settings.settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER == {"Modality": "CT"}


def test_a_default_that_monai_label_copied_for_its_worker_processes_is_nobodys_wish(restored, monkeypatch):
    monkeypatch.delenv("ANOMALY_SEARCH_FILTER_KNOWN", raising=False)
    monkeypatch.setenv("MONAI_LABEL_DICOMWEB_SEARCH_FILTER", '{"Modality": "CT"}')
    monkeypatch.setenv("MONAI_LABEL_PROJECT_NAME", "MONAILabel")
    monkeypatch.setattr(settings, "settings", Settings())
    settings.apply()
    assert settings.settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER == {"Modality": "MR"}


def test_the_environments_programs_are_found_without_activation(restored, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin")
    settings.apply()
    settings.apply()
    assert os.environ["PATH"].count(os.pathsep) == 1
    assert os.environ["PATH"].endswith("/usr/bin")


def test_an_archive_cannot_unpack_outside_its_folder(restored, tmp_path):
    settings.apply()
    archive = tmp_path / "x.tar"
    with tarfile.open(archive, "w") as tar:
        member = tarfile.TarInfo("../evil.txt")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    with tarfile.open(archive) as tar, pytest.raises(tarfile.OutsideDestinationError):
        tar.extractall(tmp_path / "inside")
    assert not (tmp_path / "evil.txt").exists()


def test_what_a_reader_of_dicom_doubts_about_a_patients_name_is_not_printed(restored):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        settings.apply()
        check_person_name("JANEDOE")
    assert not told


def test_the_next_sample_is_not_written_into_the_log_with_its_id_and_path(caplog, monkeypatch):
    from monailabel.endpoints import activelearning

    app = SimpleNamespace(
        info=dict,
        next_sample=lambda request: {"id": "DOE^JANE"},
        datastore=lambda: SimpleNamespace(get_image_info=lambda image: {"path": "/x/DOE^JANE"}),
    )
    monkeypatch.setattr(activelearning, "app_instance", lambda: app)
    caplog.set_level("INFO")
    settings.apply()
    activelearning.sample("first", {})
    assert "DOE" not in caplog.text


@pytest.mark.parametrize("name", ["__main__", "monailabel.interfaces.utils.app"])
def test_the_whole_result_of_a_batch_with_its_ids_is_not_logged(restored, caplog, name):
    settings.apply()
    with caplog.at_level("INFO"):
        logging.getLogger(name).info('Result: {"DOE^JANE": {"label": "DOE^JANE"}}')
        logging.getLogger(name).info("something else")
    assert "DOE" not in caplog.text
    assert "something else" in caplog.text
