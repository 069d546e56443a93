"""Sound: windows, splits in time, and the very same training, scorer and export."""

import csv
import dataclasses
import json
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ganomaly_jax as gj
from ganomaly_jax.cli import main
from ganomaly_jax.core import config, config_values, validation
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import modalities, sources
from ganomaly_jax.data.audio import recordings, spectrogram, spectrogram_scale
from ganomaly_jax.data.audio import splits as audio_splits
from ganomaly_jax.data.audio import windows as audio_windows
from ganomaly_jax.deploy import export, export_runtime
from ganomaly_jax.evaluation import evaluate
from ganomaly_jax.report import figures, spectrogram_plots
from ganomaly_jax.runs import resolution
from ganomaly_jax.scoring import sound

soundfile = pytest.importorskip("soundfile", reason="the extra `audio` is not installed")
soxr = pytest.importorskip("soxr", reason="the extra `audio` is not installed")

RATE = 8000
BURST = 2500.0


def machine(seed, seconds=2.0, rate=RATE, broken=False):
    """A hum with harmonics and a little noise, float32; broken: bursts at 2500 Hz, seven a second."""
    random = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    wave = sum(a * np.sin(2 * np.pi * f * t + random.uniform(0, 6)) for f, a in ((150, 0.2), (300, 0.1), (900, 0.05)))
    wave = wave + 0.02 * random.normal(size=len(t))
    if broken:
        wave = wave + 0.2 * np.sin(2 * np.pi * BURST * t) * (np.sin(2 * np.pi * 7 * t) > 0.5)
    return wave.astype(np.float32)


def sound_config(**train_values):
    """16 bands x 16 frames of 32 ms, 16 ms apart: windows of 0.272 s."""
    settings = config.Config()
    settings.data.kind = "sound"
    settings.data.height = settings.data.width = 16
    settings.data.sound.frame, settings.data.sound.hop, settings.data.sound.stride = 0.032, 0.016, 0.068
    settings.model.latent_size = settings.model.features = 4
    settings.mesh.devices = 1
    settings.train.batch_size, settings.train.picture_every = 16, 0
    settings.optimizer.learning_rate = 1e-3
    settings.evaluate.score, settings.evaluate.worst = "pixel", 1
    for name, value in train_values.items():
        setattr(settings.train, name, value)
    return settings


def quiet(line):
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """good/ with four recordings, one of them at 16 kHz in stereo, and bad/ with two, one as FLAC."""
    root = tmp_path_factory.mktemp("machines")
    (root / "good").mkdir()
    (root / "bad").mkdir()
    for i in range(3):
        soundfile.write(root / f"good/{i}.wav", machine(i, 6), RATE)
    other = machine(3, 6, 2 * RATE)
    soundfile.write(root / "good/3.wav", np.stack([other, other], axis=1), 2 * RATE)
    soundfile.write(root / "bad/0.wav", machine(10, broken=True), RATE)
    soundfile.write(root / "bad/1.flac", machine(11, broken=True), RATE)
    return root


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """(workdir, scorer) of a finished run; look, do not touch."""
    workdir = tmp_path_factory.mktemp("sound")
    settings = sound_config(steps=150)
    settings.data.source = str(folder)
    return workdir, gj.train(settings, workdir, log=quiet)


def said(capsys, *arguments):
    code = main.main([str(word) for word in arguments])
    return code, capsys.readouterr().out


# Windows and splits


def test_windows_are_pieces_of_their_recordings_however_they_are_asked_for(folder):
    settings = sound_config().data
    made = sources.load(dataclasses.replace(settings, source=str(folder)))
    assert made.images.shape[1:] == (2176,) and made.classes == ("good", "bad") and made.normal == {"good"}
    assert set(np.diff(made.layout.spans[made.layout.spans[:, 0] == 0, 1])) == {544}
    i = next(k for k, path in enumerate(made.paths) if path.endswith("bad/1.flac@0.136s"))
    assert made.classes[made.labels[i]] == "bad"
    np.testing.assert_allclose(made.images[i], machine(11, broken=True)[1088 : 1088 + 2176], atol=1e-4)
    indices = np.random.default_rng(0).integers(0, len(made.images), 50)
    one_by_one = np.stack([made.images[k] for k in indices.tolist()])
    np.testing.assert_allclose(made.images[indices], one_by_one, atol=1e-6)
    assert any("recorded at 16000 Hz, resampled to 8000 Hz" in note for note in made.notes)
    assert any("recordings have 1, 2 channels: the mean of the channels is used" in note for note in made.notes)


