"""MONAI Label's own settings, changed where its default does not fit brain MR on an offline machine.

What the user has set stays, also a search filter that is MONAI Label's own default. ``monailabel start_server`` copies
every setting into ``os.environ``, where a process started later cannot tell the two apart: that filter is changed there
too, and a list of file names that equals the default is taken as not set by the user.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tarfile
import warnings
from pathlib import Path

from monailabel.config import Settings, settings

_FILTER = "MONAI_LABEL_DICOMWEB_SEARCH_FILTER"
# In the environment of processes that this one starts: the filter there is what it has to be.
_KNOWN = "ANOMALY_SEARCH_FILTER_KNOWN"
_NOBODY_SETS = "MONAI_LABEL_PROJECT_NAME"
DICOMWEB_FILTER = {"Modality": "MR"}
SCANS = ("*.nii.gz", "*.nii", "*.nrrd")
SWITCH_SECONDS = 0.001


def apply() -> None:
    """Make MR series visible, list only scans, find the environment's own tools, unpack archives safely."""
    if not _filter_is_the_users():
        settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER = dict(DICOMWEB_FILTER)
        os.environ[_FILTER] = json.dumps(DICOMWEB_FILTER)
    os.environ[_KNOWN] = "1"
    stock = Settings.model_fields["MONAI_LABEL_DATASTORE_FILE_EXT"].default
    if stock == settings.MONAI_LABEL_DATASTORE_FILE_EXT:
        settings.MONAI_LABEL_DATASTORE_FILE_EXT = list(SCANS)
    add_environment_to_path()
    # How long a thread may compute in Python before another one that wants to gets its turn: the event loop asks for
    # it several times in each request, and an analysis must not make each of them wait for 5 ms.
    sys.setswitchinterval(SWITCH_SECONDS)
    # At INFO these write the ids of scans, which may be names; a training's log is shown to every user.
    for name in ("monailabel.datastore", "monailabel.endpoints.datastore", "dicomweb_client", "highdicom"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # This one also as a warning.
    logging.getLogger("monailabel.endpoints.activelearning").setLevel(logging.ERROR)
    # The whole result of a batch or scoring, with every scan's id, in the sub-process (__main__) or, run at once, here.
    for name in ("__main__", "monailabel.interfaces.utils.app"):
        found = logging.getLogger(name)
        if _is_no_result not in found.filters:
            found.addFilter(_is_no_result)
    # These print the values of headers that they doubt, a patient's name among them.
    warnings.filterwarnings("ignore", module=r"(pydicom|highdicom)(\.|$)")
    # Sessions may be uploaded as an archive, which MONAI Label unpacks without a filter; the class attribute
    # is Python's documented way to refuse absolute paths, parent folders and links (PEP 706).
    if hasattr(tarfile, "data_filter"):
        tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)


def _filter_is_the_users() -> bool:
    """Whether the search filter was set by the user, which among copied settings only the first process can tell."""
    stock = Settings.model_fields[_FILTER].default
    copied = _NOBODY_SETS in settings.model_fields_set and _KNOWN not in os.environ
    return _FILTER in settings.model_fields_set and not (
        copied and stock == settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER
    )


def _is_no_result(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Result: ")


def add_environment_to_path() -> None:
    """Put the virtual environment's programs on PATH, also when it was not activated."""
    # Not resolved: in a virtual environment the interpreter is a link to the system's.
    programs = str(Path(sys.executable).parent)
    if programs not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = programs + os.pathsep + os.environ.get("PATH", "")
