"""One scorer for everything: the same score alone and in a batch, from arrays and from files."""

import copy  # noqa: I001
import dataclasses
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tests.support import assert_scores_close, blobs

import ganomaly_jax
from ganomaly_jax.core import progress
from ganomaly_jax.core.errors import DamagedError, UserError
from ganomaly_jax.data.images import files as image_files
from ganomaly_jax.data.images import preprocess
from ganomaly_jax.scoring import inference, sensors
from ganomaly_jax.scoring import scorer as scoring_scorer


def test_loaded_is_what_was_trained(trained):
    workdir, scoring_scorer = trained
    images = blobs(20, 7)
    loaded = ganomaly_jax.load(workdir)
    np.testing.assert_array_equal(loaded(images), scoring_scorer(images))
    np.testing.assert_array_equal(ganomaly_jax.load(workdir / "detector")(images), scoring_scorer(images))
    assert loaded.input_shape == (16, 16, 1)
    assert loaded.calibration == scoring_scorer.calibration


def test_a_score_does_not_depend_on_its_batch(trained):
    scoring_scorer = trained[1]
    images = np.concatenate([blobs(40, 7), blobs(30, 8, anomalous=True)])
    together = scoring_scorer(images)
    assert together.shape == (70,)
    assert together.dtype == np.float32
    assert len(np.unique(together)) == 70
    order = np.random.default_rng(0).permutation(70)
    np.testing.assert_array_equal(scoring_scorer(images[order]), together[order])
    alone = np.concatenate([scoring_scorer(image[None]) for image in images[:5]])  # a program of its own
    assert_scores_close(scoring_scorer, images[:5], alone, together[:5])
    np.testing.assert_array_equal(np.concatenate([scoring_scorer(image[None]) for image in images[:5]]), alone)


def test_one_program_serves_all_sizes_of_a_bucket(trained):
    scoring_scorer = ganomaly_jax.load(trained[0])
    images = blobs(257, 0)
    inference.compiled.clear_cache()
    for n in range(1, 258):
        assert scoring_scorer(images[:n]).shape == (n,)
    assert inference.compiled._cache_size() == len(inference.BUCKETS)


def on(scoring_scorer, devices):
    """The same scorer for so many devices."""
    settings = copy.deepcopy(scoring_scorer.config)
    settings.mesh.devices = devices
    return dataclasses.replace(scoring_scorer, config=settings)


