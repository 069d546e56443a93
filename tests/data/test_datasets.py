"""Splits, order and preprocessing: the published order to the last index, and every image accounted for."""

import dataclasses

import numpy as np
import pytest

from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import datasets
from ganomaly_jax.data.batch_order import batch_indices, batch_rows, columns
from ganomaly_jax.data.datasets import content_hash, from_arrays, value_range
from ganomaly_jax.data.images.preprocess import all_finite, fit_image, to_channels, to_unit
from ganomaly_jax.data.sources import describe
from ganomaly_jax.data.splits import normal_classes, split


def make(labels, classes=None, parts=None, **changes):
    labels = np.asarray(labels)
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None] * np.ones((1, 4, 5), np.uint8)
    made = from_arrays(images, labels, classes, parts, name="toy")
    return dataclasses.replace(made, **changes)


DIGITS = make(np.arange(200) % 10, parts=np.repeat([0, 1, 0, 1], [60, 40, 70, 30]))


def test_one_class_abnormal_is_the_published_order():
    """Against the same protocol written as a loop over images, with numpy's global generator as the original has it."""
    for seed in (0, 1, 2):
        normal, abnormal_train, abnormal_test = [], [], []
        for part, abnormal in ((0, abnormal_train), (1, abnormal_test)):
            for i in range(200):
                if DIGITS.parts[i] == part:
                    (abnormal if DIGITS.classes[DIGITS.labels[i]] == "3" else normal).append(i)
        order = np.arange(len(normal))
        np.random.seed(seed)
        np.random.shuffle(order)
        cut = int(len(normal) * 0.8)
        made = split(DIGITS, config.Data(abnormal="3", calibration=0.0), seed)
        assert made.train.tolist() == [normal[k] for k in order[:cut]]
        assert made.test.tolist() == [normal[k] for k in order[cut:]] + abnormal_train + abnormal_test
        assert made.labels.tolist() == [0] * (len(normal) - cut) + [1] * 20
        assert made.protocol == "one class abnormal: 3"
        assert len(made.calibration) == 0
        assert all(a.dtype == np.int64 for a in (made.train, made.calibration, made.test, made.labels))


def test_calibration_comes_out_of_training_and_moves_nothing_else():
    whole = split(DIGITS, config.Data(abnormal="3", calibration=0.0), 5)
    made = split(DIGITS, config.Data(abnormal="3"), 5)
    assert len(made.calibration) == int(0.1 * len(whole.train)) == 14
    assert set(made.train) | set(made.calibration) == set(whole.train) and not set(made.train) & set(made.calibration)
    assert [i for i in whole.train if i in set(made.train)] == made.train.tolist()
    np.testing.assert_array_equal(made.test, whole.test)
    again = split(DIGITS, config.Data(abnormal="3"), 5)
    np.testing.assert_array_equal(made.calibration, again.calibration)
    fixed = make(["ok"] * 90 + ["bad"] * 10, parts=np.repeat([0, 1], [85, 15]))  # no shuffle but the calibration's
    parts = [split(fixed, config.Data(), seed).calibration.tolist() for seed in (5, 6, 5)]
    assert parts[0] == parts[2] != parts[1]


def test_limit_counts_for_training_alone():
    whole = split(DIGITS, config.Data(abnormal="3"), 5)
    made = split(DIGITS, config.Data(abnormal="3", limit=30), 5)
    assert len(made.train) == 30 and set(made.train) < set(whole.train)
    np.testing.assert_array_equal(made.calibration, whole.calibration)
    np.testing.assert_array_equal(made.test, whole.test)


def test_own_split_stays_and_anomalies_never_train():
    toy = make([0, 0, 0, 1, 0, 1, 2, 0], ["good", "gun", "razor"], [0, 0, 0, 0, 1, 1, 1, 0], normal=frozenset({"good"}))
    made = split(toy, config.Data(calibration=0.0), 0)
    assert made.train.tolist() == [0, 1, 2, 7]
    assert made.test.tolist() == [4, 5, 6, 3] and made.labels.tolist() == [0, 1, 1, 1]
    assert made.protocol == "own labels, own split" and "1 anomalous" in made.notes[0]


