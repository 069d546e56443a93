"""What configs/recipe.py adds: views, the contrast of embeddings, averaged weights, fitted scores."""

import dataclasses  # noqa: I001
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.support import TINY, blobs, tiny_config
from tests.parallel.test_sharding import leaves_close

from ganomaly_jax.core import config, validation
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.images.preprocess import to_unit
from ganomaly_jax.model import contrastive_views, losses
from ganomaly_jax.parallel import sharding
from ganomaly_jax.scoring import latent_statistics, scores
from ganomaly_jax.scoring.scorer import load
from ganomaly_jax.training.trainer import train

CONTRAST = dataclasses.replace(TINY, contrast_weight=1.0, embedding_size=8, average=0.9)


@pytest.fixture(scope="module")
def batch():
    return to_unit(jnp.asarray(blobs(16, 3)), 0, 255)


@pytest.fixture(scope="module")
def state():
    return jax.jit(CONTRAST.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def on_one(state, batch):
    return jax.jit(CONTRAST.gradients)(state, batch)


def test_views_differ_stay_in_range_and_follow_from_their_place(batch):
    seen = contrastive_views.random_view(jax.random.key(1), batch)
    assert seen.shape == batch.shape and float(jnp.abs(seen).max()) <= 1
    assert (jnp.abs(seen - batch).mean((1, 2, 3)) > 0.01).all()
    assert float(jnp.abs(seen - batch).mean()) < 0.5 * float(jnp.abs(batch[::-1] - batch).mean() + 0.5)
    np.testing.assert_array_equal(contrastive_views.random_view(jax.random.key(1), batch[8:], first=8), seen[8:])


def test_an_unmoved_view_is_the_image():
    image = jax.random.uniform(jax.random.key(0), (16, 16, 2))
    row, column = jnp.meshgrid(jnp.arange(16.0), jnp.arange(16.0), indexing="ij")
    np.testing.assert_allclose(contrastive_views._sample(image, row, column), image, atol=1e-6)
    np.testing.assert_allclose(
        contrastive_views._sample(image, row + 0.5, column)[:-1], (image[:-1] + image[1:]) / 2, atol=1e-6
    )


def test_contrast_by_hand():
    a, b = jnp.array([[3.0, 0.0], [0.0, 2.0]]), jnp.array([[1.0, 0.0], [0.0, 5.0]])
    # Cosines are 1 with one's own and 0 with the other's.
    np.testing.assert_allclose(losses.info_nce(a, b, 0.5), np.log(1 + np.exp(-2.0)), rtol=1e-5)
    assert losses.info_nce(a, b[::-1], 0.5) > 2


def test_contrast_reaches_the_discriminator_alone(tiny, state, batch, on_one):
    grads, _, metrics = on_one
    assert np.abs(grads["discriminator"]["embedding"]["kernel"]).max() > 0
    plain = dataclasses.replace(CONTRAST, contrast_weight=1e-9)
    other, _, same = jax.jit(plain.gradients)(state, batch)
    leaves_close(grads["generator"], other["generator"], 1e-5)
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        {name: float(value) for name, value in same.items()}, rel=1e-5
    )


@pytest.mark.parametrize("transform", ["shard_map", "pmap"])
def test_eight_devices_are_one(state, batch, on_one, transform):
    mesh = sharding.local_mesh(8)
    detector = dataclasses.replace(CONTRAST, axis_name=sharding.DATA_AXIS)
    spread = sharding.data_parallel(detector.gradients, mesh, (None, 0), transform=transform)
    leaves_close(spread(sharding.replicate(state, mesh), sharding.shard_batch(batch, mesh, 0)), on_one, 1e-4)