def test_a_long_recording_is_read_in_blocks(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "long.wav", machine(0, 20), RATE)
    monkeypatch.setattr(recordings, "BLOCK", 8192)
    asked = []
    plain = recordings._mono
    monkeypatch.setattr(
        recordings, "_mono", lambda one, first, last, c: asked.append(last - first) or plain(one, first, last, c)
    )
    made = sources.load(dataclasses.replace(sound_config().data, source=str(tmp_path)))
    found = made.images[:]
    assert len(found) == (20 * RATE - 2176) // 544 + 1 and max(asked) <= 8192 + 2176
    np.testing.assert_allclose(found[-1], machine(0, 20)[544 * (len(found) - 1) :][:2176], atol=1e-4)


def samples_of(made, part):
    return {(int(k), i) for k, first, last in made.layout.spans[part].tolist() for i in range(first, last)}


@pytest.mark.parametrize(("count", "how"), [(3, "the end of each recording"), (12, "whole recordings")])
def test_no_window_of_one_part_shares_a_sample_with_another(count, how):
    waves = np.stack([machine(i, 2) for i in range(count + 1)])
    labels = np.array([0] * count + [1])
    settings = sound_config().data
    settings.sound.rate = RATE
    made = audio_windows.from_arrays((waves, labels), settings)
    parts = audio_splits.split(made, dataclasses.replace(settings, calibration=0.2), 0)
    assert how in parts.protocol
    used = [samples_of(made, part) for part in (parts.train, parts.calibration, parts.test)]
    assert all(used) and not (used[0] & used[1] or used[0] & used[2] or used[1] & used[2])
    assert parts.labels.sum() == (made.labels == 1).sum() and set(made.labels[parts.train]) == {0}
    held = {k for k, _ in used[2]} - {count}
    assert len(held) == (3 if count == 3 else 2)
    if count == 12:
        assert not held & {k for k, _ in used[0] | used[1]}


def test_a_source_with_parts_is_tested_on_its_test_part(tmp_path):
    for name in ("train/good/a", "train/good/b", "test/good/c", "test/leak/d"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / f"{name}.wav", machine(len(name)), RATE)
    settings = dataclasses.replace(sound_config().data, source=str(tmp_path))
    made = sources.load(settings)
    parts = audio_splits.split(made, settings, 0)
    assert {made.paths[i].split("@")[0][-5:] for i in parts.test} == {"c.wav", "d.wav"}
    assert {made.paths[i].split("@")[0][-5:] for i in parts.train} == {"a.wav", "b.wav"}
    assert set(made.classes) == {"good", "leak"} and made.normal == {"good"}


def test_automatic_windows_are_shorter_where_there_is_little():
    settings = config.Data(kind="sound")
    settings.sound.rate = RATE
    much, little = (
        audio_windows.from_arrays(np.zeros(n * RATE, np.float32), settings).layout.settings.sound for n in (1200, 20)
    )
    assert much.frame == 512 / RATE and much.hop == 256 / RATE  # 64 ms
    assert little.frame < much.frame and little.stride < much.stride / 4
    # 32 mel bands within 500 Hz need frequencies that are close to each other.
    settings.sound.rate = 1000
    slow = audio_windows.from_arrays(np.zeros(60_000, np.float32), settings).layout.settings
    assert (spectrogram.filters(spectrogram.of_data(slow)).sum(0) > 0).all()


# The detector


