"""`ganomaly compare`: the same images matched by path, others refused, the answer in words."""

import csv

import numpy as np
import pytest

from ganomaly_jax.cli import main
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.evaluation import auroc_intervals, comparison, metrics


def write(folder, scores, labels=None, paths=None, order=None):
    folder.mkdir(parents=True, exist_ok=True)
    n = len(scores)
    labels = np.repeat([0, 1], [n // 2, n - n // 2]) if labels is None else labels
    paths = [f"{i:04}.png" for i in range(n)] if paths is None else paths
    with (folder / "predictions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "label", "score", "p_value", "verdict", "reason"))
        for i in range(n) if order is None else order:
            rows.writerow((paths[i], labels[i], scores[i], "0.5", "normal", ""))
    return folder


@pytest.fixture
def two(tmp_path):
    """Two runs, the first clearly better; the rows of the second in another order."""
    random = np.random.default_rng(0)
    truth = np.repeat([0, 1], 200)
    first = write(tmp_path / "one", random.normal(2 * truth, 1))
    second = write(tmp_path / "two", random.normal(0.5 * truth, 1), order=random.permutation(400))
    return first, second


def test_rows_are_matched_by_path(two):
    found = comparison.compare(*two)

    def scores(folder):
        with (folder / "predictions.csv").open() as file:
            return [float(row["score"]) for row in sorted(csv.DictReader(file), key=lambda row: row["path"])]

    labels = np.repeat([0, 1], 200)
    assert found.auroc[1].value == pytest.approx(metrics.auroc(labels, scores(two[1])))
    assert found.paired == auroc_intervals.paired(labels, scores(two[0]), scores(two[1]))
    assert (found.n_normal, found.n_anomalous, found.left_out) == (200, 200, 0)


def test_the_command_says_it_in_words(two, capsys):
    assert main.main(["compare", *map(str, two)]) == 0
    out = capsys.readouterr().out
    assert f"{two[0]} separates significantly better than {two[1]}" in out
    assert "p value below 0.0001" in out
    assert main.main(["compare", str(two[1]), str(two[0])]) == 0
    assert f"{two[0]} separates significantly better than {two[1]}" in capsys.readouterr().out
    assert main.main(["compare", str(two[0]), str(two[0])]) == 0
    out = capsys.readouterr().out
    assert "is not significant" in out
    assert "p value 1.0000" in out


def test_images_without_a_score_are_left_out_of_both(tmp_path):
    scores = np.arange(40.0)
    holes = ["" if i in (3, 30) else score for i, score in enumerate(scores)]
    found = comparison.compare(write(tmp_path / "a", scores), write(tmp_path / "b", holes))
    assert (found.n_normal, found.n_anomalous, found.left_out) == (19, 19, 2)
    assert "2 images without a score" in "\n".join(comparison.describe(found))


def test_few_images_are_called_rough(tmp_path):
    found = comparison.compare(write(tmp_path / "a", np.arange(8.0)), write(tmp_path / "b", np.arange(8.0)[::-1]))
    assert "rough" in "\n".join(comparison.describe(found))


def test_what_cannot_be_compared_is_refused(two, tmp_path, capsys):
    first, _ = two
    n = 400
    scores = np.arange(float(n))
    names = [f"{i:04}.png" for i in range(n)]
    cases = {
        "different images: 400 .* 401": write(tmp_path / "more", np.arange(401.0), paths=[*names, "x.png"]),
        "only in": write(tmp_path / "other", scores, paths=[*names[:-1], "x.png"]),
        "1 of 400 images are normal in one run": write(tmp_path / "label", scores, labels=[0] * 199 + [1] * 201),
        "without a label": write(tmp_path / "predicted", scores, labels=[""] * n),
        "twice": write(tmp_path / "twice", scores, paths=[names[0], *names[:-1]]),
        "cannot be read": write(tmp_path / "words", ["high"] * n),
        "no predictions.csv": tmp_path / "nothing",
        "no rows": write(tmp_path / "empty", []),
    }
    for said, second in cases.items():
        with pytest.raises(UserError, match=said):
            comparison.compare(first, second)
    (tmp_path / "team" / "members").mkdir(parents=True)
    assert main.main(["compare", str(first), str(tmp_path / "team")]) == 2
    assert "members/NAME" in capsys.readouterr().err
