"""The denoising autoencoder: what it learns from, what it scores, what it refuses."""

import dataclasses  # noqa: I001

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.support import blobs, tiny_config
from tests.parallel.test_sharding import leaves_close

import ganomaly_jax
from ganomaly_jax.core import config, config_values, validation
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.images.preprocess import to_unit
from ganomaly_jax.model import corruption, registry
from ganomaly_jax.model.ganomaly import Ganomaly
from ganomaly_jax.parallel import sharding
from ganomaly_jax.scoring import scores

TINY = ganomaly_jax.DenoisingAutoencoder((16, 16, 1), latent_size=4, features=4, mask=0.25)
gradients = jax.jit(TINY.gradients)


@pytest.fixture(scope="module")
def state():
    return jax.jit(TINY.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def batch():
    return to_unit(jnp.asarray(blobs(16, 3)), 0, 255)


@pytest.fixture(scope="module")
def on_one(state, batch):
    return gradients(state, batch)


def test_averaged_weights_forget_the_first_ones(state, batch):
    detector = dataclasses.replace(TINY, average=0.9)
    begin = state.replace(opt_state=state.opt_state | {"average": state.params["autoencoder"]})
    after, _ = jax.jit(detector.update)(begin, batch)
    old, new = (one.params["autoencoder"]["encoder"]["head"]["kernel"] for one in (begin, after))
    found = detector.variables(after)["params"]["encoder"]["head"]["kernel"]
    np.testing.assert_allclose(found, 0.1 * old + 0.9 * new, atol=1e-7)  # the first step keeps a tenth
    assert int(after.step) == 1


def settings(**train_values):
    made = tiny_config(**train_values)
    made.model.detector = "autoencoder"
    return made


def test_it_is_the_detector_that_is_asked_for():
    made = settings()
    made.data.channels = 1
    made.model.noise, made.evaluate.score = 0.3, "l1"
    wanted = dataclasses.replace(TINY, noise=0.3, mask=0.1, score_distance="l1", learning_rate=1e-3)
    assert registry.from_config(made) == wanted
    assert registry.over_axis(registry.from_config(made), "data") == dataclasses.replace(wanted, axis_name="data")
    made = config.Config()
    made.data.height = made.data.width = 32
    made.data.channels = 1
    assert registry.from_config(made) == Ganomaly((32, 32, 1))
    made.model.detector = "other"
    with pytest.raises(UserError, match=r"model\.detector='other': expected one of ganomaly, autoencoder"):
        registry.from_config(made)


def test_the_loss_is_that_of_the_clean_image_given_the_corrupted_one(state, batch, on_one):
    _, moved, losses = on_one
    assert tuple(losses) == TINY.losses == ("reconstruction",)
    assert set(state.params) == set(state.batch_stats) == {"autoencoder"}
    key = jax.random.fold_in(jax.random.key(state.opt_state["corruption"]), state.step)
    corrupted = corruption.corrupt(key, batch, TINY.noise, TINY.mask)
    assert float(abs(corrupted - batch).mean()) > 0.1
    variables = {"params": state.params["autoencoder"], "batch_stats": state.batch_stats["autoencoder"]}
    apply = jax.jit(lambda x: TINY.network.apply(variables, x, train=True, mutable=["batch_stats"]))
    (x_hat, _), stats = apply(corrupted)
    assert float(losses["reconstruction"]) == pytest.approx(float(np.square(batch - x_hat).mean()), rel=1e-5)
    leaves_close(moved, stats["batch_stats"], 1e-5)
    assert float(losses["reconstruction"]) != pytest.approx(float(np.square(corrupted - x_hat).mean()), rel=1e-2)
    (other, _), _ = apply(batch)
    assert float(losses["reconstruction"]) != pytest.approx(float(np.square(batch - other).mean()), rel=1e-5)


def test_the_gradient_reaches_every_weight_and_is_the_slope_of_the_loss(state, batch, on_one):
    grads = on_one[0]
    assert {"encoder", "decoder"} == set(grads)
    for path, leaf in jax.tree_util.tree_flatten_with_path(grads)[0]:
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)
    # Along the gradient itself the slope is the square of its length.
    length = float(jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(grads))))

    def moved(by):
        along = jax.tree.map(lambda p, g: p + by / length * g, state.params["autoencoder"], grads)
        return float(gradients(state.replace(params={"autoencoder": along}), batch)[2]["reconstruction"])

    assert (moved(1e-2) - moved(-1e-2)) / 2e-2 == pytest.approx(length, rel=0.02)


