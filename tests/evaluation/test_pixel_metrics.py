"""Pixel AUROC and AUPRO by hand, and from masks in MVTec's layout."""

import json  # noqa: I001
import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score
from tests.support import blobs

from ganomaly_jax import evaluate
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.evaluation import pixel_metrics


def test_pixel_auroc():
    random = np.random.default_rng(0)
    truth = random.random((4, 16, 16)) < 0.2
    values = (random.normal(size=truth.shape) + truth).round(1)  # with ties
    assert pixel_metrics.pixel_auroc(truth, values) == pytest.approx(roc_auc_score(truth.ravel(), values.ravel()))
    assert pixel_metrics.pixel_auroc(np.zeros_like(truth), values) is None


def test_aupro_by_hand():
    """Two regions, of 2 pixels and of 1, and 12 normal pixels."""
    truth = np.zeros((1, 1, 15), bool)
    truth[0, 0, [0, 1, 14]] = True
    values = np.zeros((1, 1, 15))
    values[0, 0] = [9, 5.5, 8, 7, 6, 5, 4, 3, 2.5, 2, 1.5, 1, 0.5, 0.2, 6.5]
    # (rate, overlap) by falling threshold: 9 (0, 1/4), 8 (1/12, 1/4), 7 (2/12, 1/4), 6.5 (2/12, 3/4), 6 (3/12, 3/4),
    # 5.5 (3/12, 1), 5 (4/12, 1).
    area = (2 / 12) * 0.25 + (1 / 12) * 0.75 + (0.3 - 0.25) * 1.0
    assert pixel_metrics.aupro(truth, values) == pytest.approx(area / 0.3)
    assert pixel_metrics.aupro(truth, values, 0.25) == pytest.approx(((2 / 12) * 0.25 + (1 / 12) * 0.75) / 0.25)
    values[0, 0, 3] = 10  # normal, and the highest: (1/12, 0), (1/12, 1/4), (2/12, 1/4), ... (2/12, 1)
    values[0, 0, 4] = 0
    area = 0.0 + (1 / 12) * 0.25 + (0.2 - 2 / 12) * 1.0
    assert pixel_metrics.aupro(truth, values, 0.2) == pytest.approx(area / 0.2)
    assert pixel_metrics.aupro(truth, truth.astype(float)) == pytest.approx(1)
    assert pixel_metrics.aupro(np.zeros_like(truth), values) is None


def test_a_small_region_counts_as_much_as_a_large_one():
    truth = np.zeros((1, 32, 32), bool)
    truth[0, :16, :16], truth[0, 30, 30] = True, True
    values = np.zeros((1, 32, 32))
    values[0, :16, :16] = 1  # the small one is missed
    assert pixel_metrics.aupro(truth, values) < 0.6
    assert pixel_metrics.pixel_auroc(truth, values) > 0.99


@pytest.mark.parametrize("ties", [False, True])
def test_many_pixels_give_what_all_thresholds_give(monkeypatch, ties):
    random = np.random.default_rng(1)
    truth = np.zeros((6, 64, 64), bool)
    truth[:, 10:20, 10:20], truth[:3, 40:44, 50:60] = True, True
    values = random.normal(size=truth.shape) + 1.5 * truth
    if ties:
        values = values.round(1)
    spread = pixel_metrics.aupro(truth, values)
    monkeypatch.setattr(pixel_metrics, "_POINTS", values.size)
    assert spread == pytest.approx(pixel_metrics.aupro(truth, values), abs=1e-3)
    noise = random.normal(size=truth.shape)
    assert pixel_metrics.aupro(truth, noise) == pytest.approx(0.15, abs=0.03)


def test_masks_are_found_and_read(tmp_path):
    image = tmp_path / "test" / "broken" / "007.png"
    mask = tmp_path / "ground_truth" / "broken" / "007_mask.png"
    assert pixel_metrics.mask_file(str(image)) is None
    mask.parent.mkdir(parents=True)
    pixels = np.zeros((64, 128), np.uint8)
    pixels[:32, 64:] = 255
    Image.fromarray(pixels).save(mask)
    assert pixel_metrics.mask_file(str(image)) == mask
    assert pixel_metrics.mask_file("mnist5k[3]") is None
    found = pixel_metrics.read_mask(mask, 16, 16, "stretch")
    assert found[:8, 8:].all()
    assert found.sum() == 64
    pixels[:] = 0
    pixels[5, 5] = 255  # far less than a pixel of the network
    Image.fromarray(pixels).save(mask)
    assert pixel_metrics.read_mask(mask, 16, 16, "stretch").sum() == 1
    mask.write_bytes(b"no image")
    with pytest.raises(UserError, match="the mask"):
        pixel_metrics.read_mask(mask, 16, 16, "stretch")


@pytest.fixture
def mvtec(tmp_path):
    """Normal bars with a bright square pasted onto some of them, and masks of the squares."""
    root = tmp_path / "set"
    for folder in ("train/good", "test/good", "test/square", "ground_truth/square"):
        (root / folder).mkdir(parents=True)
    for i, image in enumerate(blobs(30, 90)[..., 0]):
        Image.fromarray(image).save(root / ("train" if i < 10 else "test") / "good" / f"{i:02}.png")
    random = np.random.default_rng(0)
    for i, image in enumerate(blobs(12, 91)[..., 0]):
        mask = np.zeros((16, 16), np.uint8)
        y, x = random.integers(0, 12, 2)
        mask[y : y + 4, x : x + 4] = 255
        image = np.where(mask > 0, np.uint8(255) - image, image)
        Image.fromarray(image).save(root / "test" / "square" / f"{i:02}.png")
        if i < 10:  # two have none
            Image.fromarray(mask).save(root / "ground_truth" / "square" / f"{i:02}_mask.png")
    return root


def test_masks_in_the_layout_of_mvtec_are_measured(trained, mvtec, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    folder, values = tmp_path / "run" / "evaluations" / mvtec.name, evaluate(tmp_path / "run", str(mvtec)).metrics
    assert json.loads((folder / "metrics.json").read_text())["aupro_30"] == values["aupro_30"]
    assert values["n_masks"] == 10
    assert values["pixel_auroc"] > 0.8
    assert 0.4 < values["aupro_30"] <= 1
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "AUPRO" in page
    shutil.rmtree(mvtec / "ground_truth")
    assert "n_masks" not in evaluate(tmp_path / "run", str(mvtec), overwrite=True).metrics