def test_it_finds_what_is_broken_and_says_so(trained):
    workdir, _ = trained
    found = evaluate.evaluate(workdir).metrics
    assert found["auroc"] > 0.9 and found["items"] == "windows"
    assert found["n_anomalous"] == 2 * ((2 * RATE - 2176) // 544 + 1)
    with (workdir / "predictions.csv").open() as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    assert any(path.endswith("bad/0.wav@0.068s") for path in paths)
    page = (workdir / "report.html").read_text()
    assert "windows" in page and (workdir / "pictures" / "examples.png").exists()


def test_live_exported_and_hand_made_scores_are_the_same(trained, tmp_path):
    workdir, scorer = trained
    waves = np.stack([machine(i, broken=i % 2 > 0)[:2176] for i in range(6)])
    live = scorer(waves)
    assert len(set(live.tolist())) == 6
    manifest = export.export(workdir, tmp_path / "out")
    assert manifest["input"]["shape"] == ["b", 2176] and manifest["input"]["sound"]["rate"] == RATE
    score, _ = export_runtime.load(tmp_path / "out")
    np.testing.assert_allclose(np.asarray(score(waves)["score"]), live, rtol=1e-5)
    function, variables = scorer.function()
    np.testing.assert_allclose(np.asarray(jax.jit(function)(variables, waves)), live, rtol=1e-5)
    # By hand: the definition of the spectrogram, the stored range, and the image path.
    made = scorer.detector.preprocessing.spectrogram
    assert (made.samples, made.step, made.bands, made.rate) == (256, 128, 16, RATE)
    bands = np.asarray(spectrogram.function(made)(waves))
    low, high = np.array(scorer.low)[:, None], np.array(scorer.high)[:, None]
    patches = np.clip(2 * (bands - low) / (high - low) - 1, -1, 1)[..., None].astype(np.float32)
    made = sound.of_patches(scorer)
    np.testing.assert_allclose(made(patches), live, rtol=1e-4)
    data = made.config.data
    assert (data.kind, data.low, data.high, made.low, made.high) == ("images", -1, 1, -1, 1)


def test_a_loaded_detector_is_the_same_and_takes_integers(trained):
    workdir, scorer = trained
    waves = np.stack([machine(i)[:2176] for i in range(3)])
    again = gj.load(workdir)
    np.testing.assert_array_equal(again(waves), scorer(waves))
    rounded = np.round(waves * 32768).astype(np.int16)
    np.testing.assert_allclose(again(rounded), scorer(rounded / np.float32(32768)), rtol=1e-4)
    function, variables = scorer.function()
    np.testing.assert_allclose(np.asarray(function(variables, jnp.asarray(rounded))), again(rounded), rtol=1e-4)
    assert again(machine(0)).shape == ((2 * RATE - 2176) // 544 + 1,)


def test_it_has_a_slope_even_at_silence(trained):
    _, scorer = trained
    function, variables = scorer.function()
    slope = jax.jit(jax.grad(lambda x: function(variables, x).sum()))
    for wave in (machine(0)[:2176], np.zeros(2176, np.float32)):
        assert np.isfinite(np.asarray(slope(jnp.asarray(wave)[None]))).all()


def test_the_same_sound_at_another_rate_scores_alike(trained, tmp_path):
    _, scorer = trained
    for name, broken in (("normal", False), ("broken", True)):
        wave = machine(20, 3, 6 * RATE, broken)
        wave = soxr.resample(soxr.resample(wave, 6 * RATE, 7000), 7000, 6 * RATE)  # nothing above 3500 Hz
        soundfile.write(tmp_path / f"{name}48.wav", wave, 6 * RATE, subtype="FLOAT")
        soundfile.write(tmp_path / f"{name}8.wav", soxr.resample(wave, 6 * RATE, RATE), RATE, subtype="FLOAT")
        high, low = (scorer(str(tmp_path / f"{name}{k}.wav")) for k in (48, 8))
        np.testing.assert_allclose(high, low, rtol=1e-2)


def test_one_sample_that_is_no_number_makes_its_windows_invalid(trained):
    _, scorer = trained
    waves = np.stack([machine(i)[:2176] for i in range(3)])
    plain = scorer(waves)
    waves[1, 700] = np.nan
    judged = scorer.judge(waves)
    assert judged.verdicts[1] == "invalid" and np.isnan(judged.scores[1])
    np.testing.assert_array_equal(judged.scores[[0, 2]], plain[[0, 2]])


@pytest.mark.parametrize("level", [True, False])
def test_loudness_counts_where_it_shall(level):
    settings = sound_config().data
    settings.sound.rate, settings.sound.level = RATE, level
    made = audio_windows.from_arrays(machine(0, 4), settings)
    ranges = audio_splits.scaled(made, audio_splits.split(made, settings, 0))
    patches = audio_windows.lazy_spectrograms(
        np.stack([machine(1)[:2176], 3 * machine(1)[:2176]]), made.layout.settings, *ranges
    )[:]
    difference = np.abs(patches[0] - patches[1]).max()
    assert difference < 1e-3 if not level else difference > 0.1
    assert np.abs(np.median(patches[0])) < 0.1


def test_the_other_detector_takes_spectrograms(folder, tmp_path):
    settings = sound_config(steps=60)
    settings.data.source, settings.model.detector, settings.evaluate.score = str(folder), "autoencoder", "squared"
    gj.train(settings, tmp_path, log=quiet)
    assert evaluate.evaluate(tmp_path).metrics["auroc"] > 0.9


def test_arrays_and_npz_are_recordings(tmp_path, trained):
    waves = np.stack([machine(i) for i in range(3)])
    settings = sound_config().data
    with pytest.raises(UserError, match=r"expected data.sound.rate, in Hz"):
        audio_windows.from_arrays(waves, settings)
    np.savez(tmp_path / "a.npz", waveforms=(waves * 32767).astype(np.int16), rate=RATE, labels=[0, 0, 1])
    made = sources.load(dataclasses.replace(config.Data(), source=str(tmp_path / "a.npz")))
    assert made.layout.settings.sound.rate == RATE and made.normal == {"0"} and made.paths[0] == "a.npz[0]@0s"
    np.testing.assert_allclose(made.images[0], waves[0, : made.images.shape[1]], atol=1e-4)
    settings.sound.rate = 2 * RATE
    with pytest.raises(UserError, match=r"recorded at 8000 Hz, data.sound.rate=16000"):
        sources.load(dataclasses.replace(settings, source=str(tmp_path / "a.npz")))
    for given, why in ((waves.astype(np.int32), "samples of type int32"), (waves[:, :100], "shape")):
        with pytest.raises(UserError, match=why):
            trained[1](given)


# The verbs


def test_predict_has_a_row_a_window_and_one_a_file(trained, tmp_path, capsys):
    workdir, _ = trained
    given = tmp_path / "new"
    given.mkdir()
    soundfile.write(given / "bad.wav", machine(30, broken=True), RATE)
    soundfile.write(given / "good.wav", machine(31, 2, 4 * RATE), 4 * RATE)
    soundfile.write(given / "short.wav", machine(32, 0.1), RATE)
    holed = machine(33)
    holed[RATE] = np.nan
    soundfile.write(given / "holed.wav", holed, RATE, subtype="FLOAT")
    (given / "text.wav").write_text("no sound")
    code, out = said(capsys, "predict", "--workdir", workdir, given, "--out", tmp_path / "p.csv")
    assert code == 3 and "recorded at 32000 Hz, resampled to 8000 Hz" in out
    with (tmp_path / "p.csv").open() as file:
        rows = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    assert rows["short.wav"]["reason"] == "0.1 s, shorter than a window of 0.272 s"
    assert (
        rows["text.wav"]["reason"].startswith("damaged, or not a sound format")
        and rows["text.wav"]["verdict"] == "invalid"
    )
    assert rows["holed.wav@0.952s"]["reason"] == sound.NOT_FINITE and rows["holed.wav@0s"]["score"]
    with (tmp_path / "p_files.csv").open() as file:
        files = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    count = (2 * RATE - 2176) // 544 + 1
    assert int(files["bad.wav"]["windows"]) == count > int(files["good.wav"]["anomalous"])
    assert int(files["bad.wav"]["anomalous"]) > count / 2
    at = float(files["bad.wav"]["at_seconds"])
    assert rows[f"bad.wav@{at:g}s"]["score"] == files["bad.wav"]["highest_score"]
    assert files["short.wav"]["reason"] and not files["short.wav"]["highest_score"]


def test_explain_says_when_and_at_which_frequency(trained, folder, tmp_path, capsys):
    workdir, _ = trained
    code, out = said(capsys, "explain", folder / "bad/0.wav", "--workdir", workdir, "--out", tmp_path / "a.png")
    assert code == 0 and (tmp_path / "a.png").stat().st_size > 10_000
    first = next(line for line in out.splitlines() if line.startswith("  1  "))
    low, high = (float(word) for word in first.split(" s  ")[1].split(" Hz")[0].split(" to "))
    assert low < BURST < high
    code, out = said(
        capsys, "explain", f"{folder / 'bad/0.wav'}@0.5", "--workdir", workdir, "--out", tmp_path / "b.png"
    )
    assert code == 0 and "bad/0.wav@0.5s" in out
    assert main.main(["explain", f"{folder / 'bad/0.wav'}@1.9", "--workdir", str(workdir)]) == 2
    assert "has 2 s: no window of 0.272 s begins at 1.9 s" in capsys.readouterr().err


def test_pictures_of_anomalous_windows(trained, folder, tmp_path, capsys):
    workdir, _ = trained
    out = tmp_path / "p.csv"
    arguments = ("predict", "--workdir", workdir, folder / "bad", "--out", out, "--maps", "--most-maps", "2")
    code, text = said(capsys, *arguments)
    assert code == 0 and "2 pictures in" in text and "the most anomalous of" in text
    assert len(list((tmp_path / "p_maps").glob("000[12]_*.png"))) == 2


def test_evaluate_recalibrate_and_plan_take_recordings(trained, folder, tmp_path, capsys):
    workdir, scorer = trained
    code, out = said(capsys, "evaluate", "--workdir", workdir, "--data", folder)
    assert code == 0 and "anomalous windows" in out and f"test set: {4 * ((6 * RATE - 2176) // 544 + 1)} normal" in out
    copy = tmp_path / "detector"
    scorer.save(copy)
    soundfile.write(tmp_path / "louder.wav", 2 * machine(50, 4), RATE)
    code, out = said(capsys, "recalibrate", "--workdir", copy, "--data", tmp_path / "louder.wav")
    assert code == 0 and gj.load(copy).threshold > scorer.threshold
    small = ("--config.model.features=4", "--config.data.height=16", "--config.data.width=16")
    code, out = said(capsys, "plan", folder, *small)
    assert code == 0 and "parameters" in out


def test_check_tells_what_is_odd(tmp_path, capsys):
    soundfile.write(tmp_path / "clipped.wav", np.clip(8 * machine(0), -1, 1), RATE)
    soundfile.write(tmp_path / "silent.wav", np.zeros(2 * RATE), RATE)
    soundfile.write(tmp_path / "short.wav", machine(1, 0.02), RATE)
    soundfile.write(tmp_path / "stereo.wav", np.stack([machine(2), machine(3)], axis=1), RATE)
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    code, out = said(capsys, "check", tmp_path, "--json", tmp_path / "found.json")
    assert code == 3
    found = {one["code"]: one for one in json.loads((tmp_path / "found.json").read_text())["findings"]}
    assert found["clipped"]["items"][0].startswith(str(tmp_path / "clipped.wav"))
    assert found["silent"]["items"] == [str(tmp_path / "silent.wav")]
    assert found["unreadable"]["items"][0].startswith(str(tmp_path / "broken.wav"))
    assert "1 recordings are shorter than a window" in out and "recordings have 1, 2 channels" in out


# Refusals


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("train.flip", True, "train.flip: not supported for sound"),
        ("data.tile", 16, "data.tile: not supported for sound"),
        ("data.window", 20, "data.window: not supported for sound"),
        ("data.sound.scale", "bark", "expected mel or linear"),
        ("data.sound.high", 5000.0, "at most half the sampling rate, 4000 Hz"),
        ("data.sound.frame", -1.0, "expected a number of at least 0"),
        ("data.sound.frame", 3.0, "the longest recording lasts 2 s, a window 3.24 s"),
        ("data.sound.hop", 1e-6, "a hop of"),
        ("data.height", 256, "some bands contain no frequency"),
        ("data.sound.rates", 1, "did you mean data.sound.rate"),
        ("members.seeds", "0,1", "not supported for sound"),
    ],
)
def test_what_cannot_work_is_refused_by_name(tmp_path, key, value, why):
    soundfile.write(tmp_path / "a.wav", machine(0), RATE)
    settings = sound_config()
    settings.data.source = str(tmp_path)
    with pytest.raises(UserError, match=why):
        config_values.set_value(settings, key, value)
        resolution.resolve(settings)