@pytest.mark.parametrize("n", [16, 17, 16 * 8, 16 * 8 + 3, 16 * 11 + 12])
def test_many_devices_give_the_scores_of_one_to_the_bit(trained, monkeypatch, n):
    """Full blocks a device each, in their order, and what is left alone; every program is compiled once."""
    monkeypatch.setattr(inference, "BUCKETS", (1, 8, 16))
    one, many = on(trained[1], 1), on(trained[1], 0)
    images = blobs(n, 7)
    images[:: n // 2] = 255 - images[:: n // 2]
    wanted, found = one.judge(images), many.judge(images)
    np.testing.assert_array_equal(found.scores, wanted.scores)
    np.testing.assert_array_equal(found.p_values, wanted.p_values)
    assert found.verdicts == wanted.verdicts
    before = inference.compiled_side_by_side._cache_size()
    many(images)
    assert inference.compiled_side_by_side._cache_size() == before <= 1


def test_the_blocks_lie_on_all_devices(trained, monkeypatch):
    monkeypatch.setattr(inference, "BUCKETS", (1, 4))
    many = on(trained[1], 0)
    started = many._started(*[blobs(4, i) for i in range(3)])
    assert {shard.data.shape for shard in started["score"].addressable_shards} == {(4,)}
    assert len(started["score"].sharding.device_set) == len(jax.devices()) == 8
    single = many._started(blobs(4, 0))
    assert len(single["score"].sharding.device_set) == 1


def test_blocks_of_another_type_or_size_go_alone(monkeypatch):
    monkeypatch.setattr(inference, "BUCKETS", (1, 4, 8))
    blocks = [np.zeros((n, 1), kind) for n, kind in ((8, "u1"), (8, "u1"), (7, "u1"), (8, "f4"), (3, "f4"), (8, "f4"))]
    found = [[len(x) for x in group] for group in inference.groups(blocks, 2)]
    assert found == [[8, 8], [7], [8], [3], [8]]


def test_the_detector_finds_what_it_should(trained):
    judged = trained[1].judge(np.concatenate([blobs(50, 7), blobs(50, 8, anomalous=True)]))
    flagged = np.array(judged.verdicts) == "anomalous"
    assert flagged[:50].mean() < 0.3
    assert flagged[50:].mean() > 0.7
    assert (judged.p_values[50:] <= judged.p_values[:50].max()).all()


def test_the_function_is_pure_and_composes(trained):
    scoring_scorer = trained[1]
    images = blobs(6, 7)
    function, variables = scoring_scorer.function()
    expected = scoring_scorer(images)
    assert_scores_close(scoring_scorer, images, jax.jit(function)(variables, images), expected)
    one_by_one = jax.jit(jax.vmap(lambda image: function(variables, image[None])[0]))(jnp.asarray(images))
    assert_scores_close(scoring_scorer, images, one_by_one, expected)
    unit = jnp.asarray(images, jnp.float32) / 127.5 - 1
    assert_scores_close(scoring_scorer, images, function(variables, unit), expected)
    slope = jax.jit(jax.grad(lambda x: function(variables, x).sum()))(unit)
    assert slope.shape == unit.shape
    assert float(jnp.abs(slope).max()) > 0


def test_pixel_types_mean_what_they_say(trained):
    scoring_scorer = trained[1]
    images = blobs(6, 7)
    expected = scoring_scorer(images)
    assert_scores_close(scoring_scorer, images, scoring_scorer(images.astype(np.uint16) * 257), expected)
    np.testing.assert_array_equal(scoring_scorer(images[..., 0]), expected)
    with pytest.raises(UserError, match=r"\[-1, 1\]"):
        scoring_scorer(images.astype(np.float32))
    with pytest.raises(UserError, match="int64"):
        scoring_scorer(images.astype(np.int64))


def test_nan_and_infinity_are_invalid_and_harm_no_neighbour(trained):
    scoring_scorer = trained[1]
    unit = (blobs(5, 7) / 127.5 - 1).astype(np.float32)
    expected = scoring_scorer(unit)
    unit[1, 3, 3] = np.nan
    unit[3, 0, 0] = np.inf
    with pytest.raises(UserError, match="inf"):
        scoring_scorer(unit)
    unit[3, 0, 0] = np.nan
    judged = scoring_scorer.judge(unit)
    assert [v == "invalid" for v in judged.verdicts] == [False, True, False, True, False]
    np.testing.assert_array_equal(judged.scores[[0, 2, 4]], expected[[0, 2, 4]])
    assert np.isnan(judged.p_values[[1, 3]]).all()


@pytest.mark.parametrize("shape", [(3, 16, 16, 3), (0, 16, 16, 1), (16,), (2, 16, 16, 2)])
def test_other_channels_are_refused(trained, shape):
    with pytest.raises(UserError, match=r"\[B, 16, 16, 1\]"):
        trained[1](np.zeros(shape, np.uint8))


def test_files_are_scored_as_their_pixels(trained, tmp_path):
    scoring_scorer = trained[1]
    images = blobs(4, 7)
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image[..., 0]).save(path)
    np.testing.assert_array_equal(scoring_scorer(paths), scoring_scorer(images))
    np.testing.assert_array_equal(scoring_scorer(paths[0]), scoring_scorer(images[:1]))
    paths[2].write_bytes(b"")
    scores = scoring_scorer(paths)  # in floating point, which has a NaN for what is missing: another program
    assert np.isnan(scores[2])
    there = [0, 1, 3]
    assert_scores_close(scoring_scorer, images[there], scores[there], scoring_scorer(images)[there])


@pytest.fixture
def files(trained, tmp_path, monkeypatch):
    """Image files for three blocks of 4, the sixth of them damaged."""
    monkeypatch.setattr(inference, "BUCKETS", (1, 4))
    paths = [tmp_path / f"{i:02}.png" for i in range(10)]
    for path, image in zip(paths, blobs(10, 7), strict=True):
        Image.fromarray(image[..., 0]).save(path)
    paths[5].write_bytes(b"\x89PNG")
    return paths


