"""Folders that are there whole or not at all, every file of them known by its sha256. Standard library only.

A sealed folder holds `manifest.json` with hash and size of every other file. A folder is written under a temporary
name beside its place and renamed; what killed processes leave behind is tidied by the next writer.
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
_ASIDE = ".ganomaly-old-"


def seal(directory: Path) -> None:
    """Write `manifest.json`: sha256 and size in bytes of every other file in the folder, by relative path.

    Raises:
      OSError: as the file system gives it.
    """
    listed = {name: _entry(directory / name) for name in _names(directory)}
    (directory / MANIFEST).write_bytes(_encode(listed))


def verify(directory: Path) -> None:
    """Check every file of a sealed folder against its manifest.

    Raises:
      DamagedError: a file is missing, extra, altered or cut short (the message names it).
      UserError: no such folder, or one that cannot be read.
    """
    directory = Path(directory)

    def damaged(what: str) -> DamagedError:
        return DamagedError(f"{directory} is damaged: {what}")

    with reading(directory):
        if not directory.is_dir():
            raise UserError(f"there is no folder {directory}; give one that was written by ganomaly")
        names = set(_names(directory))
        if not (directory / MANIFEST).exists():
            raise damaged(f"{MANIFEST} is missing")
        raw = (directory / MANIFEST).read_bytes()
        try:
            listed = json.loads(raw)
        except (ValueError, RecursionError):
            raise damaged(f"{MANIFEST} is not JSON") from None
        if not isinstance(listed, dict):
            raise damaged(f"{MANIFEST} was altered")
        for name in sorted(names | listed.keys()):
            if name not in names:
                raise damaged(f"{name!r} is missing")
            if name not in listed:
                raise damaged(f"{name!r} does not belong there ({MANIFEST} does not list it)")
            if listed[name] != _entry(directory / name):
                raise damaged(f"{name!r} was altered or cut short")
        # The manifest follows from the files, to the byte: that is its own checksum.
        if raw != _encode(listed):
            raise damaged(f"{MANIFEST} was altered")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Errors of the file system as the two of ours."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) or error.errno == errno.EIO:
            raise DamagedError(f"{path} is damaged: {error.filename or 'a file'}: {error.strerror or error}") from error
        raise UserError(f"cannot read {path}: {error.filename or 'a file'}: {error.strerror or error}") from error


def _names(directory: Path) -> Iterator[str]:
    """Relative path of every file below `directory` but the manifest."""

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
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "size": os.fstat(file.fileno()).st_size}


def _encode(listed: dict[str, Any]) -> bytes:
    return json.dumps(listed, indent=1, sort_keys=True).encode()


def reserve(folder: Path, size: int) -> None:
    """Have a full disk or a quota show here, as one OSError: from within Orbax it comes with pages of tracebacks."""
    path = folder / "reserve"
    with path.open("wb") as file, _unless_unsupported():
        os.posix_fallocate(file.fileno(), 0, size)
    path.unlink()


@contextmanager
def _unless_unsupported() -> Iterator[None]:
    """Pass over what this file system cannot do at all."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise


def temporary_path(parent: Path, name: str) -> Path:
    """Where `temporary` makes its folder."""
    return parent / f"{_TEMPORARY}{name}"


@contextmanager
def temporary(parent: Path, name: str = "") -> Iterator[Path]:
    """A new folder in `parent`, locked while this process lives, removed at the end if it is still there.

    With a name, which other processes know as well (`temporary_path`), nobody else may be writing one of that name.
    """
    while True:
        path = temporary_path(parent, name or secrets.token_hex(8))
        path.mkdir()
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        with suppress(OSError):  # Some network file systems have no locks: nothing is tidied there.
            fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():  # Another writer may have tidied it away before it was locked.
            break
        os.close(lock)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def tidy(parent: Path) -> None:
    """Remove what killed processes left in `parent`; what a live one is writing is locked."""
    for path in parent.glob(f"{_TEMPORARY}*"):
        with suppress(OSError):
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)
    for path in parent.glob(f"{_ASIDE}*"):
        target = parent / path.name.removeprefix(_ASIDE)
        if target.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.rename(target)


def put(folder: Path, target: Path) -> None:
    """Rename into place. What was there takes the place of `folder`."""
    try:
        os.rename(folder, target)
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    with _unless_unsupported():
        _exchange(folder, target)
        return
    # Where the file system has no exchange (NFS), a kill between these two leaves the old one aside for `tidy`.
    aside = target.with_name(_ASIDE + target.name)
    os.rename(target, aside)
    try:
        os.rename(folder, target)
    except OSError:
        os.rename(aside, target)
        raise
    os.rename(aside, folder)


def _exchange(one: Path, other: Path) -> None:
    """Swap two names in one step (Linux)."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if rename(here, os.fsencode(one), here, os.fsencode(other), swap):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def delete(directory: Path) -> None:
    """Whole or not at all, as seen under its name."""
    away = directory.with_name(f"{_TEMPORARY}{secrets.token_hex(8)}")
    try:
        directory.rename(away)
    except OSError as error:
        raise UserError(
            f"cannot delete {directory}: {error.strerror or error}; the new checkpoint is in place"
        ) from error
    shutil.rmtree(away, ignore_errors=True)


def sync(directory: Path) -> None:
    for folder, _, files in os.walk(directory):
        for name in files:
            sync_one(Path(folder, name))
        sync_one(Path(folder))


def sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with _unless_unsupported():
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
