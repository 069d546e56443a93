"""metrics.json, predictions.csv, the sentences that a user must not miss."""

import csv  # noqa: I001
import json
import shutil
import sys

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from tests.support import blobs

from ganomaly_jax import evaluate
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.report import html
from ganomaly_jax.runs import lock


@pytest.fixture
def workdir(trained, tmp_path):
    """A copy that may be written to."""
    shutil.copytree(trained[0], tmp_path / "run")
    return tmp_path / "run"


def rows(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_metrics_follow_from_the_predictions(workdir, arrays):
    # 40 of the 200 normal images and all 40 anomalous ones: the split of the training.
    found = evaluate(workdir, arrays=arrays)
    written = json.loads((folder := workdir / "evaluations" / "arrays").joinpath("metrics.json").read_text())
    assert written["n_normal"] == 200
    assert written["n_anomalous"] == 40
    predictions = rows(folder / "predictions.csv")
    labels = np.array([int(row["label"]) for row in predictions])
    scores = np.array([row["score"] for row in predictions]).astype(np.float32)  # what was written, to the bit
    assert abs(written["auroc"] - roc_auc_score(labels, scores)) < 1e-6
    assert written["auroc"] > 0.9
    assert written["seed"] == 0
    assert "calibration images" in written["threshold_source"]
    flagged = np.array([row["verdict"] == "anomalous" for row in predictions])
    np.testing.assert_array_equal(flagged, scores > written["threshold"])
    assert abs(written["true_positive_rate"] - flagged[labels == 1].mean()) < 1e-6
    for name in ("roc.png", "roc.csv", "precision_recall.png", "histogram.png", "examples.png", "losses.png"):
        assert (folder / "pictures" / name).stat().st_size > 100, name
    assert (found.folder, found.page) == (folder, folder / "report.html")
    assert "base64" in found.page.read_text(encoding="utf-8")


def test_the_new_folder_of_an_evaluation_is_locked(workdir, arrays, tmp_path, monkeypatch):
    module, seen = sys.modules["ganomaly_jax.evaluation.evaluate"], []
    before = module._data

    def data(*args, **kwargs):
        seen.append((tmp_path / "new" / lock.NAME).exists())
        return before(*args, **kwargs)

    monkeypatch.setattr(module, "_data", data)
    evaluate(workdir, arrays=arrays, out=tmp_path / "new")
    assert seen == [True] and not (tmp_path / "new" / lock.NAME).exists()


@pytest.mark.parametrize("library", ["matplotlib.figure", "jinja2"])
def test_without_a_library_of_the_report_there_is_a_sentence_in_its_place(workdir, arrays, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    html.environment.cache_clear()
    found = evaluate(workdir, arrays=arrays)
    assert found.page is None and not (found.folder / "report.html").exists()
    assert f"report.html need {library.partition('.')[0]}: pip install" in found.metrics["warnings"][-1]
    assert (found.folder / "metrics.json").exists() and (found.folder / "predictions.csv").exists()


def test_a_coin_is_called_a_coin(workdir, arrays):
    images, labels = arrays
    shuffled = np.random.default_rng(0).permutation(labels)
    found = evaluate(workdir, arrays=(images, shuffled))
    assert any("does not separate" in sentence for sentence in found.metrics["warnings"])


def test_normals_that_look_different_are_noticed(workdir):
    found = evaluate(workdir, arrays=(blobs(60, 5, anomalous=True), np.zeros(60, np.int64)))
    assert any("60 normal test images are flagged" in sentence for sentence in found.metrics["warnings"])


def test_one_class_only_is_not_defined_rather_than_nan(workdir):
    found = evaluate(workdir, arrays=(blobs(31, 5), np.zeros(31, np.int64)))
    assert found.metrics["auroc"] is None
    assert "NaN" not in (found.folder / "metrics.json").read_text()
    assert any("undefined: the test set has no anomalous" in sentence for sentence in found.metrics["warnings"])


def test_nan_pixels_are_counted_and_in_no_figure(workdir):
    images = np.concatenate([blobs(20, 5), blobs(20, 6, anomalous=True)]).astype(np.float32) / 127.5 - 1
    clean = evaluate(workdir, arrays=(images, np.repeat([0, 1], 20))).metrics
    images[[0, 25]] = np.nan
    found = evaluate(workdir, arrays=(images, np.repeat([0, 1], 20)), overwrite=True)
    assert found.metrics["n_invalid"] == 2
    assert found.metrics["n_normal"] == found.metrics["n_anomalous"] == 19
    assert abs(found.metrics["auroc"] - clean["auroc"]) < 0.1
    predictions = rows(found.folder / "predictions.csv")
    assert predictions[0]["verdict"] == predictions[25]["verdict"] == "invalid"
    assert predictions[0]["score"] == ""
    assert "NaN" in predictions[0]["reason"]


def test_another_rate_gives_another_threshold(workdir, arrays):
    strict = evaluate(workdir, arrays=arrays).metrics["threshold"]
    loose = evaluate(workdir, arrays=arrays, false_positive_rate=0.5, out=workdir / "loose").metrics
    assert loose["threshold"] < strict
    with pytest.raises(UserError, match="between 0 and 1"):
        evaluate(workdir, arrays=arrays, false_positive_rate=1.5, overwrite=True)


def test_worst_misses_have_their_picture(workdir, arrays):
    images, labels = arrays
    swapped = labels.copy()
    swapped[:3], swapped[-3:] = 1, 0  # three normal images called anomalous and the reverse
    found = evaluate(workdir, arrays=(images, swapped))
    kinds = [case.kind for case in found.misses]
    assert kinds.count("false positive") >= 3
    assert kinds.count("false negative") >= 3
    worst = [case.score for case in found.misses if case.kind == "false positive"]
    assert worst == sorted(worst, reverse=True)


def test_a_run_on_arrays_needs_them_again(workdir):
    with pytest.raises(UserError, match="data"):
        evaluate(workdir)
