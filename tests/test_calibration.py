"""Thresholds that mean something."""

import jax.numpy as jnp
import numpy as np
import pytest

from ganomaly_jax import calibration
from ganomaly_jax.errors import UserError


def test_threshold_by_hand():
    scores = np.arange(1.0, 100.0)[::-1]  # 99 of them: ranks are their own values
    found = calibration.calibrate(scores, 0.05)
    assert found.threshold == 95
    assert found.rate == 0.05
    assert "99 calibration images" in found.source
    assert calibration.calibrate(scores, 0.01).threshold == 99


def test_a_rate_that_the_size_cannot_promise_is_said():
    found = calibration.calibrate(np.arange(9.0), 0.01)
    assert found.threshold == 8
    assert found.rate == 0.1
    assert "10.00%" in found.source
    assert "99 images" in found.source


@pytest.mark.parametrize("rate", [0.01, 0.1])
def test_fresh_normals_are_flagged_as_often_as_promised(rate):
    """The mean over many calibration parts is the rate, to three standard errors."""
    random = np.random.default_rng(0)
    shares = []
    for _ in range(400):
        threshold = calibration.calibrate(random.normal(size=199), rate).threshold
        shares.append(np.mean(random.normal(size=500) > threshold))
    error = np.std(shares) / np.sqrt(len(shares))
    assert abs(np.mean(shares) - rate) < 3 * error


def test_p_values_by_hand():
    reference = jnp.asarray([1.0, 2.0, 2.0, 4.0])
    p = calibration.p_values(reference, jnp.asarray([0.0, 2.0, 3.0, 4.0, 5.0, np.nan]))
    np.testing.assert_allclose(p, [1.0, 0.8, 0.4, 0.4, 0.2, np.nan], rtol=1e-6)


def test_verdict_and_p_value_agree():
    random = np.random.default_rng(1)
    reference = np.sort(random.normal(size=199)).astype(np.float32)
    found = calibration.calibrate(reference, 0.05)
    scores = np.concatenate([random.normal(1, 2, 500).astype(np.float32), reference])
    verdicts = np.array(calibration.verdicts(scores, found.threshold))
    p = np.asarray(calibration.p_values(jnp.asarray(reference), jnp.asarray(scores)))
    np.testing.assert_array_equal(verdicts == "anomalous", p <= 0.05)


def test_what_is_not_finite_is_never_normal():
    assert calibration.verdicts(np.array([np.nan, np.inf, -np.inf, 0.0, 2.0]), 1.0) == [
        "invalid",
        "invalid",
        "invalid",
        "normal",
        "anomalous",
    ]


def test_bad_calibration_scores_are_refused():
    with pytest.raises(UserError, match="at least one"):
        calibration.calibrate(np.array([]), 0.01)
    with pytest.raises(UserError, match="1 of 2"):
        calibration.calibrate(np.array([1.0, np.nan]), 0.01)