def test_data_that_cannot_be_trained_on_are_refused(tmp_path):
    settings = sound_config()
    settings.data.source = str(tmp_path)
    with pytest.raises(UserError, match="no recordings in"):
        resolution.resolve(settings)
    soundfile.write(tmp_path / "a.wav", np.zeros(4 * RATE), RATE)
    with pytest.raises(UserError, match="are silent: nothing to learn"):
        resolution.resolve(settings)
    holed = machine(0, 4)
    holed[100] = np.inf
    soundfile.write(tmp_path / "a.wav", holed, RATE, subtype="FLOAT")
    with pytest.raises(UserError, match=r"1 of \d+ normal windows .* NaN or infinite samples .*a.wav@0s"):
        resolution.resolve(settings)
    (tmp_path / "a.wav").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the 1 recordings .* an empty file"):
        resolution.resolve(settings)


def test_verbs_that_do_not_take_sound_say_so(trained, tmp_path, capsys):
    workdir = trained[0]
    for arguments, why in (
        (["monitor", str(tmp_path), "--once"], "use `ganomaly predict`"),
        (["predict", str(tmp_path)], "no recordings in"),
        (["predict", str(tmp_path), "--groups", "g.csv"], "--groups is for images"),
        (["update", "--data", str(tmp_path), "--out", str(tmp_path / "o")], "only detectors of images and rows can"),
        (["serve"], "scores sound: expected one of images"),
        (["export", "--format", "onnx", "--out", str(tmp_path / "o")], "sound cannot be exported as ONNX"),
    ):
        assert main.main([arguments[0], "--workdir", str(workdir), *arguments[1:]]) == 2
        assert why in capsys.readouterr().err


