"""What floating-point images mean to a detector of uint8 images: one rule, for each image by itself."""

import json

import jax
import numpy as np
import pytest

import ganomaly_jax as gj
from ganomaly_jax.data.images import value_range
from ganomaly_jax.data.lazy import LazyImages
from tests.support import assert_scores_close, blobs


@pytest.fixture(scope="module")
def pixels():
    return blobs(5, 7)


def test_floats_in_0_to_1_score_as_the_pixels_they_stand_for(trained, pixels):
    """They were taken as [-1, 1], and scored less than half."""
    scorer, floats = trained[1], (pixels / 255).astype(np.float32)
    expected = scorer(pixels)
    with pytest.raises(
        gj.UserError, match=r"in \[0, 1\] or in \[-1, 1\]: state the range with value_range=\(0, 1\) or"
    ):
        scorer(floats)
    for given in (floats, floats.astype(np.float64), floats[..., 0]):
        assert_scores_close(scorer, pixels, scorer(given, value_range=(0, 1)), expected)
    judged = scorer.judge(floats, value_range=(0, 1))
    assert judged.verdicts == scorer.judge(pixels).verdicts
    assert_scores_close(scorer, pixels, scorer(floats * 2 - 1), expected)  # values below 0: [-1, 1]
    assert_scores_close(scorer, pixels, scorer(pixels.astype(np.float32), value_range=(0, 255)), expected)
    # To say (-1, 1) is not to be asked, and not to be the same.
    assert (np.abs(scorer(floats, value_range=(-1, 1)) / expected - 1) > 0.1).any()
    assert_scores_close(scorer, pixels, scorer(pixels, value_range=(0, 1)), expected)  # pixels are what they are


def test_each_image_is_looked_at_alone(trained, pixels):
    """A dark image makes no other image of its batch clear, and none unclear."""
    scorer, floats = trained[1], (pixels / 127.5 - 1).astype(np.float32)
    clear = scorer(floats)
    mixed = np.concatenate([floats, (pixels[:1] / 255).astype(np.float32)])
    with pytest.raises(gj.UserError, match="floating-point image 5 has values from 0"):
        scorer(mixed)
    np.testing.assert_array_equal(scorer(mixed[:5]), clear)
    with pytest.raises(gj.UserError, match="image 0 "):
        scorer(np.zeros((1, 16, 16, 1), np.float32))  # black, or grey
    mixed[5, 0, 0] = np.nan  # invalid, whatever the others mean
    assert scorer.judge(mixed).verdicts[5] == "invalid"


@pytest.mark.parametrize("given", [(1, 0), (0, 0), (0,), (0, 1, 2), 1, "01", (0, float("nan")), (0, None)])
def test_what_is_no_range_is_refused(trained, pixels, given):
    with pytest.raises(gj.UserError, match="expected two numbers, low < high, such as"):
        trained[1](pixels, value_range=given)


def test_values_outside_and_detectors_of_floats_are_refused(trained, pixels):
    scorer = trained[1]
    with pytest.raises(gj.UserError, match=r"values from 0 to 2\d\d: expected \[0, 1\]"):
        scorer(pixels.astype(np.float32), value_range=(0, 1))
    with pytest.raises(gj.UserError, match="trained on float32"):
        value_range.checked((0, 1), "float32")


def test_the_pure_function_takes_the_range_when_it_is_made(trained, pixels):
    scorer, floats = trained[1], (pixels / 255).astype(np.float32)
    function, variables = scorer.function(value_range=(0, 1))
    expected = scorer(pixels)
    assert_scores_close(scorer, pixels, jax.jit(function)(variables, floats), expected)
    assert_scores_close(scorer, pixels, jax.jit(function)(variables, pixels), expected)
    default, _ = scorer.function()
    assert_scores_close(scorer, pixels, default(variables, floats * 2 - 1), expected)


def test_images_read_on_demand_follow_the_same_rule(pixels):
    floats = (pixels / 255).astype(np.float32)
    lazy = LazyImages(lambda indices: floats[indices], floats.shape, floats.dtype)
    np.testing.assert_array_equal(value_range.images_to_unit(lazy, (0, 1))[1:3], 2 * floats[1:3] - 1)
    assert value_range.images_to_unit(pixels, (0, 1)) is pixels


def test_maps_explanations_and_evaluations_of_floats(trained, arrays, tmp_path):
    workdir, scorer = trained
    images, labels = arrays[0][-60:], arrays[1][-60:]
    floats = (images / 255).astype(np.float32)
    with pytest.raises(gj.UserError, match="could be in"):
        gj.residual_maps(scorer, floats[:3])
    found = gj.residual_maps(scorer, floats[:3], value_range=(0, 1))
    np.testing.assert_allclose(found.values, gj.residual_maps(scorer, images[:3]).values, atol=1e-5)
    bright = np.clip(found.x, 0, 1)  # inputs of the network are in [-1, 1], also where none is below 0
    assert np.isfinite(gj.integrated_gradients(scorer, bright[:1]).scores).all()
    with pytest.raises(gj.UserError, match="could be in"):
        gj.evaluate(workdir, arrays=(floats, labels), out=tmp_path / "unclear")
    assert not (tmp_path / "unclear").exists()
    wanted = gj.evaluate(workdir, arrays=(images, labels), out=tmp_path / "pixels").metrics
    same = gj.evaluate(workdir, arrays=(floats, labels), out=tmp_path / "floats", value_range=(0, 1)).metrics
    assert same["auroc"] == pytest.approx(wanted["auroc"], abs=1e-6)
    assert same["true_positive_rate"] == wanted["true_positive_rate"]


def test_an_export_says_the_range_and_refuses_other_types(trained, pixels, tmp_path):
    pytest.importorskip("flatbuffers")
    from ganomaly_jax.deploy import export_runtime

    scorer, floats = trained[1], (pixels / 255).astype(np.float32)
    gj.export(scorer, tmp_path / "pixels")
    score, manifest = export_runtime.load(tmp_path / "pixels")
    assert [manifest["input"][name] for name in ("dtype", "low", "high")] == ["uint8", 0, 255]
    with pytest.raises(ValueError, match=r"x is float32: this program expects uint8 from 0\.0 to 255\.0"):
        score(floats)
    gj.export(scorer, tmp_path / "floats", value_range=(0, 1))
    score, manifest = export_runtime.load(tmp_path / "floats")
    assert [manifest["input"][name] for name in ("dtype", "low", "high")] == ["float32", 0, 1]
    assert_scores_close(scorer, pixels, score(floats)["score"], scorer(pixels))
    with pytest.raises(ValueError, match="x is uint8: this program expects float32 from 0"):
        score(pixels)
    assert json.loads((tmp_path / "floats" / "manifest.json").read_text())["self_check"]["images"] == 64
