"""What the report draws: curves, losses and the picture of a case."""

import csv  # noqa: I001

import numpy as np
import pytest
from PIL import Image
from tests.report.test_run_report import THRESHOLD, make_case, scored, write_history

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.evaluation import curves, metrics
from ganomaly_jax.report import curve_plots, figures, image_grids


def read_csv(path):
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {key: np.array([float(row[key]) for row in rows]) for key in rows[0]}


@pytest.mark.parametrize(("labels", "scores"), [([0, 1, 1], [0.0, 1.0]), ([0, 2], [0.0, 1.0])])
def test_labels_that_make_no_sense_are_refused(labels, scores):
    with pytest.raises(UserError, match="expected"):
        curves.scored(labels, scores, 0.5)


def test_curves_as_csv(tmp_path):
    labels, scores = scored()
    names = [path.name for path in curve_plots.curves(curves.scored(labels, scores, THRESHOLD), tmp_path)]
    assert names == ["roc.png", "precision_recall.png", "histogram.png"]
    columns = {name: read_csv(tmp_path / f"{name}.csv") for name in ("roc", "precision_recall", "histogram")}
    for ours, want in zip(columns["roc"].values(), metrics.roc_curve(labels, scores), strict=True):
        np.testing.assert_array_equal(ours, want)
    precision, recall, _ = metrics.precision_recall_curve(labels, scores)
    np.testing.assert_array_equal(columns["precision_recall"]["precision"], precision)
    np.testing.assert_array_equal(columns["precision_recall"]["recall"], recall)
    bins = columns["histogram"]
    assert bins["normal"].sum() == 150
    assert bins["anomalous"].sum() == 50
    inside = (scores >= bins["score_from"][3]) & (scores < bins["score_to"][3])
    assert bins["normal"][3] + bins["anomalous"][3] == inside.sum()


@pytest.mark.parametrize(
    ("scores", "threshold"),
    [
        ([1.0, 1.0, 1.0], -1.0),
        ([0.0, 0.0, 0.0], np.inf),
        ([1.0, 1.0 + 1e-15, 1.0], None),
        ([1e30, 1e30, 1e30], 1.0),
        ([0.0, 1e-12, 1e12], 1.0),
        ([1e-12, 1.0, 1e12], np.inf),
        ([1e-12, 1.0, 1e12], -1.0),
        ([-5.0, 0.0, 5.0], 9.0),
    ],
)
def test_a_histogram_holds_every_score(tmp_path, scores, threshold):
    curve_plots.curves(curves.scored([0, 0, 0], scores, threshold), tmp_path)
    bins = read_csv(tmp_path / "histogram.csv")
    assert bins["normal"].sum() == 3
    assert np.all(bins["score_from"] < bins["score_to"])


@pytest.mark.parametrize(
    ("scores", "threshold", "logarithmic"),
    [
        ([1e-3, 1.0, 1e3], 1.0, True),
        ([1e-3, 1.0, 1e3], None, True),
        ([1e-3, 1.0, 1e3], -1.0, False),
        ([0.0, 1.0, 1e3], 1.0, False),
        ([1.0, 2.0, 3.0], 1.0, False),
    ],
)
def test_a_histogram_is_logarithmic_where_the_spread_asks_for_it(tmp_path, scores, threshold, logarithmic):
    curve_plots.curves(curves.scored([0, 0, 1], scores, threshold), tmp_path)
    bins = read_csv(tmp_path / "histogram.csv")
    widths = bins["score_to"] / bins["score_from"] if logarithmic else bins["score_to"] - bins["score_from"]
    np.testing.assert_allclose(widths, widths[0], rtol=1e-6)


def test_losses_pass_over_what_is_not_whole(tmp_path):
    history, png = tmp_path / "history.jsonl", tmp_path / "losses.png"
    write_history(history, tail='{"step": 60, "adver')
    assert curve_plots.losses(history, png) == png
    whole = png.read_bytes()
    write_history(history, tail='[1]\n"step"\n{"epoch": 1}\n{"step": 60, "encoder": null}\n\0\n')
    curve_plots.losses(history, png)
    assert png.read_bytes() == whole
    write_history(history, tail='{"step": 60, "encoder": 0.001}\n')
    curve_plots.losses(history, png)
    assert png.read_bytes() != whole