def test_without_parts_all_anomalies_are_tested_on():
    toy = make(["good", "bad"] * 10)
    made = split(toy, config.Data(calibration=0.0, test=0.3), 0)
    assert len(made.train) == 7 and len(made.test) == 13 and made.labels.sum() == 10
    assert sorted([*made.train, *made.test]) == list(range(20))


def test_normals_alone_leave_a_test_set_of_one_class():
    for parts in (None, np.zeros(50, int)):
        made = split(make(["normal"] * 50, parts=parts), config.Data(), 0)
        assert (len(made.train), len(made.calibration), len(made.test)) == (36, 4, 10) and not made.labels.any()


def test_the_smallest_sets():
    made = split(make(["ok"] * 4), config.Data(), 0)  # int(4 * 0.8) = 3
    assert (len(made.train), len(made.calibration), len(made.test)) == (2, 1, 1)
    with pytest.raises(UserError, match=r"3 normal images, of which 1 would be trained on \(1 for calibration\)"):
        split(make(["ok"] * 3), config.Data(), 0)


@pytest.mark.parametrize(
    ("dataset", "settings", "words"),
    [
        (
            DIGITS,
            {"abnormal": "30"},
            "'30' is not a class of toy, which has 0, 1, 2, 3, 4, 5, 6, 7, 8, 9; the nearest is '",
        ),
        (DIGITS, {}, "which of them are anomalous is not said: --config.data.abnormal=NAME"),
        (make(["bad"] * 9), {}, "toy has no normal images, only bad"),
        (make(["bad"] * 9), {"abnormal": "bad"}, "toy has no normal images, only bad"),
        (make(["normal", "anomalus"]), {}, "the classes anomalus, normal"),
        (make(["ok", "bad"]), {}, "of which 0 would be trained on"),
    ],
)
def test_refusals(dataset, settings, words):
    with pytest.raises(UserError) as refused:
        split(dataset, config.Data(**settings), 0)
    assert words in str(refused.value)


def test_seeds_that_numpy_does_not_take():
    with pytest.raises(UserError, match="seed=-1: expected 0 to 4294967295"):
        split(DIGITS, config.Data(abnormal="3"), -1)


def test_nan_is_refused_in_training_and_kept_in_tests():
    images = np.zeros((20, 4, 4), np.float32)
    images[[3, 4], 1, 2] = np.nan, np.inf
    labels = np.array([0] * 10 + [1] * 10)
    settings = config.Data(test=0.001, calibration=0.0)
    said = r"2 of 9 normal training images of the array .* \(the first is the array\[[34]\]\)"
    with pytest.raises(UserError, match=said):
        split(from_arrays(images, labels), settings, 0)
    split(from_arrays(images, 1 - labels), settings, 0)
    split(from_arrays(images, labels * 0, parts=np.isin(np.arange(20), (3, 4))), settings, 0)
    classes = from_arrays(images, labels + 5)  # which of them is normal is not known yet
    assert len(split(classes, config.Data(abnormal="5", calibration=0.0), 0).train) == 8
    with pytest.raises(UserError, match="NaN or infinite"):
        split(classes, config.Data(abnormal="6", test=0.001, calibration=0.0), 0)


def test_the_order_follows_from_seed_and_epoch():
    order = batch_rows(3, 100, 10, 40, 10)  # epoch 4
    np.testing.assert_array_equal(np.sort(order, axis=0), np.repeat(np.arange(10)[:, None], 10, axis=1))
    np.testing.assert_array_equal(order, batch_rows(3, 100, 10, 40, 10))
    for other in (batch_rows(3, 100, 10, 50, 10), batch_rows(4, 100, 10, 40, 10)):
        assert (order != other).any()
    assert (order[:, 0] != order[:, 1]).any(), "each place has an order of its own"


