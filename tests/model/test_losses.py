"""Losses by hand, with the values that PyTorch gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ganomaly_jax.model import losses


@pytest.mark.parametrize(("real", "sign"), [(True, 1), (False, -1)])
def test_binary_cross_entropy_is_that_of_pytorch(real, sign):
    """torch.nn.BCELoss of a sigmoid: its logarithms are clamped at -100, where it has no gradient."""
    for logit, wanted in ((0.0, np.log(2)), (-2.0, 2.126928), (3.0, 0.04858735), (-99.0, 99.0), (-150.0, 100.0)):
        found = losses.binary_cross_entropy(jnp.array([sign * logit]), real)
        assert float(found) == pytest.approx(wanted, rel=1e-6), logit
    both = jnp.array([0.0, -300.0]) * sign
    assert float(losses.binary_cross_entropy(both, real)) == pytest.approx((np.log(2) + 100) / 2)
    slope = jax.grad(losses.binary_cross_entropy)(both, real)
    np.testing.assert_allclose(slope, [-0.25 * sign, 0])


def test_means_of_differences_by_hand():
    a, b = jnp.array([[1.0, -2.0], [0.0, 4.0]]), jnp.array([[0.0, 0.0], [0.0, 1.0]])
    assert float(losses.l1(a, b)) == 1.5
    assert float(losses.l2(a, b)) == 3.5
    assert losses.mean_absolute(a - b).tolist() == [1.5, 1.5]
    assert losses.mean_square(a - b).tolist() == [2.5, 4.5]


@pytest.mark.parametrize("loss", [losses.l1, losses.l2, lambda a, b: losses.info_nce(a, b, 1.0)])
def test_arrays_of_other_shapes_are_not_broadcast(loss):
    with pytest.raises(AssertionError, match="shape"):
        loss(jnp.zeros((4, 3)), jnp.zeros((1, 3)))


def test_logits_are_one_for_each_image():
    with pytest.raises(AssertionError, match="rank"):
        losses.binary_cross_entropy(jnp.zeros((4, 1)), True)
