"""Where and why: maps that are blank on normal images, contributions that add up, pictures and boxes."""

import dataclasses  # noqa: I001
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from tests.support import blobs

import ganomaly_jax
from ganomaly_jax.cli import main
from ganomaly_jax.core import sealed_folder
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.report import explanation, image_grids
from ganomaly_jax.scoring import attribution, residual_map
from ganomaly_jax.scoring.residual_map import Region


def unit(images):
    return (images / 127.5 - 1).astype(np.float32)


def test_a_residual_map_by_hand(monkeypatch):
    x = np.zeros((1, 16, 16, 2), np.float32)
    x_hat = x.copy()
    x_hat[0, 4:8, 4:8] = [0.3, 0.5]  # an area of its own
    values = np.asarray(residual_map.residual_map(x, x_hat))
    assert values.shape == (1, 16, 16)
    assert values[0, 5, 5] > 0.3
    assert values[0, 12:, 12:].max() == 0
    # What changes sign from pixel to pixel counts on the finest scale only.
    noise = np.where(np.indices((16, 16)).sum(0) % 2, 0.4, -0.4).astype(np.float32)[None, :, :, None]
    np.testing.assert_allclose(residual_map.residual_map(noise, 0 * noise), 0.4 / 3, rtol=1e-5)
    monkeypatch.setattr(residual_map, "SCALES", (1,))
    np.testing.assert_allclose(residual_map.residual_map(x, x_hat)[0], np.abs(x_hat[0]).mean(-1), rtol=1e-6)


def test_regions_by_hand():
    values = np.zeros((64, 64), np.float32)
    values[2:5, 10:20] = 0.7
    values[5, 20] = 0.9  # by its corner
    values[40:60, 40:42] = 2.0
    values[30, 30:33] = 5.0  # three pixels are no region
    assert residual_map.regions(values, 0.5) == [
        Region(40, 40, 2, 20, 2.0),
        Region(10, 2, 11, 4, pytest.approx(0.9)),
    ]
    assert residual_map.regions(values, 5.0) == []


def test_normal_images_are_blank(trained):
    scorer = trained[1]
    normal = attribution.residual_maps(scorer, blobs(200, 50)).values
    odd = attribution.residual_maps(scorer, blobs(50, 51, anomalous=True)).values
    assert (normal > scorer.map_threshold).mean() < 0.01
    assert (odd > scorer.map_threshold).mean() > 0.05
    many = attribution.residual_maps(scorer, blobs(70, 50))
    np.testing.assert_allclose(many.values, attribution.residual_maps(scorer, blobs(70, 50)[:70]).values)
    np.testing.assert_allclose(many.values[:3], attribution.residual_maps(scorer, blobs(70, 50)[:3]).values, atol=1e-5)


def test_contributions_add_up_to_the_difference_of_the_scores(trained):
    scorer = trained[1]
    x = unit(np.concatenate([blobs(3, 60), blobs(3, 61, anomalous=True)]))
    found = attribution.integrated_gradients(scorer, x)
    np.testing.assert_allclose(found.scores, scorer(x), rtol=1e-4)
    np.testing.assert_allclose(found.baseline_scores, scorer(scorer.reconstruct(x)[1]), rtol=1e-3, atol=1e-6)
    difference = found.scores - found.baseline_scores
    np.testing.assert_allclose(found.values.sum((1, 2, 3)), difference, atol=0.02 * np.abs(difference).max())
    assert np.abs(difference).min() > 0
    grey = np.zeros((16, 16, 1), np.float32)
    other = attribution.integrated_gradients(scorer, x, grey)
    np.testing.assert_allclose(other.baseline_scores, scorer(grey[None], value_range=(-1, 1))[0], rtol=1e-4)
    difference = other.scores - other.baseline_scores
    np.testing.assert_allclose(other.values.sum((1, 2, 3)), difference, atol=0.02 * np.abs(difference).max())
    same = attribution.integrated_gradients(scorer, x[:1], x[0])
    assert not same.values.any()


def test_the_gradient_is_the_slope_of_the_score(trained):
    scorer = trained[1]
    x = unit(blobs(1, 62))
    slope = attribution.gradient(scorer, x)
    step = 0.01 * np.sign(slope)
    rise = (scorer(np.clip(x + step, -1, 1)) - scorer(np.clip(x - step, -1, 1)))[0]
    moved = np.clip(x + step, -1, 1) - np.clip(x - step, -1, 1)
    assert rise == pytest.approx((slope * moved).sum(), rel=0.1)


def test_a_detector_of_floating_point_images_is_explained_in_the_same_terms(trained):
    scorer = trained[1]
    x = unit(blobs(2, 63, anomalous=True)) * 0.99
    other = dataclasses.replace(scorer, dtype="float32", low=-3.0, high=5.0)
    ours, theirs = (attribution.integrated_gradients(one, x) for one in (scorer, other))
    np.testing.assert_allclose(theirs.values, ours.values, atol=1e-3 * np.abs(ours.values).max())


@pytest.mark.parametrize(
    ("fit", "expected"), [("stretch", (80, 20, 20, 30)), ("letterbox", (80, 0, 20, 60))], ids=["stretch", "letterbox"]
)
def test_boxes_are_those_of_the_file(trained, fit, expected):
    """A file of 80 rows and 160 columns."""
    scorer = trained[1]
    settings = dataclasses.replace(scorer.config, data=dataclasses.replace(scorer.config.data, fit=fit))
    scorer = dataclasses.replace(scorer, config=settings)
    assert attribution.in_file(Region(8, 4, 2, 6, 1.0), scorer, 80, 160) == expected


