"""Artefacts that are altered, disks that refuse, processes that are killed: whole or not at all."""

import errno
import json
import os
import random
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ganomaly_jax.core import atomic_folders, sealed_folder
from ganomaly_jax.core.errors import DamagedError, UserError
from ganomaly_jax.runs import checkpoint, sealed_pytree
from tests.runs.test_checkpoint import assert_same, hidden, small


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "artefact"
    sealed_pytree.write(folder, small(), {"epoch": 3})
    return folder


# Damage.


def test_flips_cuts_and_strangers_are_refused_by_name(written, tmp_path):
    rng = random.Random(0)
    files = sorted(path.relative_to(written) for path in written.rglob("*") if path.is_file())
    assert len(files) > 5
    full = [name for name in files if (written / name).stat().st_size]
    tried = 0

    def refused(name):
        nonlocal tried
        tried += 1
        with pytest.raises(DamagedError, match="damaged") as caught:
            sealed_pytree.read(folder)
        assert str(name) in str(caught.value)
        assert "\n" not in str(caught.value)
        shutil.rmtree(folder)
        shutil.copytree(written, folder)

    folder = tmp_path / "copy"
    shutil.copytree(written, folder)
    assert_same(sealed_pytree.read(folder)[0], small())
    for number in range(100):
        # Every file at least once, the two of ours again and again; every bit of a byte.
        name = full[number] if number < len(full) else rng.choice([*full, Path("manifest.json"), Path("meta.json")])
        content = bytearray((folder / name).read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        (folder / name).write_bytes(content)
        # A flip in the manifest may show as a file that it no longer describes.
        refused("" if name.name == "manifest.json" else name)
    for number in range(20):
        name = rng.choice(full)
        size = (folder / name).stat().st_size
        if number % 3 == 0:
            os.truncate(folder / name, rng.randrange(size))
        elif number % 3 == 1:
            (folder / name).unlink()
        else:
            name = name.with_name(f"stranger{number}")
            (folder / name).write_bytes(rng.randbytes(rng.randrange(3)))
        refused("" if name.name == "manifest.json" else name)
    assert tried == 120


@pytest.mark.parametrize(
    "text", ["", "[]", "[" * 100_000, "null", '{"meta.json": 3}', '{"meta.json": {"size": 1}}', "\ufeff{}", "1" * 5000]
)
def test_manifests_that_are_none(written, tmp_path, text):
    shutil.copytree(written, tmp_path / "a")
    (tmp_path / "a" / "manifest.json").write_text(text)
    with pytest.raises(DamagedError, match=r"manifest\.json|was altered"):
        sealed_pytree.read(tmp_path / "a")


def test_manifest_in_other_words_is_refused(written, tmp_path):
    shutil.copytree(written, tmp_path / "a")
    path = tmp_path / "a" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text())))
    with pytest.raises(DamagedError, match=r"manifest\.json was altered"):
        sealed_pytree.read(tmp_path / "a")


@pytest.mark.parametrize("name", ["meta.json", "manifest.json", "stranger"])
def test_links_and_special_files_are_refused_without_a_hang(written, tmp_path, name):
    shutil.copytree(written, tmp_path / "a")
    path = tmp_path / "a" / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(DamagedError, match=name):
        sealed_pytree.read(tmp_path / "a")
    path.unlink()
    path.symlink_to(written / "meta.json")
    with pytest.raises(DamagedError, match=name):
        sealed_pytree.read(tmp_path / "a")


@pytest.mark.parametrize("name", ["meta.json", "arrays/state/_METADATA"])
def test_what_json_or_orbax_cannot_read_is_damage_too(written, tmp_path, name):
    folder = tmp_path / "a"
    shutil.copytree(written, folder)
    (folder / name).write_bytes(b"{")
    sealed_folder.seal(folder)
    with pytest.raises(DamagedError, match="a is damaged: JSONDecodeError"):
        sealed_pytree.read(folder)


@pytest.mark.parametrize("text", ["[]", "3", '{"a": 1, "a": 2}', '{"a": NaN}', "[" * 100_000])
def test_meta_that_is_no_strict_json_object_is_damage(written, tmp_path, text):
    folder = tmp_path / "00000007"
    shutil.copytree(written, folder)
    (folder / "meta.json").write_text(text)
    sealed_folder.seal(folder)
    with pytest.raises(DamagedError, match="is damaged: ValueError"):
        sealed_pytree.read(folder)
    assert checkpoint.best(tmp_path) is None


