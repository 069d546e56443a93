"""Folders that are replaced atomically. Uses the standard library only.

A folder is written under a temporary name beside its target and then renamed; leftovers of killed processes are removed
by the next writer. Readers hold a shared lock on a folder, so its files remain until they have been read.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ganomaly_jax.core.errors import UserError

_TEMPORARY = ".ganomaly-tmp-"
_REPLACED = ".ganomaly-old-"


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
    """Ignores errors of operations that the file system does not support."""
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
    """Creates a locked folder in `parent` and removes it at the end if it still exists.

    Args:
      parent: existing folder.
      name: name from which other processes derive the same path (see `temporary_folder_path`); only one writer may use
        it at a time. By default a random one.

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
        try:
            if is_at(path, lock):
                shutil.rmtree(path, ignore_errors=True)
            else:  # what it has replaced
                _remove_unless_read(path)
        finally:
            os.close(lock)


@contextmanager
def _locked(folder: Path) -> Iterator[bool | None]:
    """Locks a folder; yields False if another process has locked it, None if the file system has no locks."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked: bool | None = True
        except OSError as error:
            locked = False if isinstance(error, BlockingIOError) else None
        yield locked
    finally:
        os.close(descriptor)


def _remove_unless_read(folder: Path) -> None:
    """Removes a hidden folder; one that is being read is renamed so that the next writer removes it."""
    with suppress(OSError), _locked(folder) as locked:
        if locked is False:
            folder.rename(temporary_folder_path(folder.parent, secrets.token_hex(8)))
        else:
            shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(parent: Path) -> None:
    """Removes what killed processes left behind in `parent`; folders locked by live processes are kept."""
    for path in parent.glob(f"{_TEMPORARY}*"):
        with suppress(OSError), _locked(path) as locked:
            if locked:
                shutil.rmtree(path, ignore_errors=True)
    for path in parent.glob(f"{_REPLACED}*"):
        target = parent / path.name.removeprefix(_REPLACED)
        if target.exists():
            _remove_unless_read(path)
        else:
            path.rename(target)


def replaced_path(target: Path) -> Path:
    """Returns where the old folder is while `move_into_place` replaces `target` without an atomic exchange."""
    target = Path(os.path.realpath(target))
    return target.with_name(_REPLACED + target.name)


def is_at(folder: Path, descriptor: int) -> bool:
    """Returns True if the folder of that path is the one that was opened."""
    try:
        return os.path.samestat(os.stat(folder), os.fstat(descriptor))
    except OSError:
        return False


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
    # Without an atomic exchange (NFS), readers find the old folder under this name until the second rename, also after
    # a kill, until `remove_leftovers` gives it its name again.
    replaced = replaced_path(target)
    os.rename(target, replaced)
    try:
        os.rename(folder, target)
    except OSError:
        os.rename(replaced, target)
        raise
    with suppress(FileNotFoundError):  # another writer has removed it
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
    """Deletes a folder, whose name becomes free at once.

    Raises:
      UserError: it cannot be deleted.
    """
    hidden = temporary_folder_path(directory.parent, secrets.token_hex(8))
    try:
        directory.rename(hidden)
    except OSError as error:
        raise UserError(
            f"cannot delete {directory}: {error.strerror or error}; the new checkpoint is in place"
        ) from error
    _remove_unless_read(hidden)


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
