"""Configurations as YAML values and back."""

import pytest
import yaml

from monailabel_app.errors import CorruptModel
from monailabel_app.methods import ddpm
from monailabel_app.pipelines.config_io import config_from_plain, config_to_plain
from monailabel_app.registry import TRAINABLE, load_method
from tests.monailabel_app.synthetic import TINY, tiny


@pytest.mark.parametrize("method_id", TRAINABLE)
def test_every_preset_of_every_method_survives_yaml(method_id):
    method = load_method(method_id)
    for config in (*method.PRESETS.values(), TINY[method_id]):
        text = yaml.safe_dump(config_to_plain(config))
        assert config_from_plain(method.Config, yaml.safe_load(text)) == config


def test_an_unknown_key_is_refused_at_any_depth():
    values = config_to_plain(TINY["ddpm"])
    with pytest.raises(CorruptModel, match="dropout"):
        config_from_plain(ddpm.Config, {**values, "dropout": 0.1})
    with pytest.raises(CorruptModel, match="turbo"):
        config_from_plain(ddpm.Config, {**values, "denoiser": {**values["denoiser"], "turbo": 1}})


@pytest.mark.parametrize("value", [None, [1, 2], "cosine"])
def test_a_part_that_is_no_mapping_is_refused(value):
    with pytest.raises(CorruptModel, match="DiffusionConfig"):
        config_from_plain(ddpm.Config, {**config_to_plain(TINY["ddpm"]), "diffusion": value})


def test_lists_become_tuples_so_that_configurations_can_be_compared():
    assert config_from_plain(ddpm.Config, {"levels": [0.5, 0.7]}) == ddpm.Config(levels=(0.5, 0.7))
    assert config_to_plain(tiny("ddpm", levels=(0.5,)))["levels"] == [0.5]


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("intensity", {"bins": 256.0}), ("intensity", {"bins": [1, 2]}), ("intensity", {"bins": True}),
        ("intensity", {"bins": None}), ("ddpm", {"levels": 0.5}), ("ddpm", {"levels": ["a"]}),
        ("ddpm", {"diffusion": {"noise": "pink"}}), ("stylegan2_inversion", {"network": {"size": [8]}}),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_is_refused_before_an_analysis_meets_it(method, values):
    with pytest.raises(CorruptModel, match=r"expected .* for (bins|levels|noise|size)"):
        config_from_plain(load_method(method).Config, values)


def test_whole_numbers_are_taken_where_others_may_stand_and_none_where_it_may():
    assert config_from_plain(ddpm.Config, {"levels": [1, 0]}).levels == (1, 0)
    stylegan = load_method("stylegan2_inversion").Config
    for value in (None, 1, 0.5):
        assert config_from_plain(stylegan, {"augmentation": value}).augmentation == value
