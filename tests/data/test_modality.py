"""What the data are is chosen once: the registry, and a fourth modality that is trained, scored and reported with."""

import dataclasses
import json

import numpy as np
import pytest

import ganomaly_jax as gj
from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import datasets, modalities, modality, splits
from ganomaly_jax.data.images.modality import Pixels
from ganomaly_jax.data.words import Words
from tests.support import tiny_config

BINS = 24


class Spectra:
    """Light by wavelength, [N, BINS] float32: what neither images nor rows of sensors nor sound are."""

    name, in_time, mixes, per_process = "spectra", False, False, False

    def words(self, data):
        return Words("spectrum", "spectra", "spectra")

    def is_source(self, path, settings):
        return False

    def takes(self, given, settings):
        return settings.kind == self.name

    def from_arrays(self, given, settings, name):
        images, labels = given if isinstance(given, tuple) else (given, None)
        made = datasets.from_arrays(np.asarray(images)[:, None], labels, name=name)
        return dataclasses.replace(made, images=made.images[:, 0, :, 0], modality=self.name)

    def prepared(self, dataset, settings, shared):
        return dataset

    def check(self, settings):
        pass

    def split(self, dataset, settings, seed):
        return splits.split(dataset, settings, seed, self.words(settings))

    def resolve(self, dataset, settings):
        split = self.split(dataset, settings.data, settings.seed)
        low, high = datasets.value_range(dataset, split.train)
        data = dataclasses.replace(settings.data, height=0, width=0, channels=BINS, low=low, high=high)
        return modality.Resolved(dataset, split, data, None)

    def network_inputs(self, found):
        return found

    def describe(self, dataset):
        return f"{self.size(dataset)} a spectrum"

    def size(self, dataset):
        return f"{BINS} bins"

    def network_shape(self, data):
        return (BINS,)

    def preprocessing(self, data):
        return Pixels((BINS,))

    def as_input(self, given, spec):
        return np.asarray(given, np.float32).reshape(-1, BINS)

    def blocks(self, given, spec, size):
        return modality.input_blocks(self, given, spec, size)


def lines(n, seed, anomalous=False):
    """n spectra of one broad line; anomalous ones have a second, narrow one."""
    random, at = np.random.default_rng(seed), np.arange(BINS)
    middle = random.uniform(8, 16, (n, 1))
    found = np.exp(-0.5 * ((at - middle) / 3) ** 2) + random.normal(0, 0.02, (n, BINS))
    if anomalous:
        found += np.exp(-0.5 * ((at - (middle + 12) % BINS) / 0.7) ** 2)
    return found.astype(np.float32)


@pytest.fixture
def spectra(monkeypatch):
    monkeypatch.setattr(modalities, "_MODALITIES", modalities._MODALITIES.copy())
    modalities.register(Spectra())


def test_a_fourth_modality_is_one_class(spectra, tmp_path):
    """Trained, scored, evaluated and reported by the public functions; its own words are in what users read."""
    x = np.concatenate([lines(160, 0), lines(30, 1, anomalous=True)])
    data = x, np.repeat([0, 1], [160, 30])
    settings = tiny_config(steps=600)
    settings.optimizer.learning_rate = 2e-3
    settings.data.kind, settings.data.test = Spectra.name, 0.25
    settings.evaluate.score = "pixel"
    said = []
    trained = gj.train(settings, tmp_path, data, log=said.append)
    assert any("24 bins a spectrum" in line for line in said) and any("spectra 24" in line for line in said)
    scorer = gj.load(tmp_path)
    np.testing.assert_array_equal(scorer(x[:9]), trained(x[:9]))
    assert scorer.input_shape == (BINS,) and "calibration spectra" in scorer.calibration.source
    found = gj.evaluate(tmp_path, arrays=data)
    assert found.metrics["auroc"] > 0.8 and found.metrics["items"] == "spectra"
    assert json.loads((found.folder / "metrics.json").read_text())["n_anomalous"] == 30
    assert found.page is not None and "spectra" in found.page.read_text()
    assert "spectra" not in modalities.named("images").words(config.Data()).items


def test_an_unknown_modality_is_refused_with_those_there_are(tmp_path):
    settings = tiny_config()
    settings.data.kind = "smells"
    with pytest.raises(UserError, match=r"data\.kind='smells': expected one of auto, sound, rows, images"):
        gj.train(settings, tmp_path, np.zeros((40, 16, 16), np.uint8))
    with pytest.raises(ValueError, match="there is a modality named 'rows' already"):
        modalities.register(modalities.named("rows"))
    assert modalities.names() == ("sound", "rows", "images")


def test_what_data_are_is_seen_once_and_by_themselves():
    """`auto` leaves the choice to the data; a name is taken at its word."""
    auto, images, rows = config.Data(), np.zeros((4, 16, 16), np.uint8), np.zeros((9, 3))
    assert [modalities.of_arrays(given, auto).name for given in (images, rows)] == ["images", "rows"]
    assert modalities.of_arrays({"waveforms": rows}, auto).name == "sound"
    assert modalities.of_arrays({"x_train": rows}, auto).name == "rows"
    assert modalities.of_arrays(rows, config.Data(kind="sound")).name == "sound"
    assert modalities.of(auto).name == "images"
