"""Residual maps and their regions by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from ganomaly_jax.scoring import residual_map


def stretched(n, side):
    """[n, n / side] of linear interpolation between the centres of spans of pixels, constant beyond them."""
    centres = np.arange(n // side) * side + (side - 1) / 2
    return np.stack([np.interp(np.arange(n), centres, unit) for unit in np.eye(n // side)], axis=1)


def test_a_map_is_the_difference_averaged_over_squares_of_each_side():
    random = np.random.default_rng(0)
    x, x_hat = random.uniform(-1, 1, (2, 2, 8, 4, 3)).astype(np.float32)
    whole = np.zeros((2, 8, 4))
    for side in (1, 2, 4):
        means = (x - x_hat).reshape(2, 8 // side, side, 4 // side, side, 3).mean((2, 4))
        whole += stretched(8, side) @ np.abs(means).mean(-1) @ stretched(4, side).T / 3
    np.testing.assert_allclose(residual_map.residual_map(jnp.asarray(x), jnp.asarray(x_hat)), whole, atol=1e-5)
    assert residual_map.residual_map(jnp.asarray(x), jnp.asarray(x)).max() == 0


def test_the_threshold_of_maps_is_a_quantile_and_never_nothing():
    assert residual_map.threshold(np.arange(1001.0)) == pytest.approx(995)
    assert residual_map.threshold(np.zeros((2, 4, 4))) == 1e-3


def test_regions_by_hand():
    values = np.zeros((100, 100))
    values[10:12, 20:25] = 2.0  # 10 pixels, a thousandth of the image
    values[11, 22] = 3.0
    values[50:53, 60:63] = 9.0  # 9 are too few
    values[70:75, 5:7] = 4.0
    values[75:80, 7:9] = 5.0  # touches the one before at a corner
    found = residual_map.regions(values, 1.0)
    assert found == [residual_map.Region(5, 70, 4, 10, 5.0), residual_map.Region(20, 10, 5, 2, 3.0)]
    assert [region.peak for region in residual_map.regions(values, 3.0)] == [5.0]  # above it, not at it
    small = np.zeros((8, 8))
    small[0, :4] = small[4, :3] = 1.0
    assert residual_map.regions(small, 0.5) == [residual_map.Region(0, 0, 4, 1, 1.0)]
