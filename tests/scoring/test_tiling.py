"""Tiles: every pixel in one, put together again what was cut, an image judged by its tiles wherever it is scored."""

import csv  # noqa: I001
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tests.support import assert_within, score_tolerance, tiny_config

import ganomaly_jax
from ganomaly_jax.cli import main
from ganomaly_jax.core import config_values, validation
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import lazy
from ganomaly_jax.data.images import tiling
from ganomaly_jax.data.images.modality import Pixels
from ganomaly_jax.deploy import export, export_runtime
from ganomaly_jax.runs import resolution
from ganomaly_jax.scoring import adapters, attribution, build, inference, residual_map, scorer as scoring_scorer
from ganomaly_jax.training.trainer import train, train_members

SIDE, TILE = 40, 16


def textures(n, seed, defect=False):
    """Images [n, 40, 40, 1] uint8 of soft stripes; anomalous ones have a small square of another direction."""
    random = np.random.default_rng(seed)
    phase = random.uniform(0, 2 * np.pi, (n, 1, 1))
    rows = np.arange(SIDE)[None, :, None]
    stripes = 128 + 90 * np.sin(2 * np.pi * rows / 8 + phase) * np.ones((1, 1, SIDE))
    if defect:
        for i, (top, left) in enumerate(random.integers(0, SIDE - 6, (n, 2))):
            stripes[i, top : top + 6, left : left + 6] = stripes[i, top : top + 6, left : left + 6].T
    return np.clip(stripes + random.normal(0, 6, stripes.shape), 0, 255).astype(np.uint8)[..., None]


def settings(tile=TILE, **train_values):
    made = tiny_config(**train_values)
    made.data.height = made.data.width = SIDE if tile else TILE
    made.data.tile = tile
    return made


def assert_tiles_close(scorer, images, found, wanted):
    """As `support.assert_scores_close`, of images: the score of one has the rounding of its worst tile."""
    tiles = tiling.cut(scorer.unit(jnp.asarray(images)), scorer.detector.grid).reshape(-1, TILE, TILE, 1)
    of_tiles = score_tolerance(scorer.detector.network, scorer.variables["detector"], tiles)
    assert_within(found, wanted, of_tiles.reshape(len(images), -1).max(1))


@pytest.fixture(scope="module")
def arrays():
    images = np.concatenate([textures(80, 0), textures(40, 1, defect=True)])
    return images, np.repeat([0, 1], [80, 40])


@pytest.fixture(scope="module")
def trained(tmp_path_factory, arrays):
    """(workdir, scorer) of a run on tiles."""
    workdir = tmp_path_factory.mktemp("tiles")
    return workdir, train(settings(steps=300, save_every=150), workdir, arrays, log=lambda line: None)


@pytest.mark.parametrize("length", [16, 17, 31, 32, 40, 100])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.9, 1, 5, 15])
def test_tiles_cover_every_pixel_and_none_beyond(length, overlap):
    where = tiling.grid(length, length + 7, TILE, overlap)
    wanted = round(overlap * TILE) if overlap < 1 else overlap
    for begins, whole in ((where.tops, length), (where.lefts, length + 7)):
        covered = np.zeros(whole, int)
        for begin in begins:
            assert 0 <= begin <= whole - TILE
            covered[begin : begin + TILE] += 1
        assert covered.min() >= 1
        steps = np.diff(begins)
        assert (steps[:-1] == TILE - wanted).all() and (steps > 0).all() and (steps <= TILE - wanted).all()
    assert where.count == len(where.tops) * len(where.lefts)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.75, 3])
def test_what_is_cut_is_put_together_again(overlap):
    x = np.random.default_rng(0).normal(size=(2, 37, 50, 3)).astype(np.float32)
    where = tiling.grid(37, 50, TILE, overlap)
    tiles = tiling.cut(x, where)
    assert tiles.shape == (2, where.count, TILE, TILE, 3)
    np.testing.assert_array_equal(tiling.cut(jnp.asarray(x), where), tiles)
    np.testing.assert_allclose(tiling.stitch(jnp.asarray(tiles), where), x, rtol=1e-6)
    last = where.tops[-1], where.lefts[-1]
    np.testing.assert_array_equal(tiles[1, -1], x[1, last[0] : last[0] + TILE, last[1] : last[1] + TILE])


def test_overlaps_are_means():
    where = tiling.grid(16, 24, TILE, 0.5)
    tiles = jnp.stack([jnp.zeros((16, 16, 1)), jnp.ones((16, 16, 1))])[None]
    np.testing.assert_allclose(tiling.stitch(tiles, where)[0, 3, :, 0], [0] * 8 + [0.5] * 8 + [1] * 8)


