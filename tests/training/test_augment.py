"""Where the pixels come from, what the draws follow from, and that training takes augmented images."""

from types import SimpleNamespace

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ganomaly_jax.data.images import preprocess
from ganomaly_jax.parallel import sharding
from ganomaly_jax.training import augment, train_step

STEP = jnp.int32(7)
LOSSES = ("first", "second")


def images(n, height=6, width=4, channels=2):
    """No two pixels of an image alike."""
    return np.stack([np.random.default_rng(i).permutation(height * width * channels) for i in range(n)]).reshape(
        n, height, width, channels
    )


def draws(before, after, shift):
    """(rows, columns, mirrored) by which each image of `before` has become that of `after`, by comparing all ways."""
    found = []
    for image, moved in zip(before, after, strict=True):
        padded = np.pad(image, ((shift, shift), (shift, shift), (0, 0)), mode="edge")
        height, width, _ = image.shape
        ways = [
            (i - shift, j - shift, mirrored)
            for i in range(2 * shift + 1)
            for j in range(2 * shift + 1)
            for mirrored in (False, True)
            if (padded[i : i + height, j : j + width][:, :: -1 if mirrored else 1] == moved).all()
        ]
        assert len(ways) == 1
        found += ways
    return found


def test_nothing_asked_for_is_nothing_done():
    assert augment.make(0, 0, False) is None
    x = images(3)
    np.testing.assert_array_equal(augment.augment(jax.random.key(0), x, 0, False), x)


@pytest.mark.parametrize(("shift", "flip"), [(1, True), (2, False), (0, True)])
def test_every_pixel_comes_from_its_place_and_every_way_comes_up(shift, flip):
    x = images(400)
    y = jax.jit(augment.augment, static_argnums=(2, 3))(jax.random.key(1), x, shift, flip)
    assert (y.shape, y.dtype) == (x.shape, jnp.int32)
    ways, counts = np.unique(draws(x, np.asarray(y), shift), axis=0, return_counts=True)
    expected = (2 * shift + 1) ** 2 * (1 + flip)
    assert len(ways) == expected
    assert np.square(counts - 400 / expected).sum() / (400 / expected) < 3 * expected  # chi-squared, mean expected - 1


def test_draws_follow_from_seed_step_and_image():
    x = np.repeat(images(1), 64, axis=0)
    augmented = jax.jit(augment.make(3, 2, True))
    first = augmented(x, STEP)
    np.testing.assert_array_equal(first, augmented(x, STEP))
    np.testing.assert_array_equal(first, augment.make(np.uint32(3), 2, True)(x, STEP))
    # Of 50 ways two draws are the same one in 50.
    others = (augmented(x, STEP + 1), augment.make(4, 2, True)(x, STEP), jnp.roll(first, 1, 0))
    for other in others:
        assert (first == other).all((1, 2, 3)).mean() < 0.2


def test_devices_draw_for_their_part_of_the_batch():
    x = images(8)
    mesh = sharding.local_mesh(4)
    alone = augment.make(3, 2, True)(x, STEP)
    part = augment.make(3, 2, True, sharding.axis_name(mesh))
    gather = lambda x, step: jax.lax.all_gather(part(x, step), sharding.DATA_AXIS, tiled=True)  # noqa: E731
    spread = sharding.data_parallel(gather, mesh, (0, None))
    np.testing.assert_array_equal(spread(sharding.shard_batch(x, mesh, 0), STEP), alone)


@flax.struct.dataclass
class Seen:
    """A state that remembers the last batch."""

    step: jax.Array
    x: jax.Array


def test_a_chunk_augments_the_scaled_images_of_each_step():
    raw = images(5, 4, 4, 1).astype(np.uint8)
    index = np.array([[0, 1, 2], [2, 3, 4], [4, 0, 1]], np.int32)

    def update(state, x):
        return Seen(state.step + 1, x), dict.fromkeys(LOSSES, x[0, 0, 0, 0])

    augmentation = augment.make(3, 1, True)
    run = jax.jit(train_step.make_steps(SimpleNamespace(update=update, losses=LOSSES), 0, 255, augmentation))
    begin = Seen(STEP, jnp.zeros((3, 4, 4, 1)))
    whole, losses = run(begin, raw, index, 3)
    expected = [augmentation(preprocess.to_unit(raw[rows], 0, 255), STEP + i) for i, rows in enumerate(index)]
    np.testing.assert_array_equal(whole.x, expected[2])
    np.testing.assert_array_equal(losses[:, 0], [x[0, 0, 0, 0] for x in expected])
    # Stopped and gone on: the same.
    half, _ = run(begin, raw, index, 2)
    resumed, _ = run(half, raw, index[2:].repeat(3, axis=0), 1)
    np.testing.assert_array_equal(resumed.x, whole.x)


def test_without_augmentation_the_program_is_that_of_the_detector_alone(tiny):
    detector, state, _ = tiny
    shapes = (np.zeros((4, 16, 16, 1), np.uint8), np.zeros((2, 4), np.int32), 1)
    texts = [
        jax.jit(train_step.make_steps(detector, 0, 255, *more)).lower(state, *shapes).as_text()
        for more in ((), (augment.make(0, 0, False),), (augment.make(0, 1, False),))
    ]
    assert texts[0] == texts[1] != texts[2]
