"""process.py and nab.py: what counts as a detection, a delay and a false alarm, by hand; and bad input."""

import json

import numpy as np
import pytest

from benchmarks.accuracy import nab, process, process_page


def runs_of(fault, before=0.0):
    """Scores: normal rows 0, 1, ..., 959; each faulty run `before` for 160 rows and then `fault`."""
    found = {"test_00": np.arange(960.0)}
    for i in range(1, process.FAULTS + 1):
        found[f"test_{i:02d}"] = np.concatenate([np.full(process.FIRST, before), np.asarray(fault, float)])
    return found


def test_the_threshold_is_the_tenth_highest_normal_score():
    found = process.figures(runs_of(np.full(800, 951.0)), 1.0)
    assert found["threshold"] == 950.0
    assert found["false_alarms"] == 0
    assert process.means(found)["detected"] == 1
    assert process.figures(runs_of(np.full(800, 950.0)), 1.0)["faults"]["3"]["detected"] == 0


def test_delay_waits_for_rows_one_after_the_other():
    fault = np.zeros(800)
    fault[[3, 4, 5, 6, 7]] = 2000  # one too few
    fault[100:106] = 2000
    one = process.figures(runs_of(fault), 1.0)["faults"]["1"]
    assert one["delay"] == 105
    assert one["detected"] == pytest.approx(11 / 800)
    assert process.figures(runs_of(np.zeros(800)), 1.0)["faults"]["1"]["delay"] is None


def test_false_alarms_are_those_before_the_faults():
    assert process.figures(runs_of(np.zeros(800), before=2000), 1.0)["false_alarms"] == 1


def test_smoothing_by_hand_and_from_the_first_score_that_is_there():
    found = process.smoothed(np.array([np.nan, 4.0, 0.0, 0.0]), 0.5)
    np.testing.assert_array_equal(found, [np.nan, 4, 2, 1])


def test_together_orders_by_how_rare_and_keeps_what_is_missing():
    one, other = runs_of(np.full(800, 2000.0)), runs_of(np.full(800, 10.0))
    one["test_01"] = np.concatenate([[np.nan], one["test_01"][1:]])
    for combine in process.COMBINED.values():
        found = process.together({"a": one, "b": other}, ["a", "b"], combine)
        assert np.isnan(found["test_01"][0]) and np.isfinite(found["test_01"][1:]).all()
        assert found["test_02"][-1] > found["test_02"][0]


def test_rows_side_by_side_and_the_distance_of_all_components():
    assert process.lagged(np.arange(8.0).reshape(4, 2), 3).tolist() == [[0, 1, 2, 3, 4, 5], [2, 3, 4, 5, 6, 7]]
    x = np.random.default_rng(0).normal(size=(300, 2)) @ [[1, 0.9], [0, 0.1]]
    found = process.statistical({"train_00": x, "test_00": x[:5]})
    centred = x[:5] - x.mean(axis=0)
    wanted = np.einsum("bi,ij,bj->b", centred, np.linalg.inv(np.cov(x.T)), centred)
    np.testing.assert_allclose(found["Mahalanobis"]["test_00"], wanted, rtol=1e-6)
    late = found["dynamic Mahalanobis"]["test_00"]
    assert np.isnan(late).tolist() == [True, True, False, False, False]


def test_the_page_has_each_method_once_a_way_and_the_trust(tmp_path):
    made = process.figures(runs_of(np.full(800, 951.0)), 1.0)
    made["means"] = process.means(made)
    report = {
        "machine": {"jax": {"device": "cpu"}, "processor": "P", "cores": 1, "commit": None, "versions": {}},
        "load_average": {"before": [0], "after": [0]},
        "date": "today",
        "settings": {"steps": 1, "seeds": [0]},
        "found": {"PCA Q": {"each row": {"0": made}, "smoothed": {"0": made}}},
        "published": process.published(),
    }
    page = process_page.markdown(report)
    assert page.count("| PCA Q | 1.000 |") == 2
    assert "unverified" in page
    assert len(process.published()) == 7
    json.dumps(report, allow_nan=False)


def test_alarms_of_the_machine_by_hand():
    scores = np.zeros(50 * nab.DAY)
    scores[25 * nab.DAY] = 0.5  # in the calibration part: one of 2,880 rows is more than one in a thousand
    spans = [(35 * nab.DAY, 36 * nab.DAY), (45 * nab.DAY, 46 * nab.DAY)]
    scores[35 * nab.DAY + 24] = 9  # two hours late
    scores[[40 * nab.DAY, 40 * nab.DAY + 100, 42 * nab.DAY]] = 9  # false; the second is the first one's
    found = nab.figures(scores, spans, 1.0)
    assert found["delays_h"] == [2.0, None]
    assert found["false_alarms"] == 2
    assert found["false_alarms_a_month"] == pytest.approx(2 / (18 / 30))


@pytest.mark.parametrize("module", [process, nab])
def test_a_source_that_is_not_there_is_one_sentence(module, tmp_path, capsys):
    assert module.main(["--source", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    assert "error: --source" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
