"""Figures and thresholds by group: intervals against known values, a bias that is found, and one that is mended."""

import csv  # noqa: I001
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score
from tests.support import blobs

import ganomaly_jax
from ganomaly_jax import evaluate
from ganomaly_jax.cli import main
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.evaluation import group_metrics
from ganomaly_jax.scoring import calibration
from ganomaly_jax.scoring.recalibration import recalibrate


@pytest.fixture
def workdir(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(("k", "n"), [(0, 10), (1, 10), (5, 10), (10, 10), (3, 1000)])
def test_wilson(k, n):
    interval = binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert group_metrics.wilson(k, n) == pytest.approx([k / n, interval.low, interval.high], abs=1e-9)
    assert group_metrics.wilson(0, 0) is None


def test_auroc_interval():
    random = np.random.default_rng(0)
    normal, anomalous = random.normal(0, 1, 60).round(1), random.normal(1, 1, 40).round(1)  # with ties
    value, low, high = group_metrics.auroc(normal, anomalous, 0)
    labels = np.repeat([0, 1], [60, 40])
    assert value == pytest.approx(roc_auc_score(labels, np.concatenate([normal, anomalous])), abs=1e-12)
    resampled = [
        roc_auc_score(labels, np.concatenate([random.choice(normal, 60), random.choice(anomalous, 40)]))
        for _ in range(1000)
    ]
    np.testing.assert_allclose([low, high], np.quantile(resampled, [0.025, 0.975]), atol=0.015)
    value, low, high = group_metrics.auroc(np.ones(30), np.ones(20), 0)
    assert (value, low, high) == (0.5, 0.5, 0.5)
    assert group_metrics.auroc(normal, anomalous[:0], 0) is None
    value, low, high = group_metrics.auroc(normal, anomalous, 0)
    assert group_metrics.auroc(normal, anomalous, 0) == [value, low, high]


def test_a_score_at_the_threshold_is_not_above_it():
    scorer = SimpleNamespace(
        calibration=calibration.Calibration(2.0, 0.1, "given"), config=SimpleNamespace(evaluate=None)
    )
    scores, labels = np.array([1.0, 2.0, 3.0, 2.0, 2.5, 9.0]), np.array([0, 0, 0, 1, 1, 0])
    found = group_metrics.figures(scorer, scores, labels, np.array(["a"] * 5 + [""], object), 0)
    [row] = found["rows"]
    assert (row["n_normal"], row["n_anomalous"], row["threshold"], found["unnamed"]) == (3, 2, 2.0, 1)
    assert row["false_positive_rate"][0] == pytest.approx(1 / 3) and row["true_positive_rate"][0] == 0.5


def brighter(images):
    return np.minimum(images.astype(int) + 50, 255).astype(np.uint8)


@pytest.fixture
def two_lines():
    """(images, labels, names): line B has brighter light, which the detector was not trained on."""
    normal, odd = blobs(160, 30), blobs(40, 31, anomalous=True)
    images = np.concatenate([normal[:80], brighter(normal[80:]), odd[:20], brighter(odd[20:])])
    return images, np.repeat([0, 1], [160, 40]), np.repeat(["A", "B", "A", "B"], [80, 80, 20, 20])


def test_a_bias_is_found_and_said(workdir, two_lines):
    images, labels, names = two_lines
    evaluation = evaluate(workdir, arrays=(images, labels), by=[*names[:-1], ""])
    found = evaluation.metrics["groups"]
    assert json.loads((evaluation.folder / "metrics.json").read_text())["groups"] == found
    a, b = found["rows"]
    assert (a["group"], a["n_normal"], a["n_anomalous"]) == ("A", 80, 20)
    assert b["n_anomalous"] == 19
    assert found["unnamed"] == 1
    scorer = ganomaly_jax.load(workdir)
    flagged = scorer(images[80:160]) > scorer.threshold
    assert b["false_positive_rate"][0] == pytest.approx(flagged.mean())
    assert b["false_positive_rate"][0] > 0.5 > a["false_positive_rate"][0]
    assert "highest in B, " in found["gaps"][0]
    assert "chance is unlikely" in found["gaps"][0]
    page = (evaluation.folder / "report.html").read_text(encoding="utf-8")
    assert "Results by group" in page
    assert "chance is unlikely" in page
    assert "in no group" in page


def test_groups_with_their_own_threshold_keep_their_rate(workdir, two_lines):
    normals = np.concatenate([blobs(150, 40), brighter(blobs(150, 41))])
    names = np.repeat(["A", "B"], 150)
    recalibrate(workdir, arrays=normals, by=names, false_positive_rate=0.05)
    made = ganomaly_jax.load(workdir)
    assert list(made.calibration.groups) == ["A", "B"]
    own = {name: calibration.of_group(made.calibration, name, made.config.evaluate) for name in "AB"}
    assert own["B"].threshold > own["A"].threshold
    images, labels, lines = two_lines
    evaluation = evaluate(workdir, arrays=(images, labels), by=lines)
    found = evaluation.metrics["groups"]
    for row in found["rows"]:
        assert row["threshold"] == own[row["group"]].threshold
        assert row["false_positive_rate"][0] < 0.2
    with (evaluation.folder / "predictions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row, name in zip(rows, lines, strict=True):
        assert (row["verdict"] == "anomalous") == (float(row["p_value"]) <= 0.05)
        assert (row["verdict"] == "anomalous") == (np.float32(row["score"]) > own[name].threshold)
    # Another way to set it counts for the groups as well; new normal images without groups drop them.
    recalibrate(workdir, quantile=0.5)
    made = ganomaly_jax.load(workdir)
    assert "quantile" in calibration.of_group(made.calibration, "A", made.config.evaluate).source
    assert not recalibrate(workdir, arrays=normals).calibration.groups


def test_the_commands(tmp_path, capsys):
    data, workdir = tmp_path / "data", tmp_path / "run"
    for name, images in (("good", blobs(60, 0)), ("bad", blobs(10, 1, anomalous=True))):
        (data / name).mkdir(parents=True)
        for i, image in enumerate(images):
            Image.fromarray(image[..., 0]).save(data / name / f"{i:02}.png")
    sizes = ["data.height=16", "data.width=16", "model.features=4", "model.latent_size=4", "train.batch_size=8"]
    more = ["train.steps=2", "mesh.devices=1", "data.calibration=0.5", "train.picture_every=0"]
    train = ["train", str(data), "--workdir", str(workdir), *(f"--config.{word}" for word in sizes + more)]
    assert main.main(train) == 0
    table = tmp_path / "lines.csv"
    rows = [f"{folder}/{i:02}.png,line {i % 2}" for folder, n in (("good", 60), ("bad", 10)) for i in range(n)]
    table.write_text("path,group\n" + "\n".join(rows), encoding="utf-8")  # relative to the data
    assert main.main(["recalibrate", "--workdir", str(workdir), "--groups", str(table)]) == 0
    assert "group line 1: threshold" in capsys.readouterr().out
    assert main.main(["evaluate", "--workdir", str(workdir), "--groups", str(table)]) == 0
    printed = capsys.readouterr().out
    assert "line 0  " in printed
    assert "true-positive rate" in printed
    (data / "lines.csv").write_text(table.read_text(), encoding="utf-8")  # relative to the file
    predict = ["predict", "--workdir", str(workdir), str(data / "bad"), "--groups", str(data / "lines.csv")]
    assert main.main(predict) == 0
    capsys.readouterr()
    for text, said in (
        ("path,line\na,b\n", "expected path and group"),
        ("path,group\n", "no rows"),
        ("path,group\nnone.png,A\n", "names none of"),
        ("path,group\na.png,A\na.png,B\n", "in 'A' and in 'B'"),
    ):
        table.write_text(text, encoding="utf-8")
        assert main.main(["evaluate", "--workdir", str(workdir), "--groups", str(table)]) == 2
        assert said in capsys.readouterr().err
    assert main.main(["evaluate", "--workdir", str(workdir), "--groups", str(tmp_path / "none.csv")]) == 2


def test_another_number_of_names_is_refused(workdir, two_lines):
    with pytest.raises(UserError, match="3 groups for 200 images"):
        evaluate(workdir, arrays=two_lines[:2], by=["A", "B", "A"])


def test_figures_that_agree_are_no_gap():
    row = {"false_positive_rate": [0.1, 0.0, 0.3], "true_positive_rate": None, "auroc": None}
    assert group_metrics.gaps([row | {"group": "A"}, row | {"group": "B"}]) == [
        "The false-positive rate is the same in all 2 groups."
    ]
    other = row | {"group": "B", "false_positive_rate": [0.2, 0.1, 0.4]}
    assert "chance may explain" in group_metrics.gaps([row | {"group": "A"}, other])[0]
    assert group_metrics.gaps([row | {"group": "A"}]) == []