def test_arrays_that_claim_more_than_their_files_are_refused(tmp_path):
    """Compressed zeros: what is declared is never allocated."""
    context = sealed_pytree.ocp.Context()
    context.array.saving.use_compression = True
    with context:
        sealed_pytree.ocp.save(
            tmp_path / "a" / "arrays", {"a": np.zeros(2**22, np.float32)}, checkpointable_name="state"
        )
    (tmp_path / "a" / "meta.json").write_text("{}")
    sealed_folder.seal(tmp_path / "a")
    with pytest.raises(DamagedError, match=r"claim 16,777,216 bytes, but its files contain \d{1,3}(,\d{3})?$"):
        sealed_pytree.read(tmp_path / "a")


def test_metadata_beyond_the_bound_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(sealed_folder, "LARGEST_JSON", 100)
    with pytest.raises(UserError, match=r"meta.json would have 1\d\d bytes: expected at most 100"):
        sealed_pytree.write(tmp_path / "a", small(), {"a": "x" * 100})


@pytest.mark.parametrize(
    "error", [ValueError("NOT_FOUND: a\nb"), KeyError("c"), RuntimeError(), FileNotFoundError("d")]
)
def test_errors_of_orbax_are_one_sentence(written, monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(sealed_pytree.ocp, "load", fail)
    with pytest.raises(DamagedError, match="is damaged: ") as caught:
        sealed_pytree.read(written)
    assert "\n" not in str(caught.value)


def test_no_such_folder(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        sealed_pytree.read(tmp_path / "none")


def test_unreadable_file_is_no_damage(written, tmp_path, monkeypatch):
    def denied(file, name):
        raise PermissionError(errno.EACCES, "Permission denied", "meta.json")

    monkeypatch.setattr(sealed_folder.hashlib, "file_digest", denied)
    with pytest.raises(UserError, match="Permission denied"):
        sealed_pytree.read(written)


# Disks that refuse.


@contextmanager
def largest_file(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def mounted(folder, *options):
    if shutil.which("mount") is None or subprocess.run(["mount", *options, folder], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_limit_on_file_size_leaves_the_old_one_and_nothing_else(tmp_path, capfd):
    sealed_pytree.write(tmp_path / "a", small(), {})
    with largest_file(2**21), pytest.raises(UserError, match=r"cannot write .*a: File too large; the previous .*"):
        sealed_pytree.write(tmp_path / "a", {"a": np.ones(2**20, np.float32)}, {})
    assert_same(sealed_pytree.read(tmp_path / "a")[0], small())
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert capfd.readouterr() == ("", "")


def test_full_disk(tmp_path, capfd):
    with mounted(tmp_path, "-t", "tmpfs", "-o", "size=4m", "tmpfs"):
        sealed_pytree.write(tmp_path / "a", small(), {})
        with pytest.raises(UserError, match="No space left on device"):
            sealed_pytree.write(tmp_path / "b", {"a": np.ones(2**20, np.float32)}, {})
        assert [path.name for path in tmp_path.iterdir()] == ["a"]
        sealed_pytree.write(tmp_path / "b", small(), {})
        assert capfd.readouterr() == ("", "")


def test_read_only_file_system(written, tmp_path):
    with mounted(tmp_path, "--bind", "-o", "ro", written.parent):
        subprocess.run(["mount", "-o", "remount,bind,ro", tmp_path], check=True)
        assert_same(sealed_pytree.read(tmp_path / written.name)[0], small())
        with pytest.raises(UserError, match="Read-only file system"):
            sealed_pytree.write(tmp_path / written.name, small(), {})


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("where", ["posix_fallocate", "mkdir", "fsync", "rename"])
def test_system_errors_are_one_sentence(tmp_path, monkeypatch, where, code):
    sealed_pytree.write(tmp_path / "a", small(), {})

    def fail(*arguments, **options):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, where, fail)
        with pytest.raises(UserError, match=os.strerror(code)) as caught:
            sealed_pytree.write(tmp_path / "a", small(2.0), {})
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert_same(sealed_pytree.read(tmp_path / "a")[0], small())


def test_disk_that_fills_up_within_orbax(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise ValueError("RESOURCE_EXHAUSTED: Failed to write: No space left on device [os_error_code='28']")

    monkeypatch.setattr(sealed_pytree.ocp, "save", fail)
    with pytest.raises(UserError, match="a: No space left on device; "):
        sealed_pytree.write(tmp_path / "a", small(), {})
    assert not list(tmp_path.iterdir())


def test_below_a_file(tmp_path):
    (tmp_path / "file").touch()
    for directory in (tmp_path / "file", tmp_path / "file" / "a", tmp_path / "file" / "a" / "b"):
        with pytest.raises(UserError, match="cannot write"):
            sealed_pytree.write(directory, small(), {})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# Kills and several writers.


def test_leftovers_go_at_the_next_write_unless_in_use(tmp_path):
    dead, busy, other = (tmp_path / name for name in (".ganomaly-tmp-dead", ".ganomaly-tmp-busy", ".other"))
    for path in (dead, busy, other):
        (path / "arrays").mkdir(parents=True)
    lock = os.open(busy, os.O_RDONLY)
    atomic_folders.fcntl.flock(lock, atomic_folders.fcntl.LOCK_EX)
    sealed_pytree.write(tmp_path / "a", small(), {})
    assert sorted(hidden(tmp_path)) == [busy.name, other.name]
    os.close(lock)
    sealed_pytree.write(tmp_path / "a", small(), {})
    assert hidden(tmp_path) == [other.name]


def test_two_writers_in_one_folder(tmp_path, monkeypatch):
    sync, flock, writers = atomic_folders.fsync_tree, atomic_folders.fcntl.flock, ["b"]

    def write_another_first(folder):
        if writers:
            sealed_pytree.write(tmp_path / writers.pop(), small(2.0), {})
        sync(folder)

    monkeypatch.setattr(atomic_folders, "fsync_tree", write_another_first)
    sealed_pytree.write(tmp_path / "a", small(), {})
    assert_same(sealed_pytree.read(tmp_path / "a")[0], small())
    assert_same(sealed_pytree.read(tmp_path / "b")[0], small(2.0))

    def tidied_before_it_was_locked(descriptor, operation):
        monkeypatch.setattr(atomic_folders.fcntl, "flock", flock)
        (tmp_path / hidden(tmp_path)[0]).rmdir()
        flock(descriptor, operation)

    monkeypatch.setattr(atomic_folders.fcntl, "flock", tidied_before_it_was_locked)
    sealed_pytree.write(tmp_path / "c", small(3.0), {})
    assert_same(sealed_pytree.read(tmp_path / "c")[0], small(3.0))


KILLS = """
import os, pathlib, random, signal, sys, time
import numpy as np
from ganomaly_jax.core import sealed_folder
from ganomaly_jax.runs import checkpoint, sealed_pytree
root, rng = pathlib.Path(sys.argv[1]), random.Random(0)
for attempt in range(8):
    before = checkpoint.steps(root)
    child = os.fork()
    if child == 0:
        step = before[-1] if before else 0
        while True:
            step += 1
            tree = {"a": np.full(50_000, step, np.float32)}
            checkpoint.save(root, step, tree, {"step": step}, keep=2)
            sealed_pytree.write(root / "detector", tree, {"step": step})
    deadline = time.monotonic() + 20
    while (checkpoint.steps(root) == before or not (root / "detector").exists()) and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.3))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    after = checkpoint.steps(root)
    assert after and after != before and len(after) <= 3, (before, after)
    for step in after:
        sealed_folder.verify(root / f"{step:08d}")
    sealed_folder.verify(root / "detector")
"""


def test_kills_while_writing_leave_only_whole_artefacts(tmp_path):
    # Forked by a process that has imported everything and started no thread.
    run = subprocess.run(
        [sys.executable, "-c", KILLS, tmp_path],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(Path(checkpoint.__file__).parents[2])},
    )
    assert run.returncode == 0, run.stderr
    step, tree, meta = checkpoint.restore(tmp_path, {"a": np.ones(50_000, np.float32)})
    assert step == checkpoint.steps(tmp_path)[-1] == meta["step"] >= 8
    assert (tree["a"] == step).all()
    tree, meta = sealed_pytree.read(tmp_path / "detector")
    assert (tree["a"] == meta["step"]).all()
    sealed_pytree.write(tmp_path / "detector", small(), {})
    assert not hidden(tmp_path)