def test_files_are_judged_as_if_read_block_by_block(trained, files):
    scoring_scorer = trained[1]
    judged, problems = scoring_scorer.judge_files(files, workers=3)
    assert [(name, reason[:13]) for name, reason in problems] == [(str(files[5]), "damaged image")]
    for i in range(0, 10, 4):
        alone = scoring_scorer.judge(scoring_scorer.read(files[i : i + 4])[0])
        np.testing.assert_array_equal(judged.scores[i : i + 4], alone.scores)
        np.testing.assert_array_equal(judged.p_values[i : i + 4], alone.p_values)
        assert judged.verdicts[i : i + 4] == alone.verdicts
    assert [i for i, verdict in enumerate(judged.verdicts) if verdict == "invalid"] == [5]
    np.testing.assert_array_equal(scoring_scorer(files), judged.scores)
    with pytest.raises(UserError, match="no image files"):
        scoring_scorer.judge_files([])


def test_the_next_files_are_read_while_scores_are_waited_for(trained, files, monkeypatch):
    log = []
    read = threading.Semaphore(0)

    class Waited:
        def __init__(self, n):
            self.n = n

        def __array__(self, *_, **__):
            log.append("waited")
            return np.zeros(self.n, np.float32)

    def started(_, x):
        # While this block is on the device all files of the next one are read.
        for _ in range(4 if log.count("started") == 0 else 2 if log.count("started") == 1 else 0):
            assert read.acquire(timeout=30)
        log.append("started")
        return {"score": Waited(len(x)), "p_value": Waited(len(x))}

    decoded = image_files.decode_file

    def counted(path, *rest):
        if path in files[4:]:
            read.release()
        return decoded(path, *rest)

    monkeypatch.setattr(image_files, "decode_file", counted)
    monkeypatch.setattr(scoring_scorer.Scorer, "_started", started)  # in place of the device
    trained[1].judge_files(files)
    assert log == ["started", "started", *["waited"] * 2, "started", *["waited"] * 4]


def test_a_failing_device_or_an_interrupt_leaves_no_thread(trained, files, monkeypatch):
    for error in (RuntimeError, KeyboardInterrupt):

        def started(_, x, error=error):
            raise error

        monkeypatch.setattr(scoring_scorer.Scorer, "_started", started)
        with pytest.raises(error) as raised:  # kept, and with it the frames: nobody else ends the threads
            trained[1].judge_files(files)
        assert raised and not [thread for thread in threading.enumerate() if thread.name.startswith("read")]


def test_other_sizes_are_resized_to_one_score_each(trained, monkeypatch):
    monkeypatch.setattr(inference, "BUCKETS", (1, 8))
    scoring_scorer = trained[1]
    large = np.random.default_rng(0).permuted(blobs(20, 5).repeat(5, 1).repeat(3, 2), axis=2)
    small = np.stack([preprocess.fit_image(image, 16, 16, 1) for image in large])
    expected = scoring_scorer(small)
    assert len(np.unique(expected)) == 20
    np.testing.assert_array_equal(scoring_scorer(large), expected)
    np.testing.assert_array_equal(scoring_scorer(large[:1]), scoring_scorer(small[:1]))
    assert_scores_close(scoring_scorer, small[:1], scoring_scorer(large[:1]), expected[:1])


def test_pixels_have_no_sensors(trained):
    with pytest.raises(UserError, match="which have no sensors"):
        sensors.contributions(trained[1], blobs(3, 1))


def test_no_images_have_no_maps(trained):
    with pytest.raises(UserError):
        ganomaly_jax.residual_maps(trained[1], blobs(3, 1)[:0])


def test_a_damaged_or_missing_detector_is_refused(trained, tmp_path):
    import shutil

    with pytest.raises(UserError, match="does not exist"):
        scoring_scorer.load(tmp_path / "none")
    with pytest.raises(UserError, match="not a run's folder"):
        scoring_scorer.load(tmp_path)
    shutil.copytree(trained[0] / "detector", tmp_path / "detector")
    meta = tmp_path / "detector" / "meta.json"
    meta.write_text(meta.read_text().replace('"threshold": ', '"threshold": 9'))
    with pytest.raises(DamagedError, match=r"meta\.json"):
        scoring_scorer.load(tmp_path)


def test_scoring_that_takes_long_shows_how_far_it_is(trained, capsys, monkeypatch):
    scoring_scorer = trained[1]
    images = np.repeat(blobs(200, 5), 3, axis=0)
    quiet = scoring_scorer.judge(images, progress=True).scores
    assert capsys.readouterr().out == ""  # nothing of what is soon done
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    np.testing.assert_array_equal(scoring_scorer.judge(images, progress=True).scores, quiet)
    assert capsys.readouterr().out.splitlines() == [f"image {n}/600  scored" for n in (256, 512, 600)]
    scoring_scorer.judge(images)
    assert capsys.readouterr().out == ""
