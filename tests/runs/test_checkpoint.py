"""Artefacts: exact, whole or not at all, refused when anything about them is wrong."""

import errno
import gc
import os
import threading
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ganomaly_jax.core import atomic_folders
from ganomaly_jax.core.errors import DamagedError, UserError
from ganomaly_jax.runs import checkpoint, sealed_pytree


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    opt_state: tuple


def make_state(seed=0, width=3):
    key = jax.random.key(seed)
    params = {"generator": {"kernel": jax.random.normal(key, (4, width)), "bias": jnp.full(width, -0.0)}}
    optimizer = optax.adam(1e-3)
    _, opt_state = optimizer.update(params, optimizer.init(params), params)
    return State(jnp.int32(7), params, opt_state)


def small(value=1.0):
    return {"a": np.full((2, 3), value, np.float32), "b": {"c": np.arange(4)}}


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        other = np.asarray(other)
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


def hidden(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


# Round trips.


@pytest.mark.parametrize("abstract", [False, True])
def test_state_comes_back_bit_for_bit(tmp_path, abstract):
    state = make_state()
    meta = {"epoch": 3, "loss": 0.1, "names": ["é", None]}
    sealed_pytree.write(tmp_path / "a", state, meta)
    like = make_state(seed=1)
    tree, got = sealed_pytree.read(tmp_path / "a", jax.eval_shape(lambda: like) if abstract else like)
    assert_same(tree, state)
    assert got == meta
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["arrays", "manifest.json", "meta.json"]


def test_every_dtype_without_like(tmp_path):
    tree = {
        "float32": np.array([np.nan, -0.0, np.inf, 1e-45], np.float32),
        "float64": np.array(5e-324),
        "bfloat16": jnp.array([1.5, jnp.nan, -0.0], jnp.bfloat16),
        "float16": np.float16([6e-8]),
        "int32": np.int32(-5),
        "int64": np.array(2**62),
        "uint8": np.arange(256, dtype=np.uint8).reshape(16, 16).T,
        "uint32": np.array([0, 2**32 - 1], np.uint32),
        "bool": np.array([[True], [False]]),
        "a.b/c d": {"0": {"é%20": np.ones(1)}},
    }
    sealed_pytree.write(tmp_path / "a", tree, {})
    assert_same(sealed_pytree.read(tmp_path / "a")[0], tree)


def test_containers_without_like_are_nested_dicts(tmp_path):
    sealed_pytree.write(tmp_path / "a", make_state(), {})
    tree, _ = sealed_pytree.read(tmp_path / "a")
    assert set(tree) == {"step", "params", "opt_state"}
    assert set(tree["opt_state"]["0"]) == {"count", "mu", "nu"}
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", ["run [1] 50%20 #?", "back\\slash", os.fsdecode(b"not utf-8 \xff"), "-x"])
def test_any_folder_name(tmp_path, name):
    sealed_pytree.write(tmp_path / name / "a", small(), {})
    assert_same(sealed_pytree.read(tmp_path / name / "a")[0], small())


def test_a_linked_folder_is_replaced_behind_its_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    sealed_pytree.write(tmp_path / "link", small(), {})
    assert (tmp_path / "link").is_symlink()
    assert_same(sealed_pytree.read(tmp_path / "link")[0], small())


@pytest.mark.parametrize("tree", [{"a": {"b": np.ones(1)}, "a.b": np.ones(1)}, {}, np.ones(2), {"a": np.ones((0, 2))}])
def test_trees_that_orbax_would_lose_are_refused(tmp_path, tree):
    with pytest.raises(ValueError, match="expected"):
        sealed_pytree.write(tmp_path / "a", tree, {})
    assert not list(tmp_path.iterdir())


def test_meta_must_be_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        sealed_pytree.write(tmp_path / "a", small(), {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


# Replacing.


@pytest.mark.parametrize("exchange", [True, False])
def test_replacing(tmp_path, monkeypatch, exchange):
    if not exchange:

        def unsupported(one, other):
            raise OSError(errno.EINVAL, "Invalid argument")

        monkeypatch.setattr(atomic_folders, "_exchange", unsupported)
    for value in (1.0, 2.0, 3.0):
        sealed_pytree.write(tmp_path / "a", small(value), {"value": value})
    tree, meta = sealed_pytree.read(tmp_path / "a")
    assert meta == {"value": 3.0}
    assert_same(tree, small(3.0))
    assert not hidden(tmp_path)


def test_without_exchange_a_failed_replacement_leaves_the_old_one(tmp_path, monkeypatch):
    sealed_pytree.write(tmp_path / "a", small(), {})
    rename = os.rename

    def fail(source, target):
        if Path(source).name.startswith(".ganomaly-tmp-") and not Path(target).exists():
            raise PermissionError(errno.EACCES, "Permission denied")
        rename(source, target)

    def unsupported(one, other):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(atomic_folders, "_exchange", unsupported)
    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(UserError, match="Permission denied"):
        sealed_pytree.write(tmp_path / "a", small(2.0), {})
    assert_same(sealed_pytree.read(tmp_path / "a")[0], small())
    assert not hidden(tmp_path)


def test_one_left_aside_by_a_kill_comes_back(tmp_path):
    sealed_pytree.write(tmp_path / "a", small(), {})
    (tmp_path / "a").rename(tmp_path / ".ganomaly-old-a")
    sealed_pytree.write(tmp_path / "b", small(), {})
    assert_same(sealed_pytree.read(tmp_path / "a")[0], small())


# Another model.


def test_another_model_is_refused_with_what_differs(tmp_path):
    sealed_pytree.write(tmp_path / "a", make_state(), {})
    with pytest.raises(
        UserError, match=r"params/generator/kernel is float32\[4,3\] on disk, expected float32\[4,5\]"
    ) as caught:
        sealed_pytree.read(tmp_path / "a", make_state(width=5))
    assert "and 3 more" in str(caught.value)
    state = make_state()
    with pytest.raises(UserError, match=r"step is int32\[\] on disk, expected float32\[\]"):
        sealed_pytree.read(tmp_path / "a", state.replace(step=jnp.float32(0)))
    with pytest.raises(UserError, match=r"params/generator/bias is float32\[3\] on disk, expected absent"):
        sealed_pytree.read(tmp_path / "a", state.replace(params={"generator": {"kernel": jnp.ones((4, 3))}}))
    with pytest.raises(UserError, match=r"params/extra is absent on disk, expected float32\[2\]"):
        sealed_pytree.read(tmp_path / "a", state.replace(params=state.params | {"extra": jnp.ones(2)}))


# A run's checkpoints.


def test_keep_and_restore(tmp_path):
    root = tmp_path / "checkpoints"
    assert checkpoint.steps(root) == []
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoint.restore(root, small())
    for step in (5, 10, 15, 123456789):
        checkpoint.save(root, step, small(step), {"step": step}, keep=2)
    assert sorted(path.name for path in root.iterdir()) == ["00000015", "123456789"]
    (root / "0000000016").mkdir()
    (root / "00000017").touch()
    assert checkpoint.steps(root) == [15, 123456789]
    step, tree, meta = checkpoint.restore(root, small())
    assert (step, meta) == (123456789, {"step": 123456789})
    assert_same(tree, small(123456789))
    assert checkpoint.restore(root, small(), step=15)[2] == {"step": 15}
    with pytest.raises(UserError, match="15, 123456789"):
        checkpoint.restore(root, small(), step=7)


def test_going_back_leaves_later_checkpoints_and_the_new_one(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, small(), {}, keep=9)
    checkpoint.save(tmp_path, 2, small(), {"again": True}, keep=1)
    assert checkpoint.steps(tmp_path) == [2, 3]
    assert checkpoint.restore(tmp_path, small(), step=2)[2] == {"again": True}


def full_disk(folder, size):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_nothing_is_deleted_before_the_new_one_is_in_place(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, small(), {}, keep=1)
    monkeypatch.setattr(atomic_folders, "check_free_space", full_disk)
    with pytest.raises(UserError):
        checkpoint.save(tmp_path, 2, small(), {}, keep=1)
    assert checkpoint.steps(tmp_path) == [1]


def test_damaged_latest_names_the_way_on(tmp_path):
    for step in (1, 2, 3, 4):
        checkpoint.save(tmp_path, step, small(step), {}, keep=4)
    for step in (2, 4):
        os.truncate(tmp_path / f"{step:08d}" / "meta.json", 1)
    with pytest.raises(DamagedError, match=r"00000004 is damaged: 'meta\.json'.*from step 3 \(undamaged: 1, 3\)"):
        checkpoint.restore(tmp_path, small())
    step, tree, _, damaged = checkpoint.restore_latest_good(tmp_path, small())
    assert step == 3
    assert_same(tree, small(3))
    assert len(damaged) == 1 and "00000004" in damaged[0] and "meta.json" in damaged[0]
    assert checkpoint.restore(tmp_path, small(), step=3)[0] == 3
    for step in (1, 3):
        os.truncate(tmp_path / f"{step:08d}" / "manifest.json", 0)
    with pytest.raises(DamagedError, match="no earlier checkpoint is undamaged"):
        checkpoint.restore(tmp_path, small())
    with pytest.raises(DamagedError, match=r"all checkpoints in .* are damaged"):
        checkpoint.restore_latest_good(tmp_path, small())


def test_falling_back_does_not_hide_another_model(tmp_path):
    checkpoint.save(tmp_path, 1, small(), {}, keep=2)
    with pytest.raises(UserError, match="another model"):
        checkpoint.restore_latest_good(tmp_path, make_state())
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoint.restore_latest_good(tmp_path / "none", small())


# Threads, terminals.


def test_saver_writes_what_was_there_at_the_call(tmp_path):
    tree, meta = small(), {"list": [1]}
    with checkpoint.Saver() as saver:
        for step in (1, 2, 3):
            tree["a"][:] = step
            meta["list"][0] = step
            saver.save(tmp_path, step, tree, meta, keep=2)
        tree["a"][:] = 99
        meta["list"][0] = 99
    assert checkpoint.steps(tmp_path) == [2, 3]
    _, tree, meta = checkpoint.restore(tmp_path, small())
    assert_same(tree, small(3))
    assert meta == {"list": [3]}


def test_saver_survives_donation(tmp_path):
    state = jax.device_put(make_state())
    want = jax.tree.map(np.array, jax.device_get(state))
    advance = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
    with checkpoint.Saver() as saver:
        saver.save(tmp_path, 1, state, {}, keep=1)
        for _ in range(5):
            state = advance(state)
    assert_same(checkpoint.restore(tmp_path, want)[1], want)


def test_saver_does_not_wait_and_raises_later(tmp_path, monkeypatch):
    release = threading.Event()

    def slow(*arguments):
        assert release.wait(10)
        raise UserError("no space")

    monkeypatch.setattr(checkpoint, "save", slow)
    with pytest.raises(UserError, match="no space"), checkpoint.Saver() as saver:
        saver.save(tmp_path, 1, small(), {}, keep=1)
        release.set()
        with pytest.raises(UserError, match="no space"):
            saver.save(tmp_path, 2, small(), {}, keep=1)
        saver.wait()
        saver.save(tmp_path, 3, small(), {}, keep=1)
    with pytest.raises(KeyError) as caught, checkpoint.Saver() as saver:
        saver.save(tmp_path, 1, small(), {}, keep=1)
        raise KeyError("in the loop")
    assert caught.value.__notes__ == ["no space"]


def test_quiet_and_no_thread_left(tmp_path, capfd, caplog):
    before = set(threading.enumerate())
    with checkpoint.Saver() as saver:
        saver.save(tmp_path, 1, make_state(), {}, keep=1)
    checkpoint.restore(tmp_path, make_state())
    gc.collect()  # Orbax leaves its event loops' idle threads to the garbage collector.
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive()
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelname not in ("INFO", "DEBUG")]