def test_of_two_lines_for_one_step_the_later_holds(tmp_path):
    history, png = tmp_path / "history.jsonl", tmp_path / "losses.png"
    write_history(history, tail="")
    curve_plots.losses(history, png)
    once = png.read_bytes()
    again = history.read_text()
    history.write_text('{"step": 50, "encoder": 50.0}\n' + again)
    curve_plots.losses(history, png)
    assert png.read_bytes() == once


@pytest.mark.parametrize("content", [None, "", '{"step": 1, "encoder": NaN, "generator": -1, "adversarial": 0}\n'])
def test_losses_without_anything_to_draw(tmp_path, content):
    history, png = tmp_path / "history.jsonl", tmp_path / "losses.png"
    png.write_text("of an earlier run")
    if content is not None:
        history.write_text(content)
    assert curve_plots.losses(history, png) is None
    assert not png.exists()


def test_a_long_history_is_drawn(tmp_path):
    write_history(tmp_path / "history.jsonl", range(1, 1001))
    assert curve_plots.losses(tmp_path / "history.jsonl", tmp_path / "losses.png")


def colour_share(path, colour):
    """Pixels of exactly this colour in the part of a case's picture where the residual map lies."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))[:, 800:1230]
    return np.mean(np.all(pixels == colour, axis=-1))


def test_the_same_residual_has_the_same_colour_whatever_else_is_shown(tmp_path):
    x = np.zeros((16, 16, 1), np.float32)
    x_hat = x.copy()
    x_hat[:, :8] = 0.3
    other = np.where(x_hat == 0, 2.0, x_hat)  # the same 0.3, beside a far larger residual
    colour = image_grids.heat(np.array(0.3), 1.0)
    shares = []
    for name, reconstruction in (("a.png", x_hat), ("b.png", other)):
        figures.case_picture(make_case(x=x, x_hat=reconstruction), 1.0, tmp_path / name)
        shares.append(colour_share(tmp_path / name, colour))
    assert shares[0] > 0.3
    assert shares[0] == pytest.approx(shares[1], rel=0.02)


@pytest.mark.parametrize("shape", [(16, 64, 3), (64, 16, 2)])
def test_other_shapes_and_unknown_values(tmp_path, shape):
    x = np.full(shape, np.nan, np.float32)
    case = make_case("anomalous", x=x, x_hat=x, score=float("nan"), p_value=None, threshold=None, label=None)
    figures.case_picture(case, 1.0, tmp_path / "case.png")
    with Image.open(tmp_path / "case.png") as image:
        assert image.width == 1350


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ("score 2 > threshold 1 ", "p-value 0.01", "verdict: anomalous", "label: normal")),
        ({"score": np.float32(0.3), "verdict": "normal", "label": 1}, ("score 0.3 ≤ threshold 1 ", "label: anomalous")),
        ({"label": "gun", "p_value": None}, ("label: gun",)),
        ({"label": None, "threshold": None}, ("score 2 ", "label: unknown")),
        ({"score": float("nan"), "verdict": "invalid"}, ("score not defined ", "verdict: invalid")),
    ],
)
def test_the_decision_in_one_line(changes, words):
    line = figures.decision(make_case(**changes))
    for word in words:
        assert word in line
    assert ("p-value" in line) == ("p_value" not in changes)
    assert ("threshold" in line) == (changes.get("score") == changes.get("score") and "threshold" not in changes)


@pytest.mark.parametrize(
    ("changes", "residual_max", "words"),
    [
        ({}, 0.0, "residual_max=0.0"),
        ({}, np.nan, "residual_max=nan"),
        ({"x": np.zeros((8, 8, 1))}, 1.0, "expected two of one shape"),
    ],
)
def test_cases_that_cannot_be_drawn_are_refused(tmp_path, changes, residual_max, words):
    with pytest.raises(UserError, match=words):
        figures.case_picture(make_case(**changes), residual_max, tmp_path / "case.png")
