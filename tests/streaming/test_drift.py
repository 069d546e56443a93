"""Drift of a stream: the stated time between false alarms by simulation, shifts that are found, states that go on."""

import dataclasses
import itertools
import json

import jax.numpy as jnp
import numpy as np
import pytest

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.evaluation import two_sample
from ganomaly_jax.scoring import calibration
from ganomaly_jax.streaming import drift, run_length

WINDOW, BETWEEN = 50, 1000.0
ONLY = {
    "ks": drift.Settings(WINDOW, ks=BETWEEN, mmd=0, cusum=0),
    "cusum": drift.Settings(WINDOW, ks=0, mmd=0, cusum=BETWEEN),
    "mmd": drift.Settings(WINDOW, ks=0, mmd=BETWEEN, cusum=0),
}


def stream(state, scores, latents=None):
    """The alarms (test, item) of a stream, and the state after it."""
    found = []
    for i, score in enumerate(scores):
        state, report = drift.update(state, score, None if latents is None else latents[i])
        if report is not None:
            found += [(alarm.test, report.item) for alarm in report.alarms]
    return found, state


@pytest.fixture(scope="module")
def started():
    """A state of each test alone, by 300 normal scores and latents."""
    random = np.random.RandomState(0)
    scores, latents = random.normal(size=300), random.normal(size=(300, 3))
    return {test: drift.start(settings, scores, latents) for test, settings in ONLY.items()}


@pytest.mark.parametrize("test", ["ks", "cusum"])
def test_the_stated_time_between_false_alarms_of_scores_holds(started, test):
    """On average over calibration parts: each has 300 scores of its own, and a stream of as many items as stated times
    6. The limits depend on how many scores there are alone."""
    random, alarms, items = np.random.RandomState(1), 0, 0
    for _ in range(30):
        reference = tuple(np.sort(random.normal(size=300)).tolist())
        own = dataclasses.replace(started[test], reference=reference)
        found, _ = stream(own, random.normal(size=6000))
        alarms, items = alarms + len(found), items + 6000
    stated = started[test].between[test]
    assert stated >= BETWEEN
    # 180 alarms are expected at most; ks promises its time at least, and its statistic has steps.
    assert 0.7 < items / alarms / stated < (1.4 if test == "cusum" else 1.8)


def test_the_stated_time_between_false_alarms_of_latents_is_about_right():
    """The limit is an approximation: within a factor of two."""
    random, alarms, items = np.random.RandomState(2), 0, 0
    for _ in range(5):
        state = drift.start(ONLY["mmd"], random.normal(size=300), random.normal(size=(300, 3)))
        found, _ = stream(state, np.zeros(20 * WINDOW * 20), random.normal(size=(20 * WINDOW * 20, 3)))
        alarms, items = alarms + len(found), items + 20 * WINDOW * 20
    assert 0.5 < items / alarms / BETWEEN < 2


@pytest.mark.parametrize("test", ["ks", "cusum", "mmd"])
def test_a_true_shift_is_found_soon_and_told_with_its_beginning(started, test):
    random = np.random.RandomState(3)
    state = started[test]
    _, state = stream(state, random.normal(size=WINDOW), random.normal(size=(WINDOW, 3)))
    state = dataclasses.replace(state, cusum=0.0, since=state.seen)
    for _ in range(4 * WINDOW):
        state, report = drift.update(state, random.normal() + 1.5, random.normal(size=3) + 1)
        if report is not None:
            break
    (alarm,) = report.alarms
    assert alarm.test == test and report.item - WINDOW < (2 * WINDOW if test != "cusum" else 30)
    assert WINDOW <= alarm.since <= report.item and alarm.statistic >= alarm.limit
    assert f"{alarm.between:,.0f} items" in report.words
    assert state.progress[test] >= 1 or test == "cusum"


def test_an_alarm_of_cusum_began_where_the_sum_last_left_nothing(started):
    """Twice up and down to 0 before it rises for good; after the alarm the next one begins anew."""
    high, low = 9.0, -9.0  # p-values of 1 / 301, which add 2.16, and of 1, which take 0.69 away
    state = started["cusum"]
    up = float(drift.increments(1 / 301))
    assert up == pytest.approx(np.log(0.5) + 0.5 * np.log(301))
    length = int(np.ceil(state.limits["cusum"] / up))
    scores = [low, high, *[low] * 4, high, *[low] * 4, *[high] * length]
    seen = []
    for score in [*scores, *[low] * 3, *[high] * length]:
        state, report = drift.update(state, score)
        seen.append(state.since)
        if report is not None:
            [alarm] = report.alarms
            assert (report.item, alarm.since) in ((10 + length, 11), (13 + 2 * length, 14 + length))
            assert alarm.statistic == pytest.approx(length * up) and state.cusum == 0
    assert seen[:12] == [1, 1, 1, 1, 1, 6, 6, 6, 6, 6, 11, 11][:12]
    assert seen[10 + length] == 11 + length and seen[13 + length] == 14 + length
    assert seen[-1] == 14 + 2 * length


