"""The comparison of two detectors by hand: a score is the value of an item, or what a table says of it."""

import copy
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from ganomaly_jax.core import config
from ganomaly_jax.data import datasets
from ganomaly_jax.data.words import IMAGES
from ganomaly_jax.evaluation import acceptance, two_sample


class Detector:
    """A detector whose score of an item is the item times `sign`."""

    def __init__(self, threshold, reference, sign=1.0):
        self.threshold, self.sign = threshold, sign
        self.variables = {"calibration": np.asarray(reference, np.float32)}
        self.calibration = SimpleNamespace(rate=0.1)
        self.config = SimpleNamespace(evaluate=dataclasses.replace(config.Evaluate(), false_positive_rate=0.25))
        self.words = IMAGES

    def __call__(self, images):
        return self.sign * np.asarray(images, np.float64)


# The value of an item, whether it is anomalous, its part (0 training, 1 test, 2 calibration), whether it is new.
ITEMS = [
    (50.0, 0, 0, 0),
    (1.0, 0, 1, 0),
    (2.0, 0, 1, 0),
    (6.0, 0, 1, 0),
    (3.0, 0, datasets.CALIBRATION, 0),
    (4.0, 0, datasets.CALIBRATION, 1),
    (5.0, 0, datasets.CALIBRATION, 1),
    (8.0, 1, 1, 0),
    (9.0, 1, 1, 0),
    (4.5, 1, 1, 1),
    (np.nan, 1, 1, 1),
]


@pytest.fixture
def compared():
    values, labels, parts, origins = (np.array(column) for column in zip(*ITEMS, strict=True))
    dataset = SimpleNamespace(
        images=values, labels=labels, classes=("good", "bad"), normal=frozenset({"good"}), parts=parts
    )
    old, new = Detector(5.5, [1, 2, 3]), Detector(-3.5, [1, 2, 3, 4, 5], sign=-1.0)
    return acceptance.compare(old, new, dataset, origins)


def test_what_is_counted_by_hand(compared):
    # Of the calibration scores 3, 4, 5 the old detector's threshold at 25 % is the largest.
    assert compared["thresholds"] == {"old": 5.5, "recalibrated": 5.0, "new": -3.5}
    assert (compared["promised"], compared["calibration"], compared["left_out"]) == (0.1, 5, 1)
    assert compared["counted_in"] == {"old": "test", "new": "calibration"}
    count = lambda count, of: {"count": count, "of": of}  # noqa: E731
    assert compared["flagged"]["old"] == {"old": count(1, 3), "recalibrated": count(1, 3), "new": count(2, 3)}
    assert compared["flagged"]["new"] == {"old": count(0, 2), "recalibrated": count(0, 2), "new": count(0, 2)}
    assert compared["found"] == {"old": count(2, 3), "recalibrated": count(2, 3), "new": count(0, 3)}
    assert compared["found_change"]["value"] == pytest.approx(-2 / 3)
    # New normals 4 and 5 beside anomalies 8, 9 and 4.5: one of six pairs is the wrong way.
    assert compared["beyond"] == pytest.approx(1 / 6)
    whole, before = compared["auroc"]["all"], compared["auroc"]["old"]
    assert (whole["normal"], whole["anomalous"], before["normal"], before["anomalous"]) == (6, 3, 4, 2)
    assert whole["old"]["value"] == pytest.approx(16 / 18) and whole["new"]["value"] == pytest.approx(2 / 18)
    assert before["old"]["value"] == 1 and before["difference"]["value"] == -1
    distance, p_value = two_sample.kolmogorov_smirnov(np.array([1.0, 2, 3]), np.array([4.0, 5]))
    assert (distance, compared["shift"]) == (1, {"statistic": 1, "p_value": p_value})


