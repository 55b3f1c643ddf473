"""Targets whose inputs ``made`` makes: archives to unpack, a DICOMweb archive's answers, uploaded model folders."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import atheris
import numpy as np
import pydicom
import requests
import yaml
from requests.adapters import BaseAdapter
from requests.structures import CaseInsensitiveDict

from lib.archive_client import connect
from lib.archive_fetch import fetch_series, find_series
from lib.archive_lists import Lists
from lib.dicomweb import AnomalyDICOMWebDatastore
from lib.unpacking import UnpackLimits, entries_of, unpack
from monailabel_app.errors import AnomalyAppError
from monailabel_app.pipelines.predict import predict
from monailabel_app.pipelines.uploaded_model import check_folder, check_names
from monailabel_app.preprocessing.template import Template
from monailabel_app.types import Volume
from monailabel_app.weights.listing import read_entry
from monailabel_app.weights.model_folder import seal
from tests.bad_dicom import series
from tests.fuzz import made

_FOLDER = Path(tempfile.mkdtemp(prefix="fuzz_made_"))
_SHIPPED = Path(__file__).resolve().parents[2] / "model_weights" / "intensity_flair"
_LIMITS = UnpackLimits(entries=6, total=2**18, ratio=50, small=2**16, depth=3)
_UID = "1.2.3"


def seeds() -> list[bytes]:
    """Bytes of no meaning, as many as one input takes: what they choose is another thing each."""
    random = np.random.default_rng(0)
    return [random.bytes(int(size)) for size in random.integers(20, 600, 200)]


def unpacking(data: bytes) -> None:
    """A .zip or .tar that was sent: refused, or unpacked within limits into plain files of its own folder."""
    content = made.archive(atheris.FuzzedDataProvider(data))
    path, target, beside = (_FOLDER / name for name in ("archive", "unpacked", "beside"))
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    beside.mkdir(exist_ok=True)
    path.write_bytes(content)
    entries: list[Any] = []
    written: list[Path] = []
    refusal = ""
    try:
        entries = entries_of(path, _LIMITS)
        written = unpack(path, target, _LIMITS)
    except AnomalyAppError as error:
        refusal = str(error)
    assert refusal.startswith("expected ") or not refusal, refusal
    assert str(_FOLDER) not in refusal
    there = [file for file in target.rglob("*") if not file.is_dir() or file.is_symlink()]
    assert all(file.is_file() and not file.is_symlink() for file in there)
    assert sum(file.stat().st_size for file in there) <= _LIMITS.total
    assert not list(beside.iterdir())
    if written:
        assert sorted(written) == sorted(there)
        assert [file.stat().st_size for file in written] == [entry.size for entry in entries]


# SOPInstanceUID and SeriesInstanceUID of objects beside those of a good series.
_NAMES = (
    (_UID + ".1", _UID),
    (_UID + ".2", _UID),
    ("../../x", _UID),
    ("", _UID),
    ("1.2/3", _UID),
    (_UID + ".1", "1.2.9"),
)


def _identified(content: bytes, instance: str, of: str) -> bytes:
    data = pydicom.dcmread(io.BytesIO(content))
    data.SOPInstanceUID, data.SeriesInstanceUID = instance, of
    data.save_as(changed := io.BytesIO())
    return changed.getvalue()


class _Answers(BaseAdapter):
    """Answers as the bytes say, without a network."""

    def __init__(self) -> None:
        super().__init__()
        self.data = atheris.FuzzedDataProvider(b"")
        whole = list(series().values())
        self.objects = [*whole, *(_identified(whole[0], *names) for names in _NAMES)]

    def send(self, request: requests.PreparedRequest, **_: Any) -> requests.Response:
        """The answer to any question."""
        answer = requests.Response()
        answer.status_code = self.data.PickValueInList([200] * 20 + [204, 206, 400, 401, 404, 500])
        answer.url, answer.request, answer.reason = request.url, request, "of a fuzzer"
        if "multipart" in request.headers.get("Accept", ""):
            kind, body = made.multipart(self.data, self.objects)
        else:
            kind = self.data.PickValueInList(["application/dicom+json"] * 6 + ["text/html", ""])
            body = json.dumps(made.series_list(self.data)).encode()
            if self.data.ConsumeIntInRange(0, 15) == 0:
                body = self.data.ConsumeBytes(20)
        answer.headers = CaseInsensitiveDict({"content-type": kind} if kind else {})
        answer.raw = io.BytesIO(body)
        return answer

    def close(self) -> None:
        """Nothing is open."""


def _archive() -> tuple[AnomalyDICOMWebDatastore, _Answers]:
    client, answers = connect("http://archive.invalid/dicom-web"), _Answers()
    client._session.mount("http://", answers)
    store = AnomalyDICOMWebDatastore(
        client=client, search_filter={"Modality": "MR"}, cache_path=str(_FOLDER / "cache"), fetch_by_frame=False
    )
    return store, answers


_STORE: list[tuple[AnomalyDICOMWebDatastore, _Answers]] = []


def archive(data: bytes) -> None:
    """Lists, headers and objects of a DICOMweb archive: an answer, or a named error; nothing beside the series' folder.

    The lists are asked for without the thread that hides what goes wrong.
    """
    if not _STORE:
        _STORE.append(_archive())
    store, answers = _STORE[0]
    answers.data = atheris.FuzzedDataProvider(data)
    store._lists, store._segmented, store._patients, store._shown = Lists(), {}, {}, {}
    store._remembered = lambda _name, find: find()
    folder = _FOLDER / "fetched" / _UID
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.parent.mkdir()
    try:
        for uid in store.list_images():
            assert all(isinstance(value, str) for value in store.series_info(uid).values())
            assert isinstance(store.patient_of(uid), (str, type(None)))
    except AnomalyAppError:
        pass
    try:
        store.get_labeled_images()
        store.final_labels(_UID)
    except AnomalyAppError:
        pass
    try:
        fetch_series(store.client, find_series(store.client, _UID), folder, by_frame=answers.data.ConsumeBool())
    except AnomalyAppError:
        assert not list(folder.parent.iterdir())
    else:
        assert all(path.suffix == ".dcm" for path in folder.iterdir())
    assert {path.name for path in _FOLDER.iterdir()} <= {"fetched", "cache"}


_ODD_YAML = ("a: &a [1]\nb: *a\n", "c: !!set {x}\n", "d: 2001-99-99\n")
_TEXTS = ("config.yaml", "calibration.json", "measured.json")
_BASE: dict[str, bytes] = {}


def model(data: bytes) -> None:
    """A model folder that was sent: refused, or a model that analyses a scan and can be listed.

    Every third has the checksums that it had, the others those of what is in it.
    """
    provider = atheris.FuzzedDataProvider(data)
    if not _BASE:
        _BASE.update({path.name: path.read_bytes() for path in _SHIPPED.iterdir()})
    folder = _FOLDER / "model"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in _model(provider).items():
        (folder / name).write_bytes(content)
    if provider.ConsumeIntInRange(0, 2):
        seal(folder, [])
    read_entry("model", folder)
    loaded, refusal = None, ""
    try:
        check_names([path.name for path in folder.iterdir()])
        loaded = check_folder(folder)
    except AnomalyAppError as error:
        refusal = str(error)
    assert str(_FOLDER) not in refusal, refusal
    if loaded is None:
        return
    entry = read_entry("model", folder)
    assert entry is not None
    said = {"modality": entry.modality, "data": entry.training_data, "quality": entry.quality}
    json.dumps(said, allow_nan=False)
    try:
        found = predict(_slice(), loaded)
    except AnomalyAppError:
        return
    assert np.isfinite(found.anomaly_map).all()
    assert np.isfinite(found.anomaly_score)


def _model(data: made.Provider) -> dict[str, bytes]:
    files = dict(_BASE)
    for _ in range(data.ConsumeIntInRange(0, 3)):
        name = data.PickValueInList(
            [*_TEXTS, *_TEXTS, "calibration.safetensors", "model.safetensors", "sha256sums.txt"]
        )
        if name not in files:
            continue
        way = data.ConsumeIntInRange(0, 15)
        if way == 0:
            del files[name]
        elif way == 1:
            files[name] = data.ConsumeBytes(60)
        elif name == "config.yaml":
            values = made.changed(data, yaml.safe_load(_BASE[name]))
            if data.ConsumeIntInRange(0, 3) == 0 and isinstance(values, dict):
                values["method"] = data.PickValueInList(["ddpm", "ensemble", "atlas_zscore", "cold_diffusion", "x", 3])
                values["config"] = {}
            text = yaml.safe_dump(values, sort_keys=False)
            files[name] = (data.PickValueInList([""] * 9 + list(_ODD_YAML)) + text).encode()
        elif name.endswith(".json"):
            files[name] = json.dumps(made.changed(data, json.loads(_BASE[name]))).encode()
        elif name == "calibration.safetensors":
            files[name] = made.tensors(data, _BASE[name])
        elif name == "model.safetensors":
            files[name] = made.tensors(data, _BASE["calibration.safetensors"] if data.ConsumeBool() else _BASE[name])
        else:
            files[name] = data.PickValueInList([b"", b"x\n", b"0" * 64 + b"  config.yaml\n", files[name] + files[name]])
    if data.ConsumeIntInRange(0, 20) == 0:
        files[data.PickValueInList(["x.pt", "model.PT", "notes.txt", "training.json"])] = b"[]"
    return files


@cache
def _slice() -> Volume:
    """A skull-stripped slice with some texture and a bright spot, the template's own."""
    template = Template.load(_SHIPPED.parent / "template")
    level = template.shape[2] // 2
    brain = template.brain_mask[..., level]
    values = 100 + 20 * np.random.default_rng(0).random(brain.shape)
    values[brain.shape[0] // 3, brain.shape[1] // 2] = 400
    affine = template.affine.copy()
    affine[:3, 3] += level * affine[:3, 2]
    return Volume(np.where(brain, values, 0).astype(np.float32)[None, ..., None], affine)
