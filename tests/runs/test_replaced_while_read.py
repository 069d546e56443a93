"""An artefact that is replaced while it is read: one version or the other, never a mixture, never "damaged"."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ganomaly_jax.core import atomic_folders, sealed_folder
from ganomaly_jax.core.errors import DamagedError, UserError
from ganomaly_jax.runs import checkpoint, sealed_pytree
from tests.runs.test_checkpoint import hidden


def version(number):
    """Arrays that identify the threshold beside them."""
    return {"w": np.full((30, 30), number, np.float32), "v": {"b": np.full(9, number, np.float32)}}


def write(folder, number):
    sealed_pytree.write(folder, version(number), {"threshold": number})


def read(folder):
    """The number of the version that was read; the assertion fails for a mixture."""
    tree, meta = sealed_pytree.read(folder)
    assert (tree["w"] == meta["threshold"]).all() and (tree["v"]["b"] == meta["threshold"]).all()
    return meta["threshold"]


def unsupported(one, other):
    raise OSError(errno.EINVAL, "Invalid argument")


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (json, "loads"),
        (sealed_folder.hashlib, "file_digest"),
        (sealed_pytree.ocp, "metadata"),
        (sealed_pytree.ocp, "load"),
    ],
)
def test_replaced_at_any_moment(tmp_path, monkeypatch, owner, name, exchange):
    """Another version comes into place at the first, second, ... call of a function that reads."""
    monkeypatch.setattr(atomic_folders, "fsync_tree", lambda folder: None)
    write(tmp_path / "a", 0)
    if not exchange:
        monkeypatch.setattr(atomic_folders, "_exchange", unsupported)
    original, calls = getattr(owner, name), []

    def replace_first(*arguments, **options):
        calls.append(None)
        if len(calls) == moment:
            monkeypatch.setattr(owner, name, original)
            write(tmp_path / "a", moment)
        return original(*arguments, **options)

    moment = 0
    while len(calls) >= moment:  # until a moment comes after the last call
        moment, calls = moment + 1, []
        monkeypatch.setattr(owner, name, replace_first)
        assert read(tmp_path / "a") in (moment - 1, moment)
        monkeypatch.setattr(owner, name, original)
    assert moment > 1 and read(tmp_path / "a") == moment - 1
    write(tmp_path / "a", 0)
    assert not hidden(tmp_path)


def test_removed_behind_the_reader_is_read_anew(tmp_path, monkeypatch):
    """As on a file system without locks, where the files of the old version vanish at once."""
    monkeypatch.setattr(atomic_folders.fcntl, "flock", lambda descriptor, operation: unsupported("", ""))
    write(tmp_path / "a", 0)
    load = sealed_pytree.ocp.load

    def replace_first(*arguments, **options):
        monkeypatch.setattr(sealed_pytree.ocp, "load", load)
        write(tmp_path / "a", 1)
        return load(*arguments, **options)

    monkeypatch.setattr(sealed_pytree.ocp, "load", replace_first)
    assert read(tmp_path / "a") == 1
    assert not hidden(tmp_path)


def test_altered_between_the_check_and_the_arrays(tmp_path, monkeypatch):
    write(tmp_path / "a", 0)
    load = sealed_pytree.ocp.load

    def alter_first(*arguments, **options):
        largest = max((tmp_path / "a" / "arrays").rglob("d/*"), key=lambda path: path.stat().st_size)
        content = bytearray(largest.read_bytes())
        content[-20] ^= 1
        largest.write_bytes(content)
        return load(*arguments, **options)

    monkeypatch.setattr(sealed_pytree.ocp, "load", alter_first)
    with pytest.raises(DamagedError, match="altered or truncated"):
        sealed_pytree.read(tmp_path / "a")


def test_one_that_is_replaced_all_the_time_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic_folders.fcntl, "flock", lambda descriptor, operation: unsupported("", ""))
    write(tmp_path / "a", 0)
    shutil.copytree(tmp_path / "a", tmp_path / "spare")

    def remove(folder):
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "spare", tmp_path / "a")
        raise ValueError("NOT_FOUND")

    with pytest.raises(UserError, match=r"a changed while it was read, 20 times in a row; try again"):
        sealed_folder.read(tmp_path / "a", lambda folder, contents: remove(tmp_path / "a"))


def test_deleted_while_it_is_read(tmp_path, monkeypatch):
    """A checkpoint that the training deletes stays readable for the process that has begun to read it."""
    write(tmp_path / "a", 0)
    load = sealed_pytree.ocp.load

    def delete_first(*arguments, **options):
        atomic_folders.delete(tmp_path / "a")
        return load(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(sealed_pytree.ocp, "load", delete_first)
        assert read(tmp_path / "a") == 0
    with pytest.raises(UserError, match="does not exist"):
        read(tmp_path / "a")
    checkpoint.save(tmp_path, 1, version(1), {}, keep=1)
    assert not hidden(tmp_path)


STRESS = """
import os, pathlib, signal, sys, time
import numpy as np
from ganomaly_jax.runs import sealed_pytree
folder = pathlib.Path(sys.argv[1])
def write(number):
    tree = {"w": np.full(5_000, number, np.float32), "v": {"b": np.full(9, number, np.float32)}}
    sealed_pytree.write(folder, tree, {"threshold": number})
child = os.fork()  # by a process that has imported everything and started no thread
if child == 0:
    number = 0
    while True:
        write(number)
        number += 1
while not folder.exists():
    time.sleep(0.01)
seen = set()
try:
    for _ in range(200):
        tree, meta = sealed_pytree.read(folder)
        assert (tree["w"] == meta["threshold"]).all() and (tree["v"]["b"] == meta["threshold"]).all(), "mixed"
        seen.add(meta["threshold"])
finally:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
assert len(seen) > 3, seen
"""


def test_200_reads_while_another_process_replaces(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", STRESS, tmp_path / "a"],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(Path(checkpoint.__file__).parents[2])},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "Traceback" not in run.stderr
    sealed_folder.verify(tmp_path / "a")
    write(tmp_path / "a", 0)
    assert not hidden(tmp_path)
