"""One step on many devices is the step on one, whichever way it is spread; for several processes see test_pods.py."""

import dataclasses  # noqa: I001
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tests.support import TINY, blobs, tiny_config

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.images.preprocess import to_unit
from ganomaly_jax.evaluation.metrics import auroc
from ganomaly_jax.parallel import sharding
from ganomaly_jax.runs import checkpoint
from ganomaly_jax.training.trainer import train

ON_MANY = dataclasses.replace(TINY, axis_name=sharding.DATA_AXIS)


def leaves_close(found, wanted, relative):
    """Every leaf, relative to its own largest element."""
    for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(found)[0], jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert np.abs(a - b).max() <= relative * max(np.abs(b).max(), 1e-6), jax.tree_util.keystr(path)


@pytest.fixture(scope="module")
def batch():
    return to_unit(jnp.asarray(blobs(16, 3)), 0, 255)


def step(detector):
    """Raw gradients, moved statistics and losses, for Adam would hide a factor; and the weights after its step."""
    return lambda state, x: (detector.gradients(state, x), detector.update(state, x)[0].params)


@pytest.fixture(scope="module")
def on_one(tiny, batch):
    return jax.jit(step(TINY))(tiny[1], batch)


@pytest.mark.parametrize("transform", ["shard_map", "pmap"])
@pytest.mark.parametrize("count", [2, 4, 8])
def test_gradients_statistics_losses_and_weights_are_those_of_one_device(tiny, batch, on_one, count, transform):
    mesh = sharding.local_mesh(count)
    spread = sharding.data_parallel(step(ON_MANY), mesh, (None, 0), transform=transform)
    found = spread(sharding.replicate(tiny[1], mesh), sharding.shard_batch(batch, mesh, 0))
    leaves_close(found, on_one, 1e-5)


def test_the_compilers_own_partition_says_the_same(tiny, batch, on_one):
    """The oracle: nothing in it is written for several devices."""
    mesh = sharding.local_mesh(8)
    x = jax.device_put(batch, NamedSharding(mesh, PartitionSpec(sharding.DATA_AXIS)))
    leaves_close(jax.jit(step(TINY))(sharding.replicate(tiny[1], mesh), x), on_one, 1e-5)


def statistics_of(tiny, x, group, count):
    mesh = sharding.local_mesh(count)
    detector = dataclasses.replace(ON_MANY, batch_norm_group=group)
    spread = sharding.data_parallel(detector.gradients, mesh, (None, 0))
    return spread(sharding.replicate(tiny[1], mesh), sharding.shard_batch(x, mesh, 0))[1]["generator"]


def test_groups_of_batch_norm_pool_their_own_batches_only(tiny, batch):
    """Two groups of two devices are two batches of eight: the running statistics move by the mean of what each says."""
    each = [jax.jit(TINY.gradients)(tiny[1], half)[1]["generator"] for half in (batch[:8], batch[8:])]
    wanted = jax.tree.map(lambda a, b: (a + b) / 2, *each)
    found = statistics_of(tiny, batch, group=2, count=4)
    leaves_close(found, wanted, 1e-5)
    pooled = statistics_of(tiny, batch, group=0, count=4)
    with pytest.raises(AssertionError):
        leaves_close(found, pooled, 1e-4)
    leaves_close(statistics_of(tiny, batch, group=4, count=4), pooled, 1e-6)


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(UserError, match="batch_norm_group=3 does not divide 8 devices; use 0 or one of 1, 2, 4, 8"):
        sharding.check_batch_norm_group(3, sharding.local_mesh(8))


@pytest.fixture(scope="module")
def runs(tmp_path_factory, arrays):
    """{way: scorer} after 50 steps of the same training."""
    ways = {"one": {"devices": 1}, "eight": {"devices": 8}, "pmap": {"devices": 4, "transform": "pmap"}}
    ways["divided"] = {"devices": 8, "shard_from": 64}
    made = {}
    for name, values in ways.items():
        settings = tiny_config(steps=50, save_every=25, batch_size=16)
        settings.optimizer.learning_rate = 2e-4
        settings.train.shift, settings.train.flip = 1, True
        for key, value in values.items():
            setattr(settings.mesh, key, value)
        workdir = tmp_path_factory.mktemp(name)
        made[name] = workdir, train(settings, workdir, arrays, log=lambda line: None)
    return made


