"""Defaults, overrides, and how a run's configuration is compared."""

import pytest

from ganomaly_jax.core import config, config_values, validation
from ganomaly_jax.core.errors import UserError


def test_stored_and_read_back():
    settings = config.Config()
    settings.train.epochs = 3
    settings.data.abnormal = "5"
    assert config_values.from_dict(config_values.to_dict(settings)) == settings


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(UserError, match=r"unknown configuration key: train\.epoch; did you mean train\.epochs\?"):
        config_values.set_value(config.Config(), "train.epoch", "5")
    with pytest.raises(UserError, match="unknown"):
        config_values.from_dict({"trian": {"epochs": 5}})


@pytest.mark.parametrize(("key", "value"), [("train.epochs", "five"), ("train.epochs", "2.5"), ("optimizer.beta1", "")])
def test_a_value_of_another_type_is_refused(key, value):
    with pytest.raises(UserError, match=f"{key}='{value}'"):
        config_values.set_value(config.Config(), key, value)


@pytest.mark.parametrize(
    ("word", "value"), [("true", True), ("1", True), ("True", True), (True, True), ("false", False), ("0", False)]
)
def test_words_for_yes_and_no(word, value):
    settings = config.Config()
    settings.train.flip = not value
    config_values.set_value(settings, "train.flip", word)
    assert settings.train.flip is value


@pytest.mark.parametrize("word", ["yes", "", "2", "falsch", None])
def test_other_words_are_neither(word):
    with pytest.raises(UserError, match=f"train.flip={word!r}: expected true or false"):
        config_values.set_value(config.Config(), "train.flip", word)


def test_a_shift_is_less_than_half_the_side():
    settings = config.Config()
    for height, width, most in ((0, 0, 15), (64, 0, 15), (64, 128, 31), (16, 64, 7)):
        settings.data.height, settings.data.width = height, width
        settings.train.shift = most
        validation.check(settings)
        settings.train.shift = most + 1
        with pytest.raises(UserError, match=f"train.shift={most + 1}: expected from 0 to {most}"):
            validation.check(settings)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.height", 80),
        ("data.fit", "crop"),
        ("data.calibration", 1.0),
        ("model.latent_size", 0),
        ("model.dtype", "float16"),
        ("train.batch_size", 1),
        ("train.shift", -1),
        ("evaluate.score", "l3"),
        ("evaluate.false_positive_rate", 0.0),
        ("optimizer.learning_rate", -1.0),
    ],
)
def test_values_that_cannot_work_are_refused_by_name(key, value):
    settings = config.Config()
    validation.check(settings)
    config_values.set_value(settings, key, value)
    with pytest.raises(UserError, match=f"{key}="):
        validation.check(settings)


def test_what_may_differ_between_two_runs_of_a_folder():
    stored, asked = config.Config(), config.Config()
    asked.train.epochs = 99
    asked.evaluate.worst = 7
    assert config_values.differences(stored, asked) == []
    asked.model.features = 8
    asked.model.dtype = "bfloat16"
    asked.train.flip = True
    assert config_values.differences(stored, asked) == [
        "model.features: 64 in the stored run, 8 now",
        "model.dtype: 'float32' in the stored run, 'bfloat16' now",
        "train.flip: False in the stored run, True now",
    ]