def test_places_share_the_images_out():
    places = columns(7, 23, 5)
    assert places.shape == (5, 5)
    assert sorted(places.ravel()[np.arange(25) % 5 * 5 + np.arange(25) // 5][:23].tolist()) == list(range(23))
    assert (columns(8, 23, 5) != places).any()


def test_batches():
    whole = batch_indices(7, 23, 5, 0, 20)  # four steps an epoch, 3 images left over
    assert whole.shape == (20, 5) and whole.dtype == np.int32
    places = columns(7, 23, 5)
    for epoch in range(5):
        taken = whole[4 * epoch : 4 * epoch + 4]
        assert len(np.unique(taken)) == 20
        assert all(np.isin(taken[:, place], places[place]).all() for place in range(5))
    assert len(np.unique(whole)) == 23, "what an epoch leaves out another takes"
    for start in range(15):
        np.testing.assert_array_equal(batch_indices(7, 23, 5, start, 5), whole[start : start + 5])
    assert batch_indices(7, 23, 5, 3, 0).shape == (0, 5)
    with pytest.raises(UserError, match="3 training images are fewer than one batch of 5"):
        batch_indices(0, 3, 5, 0, 1)


def test_content_hash_tells_any_change():
    base = make([0, 1, 0, 1], parts=[0, 0, 1, 1])
    pixels, labels, parts = base.images.copy(), base.labels.copy(), base.parts.copy()
    pixels[3, 2, 1] ^= 1
    labels[0] = 1
    parts[0] = 1
    changed = [
        {"images": pixels},
        {"images": base.images.reshape(4, 5, 4, 1)},
        {"images": base.images.view(np.int8)},
        {"labels": labels},
        {"parts": parts},
        {"parts": None},
        {"classes": ("0", "2")},
    ]
    hashes = [content_hash(base), *(content_hash(dataclasses.replace(base, **change)) for change in changed)]
    assert len(set(hashes)) == len(hashes) and all(len(h) == 64 for h in hashes)
    same = dataclasses.replace(base, images=np.asfortranarray(base.images), paths=("elsewhere",) * 4)
    assert content_hash(same) == hashes[0]
    wide = dataclasses.replace(base, images=base.images.astype("<u2"))
    assert content_hash(wide) == content_hash(dataclasses.replace(base, images=base.images.astype(">u2")))


def test_value_range():
    assert value_range(DIGITS, np.arange(5)) == (0.0, 255.0)
    images = np.linspace(-3, 7, 10, dtype=np.float32)[:, None, None] * np.ones((1, 4, 4), np.float32)
    real = from_arrays(images)
    assert (real.low, real.high) == (None, None)
    assert value_range(real, np.arange(9)) == pytest.approx((-3, 5.8888888))  # the last is not trained on
    with pytest.raises(UserError, match="nothing to learn"):
        value_range(real, np.array([2]))
    assert value_range(from_arrays(images, low=-5.0, high=5.0), np.arange(9)) == (-5.0, 5.0)


def test_array_types():
    shape = (2, 4, 4)
    assert from_arrays(np.full(shape, 300)).images.dtype == np.uint16
    assert from_arrays(np.full(shape, 255)).images.dtype == np.uint8
    assert from_arrays(np.full(shape, -1)).images.dtype == np.float32
    assert from_arrays(np.ones(shape, bool)).images.max() == 255
    assert from_arrays(np.full(shape, 0.5)).images.dtype == np.float32
    swapped = from_arrays(np.full(shape, 258, ">u2"))
    assert swapped.images.dtype == np.uint16 and swapped.images.dtype.isnative and (swapped.images == 258).all()
    assert (swapped.low, swapped.high) == (0.0, 65535.0)
    assert from_arrays(np.full((2, 4, 4, 6), 9, np.uint8)).images.shape == (2, 4, 4, 6)
    made = from_arrays(np.zeros(shape, np.uint8), name="cells")
    assert made.paths == ("cells[0]", "cells[1]") and made.classes == ("normal",) and made.normal == {"normal"}


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (np.zeros((4, 4), np.uint8), None, "expected [N, H, W] or [N, H, W, C]"),
        (np.zeros((0, 4, 4), np.uint8), None, "none of them 0"),
        (np.zeros((2, 3, 32, 32), np.uint8), None, "look like [N, C, H, W]"),
        ([np.zeros((4, 4)), np.zeros((5, 4))], None, "differ in size"),
        (np.zeros((2, 4, 4), complex), None, "complex128"),
        (np.zeros((2, 4, 4), np.uint8), [0, 1, 1], "labels of shape (3,) for 2 images"),
        (np.zeros((2, 4, 4), np.uint8), [0.5, 1], "labels of type float64"),
        (np.zeros((2, 4, 4), np.uint8), [[0], [1, 2]], "labels differ in length"),
    ],
)
def test_arrays_that_are_refused(images, labels, words):
    with pytest.raises(UserError) as refused:
        from_arrays(images, labels)
    assert words in str(refused.value)