def test_averaged_weights_and_their_statistics(state, batch):
    after, _ = jax.jit(CONTRAST.update)(state, batch)
    old, new = (one.params["generator"]["encoder"]["head"]["kernel"] for one in (state, after))
    average = CONTRAST.variables(after)["params"]["encoder"]["head"]["kernel"]
    np.testing.assert_allclose(average, 0.1 * old + 0.9 * new, atol=1e-7)  # the first step keeps a tenth
    later, _ = jax.jit(CONTRAST.update)(after.replace(step=jnp.int32(1000)), batch)
    newer = later.params["generator"]["encoder"]["head"]["kernel"]
    found = CONTRAST.variables(later)["params"]["encoder"]["head"]["kernel"]
    np.testing.assert_allclose(found, 0.9 * average + 0.1 * newer, atol=1e-7)
    settled = jax.jit(CONTRAST.recompute_batch_stats)(CONTRAST.variables(after), jnp.stack([batch, batch]))
    assert jax.tree.structure(settled) == jax.tree.structure(CONTRAST.variables(after))
    first = next(iter(settled["batch_stats"]["encoder"]["pyramid"].values()))
    x = CONTRAST.generator.bind(CONTRAST.variables(after))
    assert np.isfinite(first["mean"]).all() and (first["var"] > 0).all() and x is not None


def test_statistics_by_hand():
    z = np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32) * [1.0, 5.0, 0.2]
    fitted = {name: jnp.asarray(value) for name, value in latent_statistics.fit(z.astype(np.float32), 0).items()}
    query = jnp.asarray(np.array([z.mean(0), z.mean(0) + np.array([3, 15, 0.6]), [0.0, 100.0, 0.0]], np.float32))
    for name in ("mahalanobis", "neighbours", "density"):
        middle, edge, far = np.asarray(getattr(latent_statistics, name)(fitted, query))
        assert middle < edge < far, name
    bank, whitened = np.asarray(fitted["bank"]), (np.asarray(query) - z.mean(0)) @ np.asarray(fitted["whitening"])
    distances = np.sqrt(((whitened[:, None] - bank) ** 2).sum(-1))
    wanted = np.sort(distances, axis=1)[:, :5].mean(axis=1)
    np.testing.assert_allclose(latent_statistics.neighbours(fitted, query), wanted, rtol=1e-3)
    nearest = np.argsort(distances, axis=1)[:, :5]
    within = np.sqrt(((bank[:, None] - bank) ** 2).sum(-1))
    spacing = np.sort(within, axis=1)[:, 1:6].mean(axis=1)
    np.testing.assert_allclose(
        latent_statistics.density(fitted, query), wanted / spacing[nearest].mean(axis=1), rtol=1e-2
    )
    scaled = latent_statistics.angle(fitted, 7 * query)
    np.testing.assert_allclose(scaled, latent_statistics.angle(fitted, query), rtol=1e-3, atol=1e-3)


def test_an_item_is_not_its_own_neighbour():
    """Corners of a square beside a far point: each corner is at 1, 1 and the root of 2 from the others."""
    bank = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [9, 9], [9, 8], [8, 9]], np.float32)
    distances = np.sqrt(np.square(bank[:, None] - bank).sum(-1))
    wanted = np.sort(distances, axis=1)[:, 1:6].mean(axis=1)
    np.testing.assert_allclose(latent_statistics.spacing(bank), wanted, rtol=1e-4)
    # In batches the rows are not in the order of the bank: the neighbours are those of the row itself.
    many = np.random.default_rng(0).normal(size=(1100, 2)).astype(np.float32)
    distances = np.sqrt(np.square(many[:, None] - many).sum(-1))
    np.fill_diagonal(distances, np.inf)
    wanted = np.sort(distances, axis=1)[:, :5].mean(axis=1)
    np.testing.assert_allclose(latent_statistics.spacing(many), wanted, rtol=2e-2, atol=1e-3)


