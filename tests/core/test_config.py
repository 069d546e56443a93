"""Defaults, overrides, and how a run's configuration is compared."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest

from ganomaly_jax.core import config, config_values, presets, validation
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


@pytest.mark.parametrize(
    ("section", "name", "value", "said"),
    [
        ("train", "epoch", 3, r"unknown configuration key: train\.epoch; did you mean train\.epochs\?"),
        ("", "epochs", 3, r"unknown configuration key: epochs; did you mean train\.epochs\?"),
        ("data.sound", "rat", 3, r"did you mean data\.sound\.rate\?"),
        ("train", "epochs", "3", "train.epochs='3': expected a whole number"),
        ("train", "epochs", 2.5, "train.epochs=2.5: expected a whole number"),
        ("train", "epochs", float("inf"), "train.epochs=inf: expected a whole number"),
        ("train", "epochs", True, "train.epochs=True: expected a whole number"),
        ("train", "epochs", None, "train.epochs=None: expected a whole number"),
        ("train", "flip", "yes", "train.flip='yes': expected True or False"),
        ("optimizer", "learning_rate", "2e-4", "optimizer.learning_rate='2e-4': expected a number"),
        ("data", "abnormal", 5, "data.abnormal=5: expected a string, such as '5'"),
        ("members", "seeds", [0, 1], r"members.seeds=\[0, 1\]: expected a string, such as '0,1'"),
        ("", "train", {"epochs": 3}, r"train={'epochs': 3} is a section: .* config\.train\.NAME"),
    ],
)
def test_a_mistake_in_python_is_refused_where_it_is_made(section, name, value, said):
    settings = config.Config()
    owner = settings
    for part in filter(None, section.split(".")):
        owner = getattr(owner, part)
    with pytest.raises(UserError, match=said):
        setattr(owner, name, value)
    assert settings == config.Config()


def test_a_setting_that_is_not_there_is_an_attribute_error_to_read():
    assert not hasattr(config.Config(), "trian")
    with pytest.raises(AttributeError, match=r"did you mean train\.epochs\?"):
        config.Config().train.epoch  # noqa: B018


def test_numbers_of_numpy_and_paths_become_plain_values():
    settings = config.Config()
    settings.train.epochs, settings.train.flip = np.int32(4), np.True_
    settings.optimizer.learning_rate, settings.loss.contextual = np.float32(0.5), 40
    settings.data.source = Path("photos")
    values = (settings.train.epochs, settings.train.flip, settings.optimizer.learning_rate, settings.data.source)
    assert values == (4, True, 0.5, "photos")
    assert [type(value) for value in values] == [int, bool, float, str]
    assert type(settings.loss.contextual) is float


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_are_equal_and_as_strict(copied):
    settings = config.Config(seed=3)
    settings.data.sound.rate = 8000
    again = copied(settings)
    assert again == settings
    with pytest.raises(UserError, match="did you mean"):
        again.data.sound.rates = 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("config.train.epoch = 3", "unknown configuration key: train.epoch; did you mean train.epochs?"),
        ("config.train.epochs = '3'", "train.epochs='3': expected a whole number"),
    ],
)
def test_a_mistake_in_a_file_is_refused(line, said, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        f"from ganomaly_jax import Config\ndef get_config():\n config = Config()\n {line}\n return config\n"
    )
    with pytest.raises(UserError) as caught:
        presets.read(str(file))
    assert str(caught.value) == f"--config {file}: {said}"