def panels(image):
    """The map and what was found, as arrays of pixels."""
    whole = np.asarray(image)
    step = 256 + 4 * image_grids.GAP
    lefts = [4 * image_grids.GAP + place * step for place in (2, 3)]
    return [whole[58 : 58 + 256, left : left + 256] for left in lefts]


def test_pictures_share_one_scale_and_a_normal_one_is_dark(trained):
    scorer = trained[1]
    images = np.concatenate([blobs(40, 70), blobs(1, 71, anomalous=True)])
    found = attribution.residual_maps(scorer, images)
    quiet = int(np.argmin(found.values[:40].max((1, 2))))
    assert found.values[quiet].max() <= scorer.map_threshold
    normal, odd = (explanation.picture(scorer, found, i, "name \u00fc") for i in (quiet, 40))
    dark, plain = panels(normal)
    assert (dark == image_grids.COLOURS[0]).all()
    large = image_grids.to_rgb(found.x[quiet]).repeat(16, 0).repeat(16, 1)
    np.testing.assert_array_equal(plain, large)  # nothing drawn over it
    lit, _ = panels(odd)
    above = (found.values[40] > scorer.map_threshold).repeat(16, 0).repeat(16, 1)
    np.testing.assert_array_equal((lit != image_grids.COLOURS[0]).any(-1), above)
    added = attribution.integrated_gradients(scorer, found.x[40:])
    assert explanation.picture(scorer, found, 40, "x", added.values[0]).width > odd.width


@pytest.fixture
def workdir(trained, tmp_path):
    shutil.copytree(trained[0] / "detector", tmp_path / "run" / "detector")
    return tmp_path / "run"


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "new"
    folder.mkdir()
    for i, image in enumerate(np.concatenate([blobs(6, 80), blobs(10, 81, anomalous=True)])):
        Image.fromarray(image[..., 0]).resize((64, 32)).save(folder / f"{i:02}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG")
    return folder


def test_the_command_explains_one_image(workdir, files, capsys):
    assert main.main(["explain", str(files / "12.png"), "--workdir", str(workdir)]) == 0
    printed = capsys.readouterr().out
    assert "p-value" in printed
    assert "1  left " in printed
    assert "contributions add up to " in printed
    with Image.open(workdir / "maps" / "12.png") as stored:
        assert stored.format == "PNG"
    out = files / "why.png"
    assert main.main(["explain", str(files / "12.png"), "--workdir", str(workdir / "detector"), "--out", str(out)]) == 0
    assert out.exists()
    capsys.readouterr()
    for words, said in (
        ([str(files / "broken.png"), "--workdir", str(workdir)], "broken.png"),
        ([str(files / "none.png"), "--workdir", str(workdir)], "none.png"),
        ([str(files / "12.png"), "--workdir", str(workdir / "detector")], "expected --out"),
    ):
        assert main.main(["explain", *words]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert len(error.splitlines()) == 1
    sealed_folder.verify(workdir / "detector")


def test_predict_draws_the_anomalous_ones(workdir, files, tmp_path, capsys):
    run = ["predict", str(files), "--workdir", str(workdir), "--maps"]
    assert main.main(run) == 3
    maps = workdir / "predictions" / f"{files.name}_maps"
    written = sorted(path.name for path in maps.iterdir())
    scorer = ganomaly_jax.load(workdir)
    judged = scorer.judge_files(sorted(files.iterdir()))[0]
    anomalous = [i for i in np.argsort(-judged.scores) if judged.verdicts[i] == "anomalous"]
    assert written == [f"{place:04}_{i:02}.png" for place, i in enumerate(anomalous, 1)]
    assert len(written) >= 5
    assert f"{len(written)} pictures in" in capsys.readouterr().out
    assert main.main([*run, "--most-maps", "2", "--overwrite"]) == 3  # those of before are gone
    assert [path.name for path in sorted(maps.iterdir())] == written[:2]
    assert f"of {len(anomalous)}" in capsys.readouterr().out
    assert main.main([*run, "--most-maps", "0", "--out", str(tmp_path / "rows.csv")]) == 3
    assert len(list((tmp_path / "rows_maps").iterdir())) == len(anomalous)
    assert main.main([*run, "--most-maps", "-1"]) == 2


def test_a_detector_of_before_has_a_threshold(workdir):
    folder = workdir / "detector"
    meta = json.loads((folder / "meta.json").read_text())
    del meta["map_threshold"], meta["calibration"]["review"], meta["calibration"]["groups"]
    (folder / "meta.json").write_text(json.dumps(meta))
    (folder / sealed_folder.MANIFEST).unlink()
    sealed_folder.seal(folder)
    old = ganomaly_jax.load(workdir)
    assert old.map_threshold == old.residual_max
    assert (attribution.residual_maps(old, blobs(100, 50)).values > old.map_threshold).mean() < 0.01


def test_images_that_are_invalid_have_no_map(trained):
    images = unit(blobs(3, 1))
    images[1, 2, 2] = np.nan
    values = attribution.residual_maps(trained[1], images).values
    assert np.isfinite(values[[0, 2]]).all()
    assert np.isnan(values[1]).any()
    with pytest.raises(UserError):
        attribution.residual_maps(trained[1], np.zeros((0, 16, 16, 1), np.uint8))
