"""Sealed folders that replace one another: what a crash leaves, and what a reader refuses."""

import contextlib
import errno
import os
import shutil

import pytest

from ganomaly_jax.core import atomic_folders, sealed_folder, strict_json
from ganomaly_jax.core.errors import DamagedError, UserError


def replace(target, number):
    """Writes a folder as the package does."""
    target.parent.mkdir(exist_ok=True)
    atomic_folders.remove_leftovers(target.parent)
    with atomic_folders.temporary_folder(target.parent) as folder:
        for name in ("one", "two"):
            (folder / name).write_text(str(number))
        sealed_folder.seal(folder)
        atomic_folders.fsync_tree(folder)
        atomic_folders.move_into_place(folder, target)
        atomic_folders.fsync(target.parent)


def read(folder):
    def use(path, contents):
        assert contents["one"].decode() == (path / "two").read_text()
        return int(contents["one"])

    return sealed_folder.read(folder, use, ["one"])


class Killed(BaseException):
    pass


@pytest.mark.parametrize("exchange", [True, False])
def test_a_crash_between_any_two_steps_leaves_a_readable_one(tmp_path, monkeypatch, exchange):
    """The writer dies at its first, second, ... system call that changes a name, and tidies nothing up."""
    if not exchange:

        def unsupported(one, other):
            raise OSError(errno.EINVAL, "Invalid argument")

        monkeypatch.setattr(atomic_folders, "_exchange", unsupported)
    replace(tmp_path / "w" / "a", 0)
    number, seen = 0, set()
    while number not in seen:
        number += 1
        calls = []

        def dying(function, number=number, calls=calls):
            def call(*arguments, **options):
                calls.append(function)
                if len(calls) >= number:
                    raise Killed
                return function(*arguments, **options)

            return call

        before = read(tmp_path / "w" / "a")
        with monkeypatch.context() as patched:
            for owner, name in ((os, "rename"), (os, "mkdir"), (os, "fsync"), (shutil, "rmtree")):
                patched.setattr(owner, name, dying(getattr(owner, name)))
            patched.setattr(atomic_folders, "_exchange", dying(atomic_folders._exchange))
            with contextlib.suppress(Killed):
                replace(tmp_path / "w" / "a", number)
            complete = len(calls) < number
        assert sealed_folder.exists(tmp_path / "w" / "a")
        assert read(tmp_path / "w" / "a") in (before, number)
        if complete:
            seen.add(number)
    assert number > 8 and read(tmp_path / "w" / "a") == number
    replace(tmp_path / "w" / "a", -1)
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["a"]


def test_a_damaged_one_between_two_renames_is_damaged(tmp_path):
    replace(tmp_path / "a", 0)
    (tmp_path / "a" / "one").write_text("1")
    (tmp_path / "a").rename(tmp_path / ".ganomaly-old-a")
    with pytest.raises(DamagedError, match="'one' was altered"):
        sealed_folder.verify(tmp_path / "a")


def test_the_files_of_a_reader_stay_until_it_has_read_them(tmp_path):
    replace(tmp_path / "a", 0)

    def use(path, contents):
        replace(tmp_path / "a", 1)
        replace(tmp_path / "a", 2)
        return (path / "one").read_text()

    assert sealed_folder.read(tmp_path / "a", use) == "0"
    assert read(tmp_path / "a") == 2
    replace(tmp_path / "a", 3)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_name_that_another_writer_needs_is_free_again(tmp_path):
    """The temporary folder of several processes has a fixed name, also while the old version is still read."""
    replace(tmp_path / "a", 0)

    def use(path, contents):
        for _ in range(2):
            with atomic_folders.temporary_folder(tmp_path, "a-together") as folder:
                sealed_folder.seal(folder)
                atomic_folders.move_into_place(folder, tmp_path / "a")

    sealed_folder.read(tmp_path / "a", use)


def test_sizes_and_depths_are_bounded(tmp_path, monkeypatch):
    replace(tmp_path / "a", 0)
    monkeypatch.setattr(sealed_folder, "LARGEST_JSON", 2**20)
    (tmp_path / "a" / "manifest.json").write_bytes(b" " * (2**20 + 1))
    with pytest.raises(DamagedError, match=r"'manifest.json' has more than 1 MiB"):
        sealed_folder.verify(tmp_path / "a")
    (tmp_path / "a" / "/".join("d" * 40)).mkdir(parents=True)
    with pytest.raises(UserError, match="folders nested more than 16 deep"):
        sealed_folder.verify(tmp_path / "a")


@pytest.mark.parametrize(
    "text",
    ['{"a": 1, "a": 2}', '{"b": {"a": 1, "a": 1}}', "NaN", "[Infinity]", "1e999", "[" * 100_000, "{", "1" * 5000, ""],
)
def test_json_that_is_refused(text):
    with pytest.raises(ValueError):
        strict_json.loads(text)


def test_json_that_is_read():
    assert strict_json.loads(b'{"a": [1, 2.5, null, true, {"a": "x"}], "b": 1e300}')["a"][4] == {"a": "x"}
