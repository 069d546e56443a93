"""What is hidden and what noise there is, and what the draws follow from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ganomaly_jax.model import corruption
from ganomaly_jax.parallel import sharding

corrupt = jax.jit(corruption.corrupt, static_argnums=(2, 3, 4))


def key():
    """Not at module level: collecting the tests opens no device."""
    return jax.random.key(5)


def pictures(n, *shape):
    """No two entries alike."""
    return jax.random.uniform(jax.random.key(1), (n, *shape), minval=-1, maxval=1)


def test_nothing_asked_for_is_nothing_done():
    x = pictures(3, 16, 16, 2)
    np.testing.assert_array_equal(corrupt(key(), x, 0.0, 0.0), x)


def test_hidden_squares_are_the_mean_of_their_channel():
    x = pictures(200, 32, 16, 3)  # patches of 2 x 2
    found = np.asarray(corrupt(key(), x, 0.0, 0.3))
    hidden = found != np.asarray(x)
    squares = hidden.reshape(200, 16, 2, 8, 2, 3)
    np.testing.assert_array_equal(squares.any((2, 4, 5)), squares.all((2, 4, 5)))
    mean = np.broadcast_to(np.asarray(x).mean((1, 2), keepdims=True), x.shape)
    np.testing.assert_allclose(found[hidden], mean[hidden], atol=1e-6)
    shares = squares.all((2, 4, 5)).mean(0)  # of 200 images, for each of the 128 places
    assert shares.mean() == pytest.approx(0.3, abs=0.01)
    assert abs(shares - 0.3).max() < 0.15, "every place is hidden as often"


def test_noise_has_its_size_everywhere_and_no_mean():
    noise = np.asarray(corrupt(key(), jnp.ones((64, 16, 16, 1)), 0.2, 0.25)) - 1  # hidden patches are 1 too
    assert noise.std() == pytest.approx(0.2, rel=0.02)
    assert abs(noise.mean()) < 0.01
    assert len(np.unique(noise)) > 0.99 * noise.size


def test_vectors_and_windows_lose_entries_and_stretches():
    x = pictures(400, 6)
    found = np.asarray(corrupt(key(), x, 0.0, 0.25))
    assert (found == 0).mean() == pytest.approx(0.25, abs=0.04)
    np.testing.assert_array_equal(found[found != 0], np.asarray(x)[found != 0])
    x = pictures(100, 20, 3)  # stretches of 2
    found = np.asarray(corrupt(key(), x, 0.0, 0.25))
    stretches = (found != np.asarray(x)).reshape(100, 10, 2, 3)
    np.testing.assert_array_equal(stretches.any(2), stretches.all(2))
    assert 0 < stretches.all((2, 3)).mean() < stretches.all(2).mean(), "each sensor by itself"
    assert corrupt(key(), pictures(2, 19, 3), 0.1, 0.25).shape == (2, 19, 3)


def test_draws_follow_from_key_and_place():
    x = jnp.broadcast_to(pictures(1, 16, 16, 1), (8, 16, 16, 1))
    found = corrupt(key(), x, 0.1, 0.25)
    np.testing.assert_array_equal(corrupt(key(), x[5:], 0.1, 0.25, 5), found[5:])
    for other in (corrupt(jax.random.key(6), x, 0.1, 0.25), jnp.roll(found, 1, 0)):
        assert (abs(other - found).max((1, 2, 3)) > 0.05).all()


def test_devices_draw_for_their_part_of_the_batch():
    x, mesh = pictures(8, 16, 16, 1), sharding.local_mesh(4)

    def part(x):
        first = jax.lax.axis_index(sharding.DATA_AXIS) * len(x)
        return jax.lax.all_gather(corruption.corrupt(key(), x, 0.1, 0.25, first), sharding.DATA_AXIS, tiled=True)

    spread = sharding.data_parallel(part, mesh, (0,))(sharding.shard_batch(x, mesh, 0))
    np.testing.assert_allclose(spread, corrupt(key(), x, 0.1, 0.25), atol=1e-6)