def test_tiles_as_a_set_are_those_that_are_cut():
    """In any order, from an array and from images that are read on demand, a few at a time."""
    x = textures(40, 5)
    where = tiling.grid(SIDE, SIDE, TILE, 0.25)
    whole = tiling.cut(x, where).reshape(-1, TILE, TILE, 1)
    read = []

    def reading(indices):
        read.append(len(indices))
        return x[indices]

    chosen = np.random.default_rng(0).permutation(len(whole))[:100]
    for images in (x, lazy.LazyImages(reading, x.shape, x.dtype)):
        items = tiling.lazy_tiles(images, where)
        assert items.shape == whole.shape and items.dtype == np.uint8
        np.testing.assert_array_equal(items[chosen], whole[chosen])
        np.testing.assert_array_equal(items[7], whole[7])
    assert max(read) <= 16
    assert (
        tiling.lazy_tiles(x, where).keep
        and not tiling.lazy_tiles(lazy.LazyImages(reading, x.shape, x.dtype), where).keep
    )


def test_tiles_of_one_image_are_in_one_part(arrays):
    whole = resolution.resolve(settings(), arrays)
    tiles = resolution.of_inputs(whole)
    count = tiling.grid(SIDE, SIDE, TILE, 0.25).count
    assert count == 9
    parts = [getattr(tiles.split, name) for name in ("train", "calibration", "test")]
    images = [set((part // count).tolist()) for part in parts]
    assert not images[0] & images[1] and not images[0] & images[2] and not images[1] & images[2]
    for part, name in zip(parts, ("train", "calibration", "test"), strict=True):
        own = getattr(whole.split, name)
        assert sorted(part) == sorted(i * count + k for i in own for k in range(count))
    # What is looked at first is of many images.
    assert len(set((tiles.split.calibration[:9] // count).tolist())) > 1
    np.testing.assert_array_equal(tiles.split.labels, (tiles.dataset.labels[tiles.split.test] == 1))
    alone = resolution.resolve(settings(0), (arrays[0][:, :TILE, :TILE], arrays[1]))
    assert resolution.of_inputs(alone) is alone


def test_a_batch_is_of_tiles(arrays):
    few = settings()
    few.train.batch_size = 128
    assert resolution.resolve(few, arrays).config.train.batch_size == 128  # of 58 images
    few.train.batch_size = 4096
    resolved = resolution.resolve(few, arrays)
    assert resolved.config.train.batch_size == 58 * 9 and "tiles" in resolved.notes[0]


def of_tiles_alone(scorer):
    """The detector of single tiles."""
    return adapters.WholeDetector(scorer.detector.network, Pixels((TILE, TILE, 1)))


def test_the_score_of_an_image_is_the_highest_of_its_tiles(trained, arrays):
    scorer = trained[1]
    assert scorer.input_shape == (SIDE, SIDE, 1) and scorer.detector.network.shape == (TILE, TILE, 1)
    images = arrays[0][70:90]
    where = tiling.grid(SIDE, SIDE, TILE, 0.25)
    alone = dataclasses.replace(scorer, detector=of_tiles_alone(scorer))
    of_tiles = alone(tiling.cut(images, where).reshape(-1, TILE, TILE, 1)).reshape(len(images), -1)
    assert_tiles_close(scorer, images, scorer(images), of_tiles.max(1))
    assert len(np.unique(of_tiles.argmax(1))) > 2
    for combine, wanted in (("mean", of_tiles.mean(1)), ("0.75", np.quantile(of_tiles, 0.75, axis=1))):
        other = dataclasses.replace(scorer, detector=dataclasses.replace(scorer.detector, combine=combine))
        assert_tiles_close(scorer, images, other(images), wanted)
    damaged = images.astype(np.float32) / 127.5 - 1
    damaged[3, 5, 5] = np.nan
    assert np.isnan(scorer(damaged)).tolist() == [i == 3 for i in range(20)]


def test_many_tiles_are_scored_a_few_at_a_time(trained, arrays, monkeypatch):
    """Images one after the other, and tiles of one as well: the same scores, maps and gradients."""
    scorer, images = trained[1], arrays[0][76:79]
    unit = scorer.unit(jnp.asarray(images))
    function, variables = scorer.function()

    def everything():
        slope = jax.grad(lambda x: function(variables, x).sum())
        return jax.jit(lambda x: (function(variables, x), slope(x), *scorer.detector.explained(own, x)))(unit)

    own = variables["detector"]
    monkeypatch.setattr(adapters, "AT_ONCE", 9)
    by_image = everything()
    monkeypatch.setattr(adapters, "AT_ONCE", 4)
    for one, other in zip(everything(), by_image, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-6)
    assert_tiles_close(scorer, images, by_image[0], scorer(images))
    np.testing.assert_allclose(by_image[3], attribution.residual_maps(scorer, images).values, rtol=1e-3, atol=1e-5)
    assert float(jnp.abs(by_image[1]).max()) > 0


def test_calibration_is_of_images(trained, arrays):
    scorer = trained[1]
    this = resolution.resolve(scorer.config, arrays)
    images = arrays[0][this.split.calibration]
    own = scorer(images)
    # While it is made, its images are scored in blocks of another size.
    assert_tiles_close(scorer, images[np.argsort(own)], scorer.variables["calibration"], np.sort(own))
    loaded = ganomaly_jax.load(trained[0])
    np.testing.assert_array_equal(loaded(arrays[0][:9]), scorer(arrays[0][:9]))


def area(scores, labels):
    normal, anomalous = scores[labels == 0], scores[labels == 1]
    return float((anomalous[:, None] > normal[None]).mean())


def test_a_small_defect_in_a_large_image_is_found(trained, arrays, tmp_path):
    """The same detector on the shrunken image sees less of it; neither has seen these images."""
    shrunken = train(settings(0, steps=300, save_every=300), tmp_path / "small", arrays, log=lambda line: None)
    images = np.concatenate([textures(60, 11), textures(60, 12, defect=True)])
    labels = np.repeat([0, 1], 60)
    tiles, whole = (area(scorer(images), labels) for scorer in (trained[1], shrunken))
    assert tiles > 0.85 and tiles > whole + 0.1, (tiles, whole)


def weights(workdir):
    scorer = ganomaly_jax.load(workdir)
    return jax.tree.leaves(scorer.variables)


def test_a_training_computes_the_same_however_it_runs(arrays, tmp_path):
    """Gone on with, or read while it trains: to the bit. Over two devices: but for rounding."""
    for name, devices, stream, stops in (
        ("whole", 1, "auto", (8,)),
        ("resumed", 1, "auto", (5, 8)),
        ("streamed", 1, "always", (8,)),
        ("spread", 2, "auto", (8,)),
    ):
        for steps in stops:
            asked = settings(steps=steps, save_every=100)
            asked.mesh.devices, asked.data.stream = devices, stream
            train(asked, tmp_path / name, arrays, log=lambda line: None)
        if name == "spread":
            for one, other in zip(weights(tmp_path / name), weights(tmp_path / "whole"), strict=True):
                np.testing.assert_allclose(one, other, rtol=2e-2, atol=2e-3)
        else:
            jax.tree.map(np.testing.assert_array_equal, weights(tmp_path / name), weights(tmp_path / "whole"))


def test_the_export_is_the_live_detector(trained, arrays, tmp_path, monkeypatch):
    """It takes whole raw images, any number, here one after the other as where there are many tiles."""
    pytest.importorskip("flatbuffers")
    monkeypatch.setattr(adapters, "_FEW", 0)
    manifest = export.export(trained[1], tmp_path / "out", images=arrays[0][:5])
    assert manifest["input"]["shape"] == ["b", SIDE, SIDE, 1] and manifest["self_check"]["given"] == 5
    score, _ = export_runtime.load(tmp_path / "out")
    for n in (1, 3):
        images = arrays[0][70 : 70 + n]
        assert_tiles_close(trained[1], images, score(images)["score"], trained[1](images))


def test_maps_are_stitched_from_those_of_the_tiles(trained, arrays):
    scorer, images = trained[1], arrays[0][100:103]
    found = attribution.residual_maps(scorer, images)
    assert found.x_hat.shape == (3, SIDE, SIDE, 1) and found.values.shape == (3, SIDE, SIDE)
    where = tiling.grid(SIDE, SIDE, TILE, 0.25)
    alone = dataclasses.replace(scorer, detector=of_tiles_alone(scorer))
    one = attribution.residual_maps(alone, tiling.cut(images[1], where))
    wanted = tiling.stitch(jnp.asarray(one.values)[None, ..., None], where)[0, ..., 0]
    np.testing.assert_allclose(found.values[1], wanted, rtol=1e-4, atol=1e-6)
    x = np.asarray(scorer.unit(jnp.asarray(images)))
    np.testing.assert_allclose(found.x, x, atol=1e-6)
    assert scorer.map_threshold == pytest.approx(
        residual_map.threshold(
            attribution.residual_maps(
                scorer, arrays[0][resolution.resolve(scorer.config, arrays).split.calibration]
            ).values
        )
    )


def test_from_files_to_maps(tmp_path, arrays, capsys):
    """The command: a folder of images of their own size, its middle one taken for all; masks are looked for there."""
    data, out = tmp_path / "data", tmp_path / "run"
    for part, name, images in (
        ("train", "good", arrays[0][:40]),
        ("test", "good", arrays[0][40:50]),
        ("test", "square", arrays[0][80:90]),
    ):
        (data / part / name).mkdir(parents=True)
        for i, image in enumerate(images):
            Image.fromarray(image[..., 0]).save(data / part / name / f"{i}.png")
    (data / "ground_truth" / "square").mkdir(parents=True)
    for i in range(10):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[10:16, 20:26] = 255
        Image.fromarray(mask).save(data / "ground_truth" / "square" / f"{i}_mask.png")
    asked = ["data.tile=16", "train.steps=4", "train.batch_size=8", "model.features=4", "model.latent_size=4"]
    asked += ["mesh.devices=1", "train.picture_every=0"]
    assert main.main(["train", str(data), "--workdir", str(out), *(f"--config.{word}" for word in asked)]) == 0
    said = capsys.readouterr().out
    assert "324 tiles 16x16x1" in said  # of 36 images
    stored = json.loads((out / "config.json").read_text())["data"]
    assert (stored["height"], stored["width"], stored["tile"]) == (SIDE, SIDE, 16)
    assert json.loads((out / "metrics.json").read_text())["n_masks"] == 10
    assert main.main(["recalibrate", "--workdir", str(out), "--quantile", "0.01"]) == 0
    assert main.main(["predict", "--workdir", str(out), "--maps", "--most-maps", "1", str(data / "test")]) == 0
    with (out / "predictions" / "test.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 20
    assert len(list((out / "predictions" / "test_maps").glob("*.png"))) == 1


def test_scores_that_are_fitted_are_fitted_on_tiles(trained, arrays):
    scorer = trained[1]
    asked = settings()
    asked.evaluate.score = "latent_density+pixel"
    this = resolution.resolve(asked, arrays)
    made = build.make(
        scorer.detector,
        scorer.variables["detector"],
        this.config,
        this.pixels,
        arrays[0][this.split.train],
        arrays[0][this.split.calibration],
        False,
        {},
    )
    bank = jax.tree.leaves(made.variables["statistics"])
    assert max(len(leaf) for leaf in bank if leaf.ndim) == len(this.split.train) * 9
    found = made(arrays[0][70:90])
    assert np.isfinite(found).all() and area(found, np.repeat([0, 1], 10)) > 0.6
    assert len(made.variables["calibration"]) == len(this.split.calibration)


def test_large_images_are_held_a_few_at_a_time(trained, arrays, monkeypatch):
    scorer = trained[1]
    assert scorer.block == inference.BUCKETS[-1]
    wanted = scorer(arrays[0])
    monkeypatch.setattr(scoring_scorer, "_BLOCK_BYTES", 9 * SIDE * SIDE)
    assert scorer.block == 8
    assert_tiles_close(scorer, arrays[0], scorer(arrays[0]), wanted)
    monkeypatch.setattr(scoring_scorer, "_BLOCK_BYTES", 1)
    assert scorer.block == 1


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("data.tile", 24, "16, 32, 64"),
        ("data.tile", 64, "data.height=40: expected 64"),
        ("data.overlap", 16.0, "pixels below data.tile"),
        ("data.overlap", -0.1, "a share"),
        ("data.tile_score", "median", "'max', 'mean'"),
        ("data.tile_score", "1.5", "'max', 'mean'"),
        ("members.seeds", "0,1", "members are trained on whole images"),
        ("train.shift", 8, "less than half a side"),
        ("data.height", 20_000, "16 (data.tile) to 16384"),
    ],
)
def test_what_cannot_work_is_refused(key, value, words):
    asked = settings()
    config_values.set_value(asked, key, value)
    with pytest.raises(UserError) as refused:
        validation.check(asked)
    assert words in str(refused.value)


def test_members_and_several_processes_are_refused(arrays, tmp_path, monkeypatch):
    asked = settings()
    asked.members.seeds = "0,1"
    with pytest.raises(UserError, match=r"data\.tile"):
        train_members(asked, tmp_path, arrays)
    monkeypatch.setattr("ganomaly_jax.parallel.processes.is_distributed", lambda: True)
    with pytest.raises(UserError, match="within one process"):
        train(settings(), tmp_path, arrays)


def test_a_larger_side_without_tiles_names_them():
    asked = settings(0)
    asked.data.height = 512
    with pytest.raises(UserError, match=r"cut into tiles by data\.tile"):
        validation.check(asked)


def test_no_onnx_and_no_images_smaller_than_a_tile(trained, arrays, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="tiles cannot be exported as ONNX"):
        export.export(trained[1], tmp_path / "out", form="onnx")
    whole = resolution.resolve(settings(0), arrays).dataset
    asked = settings(32)
    asked.data.height = asked.data.width = 0
    monkeypatch.setattr("ganomaly_jax.data.sources.load", lambda *_: whole)  # as packed images, whose size is fixed
    with pytest.raises(UserError, match=r"data\.tile=32: tiles are larger than the images, 16x16"):
        resolution.resolve(asked)