def test_labels_that_are_words():
    images = np.zeros((4, 4, 4), np.uint8)
    for labels in (["normal", "bad", "ok", "Defect"], [0, 1, 0, 1], [False, True, False, True], [0.0, 1, 0, 1]):
        made = from_arrays(images, labels)
        taken = [made.classes[label] in normal_classes(made, "") for label in made.labels]
        assert taken == [True, False, True, False], labels
    assert from_arrays(images, [[3], [4], [3], [3]]).classes == ("3", "4")
    assert from_arrays(images, [1, 0, 1, 1], ["cat", "dog"]).normal is None
    with pytest.raises(UserError, match="labels 1 to 2 for 2 class names"):
        from_arrays(images, [1, 2, 1, 1], ["cat", "dog"])
    with pytest.raises(UserError, match="parts of shape"):
        from_arrays(images, parts=[0, 1, 2, 0])


def rows(text):
    return [line.split() for line in text.splitlines()]


def test_description():
    toy = make(["good"] * 20 + ["gun"] * 5, problems=(("a b.png", "empty file (0 bytes)"),))
    toy = dataclasses.replace(toy, normal=frozenset({"good"}))
    text = describe(toy, split(toy, config.Data(), 0))
    assert rows(text)[:3] == [
        ["class", "taken", "as", "train", "calibration", "test"],
        ["good", "normal", "15", "1", "4"],
        ["gun", "anomalous", "0", "0", "5"],
    ]
    assert "4 x 5 x 1 pixels of uint8; range 0 to 255; own labels, normals split" in text
    assert "1 files could not be read, the first: a b.png: empty file (0 bytes)" in text
    assert rows(describe(toy))[:3] == [
        ["class", "taken", "as", "images"],
        ["good", "normal", "20"],
        ["gun", "anomalous", "5"],
    ]
    limited = rows(describe(toy, split(toy, config.Data(limit=3), 0)))
    assert limited[0][-2:] == ["not", "used"] and limited[1] == ["good", "normal", "3", "1", "4", "12"]


def test_description_of_many_classes_is_short():
    text = describe(DIGITS, split(DIGITS, config.Data(abnormal="3"), 0)).splitlines()
    assert len(text) == 4
    assert text[1].split("  ")[0] == "0, 1, 2, 4, 5, 6, 7, 8, 9" and text[1].split()[-4:] == [
        "normal",
        "130",
        "14",
        "36",
    ]
    assert text[2].split() == ["3", "anomalous", "0", "0", "20"]
    assert describe(DIGITS).splitlines()[1].split()[-3:] == ["?", "130", "70"]


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("size", [(32, 32), (64, 16), (7, 50)])
def test_resize_is_pillows(channels, size):
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (28, 41, channels), np.uint8)
    got = fit_image(pixels, *size, 0)
    planes = [image.fromarray(np.ascontiguousarray(pixels[..., c])) for c in range(channels)]
    want = np.stack([np.asarray(p.resize(size[::-1], image.Resampling.BILINEAR)) for p in planes], axis=-1)
    np.testing.assert_array_equal(got, want)
    wide = fit_image(pixels.astype(np.uint16) * 257, *size, 0)
    assert wide.dtype == np.uint16 and np.abs(wide / 257 - want).max() <= 1.01
    exact = fit_image(pixels.astype(np.float32) * 257, *size, 0)
    np.testing.assert_array_equal(wide, np.rint(exact))
    real = fit_image(pixels.astype(np.float32), *size, 0)
    assert (
        real.dtype == np.float32 and np.abs(real - want).max() <= 1.01
    )  # Pillow rounds 8 bits after each of its two passes


def test_the_same_size_changes_nothing():
    for kind in (np.uint8, np.uint16, np.float32):
        pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(kind)
        np.testing.assert_array_equal(fit_image(pixels, 16, 16, 3), pixels)