# Drawing


def test_axes_are_in_hertz_and_seconds(tmp_path):
    settings = spectrogram.Spectrogram(16000, 0.032, 0.016, 32)
    scale = spectrogram_scale.Scale(settings, (-4.0,) * 32, (0.0,) * 32, begin=12.0)
    x = np.random.default_rng(0).uniform(-1, 1, (32, 16, 1)).astype(np.float32)
    held = []

    def draw(figure):
        spectrogram_plots.case(figure, x, 0 * x, scale, 1.0)
        held.append(figure)

    figures.drawn(tmp_path / "a.png", 9, 3, draw)
    ax = held[0].axes[0]
    assert ax.get_xlabel() == "s" and ax.get_ylabel() == "kHz"
    assert ax.get_xlim() == pytest.approx((12.008, 12.008 + 16 * 0.016))
    for label, at in zip(ax.get_yticklabels(), ax.get_yticks(), strict=True):
        assert np.interp(at, np.arange(32), scale.hertz) == pytest.approx(1000 * float(label.get_text()), rel=1e-6)
    assert 4 <= len(ax.get_yticks()) <= 9
    shown = ax.images[0].get_array()
    np.testing.assert_allclose(shown, -20 + 20 * x[..., 0], atol=1e-4)
    assert ax.images[0].origin == "lower"
    assert scale.seconds(2, 4) == pytest.approx((12.032, 12.096)) and scale.band(0, 31)[1] < 8000


def test_the_configuration_is_one():
    settings = runpy.run_path(str(Path(__file__).resolve().parents[2] / "configs" / "audio.py"))["get_config"]()
    validation.check(settings)
    assert settings.data.kind == "sound" and modalities.of(settings.data).words(settings.data).items == "windows"
