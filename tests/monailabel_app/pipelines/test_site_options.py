"""What a viewer or the command line can ask of a training, and how it is understood."""

import math

import pytest

from monailabel_app.errors import InvalidSettings
from monailabel_app.pipelines.site_options import SiteOptions, for_viewers, from_request
from monailabel_app.registry import TRAINABLE


def test_an_empty_request_means_the_defaults():
    assert from_request("ddpm", {}) == SiteOptions()


def test_the_options_as_offered_mean_the_defaults():
    # Somebody who sends /info/'s own answer back.
    assert from_request("ddpm", for_viewers("ddpm", ("ddpm_t1",))) == SiteOptions()


def test_every_option_of_the_viewers_is_read():
    options = from_request(
        "ddpm",
        {
            "modality": "FLAIR",
            "model_name": "mine",
            "start_from": "ddpm_t1@0002",
            "preset": "tiny",
            "minutes": "0",
            "max_epochs": "3",
            "train_batch_size": 4.0,
            "learning_rate": "1e-3",
            "val_split": 0.3,
            "seed": "7",
            "promote": "never",
            "multi_gpu": "true",
            "resume": True,
        },
    )
    assert options.name == "mine"
    assert (options.modality, options.start_from, options.preset) == ("flair", "ddpm_t1@0002", "tiny")
    assert (options.minutes, options.max_epochs) == (math.inf, 3)
    assert (options.batch_size, options.learning_rate, options.validation_share) == (4, 1e-3, 0.3)
    assert (options.seed, options.promote, options.processes, options.resume) == (7, "never", 0, True)


def test_numbers_are_offered_as_text_because_ohif_keeps_the_digits_of_a_number_only():
    offered = for_viewers("ddpm").values()
    assert not [value for value in offered if isinstance(value, (int, float)) and not isinstance(value, bool)]


@pytest.mark.parametrize("method_id", TRAINABLE)
def test_what_is_offered_for_a_method_is_taken(method_id):
    offered = for_viewers(method_id)
    assert offered["preset"][0] == "compact"
    for budget in offered["privacy"]:
        assert (from_request(method_id, {"privacy": budget}).privacy is None) == (budget == "none")


def test_whole_brains_are_offered_in_smaller_batches_than_slices():
    assert for_viewers("latent_ddpm_3d")["train_batch_size"] == "4"
    assert from_request("latent_transformer", {}).batch_size == 4
    assert from_request("latent_ddpm", {}).batch_size == 16


@pytest.mark.parametrize("text", ["no limit", "No limit", "0", 0, 0.0])
def test_no_limit(text):
    assert from_request("ddpm", {"minutes": text, "max_epochs": "2"}).minutes == math.inf


def test_a_private_training_does_not_serve_unless_told_to():
    text = "epsilon=8 delta=1e-5"
    assert from_request("ddpm", {"privacy": text}).promote == "never"
    assert from_request("ddpm", {"privacy": text, "promote": "if better"}).promote == "never"
    assert from_request("ddpm", {"privacy": text, "promote": "always"}).promote == "always"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"modality": "../t1"}, "modality"),
        ({"model_name": "a/b"}, "model name"),
        ({"preset": "huge"}, "compact, .*behrendt, tiny"),
        ({"promote": "maybe"}, "if better, always, never"),
        ({"minutes": 0, "max_epochs": 0}, "a limit"),
        ({"learning_rate": "nan"}, "learning_rate"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"train_batch_size": 0}, "batch size"),
        ({"train_batch_size": True}, "train_batch_size"),
        ({"val_split": 1}, "validation_share"),
        ({"minutes": -5, "max_epochs": "many"}, "max_epochs"),
        ({"max_steps": -3}, "at least 1 step"),
        ({"privacy": "epsilon=-1"}, "epsilon"),
    ],
)
def test_what_cannot_be_is_refused_by_name(wrong, words):
    with pytest.raises(InvalidSettings, match=words):
        from_request("ddpm", wrong)


def test_options_come_back_from_json_the_same():
    for request in ({}, {"minutes": 0, "max_epochs": 2}, {"privacy": "epsilon=3 delta=1e-5"}):
        options = from_request("ddpm", request)
        assert SiteOptions.from_json(options.to_json()) == options