def test_extremes_of_16_bits_survive():
    for value in (0, 65535):
        assert (fit_image(np.full((9, 9, 1), value, np.uint16), 16, 16, 1) == value).all()


@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
def test_a_non_finite_pixel_is_never_cleaned(fit):
    random = np.random.default_rng(0)
    for _ in range(100):
        h, w = random.integers(1, 100, 2)
        pixels = random.normal(size=(h, w, 1)).astype(np.float32)
        pixels[random.integers(h), random.integers(w)] = random.choice([np.nan, np.inf, -np.inf])
        assert not np.isfinite(fit_image(pixels, 32, 32, 1, fit)).all(), (h, w)


def test_letterbox_keeps_the_aspect_and_repeats_the_border():
    pixels = np.zeros((20, 40, 1), np.uint8)
    pixels[0], pixels[-1], pixels[4:-4] = 100, 200, 50
    got = fit_image(pixels, 32, 32, 1, "letterbox")[..., 0]
    inner = fit_image(pixels, 16, 32, 1)[..., 0]
    np.testing.assert_array_equal(got[8:24], inner)
    assert (got[:8] == inner[0]).all() and (got[24:] == inner[-1]).all()
    for size in ((1, 500), (500, 1), (3, 7)):
        assert fit_image(np.full((*size, 3), 9, np.uint8), 16, 32, 3, "letterbox").shape == (16, 32, 3)


def test_channels():
    image = pytest.importorskip("PIL.Image")
    colour = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    np.testing.assert_array_equal(to_channels(colour, 1)[..., 0], np.asarray(image.fromarray(colour).convert("L")))
    assert (to_channels(np.full((2, 2, 3), 65535, np.uint16), 1) == 65535).all()
    real = to_channels(np.float32([[[1.0, 0.5, 0.0]]]), 1)
    assert real.dtype == np.float32 and real[0, 0, 0] == pytest.approx(0.299 + 0.5 * 0.587)
    np.testing.assert_array_equal(to_channels(colour[..., :1], 4), np.repeat(colour[..., :1], 4, axis=-1))
    for have, want in ((3, 4), (2, 1), (4, 3), (6, 1)):
        with pytest.raises(UserError, match=f"{have} channels, expected {want}"):
            fit_image(np.zeros((4, 4, have), np.uint8), 4, 4, want)


def test_fit_image_refuses():
    for pixels in (np.zeros((4, 4), np.uint8), np.zeros((4, 0, 1), np.uint8), np.zeros((4, 4, 1), np.int64)):
        with pytest.raises(UserError, match="expected"):
            fit_image(pixels, 4, 4, 1)
    with pytest.raises(UserError, match="'stretch' or 'letterbox'"):
        fit_image(np.zeros((4, 4, 1), np.uint8), 4, 4, 1, "crop")


def test_to_unit_by_hand():
    import jax

    got = jax.jit(to_unit)(np.uint8([0, 51, 255]), 0.0, 255.0)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, [-1, -0.6, 1], rtol=1e-6)
    np.testing.assert_allclose(to_unit(np.uint16([0, 65535]), 0, 65535), [-1, 1])
    got = to_unit(np.float32([-5, 2, 3, 4, 99, np.nan, np.inf]), 2.0, 4.0)
    np.testing.assert_array_equal(got, np.float32([-1, -1, 0, 1, 1, np.nan, 1]))


def test_finite_is_told_for_each_image():
    images = np.zeros((4, 2, 2, 1), np.float32)
    images[1, 0, 1], images[3, 1, 0] = np.nan, -np.inf
    assert all_finite(images).tolist() == [True, False, True, False]
    assert all_finite(np.zeros((3, 2, 2, 1), np.uint8)).tolist() == [True] * 3
    assert all_finite(np.zeros((0, 2, 2, 1), np.float32)).shape == (0,)


def test_data_needs_numpy_alone():
    assert not {name for name in vars(datasets) if name in ("jax", "jnp", "PIL", "Image")}


def test_a_message_lists_no_more_classes_than_can_be_read():
    many = make([f"leak {i}" for i in range(3000)])
    for abnormal in ("", "leak"):
        with pytest.raises(UserError, match="and 2980 more") as caught:
            normal_classes(many, abnormal)
        assert len(str(caught.value)) < 1000
