"""Whether the version that a training ends with serves."""

from types import SimpleNamespace

import pytest

from monailabel_app.pipelines import site_publish
from monailabel_app.weights.model_folder import seal, write_config

FIGURES = object()


class Measured:
    """Stands for the held-out figures; says which models were measured."""

    def __init__(self, seen):
        self._seen = seen

    def full(self, folder, device, cache_file=None):
        self._seen.append(folder.name)
        return FIGURES


class Nobody:
    """Held-out scans of no patient that a compared model was trained on."""

    patients = ()

    def __len__(self):
        return 0


@pytest.fixture
def compared(tmp_path, monkeypatch):
    """Compare a candidate with a shipped model of some configuration: figures, figures, note, models measured."""

    def compare(**config):
        folder = tmp_path / "model_weights" / "cold_diffusion_flair"
        folder.mkdir(parents=True)
        write_config(folder, {"kind": "anomaly", "method": "cold_diffusion", **config})
        (folder / "model.safetensors").write_bytes(b"weights")
        seal(folder)
        seen = []
        monkeypatch.setattr(site_publish, "HeldOutQuality", lambda cache, seed: Measured(seen))
        plan = SimpleNamespace(options=SimpleNamespace(name="cold_diffusion_flair"))
        made = site_publish._compare(tmp_path, plan, tmp_path / "staged", Nobody(), "cpu", lambda *now: None)
        return (*made, seen)

    return compare


@pytest.mark.parametrize("config", [{"levels": [44, 50]}, {"normalization": "median"}])
def test_a_model_that_prepares_scans_in_another_way_is_not_measured_and_stays(compared, config):
    own, other, note, seen = compared(**config)
    assert other is None
    assert seen == ["staged"]
    promoted, reason = site_publish._decide("if better", own, other, note)
    assert not promoted
    assert "prepares scans in another way" in reason
    assert site_publish._decide("always", own, other, note)[0]


def test_a_model_of_the_same_preparation_is_measured(compared):
    _, other, note, seen = compared()
    assert (other, note, seen) == (FIGURES, "", ["staged", "cold_diffusion_flair"])


def test_the_first_model_of_a_name_serves():
    assert site_publish._decide("if better", FIGURES, None, "") == (True, "the first model of this name")