def test_each_step_and_each_seed_corrupt_otherwise(state, batch):

    def loss(state):
        return float(gradients(state, batch)[2]["reconstruction"])

    again, later = loss(state), loss(state.replace(step=state.step + 1))
    assert again == loss(state) != later
    other = jax.jit(TINY.init)(jax.random.key(1))
    assert int(other.opt_state["corruption"]) != int(state.opt_state["corruption"])
    assert loss(state.replace(opt_state=other.opt_state)) not in (again, later)


@pytest.mark.parametrize(("count", "transform"), [(4, "shard_map"), (8, "pmap")])
def test_many_devices_are_one(state, batch, on_one, count, transform):
    mesh = sharding.local_mesh(count)
    detector = dataclasses.replace(TINY, axis_name=sharding.DATA_AXIS)
    spread = sharding.data_parallel(detector.gradients, mesh, (None, 0), transform=transform)
    leaves_close(spread(sharding.replicate(state, mesh), sharding.shard_batch(batch, mesh, 0)), on_one, 1e-4)


def test_the_score_by_hand(state):
    """A decoder whose last kernel is 0 gives tanh(0) = 0 for everything."""
    variables = TINY.variables(state)
    some = jnp.linspace(-1, 1, 512).reshape(2, 16, 16, 1)
    leaves_close(TINY.reconstruct(variables, some), TINY.network.apply(variables, some, train=False)[0], 1e-6)
    params = variables["params"]
    decoder = params["decoder"] | {"final": {"kernel": jnp.zeros_like(params["decoder"]["final"]["kernel"])}}
    variables = variables | {"params": params | {"decoder": decoder}}
    x = jnp.stack([jnp.full((16, 16, 1), -0.5), jnp.ones((16, 16, 1)).at[:, :8].set(0.5)])
    np.testing.assert_allclose(TINY.score(variables, x), [0.25, (1 + 0.25) / 2], rtol=1e-6)
    by_l1 = dataclasses.replace(TINY, score_distance="l1")
    np.testing.assert_allclose(by_l1.score(variables, x), [0.5, 0.75], rtol=1e-6)
    found = scores.parts(TINY, ("squared", "l1", "pixel", "multiscale"), {"detector": variables}, x)
    wanted = {"squared": [0.25, 0.625], "l1": [0.5, 0.75], "pixel": [0.5, 0.75], "multiscale": [0.5, 0.75]}
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"shape": (20, 16, 1)}, r"shape \(20, 16, 1\): expected"),
        ({"latent_size": 0}, "latent_size=0: expected at least 1"),
        ({"noise": -0.1}, "noise=-0.1: expected a finite number of at least 0"),
        ({"noise": float("nan")}, "noise=nan: expected"),
        ({"mask": 1.0}, "mask=1.0: expected a share"),
        ({"score_distance": "pixel"}, "score_distance='pixel': expected"),
        ({"compute_dtype": "float16"}, "compute_dtype='float16': expected"),
    ],
)
def test_sizes_that_cannot_work_are_refused(values, sentence):
    with pytest.raises(UserError, match=sentence):
        dataclasses.replace(TINY, **values)


def test_other_images_are_refused(state):
    for x in (jnp.zeros((2, 16, 16, 3)), jnp.zeros((2, 16, 16, 1), jnp.uint8)):
        with pytest.raises(UserError, match=r"input of"):
            TINY.score(TINY.variables(state), x)


@pytest.mark.parametrize(
    ("detector", "values", "sentence"),
    [
        ("vae", {}, "model.detector='vae': expected one of ganomaly, autoencoder"),
        ("autoencoder", {"model.noise": -1}, "model.noise=-1.0: expected a standard deviation"),
        ("autoencoder", {"model.noise": "inf"}, "model.noise=inf: expected"),
        ("autoencoder", {"model.mask": 1}, "model.mask=1.0: expected a share"),
        ("autoencoder", {"loss.contrast": 1}, "loss.contrast=1.0 is for model.detector='ganomaly'.*expected 0.0"),
        ("autoencoder", {"loss.contextual": 10}, "loss.contextual=10.0 is for .*expected 50.0, its default"),
        ("ganomaly", {"model.mask": 0.5}, "model.mask=0.5 is for model.detector='autoencoder', 'ganomaly' ignores it"),
        ("autoencoder", {"evaluate.score": "pixel+embedding_angle"}, "embedding_angle needs a discriminator's embed"),
    ],
)
def test_configurations_that_cannot_work_are_refused_in_one_sentence(detector, values, sentence):
    made = config.Config()
    made.model.detector = detector
    for path, value in values.items():
        config_values.set_value(made, path, value)
    with pytest.raises(UserError, match=sentence) as refused:
        validation.check(made)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["squared", "l1", "pixel", "multiscale", "latent_density+latent_angle+pixel"])
def test_scores_that_make_sense_are_taken(name):
    made = settings()
    made.evaluate.score = name
    validation.check(made)
