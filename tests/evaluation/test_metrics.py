import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.evaluation import metrics

# By hand: of the 2 x 3 pairs, 0.8 beats all three normals, 0.4 beats 0.1, ties with 0.4 and loses to 0.6.
LABELS = np.array([0, 1, 0, 1, 0])
SCORES = np.array([0.1, 0.4, 0.4, 0.8, 0.6], np.float32)
AUROC = 4.5 / 6
AVERAGE_PRECISION = (1 + 2 / 4) / 2  # 0.8 first of one; at 0.4 two of four are anomalous


def partial(labels, scores, mask=None):
    return metrics.partial_auroc(labels, scores, 0.2, mask)


HOST = [metrics.auroc, metrics.average_precision, partial]
# What is traced computes in JAX's precision, what is not in double precision; it is one code.
AUROC_JIT, AVERAGE_PRECISION_JIT, PARTIAL_JIT = map(jax.jit, HOST)
BOTH = [*HOST, AUROC_JIT, AVERAGE_PRECISION_JIT, PARTIAL_JIT]


def random_set(n, share=0.3, decimals=None, separation=1.0, seed=0):
    generator = np.random.default_rng(seed)
    labels = (generator.random(n) < share).astype(np.int32)
    labels[:2] = 0, 1
    scores = (generator.normal(size=n) + separation * labels).astype(np.float32)
    return labels, scores if decimals is None else np.round(scores, decimals)


EITHER = pytest.mark.parametrize(("space", "near"), [(np, 1e-12), (jnp, 1e-6)], ids=["numpy", "jax"])


@EITHER
def test_hand_worked_values(space, near):
    labels, scores = space.asarray(LABELS), space.asarray(SCORES)
    assert metrics.auroc(labels, scores) == pytest.approx(AUROC, abs=near)
    assert metrics.average_precision(labels, scores) == pytest.approx(AVERAGE_PRECISION, abs=near)
    # Up to 0.2 of the normals (0.6 of one) the curve stands at 1/2: area 0.5 x 0.2, least 0.02, most 0.2.
    assert metrics.partial_auroc(labels, scores, 0.2) == pytest.approx(0.5 * (1 + 0.08 / 0.18), abs=near)
    assert metrics.auroc(labels, labels.astype(np.float32)) == 1
    assert metrics.auroc(labels, -labels.astype(np.float32)) == 0
    assert metrics.auroc(labels, space.full(5, 2, np.float32)) == 0.5


@EITHER
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("decimals", [None, 1, 0])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_agrees_with_scikit_learn(share, decimals, seed, space, near):
    labels, scores = random_set(301, share, decimals, seed=seed)
    own = space.asarray(labels), space.asarray(scores)
    assert metrics.auroc(*own) == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores), abs=near)
    want = sklearn_metrics.average_precision_score(labels, scores)
    assert metrics.average_precision(*own) == pytest.approx(want, abs=near)
    for max_fpr in (0.01, 0.05, 1.0):
        want = sklearn_metrics.roc_auc_score(labels, scores, max_fpr=max_fpr)
        assert metrics.partial_auroc(*own, max_fpr) == pytest.approx(want, abs=near)


@EITHER
def test_agrees_with_scikit_learn_on_a_million_scores(space, near):
    labels, scores = random_set(1_000_000, share=0.5, decimals=2)
    own = space.asarray(labels), space.asarray(scores)
    assert metrics.auroc(*own) == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores), abs=near)
    want = sklearn_metrics.average_precision_score(labels, scores)
    assert metrics.average_precision(*own) == pytest.approx(want, abs=near)


def test_random_labels_give_chance():
    sets = [random_set(301, separation=0.0, seed=seed) for seed in range(40)]
    assert np.mean([metrics.auroc(*one) for one in sets]) == pytest.approx(0.5, abs=0.02)
    assert np.mean([metrics.average_precision(*one) for one in sets]) == pytest.approx(0.3, abs=0.03)
    assert np.mean([metrics.partial_auroc(*one, 0.05) for one in sets]) == pytest.approx(0.5, abs=0.02)


def test_placements_average_to_the_auroc():
    found = metrics.placements(LABELS, SCORES)
    # By hand, in the order of LABELS: 0.1 loses to both, 0.4 as above, 0.4 ties once, 0.8 beats all, 0.6 loses once.
    np.testing.assert_allclose(found, [1, 1.5 / 3, 1.5 / 2, 1, 1 / 2], atol=1e-12)
    assert found[LABELS == 1].mean() == found[LABELS == 0].mean() == AUROC


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("padding", [0.0, 1e9, -np.inf, np.inf, np.nan])
def test_masked_items_are_left_out(function, padding):
    labels = np.concatenate([[1, 0], LABELS, [0, 1]])
    scores = np.concatenate([np.full(2, padding, np.float32), SCORES, np.full(2, padding, np.float32)])
    mask = np.array([0, 0, 1, 1, 1, 1, 1, 0, 0], bool)
    assert function(labels, scores, mask) == function(LABELS, SCORES)


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("label", [0, 1])
def test_one_class_is_nan(function, label):
    assert jnp.isnan(function(np.full(5, label), SCORES))


@pytest.mark.parametrize("function", BOTH)
def test_everything_masked_is_nan(function):
    assert jnp.isnan(function(np.arange(9) % 2, np.ones(9, np.float32), np.zeros(9, bool)))


@pytest.mark.parametrize("function", BOTH)
def test_a_nan_score_never_counts_as_normal(function):
    assert jnp.isnan(function(LABELS, np.array([0.1, 0.4, 0.4, np.nan, 0.6], np.float32)))