def test_a_statistic_that_equals_its_limit_but_for_rounding_is_an_alarm(started):
    state = dataclasses.replace(started["ks"], window=(9.0,) * (WINDOW - 1))
    distance = two_sample.distance(np.array(state.reference), np.full(WINDOW, 9.0))
    for limit, alarms in ((np.nextafter(distance, 2), 1), (distance * (1 + 1e-6), 0)):
        _, report = drift.update(dataclasses.replace(state, limits={"ks": float(limit)}), 9.0)
        assert (report is not None) == bool(alarms)


def test_scores_that_fall_are_no_alarm_of_cusum_but_of_ks(started):
    scores = np.random.RandomState(4).normal(size=10 * WINDOW) - 2
    assert stream(started["cusum"], scores)[0] == []
    assert stream(started["ks"], scores)[0]


def test_after_a_restart_it_goes_on_as_if_nothing_had_been():
    random = np.random.RandomState(5)
    scores, latents = random.normal(size=130) + 0.5, random.normal(size=(130, 3))
    whole = drift.start(drift.Settings(WINDOW, BETWEEN, BETWEEN, BETWEEN), random.normal(size=200), latents[:60])
    for score, latent in zip(scores, latents, strict=True):
        restarted = drift.from_dict(json.loads(json.dumps(drift.to_dict(whole))))
        assert restarted == whole
        whole, report = drift.update(whole, score, latent)
        again, other = drift.update(restarted, score, latent)
        assert again == whole and other == report
    assert set(whole.progress) == {"ks", "mmd", "cusum"}


def test_what_is_not_finite_changes_nothing(started):
    for score in (np.nan, np.inf):
        assert drift.update(started["ks"], score) == (started["ks"], None)


def test_p_values_are_those_of_the_calibration(started):
    state = started["cusum"]
    scores = np.array([-9.0, state.reference[7], 0.123, 9.0])
    theirs = calibration.p_values(jnp.asarray(state.reference), jnp.asarray(scores))
    np.testing.assert_allclose([drift.p_value(state, score) for score in scores], theirs, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "scores", "words"),
    [
        (drift.Settings(window=5), np.arange(100.0), "window=5"),
        (drift.Settings(ks=10), np.arange(100.0), "ks=10"),
        (drift.Settings(), np.arange(49.0), "49 calibration scores"),
        (drift.Settings(), np.full(100, np.nan), "finite"),
        (drift.Settings(ks=0, cusum=0), np.arange(100.0), "no drift test is active"),
    ],
)
def test_what_cannot_be_is_refused(settings, scores, words):
    with pytest.raises(UserError, match=words):
        drift.start(settings, scores)


@pytest.mark.parametrize("latents", [np.zeros((49, 3)), np.zeros(60), np.full((60, 3), np.nan), np.zeros((60, 3, 1))])
def test_latents_that_cannot_be_are_refused(latents):
    with pytest.raises(UserError, match="calibration latents of shape"):
        drift.start(drift.Settings(ks=0, cusum=0), np.arange(100.0), latents)


@pytest.mark.parametrize(
    "change", [{"seen": -1}, {"window": None}, {"limits": {"ks": 1.0}}, {"more": 1}, {"reference": []}]
)
def test_a_state_that_is_none_is_refused(started, change):
    with pytest.raises(UserError, match="stored state of the drift tests is invalid"):
        drift.from_dict(drift.to_dict(started["cusum"]) | change)


def test_run_lengths_by_hand():
    """Up by the limit with chance p, down otherwise: the first time of a coin."""
    found = run_length.run_lengths(np.array([-5.0, 1.0]), np.array([[0.9, 0.1], [0.5, 0.5]]), 0.9)
    np.testing.assert_allclose(found, [10, 2], rtol=1e-6)


def test_the_chance_of_a_distance_by_all_orders():
    n, m = 4, 3
    distances = []
    for places in itertools.combinations(range(n + m), n):
        others = [i for i in range(n + m) if i not in places]
        distances.append(two_sample.distance(np.array(places, float), np.array(others, float)))
    for d in sorted(set(distances)):
        assert two_sample.chance(d, n, m) == pytest.approx(np.mean(np.array(distances) >= d - 1e-9))
    least, level = two_sample.limit(n, m, 0.06)
    assert least > 0.75 and level == pytest.approx(2 / 35)  # 0.75 and 1 are the largest there are
