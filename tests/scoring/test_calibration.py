"""Thresholds that mean something."""

import dataclasses  # noqa: I001

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binom, genpareto
from tests.support import blobs

from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.scoring import build, calibration


def test_threshold_by_hand():
    scores = np.arange(1.0, 100.0)[::-1]  # 99 of them: ranks are their own values
    found = calibration.calibrate(scores, 0.05)
    assert found.threshold == 95
    assert found.rate == 0.05
    assert "99 calibration images" in found.source
    assert calibration.calibrate(scores, 0.01).threshold == 99


@pytest.mark.parametrize(
    ("n", "rate", "k"), [(10, 0.15, 10), (10, 0.25, 9), (10, 0.35, 8), (19, 0.07, 19), (99, 0.015, 99), (6, 0.5, 4)]
)
def test_a_rank_between_two_is_the_higher_one(n, rate, k):
    """11 * 0.85 = 9.35: the ninth score would be exceeded by 2 of 11, more than 15 %; the tenth is by 1 of 11."""
    found = calibration.calibrate(np.arange(1.0, n + 1), rate)
    assert found.threshold == k
    assert found.rate == pytest.approx((n + 1 - k) / (n + 1)) and found.rate <= rate < found.rate + 1 / (n + 1)


@pytest.mark.parametrize(("n", "quantile", "k"), [(10, 0.81, 9), (10, 0.9, 9), (7, 0.5, 4), (9, 1e-3, 1)])
def test_a_quantile_between_two_is_the_higher_one(n, quantile, k):
    found = calibration.by(np.arange(1.0, n + 1), settings(threshold_by="quantile", quantile=quantile))
    assert found.threshold == k and found.rate == pytest.approx((n + 1 - k) / (n + 1))


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


def settings(**values):
    return dataclasses.replace(config.Evaluate(), **values)


def in_binomial_interval(flagged, n, rate):
    """Whether the count lies in the central 95 % of the binomial distribution."""
    low, high = binom.interval(0.95, n, rate)
    return low <= flagged <= high


@pytest.mark.parametrize(
    ("rate", "ways"), [(0.01, ("rate", "quantile", "tail")), (0.05, ("rate", "quantile", "tail")), (0.002, ("tail",))]
)
@pytest.mark.parametrize("law", ["gamma", "lognormal"])
def test_a_hundred_draws_keep_their_rate(rate, ways, law):
    """Calibration parts so large that the spread is that of the fresh images, not of the threshold itself.

    The interval of 200 counts holds 96 to 99 % of a right method's draws, so that a seed may fail by chance, seldom.
    """
    random = np.random.default_rng(1)
    draw = (lambda n: random.gamma(2.0, size=n)) if law == "gamma" else (lambda n: random.lognormal(0, 0.5, size=n))
    inside, flagged = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0)
    for _ in range(100):
        scores, fresh = draw(20_000), draw(200)
        for way in ways:
            asked = settings(threshold_by=way, false_positive_rate=rate, quantile=1 - rate)
            found = calibration.by(scores, asked)
            above = (fresh > found.threshold).sum()
            inside[way] += in_binomial_interval(above, 200, rate)
            flagged[way] += above
    assert min(inside.values()) >= 93, inside
    for total in flagged.values():
        assert abs(total - 20_000 * rate) < 4 * np.sqrt(20_000 * rate)


def test_a_hundred_draws_of_a_detector_keep_their_rate(trained):
    """Real scores: calibration and fresh images are dealt anew from 4,200 that the detector never saw."""
    scores = trained[1](blobs(4200, 9))
    random = np.random.default_rng(0)
    inside = 0
    for _ in range(100):
        order = random.permutation(scores)
        found = calibration.by(order[200:], settings(false_positive_rate=0.05))
        inside += in_binomial_interval((order[:200] > found.threshold).sum(), 200, 0.05)
    assert inside >= 93


def test_quantile_and_given_by_hand():
    scores = np.arange(1.0, 101.0)
    found = calibration.by(scores, settings(threshold_by="quantile", quantile=0.9))
    assert found.threshold == 90
    assert found.rate == pytest.approx(11 / 101)
    found = calibration.by(scores, settings(threshold_by="given", threshold=98.5))
    assert found.threshold == 98.5
    assert found.rate == pytest.approx(3 / 101)
    assert "2 of 100" in found.source


@pytest.mark.parametrize("shape", [-0.3, 0.0, 0.4])
def test_the_pareto_fit_finds_its_parameters(shape):
    x = genpareto.rvs(shape, scale=2.0, size=5000, random_state=1)
    xi, sigma = calibration.fit_pareto(x)
    assert xi == pytest.approx(shape, abs=0.05)
    assert sigma == pytest.approx(2.0, rel=0.08)


def test_a_tail_reaches_beyond_the_largest_score():
    scores = np.random.default_rng(0).exponential(size=2000)
    found = calibration.by(scores, settings(threshold_by="tail", false_positive_rate=1e-4))
    assert found.threshold > scores.max()
    assert found.threshold == pytest.approx(-np.log(1e-4), rel=0.25)  # what an exponential law has
    assert "extrapolation" in found.source
    assert "0.05% at best" in found.source


def test_a_tail_that_cannot_be_fitted_is_refused():
    tail = settings(threshold_by="tail")
    for scores in (np.arange(50.0), np.ones(1000), np.repeat([1.0, 2.0], [900, 100])[:950]):
        with pytest.raises(UserError, match="at least"):
            calibration.by(scores, tail)
    with pytest.raises(UserError, match="not within the highest"):
        calibration.by(np.arange(200.0), settings(threshold_by="tail", false_positive_rate=0.2))


def test_the_review_band_lies_below_the_threshold():
    scores = np.arange(1.0, 100.0)
    found = calibration.by(scores, settings(false_positive_rate=0.01, review=0.05))
    assert (found.threshold, found.review) == (99, 95)
    assert "for review above 95" in found.source
    judged = calibration.verdicts(np.array([95.0, 95.5, 99.0, 99.5, np.nan]), found.threshold, found.review)
    assert judged == ["normal", "review", "review", "anomalous", "invalid"]
    p = np.asarray(calibration.p_values(jnp.asarray(scores), jnp.asarray([95.5, 99.0, 95.0])))
    assert (p[:2] <= 0.05).all() and p[2] > 0.05
    with pytest.raises(UserError, match="expected a higher review rate"):
        calibration.by(scores, settings(false_positive_rate=0.05, review=0.04))


def test_a_threshold_says_what_its_images_are(trained):
    """Images are not neighbours in time; those that were trained on are said to be."""
    source = trained[1].calibration.source
    assert build.IN_TIME not in source and build.TRAINED_ON not in source
    normals = blobs(30, 5)
    found = build.calibrated(trained[1], normals, trained_on=True)
    assert found.calibration.source == f"the scores of 30 images {build.TRAINED_ON}"
    np.testing.assert_array_equal(found.variables["calibration"], np.sort(trained[1](normals)))
    assert found.threshold == build.calibrated(trained[1], normals).threshold


def test_scores_beyond_all_calibration_keep_their_order(trained):
    """One p-value for all of them, and still the rank: nothing is cut."""
    scorer = trained[1]
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (40, 16, 16, 1)).astype(np.uint8)
    judged = scorer.judge(images)
    beyond = judged.scores > np.asarray(scorer.variables["calibration"])[-1]
    assert beyond.sum() > 10
    assert len(np.unique(judged.p_values[beyond])) == 1
    assert len(np.unique(judged.scores[beyond])) == beyond.sum()
