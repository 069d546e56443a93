"""The spectrogram: by the definition, at the right place, and refusals."""

import jax
import numpy as np
import pytest

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.audio import spectrogram
from ganomaly_jax.data.audio.spectrogram import Spectrogram

SETTINGS = Spectrogram(1000, 0.064, 0.016, 8, scale="linear")


def by_definition(settings, wave):
    """Frame by frame, frequency by frequency."""
    size = settings.samples
    hann = np.sin(np.pi * np.arange(size) / size) ** 2
    hann /= np.sqrt((hann**2).sum())
    found = []
    for start in range(0, len(wave) - size + 1, settings.step):
        turns = np.exp(-2j * np.pi * np.outer(np.arange(size // 2 + 1), np.arange(size)) / size)
        power = np.abs(turns @ (wave[start : start + size] * hann)) ** 2
        found.append(np.log10(power @ spectrogram.filters(settings) + 1e-10))
    return np.stack(found, axis=1)


@pytest.mark.parametrize("scale", ["linear", "mel"])
def test_it_is_what_the_definition_says(scale):
    settings = Spectrogram(1000, 0.1, 0.021, 6, low=20, high=450, scale=scale)
    waves = np.random.default_rng(0).normal(size=(2, 350)).astype(np.float32)
    found = jax.jit(spectrogram.function(settings))(waves)
    assert found.shape == (2, 6, (350 - 100) // 21 + 1)
    for i, wave in enumerate(waves):
        np.testing.assert_allclose(found[i], by_definition(settings, wave), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", ["linear", "mel"])
def test_a_tone_lies_in_its_band(scale):
    settings = Spectrogram(8000, 0.064, 0.032, 16, scale=scale)
    top = 2595 * np.log10(1 + 4000 / 700) if scale == "mel" else 4000
    for band in (3, 8, 12):
        middle = top * (band + 1) / 17
        tone = 700 * (10 ** (middle / 2595) - 1) if scale == "mel" else middle
        wave = np.sin(2 * np.pi * tone * np.arange(2000) / 8000)
        found = np.asarray(spectrogram.function(settings)(wave))
        assert (found.argmax(axis=0) == band).all()


def test_louder_is_higher_by_the_power_and_silence_is_finite():
    wave = np.random.default_rng(1).normal(size=400).astype(np.float32)
    function = spectrogram.function(SETTINGS)
    np.testing.assert_allclose(function(10 * wave) - function(wave), 2, atol=1e-3)
    np.testing.assert_allclose(function(0 * wave), -10)


def test_the_length_of_so_many_frames():
    assert spectrogram.function(SETTINGS)(np.zeros(SETTINGS.length(5))).shape == (8, 5)
    assert spectrogram.function(SETTINGS)(np.zeros(SETTINGS.length(5) - 1)).shape == (8, 4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Spectrogram(0, 0.1, 0.1, 4), "rate of 0 Hz"),
        (Spectrogram(1000, 0.001, 0.1, 4), "are 1 and 100"),
        (Spectrogram(1000, 0.1, 0.0001, 4), "are 100 and 0"),
        (Spectrogram(1000, 0.1, 0.1, 4, low=300, high=200), "from 300 to 200 Hz"),
        (Spectrogram(1000, 0.1, 0.1, 4, high=600), "half the sampling rate, 500 Hz"),
        (Spectrogram(1000, 0.1, 0.1, 4, scale="bark"), "expected mel or linear"),
        (Spectrogram(1000, 0.02, 0.01, 40), "some bands contain no frequency"),
    ],
)
def test_settings_that_make_none_are_refused(settings, said):
    with pytest.raises(UserError, match=said):
        spectrogram.function(settings)


def test_a_waveform_shorter_than_a_frame_is_refused():
    with pytest.raises(UserError, match="63 samples: expected at least 64"):
        spectrogram.function(SETTINGS)(np.zeros(63))
