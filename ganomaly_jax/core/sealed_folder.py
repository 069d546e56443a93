"""Folders that are replaced atomically and verified by checksums. Uses the standard library only.

A sealed folder holds `manifest.json`, which lists the sha256 and the size of every other file. A folder is written
under a temporary name beside its target and then renamed; leftovers of killed processes are removed by the next writer.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ganomaly_jax.core.errors import DamagedError, UserError

MANIFEST = "manifest.json"
_TEMPORARY = ".ganomaly-tmp-"
_REPLACED = ".ganomaly-old-"


def seal(directory: Path) -> None:
    """Writes `manifest.json`: sha256 and size in bytes of every other file below `directory`, by relative path.

    Raises:
      OSError: the file system's own error.
    """
    entries = {name: _entry(directory / name) for name in _names(directory)}
    (directory / MANIFEST).write_bytes(_encode(entries))


def verify(directory: Path) -> None:
    """Checks every file of a sealed folder against its manifest.

    Raises:
      DamagedError: a file is missing, extra, altered or truncated; the message names it.
      UserError: the folder does not exist or cannot be read.
    """
    directory = Path(directory)

    def damaged(reason: str) -> DamagedError:
        return DamagedError(f"{directory} is damaged: {reason}")

    with translated_errors(directory):
        if not directory.is_dir():
            raise UserError(f"{directory} does not exist; expected a folder that was written by ganomaly")
        names = set(_names(directory))
        if not (directory / MANIFEST).exists():
            raise damaged(f"{MANIFEST} is missing")
        raw = (directory / MANIFEST).read_bytes()
        try:
            entries = json.loads(raw)
        except (ValueError, RecursionError):
            raise damaged(f"{MANIFEST} is not JSON") from None
        if not isinstance(entries, dict):
            raise damaged(f"{MANIFEST} was altered")
        for name in sorted(names | entries.keys()):
            if name not in names:
                raise damaged(f"{name!r} is missing")
            if name not in entries:
                raise damaged(f"{name!r} is not listed in {MANIFEST}")
            if entries[name] != _entry(directory / name):
                raise damaged(f"{name!r} was altered or truncated")
        # The manifest is a function of the files, byte for byte, and so needs no checksum of its own.
        if raw != _encode(entries):
            raise damaged(f"{MANIFEST} was altered")


@contextmanager
def translated_errors(path: Path) -> Iterator[None]:
    """Turns errors of the file system inside the context into `DamagedError` or `UserError`, naming `path`."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) or error.errno == errno.EIO:
            raise DamagedError(f"{path} is damaged: {error.filename or 'a file'}: {error.strerror or error}") from error
        raise UserError(f"cannot read {path}: {error.filename or 'a file'}: {error.strerror or error}") from error


def _names(directory: Path) -> Iterator[str]:
    """Yields the relative path of every file below `directory` except the manifest."""

    def refuse(error: OSError) -> None:
        raise error

    for folder, folders, files in os.walk(directory, onerror=refuse):
        for path in (Path(folder, name) for name in files + folders):
            mode = path.lstat().st_mode
            name = path.relative_to(directory).as_posix()
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise DamagedError(f"{directory} is damaged: {name!r} is a link or a special file")
            if stat.S_ISREG(mode) and name != MANIFEST:
                yield name


def _entry(path: Path) -> dict[str, Any]:
    """Returns the manifest entry of a file."""
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "size": os.fstat(file.fileno()).st_size}


def _encode(entries: dict[str, Any]) -> bytes:
    """Returns the manifest as bytes."""
    return json.dumps(entries, indent=1, sort_keys=True).encode()


def check_free_space(folder: Path, size: int) -> None:
    """Allocates `size` bytes in `folder` and frees them, so that a full disk or a quota shows as one short OSError.

    Orbax would report it with pages of tracebacks.

    Raises:
      OSError: there is not enough space.
    """
    path = folder / "reserve"
    with path.open("wb") as file, _unless_unsupported():
        os.posix_fallocate(file.fileno(), 0, size)
    path.unlink()


@contextmanager
def _unless_unsupported() -> Iterator[None]:
    """Ignores errors that mean that this file system does not support an operation."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise


def temporary_folder_path(parent: Path, name: str) -> Path:
    """Returns the path of the folder that `temporary_folder` creates for `name`."""
    return parent / f"{_TEMPORARY}{name}"


@contextmanager
def temporary_folder(parent: Path, name: str = "") -> Iterator[Path]:
    """Creates a folder in `parent`, locked while this process lives, and removes it at the end if it is still there.

    Args:
      parent: existing folder.
      name: name that other processes derive as well (see `temporary_folder_path`), which no other writer may use at the
        same time; by default a random one.

    Yields:
      The path of the new folder.
    """
    while True:
        path = temporary_folder_path(parent, name or secrets.token_hex(8))
        path.mkdir()
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        with suppress(OSError):  # Some network file systems have no locks: leftovers stay there.
            fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():  # Another writer may have removed it before it was locked.
            break
        os.close(lock)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def remove_leftovers(parent: Path) -> None:
    """Removes what killed processes left behind in `parent`; folders locked by live processes are kept."""
    for path in parent.glob(f"{_TEMPORARY}*"):
        with suppress(OSError):
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)
    for path in parent.glob(f"{_REPLACED}*"):
        target = parent / path.name.removeprefix(_REPLACED)
        if target.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.rename(target)


def move_into_place(folder: Path, target: Path) -> None:
    """Renames `folder` to `target`; if `target` exists, the two are swapped, so that `folder` is then the old one.

    Raises:
      OSError: the file system's own error; `target` is unchanged then.
    """
    try:
        os.rename(folder, target)
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    with _unless_unsupported():
        _exchange(folder, target)
        return
    # Without an atomic exchange (NFS), a kill between these two renames leaves the old folder to `remove_leftovers`.
    replaced = target.with_name(_REPLACED + target.name)
    os.rename(target, replaced)
    try:
        os.rename(folder, target)
    except OSError:
        os.rename(replaced, target)
        raise
    os.rename(replaced, folder)


def _exchange(first: Path, second: Path) -> None:
    """Swaps two paths atomically (Linux only)."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    cwd, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if rename(cwd, os.fsencode(first), cwd, os.fsencode(second), swap):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def delete(directory: Path) -> None:
    """Deletes a folder such that it vanishes from under its name at once.

    Raises:
      UserError: it cannot be deleted.
    """
    hidden = directory.with_name(f"{_TEMPORARY}{secrets.token_hex(8)}")
    try:
        directory.rename(hidden)
    except OSError as error:
        raise UserError(
            f"cannot delete {directory}: {error.strerror or error}; the new checkpoint is in place"
        ) from error
    shutil.rmtree(hidden, ignore_errors=True)


def fsync_tree(directory: Path) -> None:
    """Flushes every file and folder below `directory` to disk."""
    for folder, _, files in os.walk(directory):
        for name in files:
            fsync(Path(folder, name))
        fsync(Path(folder))


def fsync(path: Path) -> None:
    """Flushes one file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with _unless_unsupported():
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