def test_angles_by_hand():
    """Chords between directions; an item of the training part counts itself, its neighbours do not count themselves."""
    z = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    fitted = {name: jnp.asarray(value) for name, value in latent_statistics.fit(z, 0).items()}
    query = np.concatenate([z[:2], [[5.0, 0.1, 0.0]]]).astype(np.float32)
    unit, asked = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (z, query))
    chords = np.linalg.norm(asked[:, None] - unit, axis=-1)
    wanted = np.sort(chords, axis=1)[:, :5].mean(axis=1)
    np.testing.assert_allclose(latent_statistics.angle(fitted, query), wanted, rtol=1e-3)
    spacing = np.sort(np.linalg.norm(unit[:, None] - unit, axis=-1), axis=1)[:, 1:6].mean(axis=1)
    wanted = wanted / spacing[np.argsort(chords, axis=1)[:, :5]].mean(axis=1)
    np.testing.assert_allclose(latent_statistics.angular_density(fitted, query), wanted, rtol=1e-3)


def test_the_latents_that_are_kept_are_drawn(monkeypatch):
    """Not the first ones, which would be those of one folder or one shift."""
    monkeypatch.setattr(latent_statistics, "BANK", 50)
    z = np.arange(400.0, dtype=np.float32).reshape(200, 2)
    fitted = [latent_statistics.fit(z, seed) for seed in (0, 0, 1)]
    kept = [latent_statistics._drawn(200, seed) for seed in (0, 0, 1)]
    assert len(kept[0]) == 50 and kept[0].tolist() == sorted(set(kept[0].tolist())) == kept[1].tolist()
    assert kept[0].tolist() != kept[2].tolist() and max(kept[0]) > 150 and np.median(kept[0]) > 60
    for seed, one in ((0, fitted[0]), (1, fitted[2])):
        drawn = latent_statistics._drawn(200, seed)
        np.testing.assert_allclose(one["bank"], (z[drawn] - one["mean"]) @ one["whitening"], rtol=1e-4, atol=1e-4)
        squares = latent_statistics.fit_squares(z + 1, seed)["squares"]
        np.testing.assert_allclose(squares, (z[drawn] + 1) ** 2)


def test_every_name_has_a_part():
    assert (*scores.PARTS, "efficientnet_patches", "efficientnet_angle") == config.SCORES


def test_a_score_of_an_embedding_that_nothing_trains_is_refused():
    settings = config.Config()
    settings.evaluate.score = "embedding_angle"
    with pytest.raises(UserError, match=r"loss\.contrast"):
        validation.check(settings)
    settings.loss.contrast = 1.0
    validation.check(settings)


def test_the_whole_way(tmp_path):
    """Trained, saved, read: the same scores; alone as in a batch; a mean of standardised parts; not constant."""
    settings = tiny_config()
    settings.loss.contrast, settings.model.embedding_size, settings.optimizer.average = 1.0, 8, 0.9
    settings.evaluate.score = "latent_density+embedding_angle+pixel"
    settings.train.epochs, settings.data.calibration = 2, 0.25
    images = blobs(96, 3)
    made = train(settings, tmp_path, arrays=images, log=lambda line: None)
    read = load(tmp_path)
    found = made(images)
    np.testing.assert_array_equal(read(images), found)
    np.testing.assert_allclose(read(images[5:6]), found[5:6], rtol=1e-4, atol=1e-5)
    assert np.std(found) > 0.01
    own = np.asarray(made.variables["calibration"])
    assert abs(own.mean()) < 1e-2  # parts are standardised on these very images
    fn, variables = read.function()
    gradient = jax.grad(lambda x: fn(variables, x).sum())(to_unit(jnp.asarray(images[:2]), 0, 255))
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0
    jax.jit(lambda x: fn(jax.device_get(variables), x))(images[:2])  # the statistics inside a program, as in an export


def test_the_guide_names_every_score():
    text = (Path(__file__).resolve().parents[2] / "docs" / "scores.md").read_text(encoding="utf-8")
    rows = "\n".join(line for line in text.splitlines() if line.startswith("| `"))
    assert set(scores.PARTS) < set(config.SCORES)
    for name in config.SCORES:
        assert f"`{name}`" in rows, name
