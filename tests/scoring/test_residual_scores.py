"""Scores of the residual: by its own covariance, and beside that of the items nearest in z."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ganomaly_jax import load, train
from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.scoring import latent_statistics, scores


def correlated(n: int, seed: int) -> np.ndarray:
    """Residuals [n, 4]: two that are nearly the same, one large, one that never moves."""
    rng = np.random.default_rng(seed)
    one = rng.normal(size=n)
    return np.stack([one, one + 0.01 * rng.normal(size=n), 50 * rng.normal(size=n), np.full(n, 0.5)], 1).astype(
        np.float32
    )


def test_the_distance_is_that_of_the_covariance():
    residual = correlated(4000, 0)
    fitted = latent_statistics.fit_residual(residual)
    query = np.array([[1, 1, 0, 0.5], [0.2, -0.2, 0, 0.5], [0, 0, 50, 0.5]], np.float32)
    found = np.asarray(latent_statistics.mahalanobis(fitted, jnp.asarray(query)))
    apart = residual[:, :3].astype(float)
    spread = apart.std(axis=0)
    centred = (query[:, :3] - apart.mean(axis=0)) / spread
    covariance = np.cov((apart / spread).T)
    wanted = np.sqrt(np.einsum("bi,ij,bj->b", centred, np.linalg.inv(covariance), centred))
    np.testing.assert_allclose(found, wanted, rtol=0.05)
    # Against the correlation even a small residual is far away; none of it would show in a mean square.
    assert found[1] > 20 * found[0]


def test_few_items_take_a_larger_ridge_than_many():
    rng = np.random.default_rng(1)
    few, many = (rng.normal(size=(n, 30)).astype(np.float32) for n in (40, 4000))
    held = rng.normal(size=(500, 30)).astype(np.float32)
    far = [
        float(np.median(latent_statistics.mahalanobis(latent_statistics.fit_residual(x), held))) for x in (few, many)
    ]
    assert far[1] == pytest.approx(np.sqrt(30), rel=0.05)
    assert far[0] < 1.5 * far[1]  # by the covariance of 40 as it is it would be about twice as far
    assert np.isfinite(latent_statistics.fit_residual(few[:4])["whitening"]).all()  # more numbers than items


def test_local_is_one_for_normal_items_of_every_state():
    rng = np.random.default_rng(2)
    state = np.repeat([0.0, 1.0], 300)
    z = (state[:, None] * 10 + rng.normal(size=(600, 2))).astype(np.float32)
    width = np.where(state == 0, 0.01, 1.0)[:, None] * [1.0, 5.0]
    residual = (width * rng.normal(size=(600, 2))).astype(np.float32)
    latent = latent_statistics.fit(z, 0)
    fitted = latent_statistics.fit_squares(residual, 0)
    found = np.asarray(latent_statistics.local(latent, fitted, jnp.asarray(z), jnp.asarray(residual)))
    quiet, loud = found[state == 0].mean(), found[state == 1].mean()
    assert 0.4 < quiet < 1.5 and 0.8 < loud < 1.5
    # Ten times what is usual in the quiet state is a tenth of what is usual in the loud one.
    odd = latent_statistics.local(latent, fitted, jnp.zeros((1, 2)), jnp.asarray([[0.1, 0.5]]))
    assert float(odd[0]) > 10 * loud
    np.testing.assert_array_less(0, fitted["squares"])


def test_nothing_is_divided_by_zero():
    fitted = latent_statistics.fit_squares(np.zeros((30, 2), np.float32), 0)
    latent = latent_statistics.fit(np.random.default_rng(3).normal(size=(30, 2)).astype(np.float32), 0)
    found = latent_statistics.local(latent, fitted, jnp.zeros((1, 2)), jnp.zeros((1, 2)))
    assert np.isfinite(found).all()


@pytest.mark.parametrize("window", [0, 4])
def test_rows_the_whole_way(tmp_path, window):
    """Trained, saved, read: the same scores, alone as in a batch, with a gradient; a broken correlation stands out."""
    rng = np.random.default_rng(4)
    base = rng.normal(size=(240, 2))
    x = np.concatenate([base, base + 0.05 * rng.normal(size=(240, 2))], axis=1).astype(np.float32)
    settings = config.Config()
    settings.data.kind, settings.data.window, settings.data.test = "rows", window, 0.1
    settings.model.detector, settings.model.latent_size, settings.model.features = "autoencoder", 2, 4
    settings.evaluate.score = "residual_mahalanobis+residual_local"
    settings.train.steps, settings.train.batch_size, settings.train.picture_every = 20, 32, 0
    made = train(settings, tmp_path, arrays=x, log=lambda line: None)
    items = x[:64].reshape(-1, 4, 4) if window else x[:64]
    found = made(items)
    np.testing.assert_array_equal(load(tmp_path)(items), found)
    np.testing.assert_allclose(made(items[3:4]), found[3:4], rtol=1e-4, atol=1e-4)
    fn, variables = made.function()
    gradient = jax.grad(lambda rows: fn(variables, rows).sum())(jnp.asarray(items[:2]))
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0
    broken = items.copy()
    broken[..., 2] = -broken[..., 2]
    assert np.median(made(broken)) > np.median(found) + 1
    parts = scores.parts(
        made.detector.network, ("residual_mahalanobis",), made.variables, made.unit(jnp.asarray(items))
    )
    assert parts["residual_mahalanobis"].shape == (len(items),)


def test_the_residual_of_a_large_image_is_averaged_down():
    assert [config.residual_down(shape) for shape in ((32, 32, 1), (64, 64, 1), (64, 64, 3), (256, 256, 1))] == [
        1,
        2,
        4,
        8,
    ]
    assert config.residual_down((5000,)) == config.residual_down((100, 40)) == 1
    random = np.random.default_rng(5)
    x, x_hat = (jnp.asarray(random.normal(size=(3, 64, 64, 3)), jnp.float32) for _ in range(2))
    wanted = (x - x_hat).reshape(3, 16, 4, 16, 4, 3).mean(axis=(2, 4)).reshape(3, -1)
    np.testing.assert_allclose(scores._residual({"x": x, "x_hat": x_hat}), wanted, atol=1e-5)


def test_a_large_input_is_refused_before_training(tmp_path):
    settings = config.Config()
    settings.evaluate.score, settings.data.kind, settings.data.window = "residual_local", "rows", 128
    rows = np.random.default_rng(6).normal(size=(6000, 17)).astype(np.float32)
    with pytest.raises(UserError, match=r"up to 2,048 numbers, these have 128 x 17 = 2,176"):
        train(settings, tmp_path, arrays=rows, log=lambda line: None)
    assert not (tmp_path / "checkpoints").exists()
