"""Properties of scores and p-values, for batches and calibration sets that hypothesis thinks of."""

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ganomaly_jax.scoring import calibration, inference
from tests.support import assert_scores_close, blobs

POOL = np.concatenate([blobs(45, 3), blobs(45, 4, anomalous=True)])
SIZE = 20
BATCHES = st.lists(st.integers(0, len(POOL) - 1), min_size=1, max_size=90)


@settings(max_examples=40)
@given(batch=BATCHES, chance=st.randoms(use_true_random=False))
def test_scores_of_a_permuted_batch_are_the_permuted_scores(trained, batch, chance):
    order = chance.sample(range(len(batch)), len(batch))
    scores = trained[1](POOL[batch])
    np.testing.assert_array_equal(trained[1](POOL[batch][order]), scores[order])


@settings(max_examples=12)
@given(batch=BATCHES, more=BATCHES, at=st.integers(0, 89))
def test_a_score_is_that_of_the_image_alone_in_any_batch(trained, batch, more, at):
    """To the bit where the batches are padded to the same size and so run the same program; else up to rounding."""
    at %= len(batch)
    image, scorer = POOL[batch[at]], trained[1]
    found = scorer(POOL[batch])[at]
    other = scorer(np.concatenate([POOL[more], image[None]]))[-1]
    if inference.bucket(len(batch)) == inference.bucket(len(more) + 1):
        assert other == found
    assert_scores_close(scorer, image[None], scorer(image[None]), [found])
    assert_scores_close(scorer, image[None], [other], [found])


@jax.jit
def p_values_left_out(scores):
    """The p-value [SIZE] of each of SIZE scores, calibrated with all the others."""
    rest = np.array([np.delete(np.arange(SIZE), i) for i in range(SIZE)])
    return jax.vmap(calibration.p_values)(jax.numpy.sort(scores[rest], axis=1), scores[:, None])[:, 0]


SCORES = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)


@given(st.lists(SCORES, min_size=SIZE, max_size=SIZE, unique=True))
def test_p_values_are_uniform_where_normal_items_are_exchangeable(scores):
    """Whichever of them is the new one, all being as likely: every multiple of 1 / (n + 1) once."""
    found = np.sort(np.asarray(p_values_left_out(np.array(scores, np.float32))))
    np.testing.assert_allclose(found, np.arange(1, SIZE + 1) / SIZE, rtol=1e-6)


@given(st.lists(st.integers(0, 6).map(float), min_size=SIZE, max_size=SIZE), st.integers(1, SIZE))
def test_p_values_with_ties_are_never_too_small(scores, k):
    found = np.asarray(p_values_left_out(np.array(scores, np.float32)))
    assert found.min() >= np.float32(1 / SIZE)
    assert (found <= k / SIZE + 1e-6).mean() <= k / SIZE + 1e-6  # P(p <= a) <= a


@given(st.lists(SCORES, min_size=SIZE, max_size=SIZE), st.floats(0.001, 0.999))
def test_the_threshold_flags_no_more_than_promised(scores, rate):
    """Each of the scores in turn is the new one: at most the promised share is above the threshold of the others."""
    flagged = 0
    promised = 0.0
    for i, score in enumerate(scores):
        found = calibration.calibrate(np.array(scores[:i] + scores[i + 1 :]), rate)
        flagged, promised = flagged + (score > found.threshold), found.rate
    assert flagged <= promised * SIZE + 1e-6
    assert promised <= max(rate, 1 / SIZE) + 1e-9
