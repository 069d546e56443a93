"""Files of sound: every kind, any rate and number of channels, a span at a time; bad ones are refused by name."""

import sys  # noqa: I001

import numpy as np
import pytest
from tests.data.test_audio_windows import RATE, machine

from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import sources
from ganomaly_jax.data.audio import recordings
from ganomaly_jax.data.audio import windows as audio_windows

soundfile = pytest.importorskip("soundfile", reason="the extra `audio` is not installed")
soxr = pytest.importorskip("soxr", reason="the extra `audio` is not installed")


@pytest.mark.parametrize(
    ("name", "subtype", "error"),
    [
        *[("a.wav", kind, error) for kind, error in (("PCM_U8", 0.01), ("PCM_16", 1e-4), ("PCM_24", 1e-6))],
        *[("a.wav", kind, error) for kind, error in (("PCM_32", 1e-6), ("FLOAT", 0), ("DOUBLE", 1e-7))],
        *[("a.flac", "PCM_16", 1e-4), ("a.flac", "PCM_24", 1e-6), ("a.ogg", "VORBIS", 0.1), ("a.aiff", "PCM_16", 1e-4)],
    ],
)
def test_recordings_of_every_kind_are_read(tmp_path, name, subtype, error):
    wave = machine(0, 0.5)
    soundfile.write(tmp_path / name, wave, RATE, subtype=subtype)
    found = recordings.inspect(tmp_path / name)
    assert (found.rate, found.frames, found.channels, found.finite) == (RATE, len(wave), 1, True)
    assert found.kind.endswith(subtype) and abs(found.peak - np.abs(wave).max()) <= error
    np.testing.assert_allclose(recordings.read(found, 100, 1100, RATE, 0), wave[100:1100], atol=error + 1e-9)


@pytest.mark.parametrize(("own", "wanted"), [(48000, 16000), (44100, 16000), (16000, 48000), (22050, 8000)])
def test_a_span_at_another_rate_is_that_of_the_whole(tmp_path, own, wanted):
    wave = machine(0, 2, own)
    soundfile.write(tmp_path / "a.wav", wave, own, subtype="FLOAT")
    found = recordings.inspect(tmp_path / "a.wav")
    whole = soxr.resample(wave, own, wanted, quality="HQ")
    size = recordings.length(found, wanted)
    assert abs(size - len(whole)) <= 1
    for first, last in ((0, 100), (4321, 9000), (size - 500, size)):
        got = recordings.read(found, first, last, wanted, 0)
        assert got.dtype == np.float32 and len(got) == last - first
        np.testing.assert_allclose(got[:-1], whole[first : last - 1], atol=2e-5)


def test_channels_are_mixed_or_one_is_taken(tmp_path):
    left, right = machine(0, 0.5), machine(1, 0.5)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), RATE, subtype="FLOAT")
    found = recordings.inspect(tmp_path / "a.wav")
    np.testing.assert_allclose(recordings.read(found, 0, 900, RATE, 0), ((left + right) / 2)[:900], atol=1e-7)
    np.testing.assert_array_equal(recordings.read(found, 0, 900, RATE, 2), right[:900])
    assert audio_windows.inspect_file(tmp_path / "a.wav", 3) == (
        None,
        "it has 2 channels: expected at least data.sound.channel=3",
    )


def bad_files(root):
    """{name: what is said of it}."""
    whole = root / "whole.wav"
    soundfile.write(whole, machine(0, 0.5), RATE)
    (root / "cut.wav").write_bytes(whole.read_bytes()[:3000])
    soundfile.write(root / "whole.flac", machine(0, 0.5), RATE)
    (root / "cut.flac").write_bytes((root / "whole.flac").read_bytes()[:2000])
    (root / "empty.wav").write_bytes(b"")
    (root / "text.wav").write_text("this is no sound")
    soundfile.write(root / "none.wav", np.zeros((0, 1)), RATE)
    (root / "folder.wav").mkdir()
    return {
        "cut.wav": "truncated: its header says 8000 bytes of samples, but there are 2956",
        "cut.flac": "damaged",
        "empty.wav": "an empty file",
        "text.wav": "not a sound format that libsndfile reads",
        "none.wav": "no samples",
        "folder.wav": "not a regular file",
        "gone.wav": "no such file",
    }


def test_bad_files_are_refused_by_name(tmp_path):
    for name, why in bad_files(tmp_path).items():
        with pytest.raises(UserError, match=why):
            recordings.inspect(tmp_path / name)


def test_a_file_that_changes_meanwhile_is_told(tmp_path):
    soundfile.write(tmp_path / "a.wav", machine(0, 1), RATE)
    found = recordings.inspect(tmp_path / "a.wav")
    soundfile.write(tmp_path / "a.wav", machine(0, 0.5), RATE)
    with pytest.raises(UserError, match="has changed while it was in use"):
        recordings.read(found, 0, RATE, RATE, 0)
    (tmp_path / "a.wav").unlink()
    with pytest.raises(UserError, match="can no longer be read"):
        recordings.read(found, 0, RATE, RATE, 0)


def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", machine(0, 1), RATE)
    for name in ("soundfile", "soxr"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            settings = config.Data(source=str(tmp_path / "a.wav"))
            settings.sound.rate = 4000
            with pytest.raises(UserError, match=rf"sound needs {name} .*pip install 'ganomaly-jax\[audio\]'"):
                sources.load(settings).images[:]


@pytest.mark.parametrize("rate", [0, 2_000_000_000])
def test_a_rate_that_no_recorder_has_is_refused(tmp_path, rate):
    """A header may say anything; spectrograms of 128 million samples a frame took minutes and gigabytes."""
    soundfile.write(tmp_path / "a.wav", machine(0, 0.5), RATE)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[24:28] = rate.to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(UserError, match=r"sampling rate|libsndfile"):
        sources.load(config.Data(source=str(tmp_path / "a.wav")))
    with pytest.raises(UserError, match=f"sampling rate {rate} Hz: expected 1 to 10,000,000"):
        recordings.from_array(machine(0, 0.5), rate, "the array")
