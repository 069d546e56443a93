"""Folders of runs that version 0.1.0 wrote still load, score, evaluate, predict and resume."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import ganomaly_jax as gj
from ganomaly_jax.cli import main
from tests.support import assert_scores_close, blobs, tiny_config

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "0.1.0"


def expected(name):
    with np.load(GOLDEN / f"{name}_expected.npz") as file:
        return dict(file)


@pytest.fixture
def images(tmp_path):
    """A copy of the run on images."""
    return Path(shutil.copytree(GOLDEN / "images", tmp_path / "images"))


@pytest.fixture(scope="module")
def arrays():
    """What it was trained on."""
    return np.concatenate([blobs(120, 0), blobs(24, 1, anomalous=True)]), np.repeat([0, 1], [120, 24])


def test_a_run_on_images_scores_as_it_did():
    scorer = gj.load(GOLDEN / "images")
    wanted = expected("images")
    assert scorer.input_shape == (16, 16, 1) and scorer.provenance["seed"] == 0
    assert_scores_close(scorer, wanted["x"], scorer(wanted["x"]), wanted["scores"])
    assert scorer.threshold == json.loads((GOLDEN / "images" / "metrics.json").read_text())["threshold"]


def test_a_run_on_rows_with_a_summed_score_scores_as_it_did():
    scorer = gj.load(GOLDEN / "rows")
    wanted = expected("rows")
    assert scorer.feature_names == ("pressure", "flow", "level", "temperature") and scorer.input_shape == (8, 4)
    judged = scorer.judge(wanted["x"])
    # Logarithms of distances, divided by their spread: of order 1, and their relative errors are absolute ones here.
    np.testing.assert_allclose(judged.scores, wanted["scores"], rtol=1e-4, atol=1e-3)
    step = 1.01 / (len(scorer.variables["calibration"]) + 1)
    np.testing.assert_allclose(judged.p_values, wanted["p_values"], atol=step)


def test_a_run_is_evaluated_again(images, arrays):
    before = json.loads((images / "metrics.json").read_text())
    after = gj.evaluate(images, arrays=arrays).metrics
    assert json.loads((images / "metrics.json").read_text()) == before
    for name in ("n_normal", "n_anomalous", "seed", "step", "threshold"):
        assert after[name] == before[name], name
    assert after["auroc"] == pytest.approx(before["auroc"], abs=1e-3)


def test_the_command_predicts_with_it(images, tmp_path, capsys):
    table = tmp_path / "rows.csv"
    wanted = expected("rows")
    lines = [
        ",".join(gj.load(GOLDEN / "rows").feature_names),
        *(",".join(map(repr, map(float, row))) for row in wanted["x"]),
    ]
    table.write_text("\n".join(lines) + "\n")
    shutil.copytree(GOLDEN / "rows", tmp_path / "rows")
    assert main.main(["predict", "--workdir", str(tmp_path / "rows"), str(table)]) == 0
    with (tmp_path / "rows" / "predictions" / f"{table.stem}.csv").open(newline="") as file:
        found = [float(row["score"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(found, wanted["scores"], rtol=1e-4, atol=1e-3)


def test_its_training_goes_on_from_its_checkpoint(images, arrays):
    config = tiny_config(steps=30, save_every=12)
    config.train.keep = 1
    lines = []
    scorer = gj.train(config, images, arrays, log=lines.append)
    assert any("24" in line for line in lines[:8]), lines  # says where it goes on from
    assert [path.name for path in (images / "checkpoints").iterdir()] == ["00000030"]
    steps = [json.loads(line)["step"] for line in (images / "history.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and steps[0] < 24 < steps[-1] == 30
    assert np.isfinite(scorer(arrays[0])).all()
    assert not np.array_equal(scorer(arrays[0][:8]), gj.load(GOLDEN / "images")(arrays[0][:8]))
