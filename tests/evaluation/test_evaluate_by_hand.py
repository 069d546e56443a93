"""Parts of an evaluation with a detector whose score is the item itself."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from ganomaly_jax.data.words import IMAGES
from ganomaly_jax.evaluation import evaluate
from ganomaly_jax.parallel import processes
from ganomaly_jax.scoring import inference
from ganomaly_jax.scoring.calibration import Calibration
from ganomaly_jax.scoring.scorer import Judgement


class Detector:
    """Promises 10 % on 100 calibration items; flags what is above 1."""

    def __init__(self):
        self.threshold, self.words = 1.0, IMAGES
        self.calibration = Calibration(1.0, 0.1, "given", review=0.5)
        self.variables = {"calibration": np.zeros(100)}
        self.judged = []

    def __call__(self, items):
        return np.asarray(items, float)

    def judge(self, items, progress=False):
        self.judged.append((len(items), progress))
        return Judgement(np.asarray(items, np.float32), np.asarray(items, np.float32) / 4, ["?"] * len(items))


def run_of(items, test=None, calibration=(), problems=()):
    dataset = SimpleNamespace(images=np.asarray(items, np.float32), problems=list(problems))
    test = np.arange(len(items)) if test is None else np.asarray(test)
    return SimpleNamespace(dataset=dataset, split=SimpleNamespace(test=test, calibration=np.asarray(calibration, int)))


@pytest.mark.parametrize("count", [1, 3, 5])
def test_processes_judge_whole_blocks_each_and_all_get_the_whole(monkeypatch, count):
    size = inference.BUCKETS[-1]
    values = np.random.default_rng(0).permutation(3 * size).astype(np.float32) / size
    test = np.arange(3 * size)[::-1][: 2 * size + 7]
    scorer, index = Detector(), [0]
    monkeypatch.setattr(processes.jax, "process_count", lambda: count)
    monkeypatch.setattr(processes.jax, "process_index", lambda: index[0])

    def gather(part):
        parts = []
        for index[0] in range(count):
            parts.append(part())
        return parts

    monkeypatch.setattr(processes, "all_gather_bytes", gather)
    found = evaluate.judge_together(scorer, run_of(values, test))
    np.testing.assert_array_equal(found.scores, values[test])
    np.testing.assert_array_equal(found.p_values, values[test] / 4)
    wanted = np.where(values[test] > 1, "anomalous", np.where(values[test] > 0.5, "review", "normal"))
    assert found.verdicts == wanted.tolist()
    # Three blocks, the last of which has 7: one process takes all, or each one, or two of five none.
    lengths = {1: [2 * size + 7], 3: [size, size, 7], 5: [size, size, 7]}[count]
    assert [length for length, _ in scorer.judged] == lengths
    assert [shown for _, shown in scorer.judged] == ([True] if count == 1 else [count == 3, False, False])


def warned(test, labels, calibration=(), values=None, problems=()):
    items = [*test, *calibration]
    run = run_of(items, np.arange(len(test)), np.arange(len(test), len(items)), problems)
    judged = Judgement(np.asarray(test, float), np.zeros(len(test)), [])
    counts = {"auroc": 0.9, "n_anomalous": 1, "n_normal": 1, "n_invalid": 0} | (values or {})
    return evaluate._warnings(run, Detector(), judged, np.asarray(labels), counts)


def test_a_quiet_evaluation_has_no_warning():
    assert warned([0.0, 2.0], [0, 1]) == []
    assert warned([], []) == []


def test_what_separates_by_a_hair():
    assert warned([0.0], [0], values={"auroc": evaluate._SEPARATES}) == []
    [said] = warned([0.0], [0], values={"auroc": evaluate._SEPARATES - 1e-6})
    assert said.startswith("The detector does not separate anomalous from normal images: AUROC 0.")
    for counts, missing in (({"n_anomalous": 0}, "anomalous"), ({"n_normal": 0}, "normal")):
        [said] = warned([0.0], [0], values={"auroc": None} | counts)
        assert said.endswith(f"the test set has no {missing} images.")


def test_flagged_normals_are_counted_apart_in_both_parts():
    """Of 100 items on a threshold set on 100, 10 % may be 10 + 3 * 4.24 + 1 = 23."""
    test = lambda n: [2.0] * n + [1.0] * (100 - n)  # noqa: E731
    assert warned(test(23), [0] * 100) == []
    [said] = warned(test(24), [0] * 100)
    assert said.startswith("24 of 100 normal test images are flagged: 24.0%, not the promised 10.0%.")
    assert warned(test(24), [1] * 24 + [0] * 76) == []
    [said] = warned([0.0], [0], calibration=test(24))
    assert said.startswith("24 of 100 calibration images are flagged")
    assert len(warned(test(24), [0] * 100, calibration=test(24))) == 2


def test_what_is_left_out_is_said():
    [said] = warned([0.0], [0], values={"n_invalid": 2})
    assert said.startswith("2 test images have ") and said.endswith("left out of all metrics.")
    [said] = warned([0.0], [0], problems=[("a.png", "no image"), ("b.png", "none")])
    assert said == "2 files could not be read, such as a.png: no image"


def test_the_worst_misses_of_each_kind(monkeypatch):
    scorer = Detector()
    monkeypatch.setattr(scorer, "reconstruct", lambda items: (items, items / 2), raising=False)
    monkeypatch.setattr(evaluate.modalities, "of", lambda _: SimpleNamespace(case=lambda _: None))
    scores = np.array([0.5, 3.0, 1.0, 2.0, 4.0, 0.25, np.nan, 1.0, 1.5])
    labels = np.array([0, 0, 0, 0, 0, 1, 0, 1, 1])
    run = run_of(scores)
    run.dataset.paths = [f"{i}.png" for i in range(9)]
    run.config = SimpleNamespace(evaluate=SimpleNamespace(worst=2))
    judged = Judgement(scores, scores / 4, [str(i) for i in range(9)])
    found = evaluate._misses(run, scorer, judged, labels)
    told = [(case.name, case.kind, case.score, case.p_value, case.verdict, case.label) for case in found]
    assert told == [
        ("4.png", "false positive", 4, 1, "4", 0),
        ("1.png", "false positive", 3, 0.75, "1", 0),
        ("5.png", "false negative", 0.25, 0.0625, "5", 1),
        ("7.png", "false negative", 1, 0.25, "7", 1),
    ]
    assert [float(case.x) for case in found] == [4, 3, 0.25, 1] and float(found[1].x_hat) == 1.5
    quiet = dataclasses.replace(judged, scores=np.zeros(9))
    assert evaluate._misses(run, scorer, quiet, np.zeros(9)) == []
