"""Another threshold without training: what is written, what is kept, what is refused."""

import json  # noqa: I001
import shutil

import numpy as np
import pytest
from PIL import Image
from tests.support import blobs

import ganomaly_jax
from ganomaly_jax.cli import main
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.scoring import calibration
from ganomaly_jax.scoring.recalibration import recalibrate


@pytest.fixture
def workdir(trained, tmp_path):
    shutil.copytree(trained[0] / "detector", tmp_path / "run" / "detector")
    return tmp_path / "run"


def test_another_rate_from_the_scores_kept(workdir, trained):
    images = blobs(30, 7)
    before = trained[1]
    made = recalibrate(workdir, false_positive_rate=0.25, review=0.5)
    loaded = ganomaly_jax.load(workdir)
    kept = np.asarray(before.variables["calibration"])
    expected = calibration.calibrate(kept, 0.25)
    assert loaded.threshold == made.threshold == expected.threshold
    assert loaded.calibration == made.calibration
    np.testing.assert_array_equal(loaded(images), before(images))  # the weights are the same
    np.testing.assert_array_equal(loaded.variables["calibration"], kept)
    assert loaded.config.evaluate.false_positive_rate == 0.25
    verdicts = loaded.judge(np.concatenate([blobs(60, 7), blobs(20, 8, anomalous=True)])).verdicts
    assert {"normal", "review", "anomalous"} == set(verdicts)
    again = recalibrate(workdir, review=0.0)  # the rest as before
    assert again.threshold == expected.threshold
    assert again.calibration.review is None


def test_new_normals_take_the_place_of_the_calibration_part(workdir):
    """Brighter images than those of the training: the old threshold is wrong for them, the new one holds."""
    brighter = np.minimum(blobs(300, 20).astype(int) + 60, 255).astype(np.uint8)
    old = ganomaly_jax.load(workdir)
    made = recalibrate(workdir, arrays=brighter[:200], false_positive_rate=0.05)
    assert (made(brighter[200:]) > made.threshold).mean() < 0.15
    assert made.threshold != old.threshold
    loaded = ganomaly_jax.load(workdir)
    assert len(loaded.variables["calibration"]) == 200
    assert loaded.provenance["calibrated_on"] == "the array"
    assert loaded.residual_max != old.residual_max


def test_only_normal_images_that_can_be_scored_count(workdir):
    unit = (blobs(50, 20) / 127.5 - 1).astype(np.float32)
    unit[3] = np.nan
    odd = (blobs(20, 21, anomalous=True) / 127.5 - 1).astype(np.float32)
    made = recalibrate(workdir, arrays=(np.concatenate([unit, odd]), np.repeat([0, 1], [50, 20])))
    assert len(made.variables["calibration"]) == 49
    with pytest.raises(UserError, match="no normal"):
        recalibrate(workdir, arrays=(odd, np.ones(20, int)))
    with pytest.raises(UserError, match="can be scored"):
        recalibrate(workdir, arrays=unit[[3, 3]])


def test_the_command(workdir, tmp_path, capsys):
    folder = tmp_path / "new"
    folder.mkdir()
    for i, image in enumerate(blobs(60, 5)):
        Image.fromarray(image[..., 0]).save(folder / f"{i}.png")
    run = ["recalibrate", "--workdir", str(workdir)]
    assert main.main([*run, "--quantile", "0.9"]) == 0
    assert "0.9 quantile" in capsys.readouterr().out
    assert main.main([*run, "--threshold", "0.125"]) == 0
    assert ganomaly_jax.load(workdir).threshold == 0.125
    assert main.main([*run, "--data", str(folder), "--false-positive-rate", "0.1", "--review", "0.2"]) == 0
    assert "60 calibration images" in capsys.readouterr().out
    assert json.loads((workdir / "detector" / "meta.json").read_text())["calibration"]["review"]
    assert main.main(["recalibrate", "--workdir", str(workdir / "detector"), "--review", "0"]) == 0
    assert not [path for path in workdir.iterdir() if path.name != "detector"]
    meta = json.loads((workdir / "detector" / "meta.json").read_text())
    assert meta["calibration"]["review"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--false-positive-rate", "0"], "between 0 and 1"),
        (["--quantile", "1.5"], "evaluate.quantile"),
        (["--threshold", "nan"], "finite"),
        (["--tail", "0.001"], "expected at least 100 images"),
        (["--review", "0.0001"], "higher review rate"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_a_mistake_changes_nothing(workdir, words, said, capsys):
    files = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    assert main.main(["recalibrate", "--workdir", str(workdir), *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
    assert files == {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


def test_two_ways_at_once_are_refused(workdir):
    with pytest.raises(UserError, match="one way"):
        recalibrate(workdir, quantile=0.9, tail=0.01)
