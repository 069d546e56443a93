"""Intervals and the paired test: by hand, against scikit-learn, and how often an interval holds the truth."""

from statistics import NormalDist

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.evaluation import auroc_intervals, metrics


def draw(seed, n_normal, n_anomalous, shift=1.0):
    random = np.random.default_rng(seed)
    labels = np.repeat([0, 1], [n_normal, n_anomalous])
    return labels, random.normal(0, 1, n_normal + n_anomalous) + shift * labels


def test_auroc_is_scikit_learns_ties_included():
    labels, scores = draw(0, 80, 50)
    for values in (scores, np.round(scores), -scores, np.zeros(130)):
        assert metrics.auroc(labels, values) == pytest.approx(roc_auc_score(labels, values), abs=1e-12)


def test_a_resample_is_what_scikit_learn_makes_of_the_same_draw():
    labels, scores = draw(1, 30, 20)
    scores = np.round(scores, 1)  # ties
    found = auroc_intervals.auroc_interval(labels, scores, resamples=200, seed=3)
    random = np.random.default_rng(3)
    normal, anomalous = scores[labels == 0], scores[labels == 1]
    rows = [random.integers(0, 30, (200, 30)), random.integers(0, 20, (200, 20))]
    by_hand = [roc_auc_score(labels, np.concatenate([normal[i], anomalous[j]])) for i, j in zip(*rows, strict=True)]
    assert found.value == pytest.approx(roc_auc_score(labels, scores))
    assert [found.low, found.high] == pytest.approx(np.quantile(by_hand, [0.025, 0.975]))


def test_blocks_change_only_the_draw(monkeypatch):
    labels, scores = draw(2, 200, 100)
    whole = auroc_intervals.auroc_interval(labels, scores)
    monkeypatch.setattr(auroc_intervals, "_BLOCK", 1000)
    cut = auroc_intervals.auroc_interval(labels, scores)
    assert [cut.low, cut.high] == pytest.approx([whole.low, whole.high], abs=0.01)


def test_an_interval_holds_the_truth_as_often_as_it_says():
    truth = NormalDist().cdf(1 / 2**0.5)
    held = 0
    for seed in range(200):
        found = auroc_intervals.auroc_interval(*draw(seed, 60, 60), level=0.9, resamples=300)
        held += found.low <= truth <= found.high
    assert 0.84 <= held / 200 <= 0.95


def test_a_level_and_more_images_narrow_it():
    def width(n, level):
        found = auroc_intervals.auroc_interval(*draw(5, n, n), level=level)
        return found.high - found.low

    assert width(400, 0.95) < width(50, 0.95)
    assert width(50, 0.5) < width(50, 0.95)


def test_delong_by_hand():
    """Two normal, three anomalous images; placements worked out on paper."""
    labels = [0, 0, 1, 1, 1]
    # first: anomalous above normals (0, 1, 2 of 2): 1, 0.5, 1 -> 5/6; normals below anomalous: 3/3, 2/3.
    # second: anomalous 0.5, 1, 0 -> 1/2; normals below anomalous: 2/3, 1/3.
    first, second = [1, 3, 4, 2, 5], [1, 3, 2, 4, 0]
    found = auroc_intervals.paired(labels, first, second)
    of_normal, of_anomalous = [1 / 3, 1 / 3], [0.5, -0.5, 1.0]
    error = (np.var(of_normal, ddof=1) / 2 + np.var(of_anomalous, ddof=1) / 3) ** 0.5
    assert found.difference.value == pytest.approx(1 / 3)
    assert found.difference.high - found.difference.value == pytest.approx(1.959964 * error, rel=1e-6)
    assert found.p_value == pytest.approx(2 * NormalDist().cdf(-1 / 3 / error))


def test_delong_agrees_with_the_bootstrap_of_the_difference():
    labels, first = draw(6, 150, 100)
    second = first + np.random.default_rng(7).normal(0, 1, 250)
    found = auroc_intervals.paired(labels, first, second)
    random = np.random.default_rng(8)
    changes = []
    for _ in range(1000):
        rows = np.concatenate([random.integers(0, 150, 150), 150 + random.integers(0, 100, 100)])
        changes.append(roc_auc_score(labels, first[rows]) - roc_auc_score(labels, second[rows]))
    assert (found.difference.high - found.difference.low) / 2 / 1.96 == pytest.approx(np.std(changes), rel=0.12)


def test_no_difference_is_found_by_chance_as_often_as_the_p_value_says():
    below = 0
    for seed in range(300):
        labels, first = draw(seed, 60, 60)
        second = np.random.default_rng(1000 + seed).normal(0, 1, 120) + labels
        below += auroc_intervals.paired(labels, first, second).p_value < 0.1
    assert 0.05 <= below / 300 <= 0.16


def test_the_same_scores_do_not_differ():
    labels, scores = draw(9, 20, 20)
    assert auroc_intervals.paired(labels, scores, 3 * scores + 1).p_value == 1
    apart = np.where(labels == 1, 5.0, 0.0)
    assert auroc_intervals.paired(labels, apart, np.zeros(40)).p_value == 0
    assert auroc_intervals.paired(labels, apart, apart).p_value == 1


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: auroc_intervals.auroc_interval([0, 0], [1.0, 2.0]), "both classes"),
        (lambda: auroc_intervals.auroc_interval([0, 1], [1.0, np.nan]), "NaN"),
        (lambda: auroc_intervals.auroc_interval([0, 1], [1.0, 2.0], level=1.0), "between 0 and 1"),
        (lambda: auroc_intervals.auroc_interval([0, 1], [1.0, 2.0], resamples=0), "at least 1"),
        (lambda: auroc_intervals.paired([0, 1, 1], [1.0, 2.0, 3.0], [1.0, 2.0]), "same length"),
        (lambda: auroc_intervals.paired([0, 1, 1], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]), "single item"),
    ],
)
def test_what_cannot_be_is_said(call, said):
    with pytest.raises(UserError, match=said):
        call()
