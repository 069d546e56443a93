"""Facts of the paper and of the authors' code, invariances, and that something is learned."""

import dataclasses  # noqa: I001
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec
from tests.support import TINY, blobs, score_tolerance

from ganomaly_jax.core.config import Config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.images.preprocess import to_unit
from ganomaly_jax.evaluation import metrics
from ganomaly_jax.model import networks
from ganomaly_jax.model.autoencoder import DenoisingAutoencoder
from ganomaly_jax.model.ganomaly import Ganomaly, from_config
from ganomaly_jax.model.weights import reinitialize
from ganomaly_jax.parallel import sharding


def batch(n=8, seed=0):
    return to_unit(blobs(n, seed), 0, 255)


def leaves_close(a, b, rtol, atol=0.0):
    """Every leaf within rtol of its own largest value."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol + rtol * float(np.abs(y).max()))


def by_name(tree, name):
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [leaf for path, leaf in flat if path[-1].key == name]


def test_initialisation_is_the_papers():
    state = jax.jit(Ganomaly((32, 32, 3), latent_size=100, features=16, extra_layers=1).init)(jax.random.key(1))
    for kernel in by_name(state.params, "kernel"):
        error = 4 / np.sqrt(2 * kernel.size)  # four standard errors of a standard deviation
        assert abs(float(kernel.std()) / 0.02 - 1) < max(0.05, error)
    scales = jnp.concatenate(by_name(state.params, "scale"))
    assert abs(float(scales.mean()) - 1) < 0.005
    assert abs(float(scales.std()) / 0.02 - 1) < 0.2
    assert all((bias == 0).all() for bias in by_name(state.params, "bias"))


def test_the_networks_have_the_papers_size():
    state = jax.eval_shape(Ganomaly((32, 32, 1)).init, jax.random.key(0))
    encoder = 16 * 1 * 64 + 16 * 64 * 128 + 2 * 128 + 16 * 128 * 256 + 2 * 256 + 16 * 256 * 100
    decoder = 16 * 100 * 256 + 2 * 256 + 16 * 256 * 128 + 2 * 128 + 16 * 128 * 64 + 2 * 64 + 16 * 64 * 1
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params["generator"]))
    assert count == 2 * encoder + decoder
    discriminator = sum(leaf.size for leaf in jax.tree.leaves(state.params["discriminator"]))
    assert discriminator == encoder - 16 * 256 * 100 + 16 * 256


def test_no_layer_but_batch_norm_has_a_bias():
    state = jax.eval_shape(TINY.init, jax.random.key(0))
    for path, _ in jax.tree_util.tree_flatten_with_path(state.params)[0]:
        assert path[-1].key == "kernel" or path[-2].key.endswith("norm")


@pytest.mark.parametrize("shape", [(16, 16, 1), (16, 64, 2), (256, 16, 1), (32, 128, 5), (64, 64, 3), (256, 256, 4)])
def test_any_power_of_two_and_any_channels(shape):
    detector = Ganomaly(shape, latent_size=3, features=2, extra_layers=1)
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    state = jax.eval_shape(detector.init, jax.random.key(0))
    after, losses = jax.eval_shape(detector.update, state, x)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert set(losses) == {"adversarial", "contextual", "encoder", "generator", "discriminator"}
    variables = detector.variables(state)
    assert jax.eval_shape(detector.score, variables, x).shape == (2,)
    assert jax.eval_shape(detector.reconstruct, variables, x).shape == x.shape
    maps, logits = jax.eval_shape(
        lambda v, y: detector.discriminator.apply(v, y, train=False),
        {"params": state.params["discriminator"], "batch_stats": state.batch_stats["discriminator"]},
        x,
    )
    assert min(maps.shape[1:3]) == 4
    assert logits.shape == (2,)


@pytest.mark.parametrize("shape", [(80, 80, 1), (224, 224, 3), (96, 160, 3), (8, 8, 1), (512, 512, 1), (32, 32, 0)])
def test_sizes_that_cannot_work_are_refused_by_name(shape):
    with pytest.raises(UserError, match="16, 32, 64, 128, 256"):
        Ganomaly(shape)


def test_wrong_images_are_refused(tiny):
    detector, state, _ = tiny
    variables = detector.variables(state)
    with pytest.raises(UserError, match=r"\[B, 16, 16, 1\]"):
        detector.score(variables, jnp.zeros((2, 16, 16, 3)))
    with pytest.raises(UserError, match="floating point"):
        detector.score(variables, jnp.zeros((2, 16, 16, 1), jnp.uint8))


def test_steps_share_one_trace_and_stay_finite(tiny):
    detector, state, _ = tiny
    chex.clear_trace_counter()
    update = jax.jit(chex.assert_max_traces(detector.update, n=1))
    for seed in range(3):
        state, losses = update(state, batch(16, seed))
        chex.assert_tree_all_finite((state, losses))


@pytest.mark.parametrize("detector", [Ganomaly, DenoisingAutoencoder])
def test_the_optimizer_is_adam_with_its_own_numbers(detector):
    made = detector((16, 16, 1), 4, 4, learning_rate=0.1, beta1=0.6, beta2=0.8, epsilon=0.05).optimizer
    params, gradients = jnp.zeros(1), (2.0, -1.0)
    state, m, v = made.init(params), 0.0, 0.0
    for i, g in enumerate(gradients, 1):
        update, state = made.update(jnp.full(1, g), state, params)
        m, v = 0.6 * m + 0.4 * g, 0.8 * v + 0.2 * g**2
        step = m / (1 - 0.6**i) / (np.sqrt(v / (1 - 0.8**i)) + 0.05)
        np.testing.assert_allclose(update, [-0.1 * step], rtol=1e-5)


def test_widths_and_sizes_of_maps_by_hand():
    assert networks._widths((256, 128, 3), 8) == [8, 16, 32, 64, 128]  # images double until the smaller side is 4
    assert networks._map_sizes((64, 32, 3)) == [(64, 32), (32, 16), (16, 8), (8, 4)]
    assert networks._widths((256, 5), 4) == [4, 8, 16, 32, 32, 32]  # windows as far as eightfold
    assert networks._map_sizes((5,)) == [(), (), ()] and networks._widths((5,), 4) == [4, 8]


def test_the_losses_reach_their_own_network_only(tiny):
    detector, state, _ = tiny
    x = batch(16)
    grads, _, losses = jax.jit(detector.gradients)(state, x)
    # Without the adversarial term the generator's gradient changes and the discriminator's does not, to the last bit.
    without = Ganomaly(detector.shape, latent_size=4, features=4, adversarial_weight=0.0)
    other, _, _ = jax.jit(without.gradients)(state, x)
    chex.assert_trees_all_equal(grads["discriminator"], other["discriminator"])
    changed = [
        bool((a != b).any())
        for a, b in zip(*map(jax.tree.leaves, (grads["generator"], other["generator"])), strict=True)
    ]
    assert any(changed)
    # Nor does the adversarial term reach the second encoder, which sees neither features nor pixels of it.
    reencoders = grads["generator"]["reencoder"], other["generator"]["reencoder"]
    chex.assert_trees_all_close(*reencoders, rtol=1e-5, atol=1e-9)
    total = losses["adversarial"] + 50 * losses["contextual"] + losses["encoder"]
    np.testing.assert_allclose(losses["generator"], total, rtol=1e-6)


def test_running_statistics_move_once_in_g_and_four_times_in_d(tiny):
    detector, state, update = tiny
    x = batch()
    after, _ = update(state, x)
    variables = {"params": state.params["generator"], "batch_stats": state.batch_stats["generator"]}
    train = functools.partial(functools.partial, train=True, mutable=["batch_stats"])
    (x_hat, _, _), moved = jax.jit(train(detector.generator.apply))(variables, x)
    leaves_close(after.batch_stats["generator"], moved["batch_stats"], 1e-5)
    stats, discriminate = state.batch_stats["discriminator"], jax.jit(train(detector.discriminator.apply))
    for image in (x, x_hat, x, x_hat):
        variables = {"params": state.params["discriminator"], "batch_stats": stats}
        _, moved = discriminate(variables, image)
        stats = moved["batch_stats"]
    leaves_close(after.batch_stats["discriminator"], stats, 1e-5)


def test_a_discriminator_that_has_won_is_drawn_afresh(tiny):
    detector, state, update = tiny
    x = batch(16)
    _, losses = update(state, x)
    assert losses["discriminator"] > 1e-5
    # One that tells x from x_hat without effort: its own gradient, followed far, with a generator that stands still.
    gradients = jax.jit(detector.gradients)
    frozen = state
    for _ in range(300):
        grads, _, losses = gradients(frozen, x)
        if losses["discriminator"] < 1e-5:
            break
        far = jax.tree.map(lambda p, g: p - 0.05 * jnp.sign(g), frozen.params["discriminator"], grads["discriminator"])
        frozen = frozen.replace(params=frozen.params | {"discriminator": far})
    assert losses["discriminator"] < 1e-5, "the test did not bring the discriminator to win"
    after, _ = update(frozen, x)
    fresh = after.params["discriminator"]["pyramid"]["down_0"]["kernel"]
    assert abs(float(fresh.std()) / 0.02 - 1) < 0.1
    assert float(frozen.params["discriminator"]["pyramid"]["down_0"]["kernel"].std()) > 0.025
    expected = reinitialize(jax.random.fold_in(jax.random.key(0), frozen.step), after.params["discriminator"])
    leaves_close(after.params["discriminator"], expected, 1e-6)
    # Its Adam moments go on, and the generator is left alone.
    assert float(after.opt_state["discriminator"][0].count) == float(frozen.opt_state["discriminator"][0].count) + 1
    moved = jax.tree.map(
        lambda a, b: float(jnp.abs(a - b).max()), after.params["generator"], frozen.params["generator"]
    )
    assert max(jax.tree.leaves(moved)) <= 3 * detector.learning_rate


def test_a_score_is_that_of_its_own_image(tiny):
    detector, state, update = tiny
    for i in range(3):
        state, _ = update(state, batch(8, i))
    x = batch(8, 5)
    score = jax.jit(detector.score)
    variables = detector.variables(state)
    together = np.asarray(score(variables, x))
    assert together.shape == (8,)
    assert together.std() > 0
    neighbours = x.at[1:].set(batch(7, 9))
    assert score(variables, neighbours)[0] == together[0]
    np.testing.assert_array_equal(score(variables, x[::-1])[::-1], together)
    alone = np.concatenate([score(variables, x[i : i + 1]) for i in range(8)])
    assert (np.abs(alone - together) <= score_tolerance(detector, variables, x)).all()


def test_score_distances(tiny):
    detector, state, _ = tiny
    x, variables = batch(), detector.variables(state)
    _, z, z_hat = detector.generator.apply(variables, x, train=False)
    tolerance = score_tolerance(detector, variables, x)
    assert (np.abs(detector.score(variables, x) - np.mean((z - z_hat) ** 2, -1)) <= tolerance).all()
    l1 = Ganomaly(detector.shape, latent_size=4, features=4, score_distance="l1")
    np.testing.assert_allclose(l1.score(variables, x), np.mean(np.abs(z - z_hat), -1), rtol=1e-6)
    with pytest.raises(UserError, match="squared"):
        Ganomaly(detector.shape, score_distance="l3")


def test_bfloat16_is_what_the_convolutions_compute_in_and_nothing_else(tiny):
    detector, state, _ = tiny
    narrow = dataclasses.replace(detector, compute_dtype="bfloat16")
    x = batch(64)
    grads, stats, losses = jax.jit(narrow.gradients)(state, x)
    expected, _, expected_losses = jax.jit(detector.gradients)(state, x)
    variables = narrow.variables(state)
    scores, x_hat = jax.jit(narrow.score)(variables, x), jax.jit(narrow.reconstruct)(variables, x)
    assert {leaf.dtype for leaf in jax.tree.leaves((grads, stats, losses, scores, x_hat))} == {jnp.dtype("float32")}
    describe = functools.partial(jax.tree.map, lambda leaf: (leaf.shape, leaf.dtype))
    assert describe(jax.eval_shape(narrow.init, jax.random.key(0))) == describe(state)
    for name in grads:
        flat, expected_flat = (ravel_pytree(tree[name])[0] for tree in (grads, expected))
        error = jnp.linalg.norm(flat - expected_flat) / jnp.linalg.norm(expected_flat)
        assert 1e-5 < error < 5e-2, name
    leaves_close(losses, expected_losses, 5e-3)
    np.testing.assert_allclose(scores, jax.jit(detector.score)(variables, x), rtol=5e-2)
    for platform in ("cpu", "cuda", "tpu"):
        for one in (detector, narrow):
            text = jax.export.export(jax.jit(one.update), platforms=[platform])(state, x).mlir_module()
            lines = [line for line in text.splitlines() if "stablehlo.convolution" in line]
            wanted = "bf16" if one is narrow and platform != "cpu" else "f32"
            assert all(f"x{wanted}>) -> tensor" in line for line in lines), (platform, one.compute_dtype)
            assert len(lines) > 10 or platform == "cpu"
            assert ("bf16" in text) is (one is narrow)
    with pytest.raises(UserError, match="compute_dtype='float16'"):
        dataclasses.replace(detector, compute_dtype="float16")


def test_update_under_scan_is_update(tiny):
    detector, state, update = tiny
    xs = jnp.stack([batch(8, i) for i in range(3)])
    scanned, losses = jax.jit(lambda s, x: lax.scan(detector.update, s, x))(state, xs)
    one = state
    for i, x in enumerate(xs):
        one, expected = update(one, x)
        np.testing.assert_allclose(losses["generator"][i], expected["generator"], rtol=1e-5)
    leaves_close(scanned.batch_stats, one.batch_stats, 1e-4)
    assert int(scanned.step) == 3


def test_gradients_on_many_devices_are_those_on_one(tiny):
    """Raw gradients: Adam would hide a factor. The global batch is the same, batch norm sees all of it."""
    detector, state, _ = tiny
    x = batch(16)
    grads, stats, losses = jax.jit(detector.gradients)(state, x)
    for count in (8,):
        mesh = sharding.local_mesh(count)
        on_many = Ganomaly(detector.shape, latent_size=4, features=4, axis_name=sharding.axis_name(mesh))
        spread = sharding.data_parallel(on_many.gradients, mesh, (None, 0))
        many, many_stats, many_losses = spread(state, sharding.shard_batch(x, mesh, 0))
        leaves_close(many, grads, 1e-5)
        leaves_close(many_stats, stats, 1e-5)
        leaves_close(many_losses, losses, 1e-5)


def test_update_under_pmap(tiny):
    detector, state, update = tiny
    x = batch(16)
    expected, losses = update(state, x)
    on_many = Ganomaly(detector.shape, latent_size=4, features=4, axis_name="data")
    stacked = jax.tree.map(lambda a: np.stack([a] * 4), state)
    after, many = jax.pmap(on_many.update, axis_name="data", devices=jax.devices()[:4])(
        stacked, x.reshape(4, 4, 16, 16, 1)
    )
    after, many = jax.device_get((after, many))
    leaves_close(jax.tree.map(lambda a: a[0], after).batch_stats, expected.batch_stats, 1e-5)
    leaves_close(jax.tree.map(lambda a: a[3], many), losses, 1e-5)
    weights = jax.tree.map(lambda a, b: float(jnp.abs(a[0] - b).max()), after.params, expected.params)
    assert max(jax.tree.leaves(weights)) <= 2.1 * detector.learning_rate


def test_unsynchronised_batch_norm_would_be_seen(tiny):
    """The test above can fail: without the axis name each device normalises by its own part."""
    detector, state, _ = tiny
    mesh = sharding.local_mesh(2)
    part = functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec("data")), check_vma=False
    )
    spread = jax.jit(part(lambda s, x: lax.pmean(detector.gradients(s, x)[2], "data"), out_specs=PartitionSpec()))
    wrong = spread(state, batch(16))
    right = jax.jit(detector.gradients)(state, batch(16))[2]
    assert abs(float(wrong["encoder"] / right["encoder"]) - 1) > 1e-4


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match="8 or 12"):
        sharding.check_batch_size(10, sharding.local_mesh(4))


def test_defaults_stand_once():
    config = Config()
    config.data.height, config.data.width, config.data.channels = 32, 32, 1
    assert from_config(config) == Ganomaly((32, 32, 1))
    config.model.dtype = "bfloat16"
    assert from_config(config).compute_dtype == "bfloat16"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_learns_and_not_from_shuffled_labels(tiny, dtype):
    """On generated bars: anomalies score higher than normals; with labels that mean nothing AUROC is near a half."""
    detector = Ganomaly((16, 16, 1), latent_size=4, features=4, learning_rate=2e-3, compute_dtype=dtype)
    state = tiny[1]
    images = to_unit(blobs(256, 3), 0, 255)
    order = np.stack([np.random.default_rng(i).permutation(256)[:32] for i in range(150)])
    train = jax.jit(lambda s, index: lax.scan(lambda s, i: (detector.update(s, images[i])[0], None), s, index)[0])
    variables = detector.variables(train(state, order))
    test = jnp.concatenate([to_unit(blobs(80, 4), 0, 255), to_unit(blobs(80, 5, anomalous=True), 0, 255)])
    scores = jax.jit(detector.score)(variables, test)
    labels = np.repeat([0, 1], 80)
    assert metrics.auroc(labels, scores) > 0.9
    shuffled = np.random.default_rng(0).permutation(labels)
    assert abs(float(metrics.auroc(shuffled, scores)) - 0.5) < 0.15


def test_halvings():
    assert [networks.halvings(side, 256) for side in networks.SIDES] == [2, 3, 4, 5, 6]