@pytest.mark.parametrize("way", ["eight", "pmap", "divided"])
def test_scores_after_fifty_steps_are_those_of_one_device(runs, arrays, way):
    images, labels = arrays
    one, many = (runs[name][1](images) for name in ("one", way))
    np.testing.assert_allclose(many, one, rtol=1e-3)
    first, second = (float(auroc(labels, scores)) for scores in (one, many))
    assert round(first, 4) == round(second, 4)


@pytest.mark.parametrize(("start", "devices"), [("one", 8), ("eight", 2), ("divided", 1)])
def test_a_run_goes_on_from_the_same_state_on_other_devices(runs, arrays, tmp_path, start, devices):
    """No step is left to do: what comes out is what was stored, and the threshold is the same."""
    workdir, before = runs[start]
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    settings = tiny_config(steps=50, save_every=25, batch_size=16)
    settings.optimizer.learning_rate = 2e-4
    settings.train.shift, settings.train.flip = 1, True
    settings.mesh.devices = devices
    after = train(settings, copy, arrays, log=lambda line: None)
    np.testing.assert_allclose(after(arrays[0]), before(arrays[0]), rtol=1e-6)


def test_going_on_on_other_devices_takes_the_same_batches(runs, arrays, tmp_path):
    """25 steps on one device and 25 on eight are 50 on one, up to rounding."""
    settings = tiny_config(steps=25, save_every=25, batch_size=16)
    settings.optimizer.learning_rate = 2e-4
    settings.train.shift, settings.train.flip = 1, True
    train(settings, tmp_path, arrays, log=lambda line: None)
    settings.train.steps, settings.mesh.devices = 50, 8
    train(settings, tmp_path, arrays, log=lambda line: None)
    found, wanted = (checkpoint.restore(path / "checkpoints", None)[1] for path in (tmp_path, runs["one"][0]))
    leaves_close(found["batch_stats"], wanted["batch_stats"], 1e-4)


def test_a_state_is_divided_along_its_largest_fitting_axis():
    mesh = sharding.local_mesh(4)
    tree = {"kernel": np.zeros((4, 4, 8, 16)), "odd": np.zeros((3, 5)), "small": np.zeros(4)}
    shardings = sharding.state_shardings(tree, mesh, 15)
    assert shardings["kernel"].spec == PartitionSpec(None, None, None, sharding.DATA_AXIS)
    assert shardings["odd"].spec == shardings["small"].spec == PartitionSpec()
    put = sharding.place(tree, shardings)
    assert put["kernel"].addressable_shards[0].data.shape == (4, 4, 8, 4)
    assert all(s.spec == PartitionSpec() for s in sharding.state_shardings(tree, mesh, 0).values())
    np.testing.assert_array_equal(sharding.to_host(put)["kernel"], tree["kernel"])


def test_a_device_holds_its_own_rows_only():
    mesh = sharding.local_mesh(4)
    images = np.arange(40, dtype=np.uint8).reshape(10, 4)
    rows = np.array([9, 1, 2, 3, 4, 5, 6, 0])
    put = sharding.shard_rows(images, rows, mesh)
    np.testing.assert_array_equal(put, images[rows])
    assert put.addressable_shards[1].data.shape == (2, 4)


def test_ways_that_do_not_go_together_are_refused(arrays, tmp_path):
    settings = tiny_config()
    settings.mesh.shard_from, settings.mesh.batch_norm_group = 64, 1
    with pytest.raises(UserError, match=r"and mesh\.batch_norm_group=0"):
        train(settings, tmp_path, arrays, log=lambda line: None)


def test_the_axis_of_a_group_is_seen_by_the_mean():
    from ganomaly_jax.model.layers import Replicas

    mesh = sharding.local_mesh(4)
    mean = jax.shard_map(
        Replicas(sharding.DATA_AXIS, 2).mean,
        mesh=mesh,
        in_specs=PartitionSpec(sharding.DATA_AXIS),
        out_specs=PartitionSpec(sharding.DATA_AXIS),
        check_vma=False,
    )
    np.testing.assert_array_equal(jax.jit(mean)(jnp.arange(4.0)), [0.5, 0.5, 2.5, 2.5])
