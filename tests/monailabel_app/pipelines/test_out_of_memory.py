"""A device without memory: smaller pieces, then the CPU, the same numbers, and a word about it.

There is no GPU here but in the last test: a stand-in counts slices and says that the device is full.
"""

import weakref

import numpy as np
import pytest
import torch

from monailabel_app.errors import Cancelled
from monailabel_app.monitoring.instruments import FALLBACKS
from monailabel_app.pipelines import out_of_memory
from monailabel_app.pipelines import predict as module
from monailabel_app.pipelines.out_of_memory import Room, Way
from monailabel_app.pipelines.predict import PredictSettings, load_model, predict
from monailabel_app.types import BrainMask
from tests.monailabel_app.synthetic import person, scan

GPU = "cuda:0"
ERRORS = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
)


@pytest.fixture(autouse=True)
def room(monkeypatch):
    """Nothing remembered of other tests."""
    made = Room()
    monkeypatch.setattr(out_of_memory, "ROOM", made)
    return made


def counted(kind):
    return FALLBACKS.labels(kind=kind)._value.get()


class Device:
    """Work that fits only in some ways; ``tried`` lists the ways."""

    def __init__(self, fits, error=ERRORS[0]):
        self.fits, self.error, self.tried = fits, error, []

    def __call__(self, way):
        self.tried.append(way)
        if not self.fits(way):
            raise self.error
        return "made"


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: str(error)[:30])
def test_pieces_are_halved_until_they_fit_and_the_next_scan_begins_there(room, error):
    work = Device(lambda way: way.slices <= 4, error)
    before = counted("smaller_batches")
    assert room.run("a model", GPU, work) == ("made", Way(GPU, 4))
    assert [way.slices for way in work.tried] == [16, 8, 4]
    assert room.run("a model", GPU, work)[1] == Way(GPU, 4)
    assert len(work.tried) == 4
    assert counted("smaller_batches") == before + 1
    assert room.run("another model", GPU, Device(lambda way: True))[1] == Way(GPU)


def test_the_cpu_is_the_last_way(room):
    work = Device(lambda way: way.device == "cpu")
    before = counted("cpu")
    assert room.run("a model", GPU, work)[1] == Way("cpu")
    assert [way.slices for way in work.tried] == [16, 8, 4, 2, 1, 16]
    assert counted("cpu") == before + 1


def test_work_in_one_piece_is_tried_once_more_before_the_cpu(room):
    work = Device(lambda way: way.device == "cpu")
    assert room.run("brain extraction", GPU, work, in_pieces=False)[1] == Way("cpu")
    assert [way.device for way in work.tried] == [GPU, GPU, "cpu"]


def test_what_worked_is_tried_again_with_more_after_a_while(monkeypatch):
    room, work = Room(seconds=100), Device(lambda way: way.slices <= 2)
    room.run("a model", GPU, work)
    now = out_of_memory.time.monotonic()
    monkeypatch.setattr(out_of_memory.time, "monotonic", lambda: now + 200)
    work.tried.clear()
    assert room.run("a model", GPU, Device(lambda way: True))[1] == Way(GPU, 16)


