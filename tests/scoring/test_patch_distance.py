"""Patches beside those of training images: values by hand, what does not count, and the whole way to a file."""

import jax  # noqa: I001
import jax.numpy as jnp
import numpy as np
import pytest
from tests.support import blobs, tiny_config

from ganomaly_jax import load, train
from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.scoring import patch_distance

SHAPE = (32, 32, 2)
SHARE = patch_distance.SHARES["medium"]
FIT = 200


def every_patch(x):
    """[B, places, h, w, C]"""
    places = patch_distance.places(x.shape[1:], SHARE)
    return np.asarray(patch_distance.described(x, np.tile(np.arange(places), (len(x), 1)), SHARE))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(-1, 1, (4, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def fitted(images):
    kept = np.concatenate(every_patch(images))[:FIT]
    return {name: jnp.asarray(value) for name, value in patch_distance.fit(kept, 0).items()}


def test_a_patch_is_what_is_cut_out_and_scaled(images):
    found = every_patch(images)
    # 12 of 32 pixels, a step of 2, so 11 by 11 places; that of row 3 and column 5 begins at 6 and 10.
    assert found.shape == (4, 121, 12, 12, 2)
    cut = images[1, 6:18, 10:22]
    np.testing.assert_allclose(found[1, 3 * 11 + 5], (cut - cut.mean()) / (cut.std() + 0.2), atol=1e-5)


def test_distance_by_hand(images, fitted):
    found = every_patch(images).reshape(4, 121, -1)
    kept = np.concatenate(found)[:FIT]
    mean = kept.mean(axis=0)
    axes = np.linalg.svd(kept - mean, full_matrices=False)[2][: patch_distance.AXES].T
    at, bank = (found - mean) @ axes, (kept - mean) @ axes
    wanted = np.sqrt(np.square(at[:, :, None] - bank).sum(-1)).min(-1).mean(-1)
    np.testing.assert_allclose(
        jax.jit(patch_distance.distance, static_argnums=2)(fitted, images, SHARE), wanted, atol=2e-3
    )


def test_the_bank_is_spread_over_the_patches():
    """Each that is kept is the farthest from those before, so that a rare patch is kept as surely as frequent ones."""
    random = np.random.default_rng(2)
    at = random.normal(size=(300, 3)).astype(np.float32)
    at[77] = 30
    wanted = [int(np.square(at - at.mean(axis=0)).sum(1).argmin())]
    while len(wanted) < 20:
        far = np.square(at[:, None] - at[wanted]).sum(-1).min(-1)
        wanted.append(int(far.argmax()))
    assert np.asarray(patch_distance.spread(at, 20)).tolist() == wanted and wanted[1] == 77


def test_more_patches_than_the_bank_holds(images, monkeypatch):
    monkeypatch.setattr(patch_distance, "BANK", 150)
    monkeypatch.setattr(patch_distance, "CANDIDATES", 400)
    places = patch_distance.drawn(images.shape[1:], SHARE, len(images), 2, np.random.default_rng(0))
    assert places.shape == (2, 100) and all(len(set(row)) == 100 for row in places.tolist())
    kept = np.concatenate(every_patch(images))
    found = patch_distance.fit(kept, 0)
    assert found["bank"].shape == (150, patch_distance.AXES) and len(np.unique(found["bank"], axis=0)) == 150
    assert patch_distance.fit(kept[:90], 0)["bank"].shape[0] == 90


def test_the_bank_is_spread_and_its_candidates_are_drawn(images, monkeypatch):
    """Neither the first patches that come, which are those of the first images, nor any of a crowd."""
    kept = np.concatenate(every_patch(images))
    kept[-1] = 20 * np.sign(kept[-1])  # a rare one, in the last image
    monkeypatch.setattr(patch_distance, "BANK", 40)
    whole = patch_distance.fit(kept, 0)
    axes = whole["kernel"].reshape(-1, patch_distance.AXES)
    along = kept.reshape(len(kept), -1) @ axes - whole["mean"]
    which = [int(np.square(along - row).sum(-1).argmin()) for row in whole["bank"]]
    np.testing.assert_allclose(along[which], whole["bank"], atol=1e-2)
    assert len(kept) - 1 in which and len({i // 121 for i in which}) == 4
    # Farthest points: the greatest distance to the bank is at most twice the least between any two of it.
    far = np.sqrt(np.square(along[:, None] - whole["bank"]).sum(-1).min(-1).max())
    between = np.sqrt(np.square(whole["bank"][:, None] - whole["bank"]).sum(-1))
    assert far <= between[~np.eye(40, dtype=bool)].min() * 1.001
    monkeypatch.setattr(patch_distance, "CANDIDATES", 100)
    few, again, other = (patch_distance.fit(kept, seed)["bank"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(few, again)
    assert few.shape == other.shape and not np.array_equal(few, other)


def test_what_lies_outside_the_components_by_hand(images):
    light = (images + 1) / 2
    flat = (light / (light.mean(axis=(1, 2, 3), keepdims=True) + 0.02) - 1).reshape(4, -1)
    np.testing.assert_allclose(patch_distance.exposed(images), flat.reshape(images.shape), atol=1e-5)
    fitted = patch_distance.fit_components(np.asarray(patch_distance.exposed(images[:3])))
    centred = flat - flat[:3].mean(axis=0)
    axes = np.linalg.svd(centred[:3], full_matrices=False)[2][:2].T
    outside = np.square(centred - centred @ axes @ axes.T).mean(-1)
    np.testing.assert_allclose(jax.jit(patch_distance.components)(fitted, images), outside, rtol=1e-4, atol=1e-6)
    assert np.abs(outside[:3]).max() < 1e-5 < 0.1 < outside[3]


def test_half_the_light_is_the_same_image(images):
    dimmed = (images + 1) / 2 - 1
    np.testing.assert_allclose(patch_distance.exposed(dimmed), patch_distance.exposed(images), atol=0.1)


def test_brighter_counts_little_and_another_place_not_at_all():
    normal = np.zeros((60, 32, 32, 1), np.float32)
    normal[:, 8:24, 14:18] = 0.8  # a bar in the middle
    found = np.concatenate(np.asarray(patch_distance.described(normal[:1], np.arange(121)[None], SHARE)))
    fitted = patch_distance.fit(found, 0)
    moved, brighter = np.roll(normal[:1], 4, axis=2), normal[:1] + 0.15
    turned = normal[:1].transpose(0, 2, 1, 3)
    plain, of_moved, of_brighter, of_turned = (
        float(patch_distance.distance(fitted, jnp.asarray(x), SHARE)[0]) for x in (normal[:1], moved, brighter, turned)
    )
    assert plain == pytest.approx(of_brighter, abs=1e-2) and of_moved < 0.2 * of_turned and of_turned > 1


@pytest.mark.parametrize("many", [3, 700])
def test_a_bank_in_groups_is_a_bank(many):
    random = np.random.default_rng(1)
    bank, at = random.normal(size=(1203, 5)).astype(np.float32), random.normal(size=(many, 2, 3, 5)).astype(np.float32)
    wanted = np.sqrt(np.square(at[..., None, :] - bank).sum(-1).min(-1) + 1e-6)
    np.testing.assert_allclose(jax.jit(patch_distance.nearest)(bank, at), wanted, rtol=1e-5)
    if many == 3:
        at[0, 0, 0] = bank[7]
        slope = jax.grad(lambda at: patch_distance.nearest(bank, at).sum())(jnp.asarray(at))
        away = at - bank[np.square(at[..., None, :] - bank).sum(-1).argmin(-1)]
        unit = away / np.sqrt(np.square(away).sum(-1, keepdims=True) + 1e-6)
        np.testing.assert_allclose(slope, unit, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "share", "layout"),
    [
        ((16, 16, 1), 1 / 8, (1, (4, 4), (1, 1))),  # a side of at least 4
        ((64, 32, 3), 3 / 8, (1, (24, 12), (4, 2))),
        ((64, 32, 3), 1.0, (2, (32, 16), (2, 1))),
        ((256, 256, 1), 1 / 8, (1, (32, 32), (16, 16))),  # of at most 32
        ((256, 128, 1), 3 / 8, (4, (24, 12), (4, 2))),
        ((96, 72, 1), 1.0, (4, (24, 18), (1, 1))),
        ((96, 70, 1), 1.0, (2, (48, 35), (3, 2))),  # not halved again, with 35
    ],
)
def test_layouts_by_hand(shape, share, layout):
    assert patch_distance._layout(shape, share) == layout


def test_what_is_stored_is_float32(images):
    kept = np.concatenate(every_patch(images))[:FIT]
    components = patch_distance.fit_components(np.asarray(patch_distance.exposed(images)))
    for array in (*patch_distance.fit(kept, 0).values(), *components.values()):
        assert array.dtype == np.float32


@pytest.mark.parametrize("shape", [(16, 16, 1), (64, 32, 3), (256, 256, 1)])
@pytest.mark.parametrize("size", patch_distance.SHARES)
def test_every_size_of_image(shape, size):
    share = patch_distance.SHARES[size]
    down, sides, _ = patch_distance._layout(shape, share)
    assert max(sides) <= 32 and shape[0] % down == shape[1] % down == 0
    place = patch_distance.places(shape, share)
    assert (place == 1) == (size == "whole")
    x = np.random.default_rng(0).uniform(-1, 1, (2, *shape)).astype(np.float32)
    assert np.isfinite(patch_distance.described(x, np.full((2, 1), place - 1), share)).all()


def test_the_whole_way(tmp_path):
    """Trained, saved, read: the same scores, alone as in a batch, with a gradient, under a symbolic batch; no rows."""
    settings = tiny_config(epochs=1)
    settings.evaluate.score = "patches_medium+components"
    settings.data.calibration = 0.25
    images = blobs(96, 3)
    made = train(settings, tmp_path, arrays=images, log=lambda line: None)
    read = load(tmp_path)
    images = np.concatenate([images[:8], blobs(24, 9)])  # some that were trained on, and others
    found = made(images)
    np.testing.assert_array_equal(read(images), found)
    np.testing.assert_allclose(read(images[5:6]), found[5:6], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(read(images[20:21]), found[20:21], rtol=1e-5, atol=1e-5)
    assert read(blobs(30, 4, anomalous=True)).min() > np.quantile(found, 0.9)
    fn, variables = read.function()
    x = jnp.asarray(images[:2], jnp.float32) / 127.5 - 1
    gradient = jax.grad(lambda x: fn(variables, x).sum())(x)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0
    batch = jax.export.symbolic_shape("b, 16, 16, 1")
    exported = jax.export.export(jax.jit(lambda x: fn(variables, x)))(jax.ShapeDtypeStruct(batch, images.dtype))
    np.testing.assert_allclose(exported.call(images[:3]), found[:3], rtol=1e-4, atol=1e-4)


def test_rows_have_no_patches(tmp_path):
    settings = config.Config()
    settings.evaluate.score, settings.data.kind = "patches_medium", "rows"
    settings.train.batch_size, settings.train.epochs = 8, 1
    rows = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    with pytest.raises(UserError, match="patches_medium is for images"):
        train(settings, tmp_path, arrays=rows, log=lambda line: None)