@pytest.mark.parametrize("max_fpr", [0.0, -0.1, 1.1, np.nan])
def test_partial_auroc_out_of_range_is_nan(max_fpr):
    assert jnp.isnan(metrics.partial_auroc(LABELS, SCORES, max_fpr))


@EITHER
def test_infinite_scores_and_both_zeros(space, near):
    scores = space.asarray([-np.inf, np.inf, 0.0, -np.inf, -0.0], np.float32)
    # The first anomalous item beats all three normals; the second ties with one and loses to two.
    assert metrics.auroc(LABELS, scores) == pytest.approx((3 + 0.5) / 6, abs=near)
    assert metrics.auroc(LABELS, space.asarray([0.0, -0.0, 0.0, -0.0, 0.0], np.float32)) == 0.5


def test_jit_vmap_and_types():
    labels, scores = np.stack([LABELS, LABELS]), np.stack([SCORES, -SCORES])
    both = jax.jit(jax.vmap(metrics.auroc))(labels.astype(bool), scores)
    assert both.dtype == jnp.float32
    np.testing.assert_allclose(both, [AUROC, 1 - AUROC], atol=1e-7)
    with jax.numpy_rank_promotion("raise"):
        assert AVERAGE_PRECISION_JIT(LABELS, SCORES).shape == ()
        assert PARTIAL_JIT(LABELS, SCORES).dtype == jnp.float32
    assert metrics.auroc(LABELS, SCORES).dtype == np.float64


def test_double_precision_where_jax_has_it():
    with jax.enable_x64(True):
        got = AUROC_JIT(LABELS, 1 + 1e-12 * LABELS)
        assert got == 1
        assert got.dtype == jnp.float64


def test_shapes_are_checked():
    with pytest.raises(UserError, match=r"\(5,\).*\(4,\)"):
        metrics.auroc(LABELS, SCORES[:4])
    with pytest.raises(UserError, match="N > 0"):
        metrics.auroc(np.zeros(0, int), np.zeros(0))


@pytest.mark.parametrize("decimals", [None, 1, 0])
def test_curves_agree_with_scikit_learn(decimals):
    labels, scores = random_set(200, decimals=decimals)
    want = sklearn_metrics.roc_curve(labels, scores, drop_intermediate=False)
    for ours, theirs in zip(metrics.roc_curve(labels, scores), want, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    want = sklearn_metrics.precision_recall_curve(labels, scores)
    for ours, theirs in zip(metrics.precision_recall_curve(labels, scores), want, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("decimals", [None, 1, 0])
def test_summary_agrees_with_scikit_learn(decimals, seed):
    # 100 normal items: the curve has a vertical step exactly at 5 %.
    labels, scores = np.repeat([0, 1], [100, 50]), random_set(150, decimals=decimals, seed=seed)[1]
    scores[100:] += np.float32(1)
    got = metrics.summary(labels, scores, 0.5)
    assert got["auroc"] == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores), abs=1e-12)
    want = sklearn_metrics.average_precision_score(labels, scores)
    assert got["average_precision"] == pytest.approx(want, abs=1e-12)
    want = sklearn_metrics.roc_auc_score(labels, scores, max_fpr=0.05)
    assert got["partial_auroc_05"] == pytest.approx(want, abs=1e-12)
    assert got["f1"] == pytest.approx(sklearn_metrics.f1_score(labels, scores > 0.5), abs=1e-12)
    assert (got["n_normal"], got["n_anomalous"]) == (100, 50)


def test_summary_flags_only_above_the_threshold():
    got = metrics.summary(LABELS, SCORES, threshold=float(SCORES[1]))  # 0.4, which two items have
    assert got["false_positive_rate"] == pytest.approx(1 / 3)
    assert got["true_positive_rate"] == pytest.approx(1 / 2)
    assert got["f1"] == pytest.approx(2 * 1 / (2 * 1 + 1 + 1))
    assert all(type(value) in (float, int) for value in got.values())


@pytest.mark.parametrize("label", [0, 1])
def test_summary_of_one_class_has_none_for_what_is_not_defined(label):
    got = metrics.summary([label] * 4, [0.1, 0.2, 0.3, 0.4], 0.25)
    defined, missing = "true_positive_rate", "false_positive_rate"
    if label == 0:
        defined, missing = missing, defined
    assert got[defined] == 0.5
    assert [got[name] for name in ("auroc", "average_precision", "partial_auroc_05", "f1", missing)] == [None] * 5
    for curve in (metrics.roc_curve, metrics.precision_recall_curve):
        with pytest.raises(UserError, match="expected both classes"):
            curve([label] * 4, [0.1, 0.2, 0.3, 0.4])


def test_summary_of_nothing_and_without_a_threshold():
    assert {key for key, value in metrics.summary([], [], 0.5).items() if value is not None} == {
        "n_normal",
        "n_anomalous",
    }
    got = metrics.summary(LABELS, SCORES, None)
    assert got["auroc"] == pytest.approx(AUROC)
    assert got["f1"] is got["false_positive_rate"] is got["true_positive_rate"] is None
    assert metrics.summary(LABELS, SCORES, np.inf)["true_positive_rate"] == 0


@pytest.mark.parametrize(
    ("labels", "scores", "threshold", "words"),
    [
        ([0, 1, 2], [1.0, 2.0, 3.0], 0.5, "label.*2.*expected 0"),
        ([0, 1], [1.0, np.nan], 0.5, "1 of 2 scores"),
        ([0, 1], [1.0, np.inf], 0.5, "1 of 2 scores"),
        ([0, 1], [1.0], 0.5, "same length"),
        ([0, 1], [1.0, 2.0], np.nan, "threshold=nan"),
    ],
)
def test_summary_refuses(labels, scores, threshold, words):
    with pytest.raises(UserError, match=words):
        metrics.summary(labels, scores, threshold)