def test_a_host_without_memory_has_no_other_way(room):
    work = Device(lambda way: False, RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    with pytest.raises(MemoryError, match="cpu ran out of memory"):
        room.run("a model", "cpu", work)
    assert len(work.tried) == 1


@pytest.mark.parametrize("error", [Cancelled("cancelled"), ValueError("odd"), RuntimeError("shape mismatch")])
def test_other_errors_are_let_through_at_once(room, error):
    work = Device(lambda way: False, error)
    with pytest.raises(type(error)):
        room.run("a model", GPU, work)
    assert len(work.tried) == 1


def test_what_a_failed_attempt_held_is_let_go_before_the_next(room):
    held, seen = [], []

    def work(way):
        seen.append(sum(one() is not None for one in held))
        array = np.zeros(1000)
        held.append(weakref.ref(array))
        if way.slices > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return float(array.sum())

    assert room.run("a model", GPU, work)[0] == 0.0
    assert seen == [0, 0, 0]


class FakeGpu:
    """``predict`` with a device called cuda:0 that has room for so many slices; it computes on the CPU."""

    def __init__(self, monkeypatch, room_for):
        self.sizes, self.moves, self.room_for = [], [], room_for
        examine, environment = module.examine, module.environment

        def full(method, network, *given, device, batch_size=None, **options):
            self.sizes.append((str(device), batch_size or 16))
            if str(device) != "cpu" and (batch_size or 16) > self.room_for:
                raise ERRORS[0]
            return examine(method, network, *given, device="cpu", batch_size=batch_size, **options)

        monkeypatch.setattr(module, "examine", full)
        monkeypatch.setattr(module, "environment", lambda device: environment("cpu") | {"device": device})
        monkeypatch.setattr(module, "provenance", lambda *given: {})

    def move(self, network):
        """The network's ``to``, which notes where it is sent."""
        network.to = lambda device: self.moves.append(str(device)) or network
        return network


@pytest.fixture
def given(model_folder):
    """A tiny model without a gate, a scan and its brain."""
    model = load_model(model_folder)
    volume, brain = scan(person(3))[:2]
    return model, volume, brain if isinstance(brain, BrainMask) else BrainMask(brain, "given")


def test_a_scan_gives_the_same_finding_with_less_memory_and_says_so(given, monkeypatch):
    model, volume, brain = given
    usual = predict(volume, model, PredictSettings(gate="off"), brain=brain)
    gpu = FakeGpu(monkeypatch, room_for=2)
    gpu.move(model.network)
    settings = PredictSettings(device=GPU, gate="off")
    found = predict(volume, model, settings, brain=brain)
    np.testing.assert_allclose(found.anomaly_map, usual.anomaly_map, atol=1e-3)
    assert (found.mask == usual.mask).mean() > 0.9999
    assert gpu.sizes == [(GPU, 16), (GPU, 8), (GPU, 4), (GPU, 2)]
    (sentence,) = [text for text in found.warnings if "too little memory" in text]
    assert "2 slices at a time" in sentence
    assert sentence in found.to_json()["warnings"]
    assert not [text for text in usual.warnings if "memory" in text]
    gpu.sizes.clear()
    predict(volume, model, settings, brain=brain)
    assert gpu.sizes == [(GPU, 2)]


def test_without_any_room_the_network_is_on_the_cpu_and_comes_back_when_there_is_room(given, monkeypatch):
    model, volume, brain = given
    gpu = FakeGpu(monkeypatch, room_for=0)
    gpu.move(model.network)
    settings = PredictSettings(device=GPU, gate="off")
    found = predict(volume, model, settings, brain=brain)
    assert gpu.moves[-1] == "cpu"
    assert any(text.startswith("cuda:0 had too little memory: the reconstruction was computed on the CPU")
               for text in found.warnings)  # fmt: skip
    monkeypatch.setattr(out_of_memory, "ROOM", Room())
    gpu.room_for = 16
    predict(volume, model, settings, brain=brain)
    assert gpu.moves[-1] == GPU


def test_the_brain_is_found_on_the_cpu_where_the_device_is_full(given, monkeypatch):
    model, volume, brain = given

    class Extractor:
        def __init__(self, device):
            self.device = device

        def extract(self, scan):
            if self.device != "cpu":
                raise ERRORS[0]
            return brain

    monkeypatch.setattr(model, "extractor", Extractor)
    prepared = module.prepare(volume, model, GPU)
    assert any("the brain extraction was computed on the CPU" in text for text in prepared.warnings)
    assert not any("memory" in text for text in module.prepare(volume, model, "cpu").warnings)


@pytest.mark.gpu
def test_a_real_device_that_is_full_is_survived(given):
    """Its memory is filled but for a little, the analysis is done all the same, and again when there is room."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    model, volume, brain = given
    usual = predict(volume, model, PredictSettings(gate="off"), brain=brain)
    torch.zeros(1, device=GPU)
    filling, size = [], 2**30
    while size >= 2**20:
        try:
            filling.append(torch.empty(size, dtype=torch.uint8, device=GPU))
        except torch.OutOfMemoryError:
            size //= 2
    found = predict(volume, model, PredictSettings(device=GPU, gate="off"), brain=brain)
    assert any("too little memory" in text for text in found.warnings)
    np.testing.assert_allclose(found.anomaly_map, usual.anomaly_map, atol=0.5)
    del filling
    torch.cuda.empty_cache()
    out_of_memory.ROOM = Room()
    again = predict(volume, model, PredictSettings(device=GPU, gate="off"), brain=brain)
    assert not any("too little memory" in text for text in again.warnings)
    assert next(model.network.parameters()).device.type == "cuda"