def test_a_class_of_one_has_no_ranking():
    scores = {"old": np.arange(5.0), "new": np.arange(5.0)}
    for labels, there in (([0, 0, 0, 0, 1], False), ([0, 1, 1, 1, 1], False), ([0, 0, 0, 1, 1], True)):
        found = acceptance._ranking(np.array(labels), scores, np.ones(5, bool))
        assert (found is not None) == there
    assert acceptance._beyond(np.arange(3.0), np.zeros(3, bool), np.ones(3, bool)) is None
    assert acceptance._beyond(np.arange(3.0), np.ones(3, bool), np.zeros(3, bool)) is None


def test_the_change_of_what_is_found_has_its_interval():
    old, new = np.repeat([True, False], [30, 70]), np.repeat([True, False, True], [10, 70, 20])
    found = acceptance._change(old, new)  # 20 are lost, 20 are gained
    assert found.value == 0 and found.low == pytest.approx(-found.high, abs=0.03)
    assert found.high == pytest.approx(1.96 * np.sqrt(0.4 / 100), abs=0.015)  # differences of -1, 0 and 1
    assert acceptance._change(old, ~old & new).value == pytest.approx((20 - 30) / 100)
    assert acceptance._change(old, old).high == 0


def test_lines_say_what_was_compared(compared):
    lines = acceptance.describe(compared, "W", "NEW")
    text = "\n".join(lines)
    assert [line.split()[-9:] for line in lines if line.startswith("old, as it is")] == [
        ["1", "of", "3", "0", "of", "2", "2", "of", "3"]
    ]
    assert "all held-out images (6 normal, 3 anomalous): old 0.8889, new 0.1111" in text
    assert "fewer than 10 images of a class" in text and "1 images with " in text
    assert "the new normal images are counted in the calibration part" in text and "the old normal" not in text
    assert "no anomalies are labelled" not in text
    other = copy.deepcopy(compared) | {"left_out": 0, "counted_in": {"old": "test", "new": "test"}}
    other["auroc"] = {"old": None, "all": compared["auroc"]["all"] | {"normal": 10, "anomalous": 10}}
    other["found"] = {side: {"count": 0, "of": 0} for side in acceptance.SIDES}
    text = "\n".join(acceptance.describe(other, "W", "NEW"))
    for absent in ("fewer than 10", "images with", "calibration part", "old test set"):
        assert absent not in text
    assert "no anomalies are labelled" in text and text.count("none labelled") == 3


def test_advice_at_its_limits():
    """Of 100 items 6 are within what a promise of 1 % on 100 allows, and 7 are not."""
    count = {side: {"count": 0, "of": 100} for side in acceptance.SIDES}
    shifted = {"statistic": 0.5, "p_value": 0.001}
    ranking = {"difference": {"value": 0.0, "low": 0.0, "high": 0.0}}
    figures = {"promised": 0.01, "calibration": 100, "shift": shifted, "beyond": None, "auroc": {"all": ranking}}

    def advice(old=7, recalibrated=6, **more):
        new = count | {"old": {"count": old, "of": 100}, "recalibrated": {"count": recalibrated, "of": 100}}
        return acceptance._advice(figures | {"flagged": {"new": new}} | more, "W", "NEW", "images")

    assert len(advice()) == 1 and "`ganomaly recalibrate --workdir W --data NEW`" in advice()[0]
    assert len(advice(recalibrated=7)) == 1 and "recalibrate" not in advice(recalibrated=7)[0]
    assert advice(old=6) == [] and advice(shift=shifted | {"p_value": 0.01}) == []
    for low, high, same in ((-0.1, 0.0, True), (0.0, 0.1, True), (0.01, 0.1, False), (-0.1, -0.01, False)):
        found = advice(auroc={"all": {"difference": {"value": 0.0, "low": low, "high": high}}})
        assert ("recalibrate" in found[0]) == same
    assert "recalibrate" not in advice(auroc={"all": None})[0]
    assert len(advice(beyond=0.51)) == 2 and len(advice(beyond=0.5)) == 1
