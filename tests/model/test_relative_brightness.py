"""A detector that sees relative brightness: values by hand, what does not count, and the whole way to a file."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ganomaly_jax import DenoisingAutoencoder, Ganomaly, load, train
from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.model import relative_brightness
from ganomaly_jax.scoring import residual_map, scores
from tests.support import blobs, tiny_config

SHAPE = (16, 16, 1)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(-0.8, 0.2, (4, *SHAPE)).astype(np.float32)


def test_by_hand(images):
    light = (images.astype(float) + 1) / 2
    mean = light.mean(axis=(1, 2, 3), keepdims=True) + 0.02
    found = relative_brightness.to_relative(jnp.asarray(images))
    np.testing.assert_allclose(found, (light - mean) / (light + mean), atol=1e-6)
    np.testing.assert_allclose(relative_brightness.to_absolute(found, jnp.asarray(images)), images, atol=1e-5)


def test_what_is_black_or_far_too_bright_stays_in_range():
    black, white = -jnp.ones((1, *SHAPE)), jnp.ones((1, *SHAPE))
    for image in (black, white, black.at[0, 0, 0, 0].set(1)):
        seen = relative_brightness.to_relative(image)
        assert np.isfinite(seen).all() and np.abs(seen).max() <= 1
        for made in (jnp.ones_like(seen), -jnp.ones_like(seen), seen):  # a tanh gives 1 as well
            back = relative_brightness.to_absolute(made, image)
            assert np.isfinite(back).all() and np.abs(back).max() <= 1


@pytest.mark.parametrize("kind", [Ganomaly, DenoisingAutoencoder])
def test_it_is_the_network_on_relative_images(images, kind):
    network = kind(shape=SHAPE, latent_size=4, features=4)
    made = relative_brightness.RelativeBrightness(network)
    state, x = made.init(jax.random.key(0)), jnp.asarray(images)
    seen = relative_brightness.to_relative(x)
    both = jax.jit(lambda state, x, seen: (made.update(state, x), network.update(state, seen)))
    one, other = both(state, x, seen)
    chex.assert_trees_all_close(one, other, rtol=1e-7, atol=1e-5)
    variables = made.variables(state)
    np.testing.assert_allclose(made.score(variables, x), network.score(variables, seen), rtol=1e-5)
    outputs = made.outputs(variables, x)
    np.testing.assert_allclose(outputs["x"], seen, atol=1e-6)
    back = relative_brightness.to_absolute(outputs["x_hat"], x)
    np.testing.assert_allclose(made.reconstruct(variables, x), back, atol=1e-6)
    looked = made.diagnostics(made.diagnostic_variables(state), x)
    np.testing.assert_allclose(looked["x_hat"], back, atol=1e-5)
    settled = [one.recompute_batch_stats(variables, batch[None]) for one, batch in ((made, x), (network, seen))]
    chex.assert_trees_all_close(*settled, rtol=1e-7, atol=1e-5)


def test_the_whole_way(tmp_path):
    """Trained, saved, read: half the light changes no verdict, where it changes most without."""
    images = blobs(128, 3)
    odd = blobs(32, 4, anomalous=True)
    tests = np.concatenate([images[:32], odd])
    dim = (tests // 2).astype(np.uint8)
    changed = {}
    for exposed in (False, True):
        settings = tiny_config(epochs=4)
        settings.model.exposure = exposed
        settings.data.calibration = 0.25
        settings.evaluate.score = "squared+pixel+residual_mahalanobis"
        made = train(settings, tmp_path / str(exposed), arrays=images, log=lambda line: None)
        read = load(tmp_path / str(exposed))
        assert read.config.model.exposure is exposed
        scored = made(tests)
        np.testing.assert_array_equal(read(tests), scored)
        np.testing.assert_allclose(read(tests[3:4]), scored[3:4], rtol=1e-4, atol=1e-4)
        changed[exposed] = float(np.abs(made(dim) - scored).mean() / scored.std())
        x, x_hat, values = made.explained(dim[:8])
        np.testing.assert_allclose(x, dim[:8] / 127.5 - 1, atol=1e-5)
        np.testing.assert_allclose(values, residual_map.residual_map(jnp.asarray(x), jnp.asarray(x_hat)), atol=1e-5)
        assert np.abs(x_hat).max() <= 1
    assert changed[True] < 0.2 < 2 * changed[True] < changed[False]


def test_the_parts_of_a_score_are_of_what_the_network_sees(images):
    made = relative_brightness.RelativeBrightness(Ganomaly(shape=SHAPE, latent_size=4, features=4))
    variables = {"detector": made.variables(made.init(jax.random.key(0)))}
    x = jnp.asarray(images)
    outputs = made.outputs(variables["detector"], x)
    found = scores.parts(made, ("pixel",), variables, x)["pixel"]
    np.testing.assert_allclose(found, np.abs(outputs["x"] - outputs["x_hat"]).mean(axis=(1, 2, 3)), rtol=1e-5)
    of_images = ("patches_medium", "components")
    either = []
    for detector in (made, made.network):  # they are of the image, whatever is seen of it
        fitted = scores.fit(detector, of_images, variables, [images[:3]], 3, [images[2:]], 0)
        either.append(scores.score(detector, of_images, variables | {"statistics": fitted}, x))
    np.testing.assert_allclose(*either, rtol=1e-4, atol=1e-4)


def test_rows_have_no_exposure(tmp_path):
    settings = config.Config()
    settings.model.exposure, settings.data.kind = True, "rows"
    settings.train.batch_size, settings.train.epochs = 8, 1
    rows = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    with pytest.raises(UserError, match=r"model\.exposure: for images only"):
        train(settings, tmp_path, arrays=rows, log=lambda line: None)
