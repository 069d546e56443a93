"""Folders that are verified by checksums when they are read. Uses the standard library only.

A sealed folder holds `manifest.json`, which lists the sha256 and the size of every other file. The functions of
`atomic_folders` replace one folder by another.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from ganomaly_jax.core import atomic_folders
from ganomaly_jax.core.errors import DamagedError, UserError

MANIFEST = "manifest.json"
LARGEST_JSON = 2**24
"""Largest size in bytes of the manifest and of a file that is read as a whole, such as `meta.json`."""
# Attempts to read a folder that other processes replace meanwhile, and the maximum nesting of its folders.
_ATTEMPTS, _DEEPEST = 20, 16
T = TypeVar("T")
_State = dict[str, tuple[int, ...]]


def seal(directory: Path) -> None:
    """Writes `manifest.json`: sha256 and size in bytes of every other file below `directory`, by relative path.

    Raises:
      OSError: the file system's own error.
    """
    entries = {}
    with _opened(directory) as descriptor:
        for name, _ in _walk(descriptor):
            with _open_file(name, descriptor) as file:
                entries[name] = _entry(file)
    entries.pop(MANIFEST, None)
    (directory / MANIFEST).write_bytes(_encode(entries))


def verify(directory: Path) -> None:
    """Checks every file of a sealed folder against its manifest.

    Raises:
      DamagedError: as `read`.
      UserError: the folder does not exist or cannot be read.
    """
    read(directory, lambda folder, contents: None)


def read(directory: Path, use: Callable[[Path, dict[str, bytes]], T], small: Sequence[str] = ()) -> T:
    """Verifies and reads a sealed folder in a single version, even if other processes replace it.

    The folder is opened once and locked, so that a process that replaces it leaves its files in place. It is read again
    if it was replaced or its files have changed nevertheless.

    Args:
      directory: the folder.
      use: called with the path of the opened folder and the contents of the files in `small`. It may be called several
        times; a result counts only if the files were the verified ones before and after.
      small: names of files of at most `LARGEST_JSON` bytes, whose verified bytes are handed to `use`.

    Returns:
      The result of `use`.

    Raises:
      DamagedError: a file is missing, extra, altered or truncated; the message names it.
      UserError: the folder does not exist or cannot be read, or is replaced continually.
    """
    directory = Path(directory)
    for _ in range(_ATTEMPTS):
        with translated_errors(directory), _opened(directory) as descriptor:
            alias = Path(f"/proc/self/fd/{descriptor}")  # leads to the opened folder whatever its name is now
            path, verified = alias if alias.exists() else directory, None
            try:
                verified, contents = _verified(directory, descriptor, small)
                result = use(path, contents)
            except Exception:
                if _is_current(directory, descriptor) and (verified is None or _is_unchanged(descriptor, verified)):
                    raise
                continue
            if _is_unchanged(descriptor, verified) and (path == alias or _is_current(directory, descriptor)):
                return result
    raise UserError(f"{directory} changed while it was read, {_ATTEMPTS} times in a row; try again later")


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    """Opens a folder, locked against removal, and yields its descriptor."""
    try:
        descriptor = _open_folder(directory)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{directory} does not exist; expected a folder that was written by ganomaly") from None
    try:
        with suppress(OSError):  # Some file systems have no locks; the writer of a new folder holds it for a moment.
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield descriptor
    finally:
        os.close(descriptor)


def _open_folder(directory: Path) -> int:
    """Returns a descriptor of the folder, or of where it is between the two renames of `move_into_place`."""
    try:
        return os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        with suppress(FileNotFoundError):
            return os.open(atomic_folders.replaced_path(directory), os.O_RDONLY | os.O_DIRECTORY)
        return os.open(directory, os.O_RDONLY | os.O_DIRECTORY)


def _is_current(directory: Path, descriptor: int) -> bool:
    """Returns True if the opened folder has not been replaced."""
    return any(atomic_folders.is_at(path, descriptor) for path in (directory, atomic_folders.replaced_path(directory)))


def exists(directory: Path, name: str = "") -> bool:
    """Returns whether the folder, or a file `name` in it, exists, even while it is being replaced."""
    places = (directory, atomic_folders.replaced_path(directory), directory)
    return any((place / name).exists() for place in places)


def _verified(directory: Path, descriptor: int, small: Sequence[str]) -> tuple[_State, dict[str, bytes]]:
    """Checks an opened folder, and returns the state of its files and the contents of those in `small`."""

    def damaged(reason: str) -> DamagedError:
        return DamagedError(f"{directory} is damaged: {reason}")

    found = _state(descriptor)
    for name, state in found.items():
        if not state:
            raise damaged(f"{name!r} is a link or a special file")
    if MANIFEST not in found:
        raise damaged(f"{MANIFEST} is missing")
    contents: dict[str, bytes] = {}
    for name in {MANIFEST, *small} & found.keys():
        with _open_file(name, descriptor) as file:
            contents[name] = file.read(LARGEST_JSON + 1)
        if len(contents[name]) > LARGEST_JSON:
            raise damaged(f"{name!r} has more than {LARGEST_JSON >> 20} MiB")
    raw = contents.pop(MANIFEST)
    try:
        entries = json.loads(raw)
    except (ValueError, RecursionError):
        raise damaged(f"{MANIFEST} is not JSON") from None
    if not isinstance(entries, dict):
        raise damaged(f"{MANIFEST} was altered")
    for name in sorted((found.keys() | entries.keys()) - {MANIFEST}):
        if name not in found:
            raise damaged(f"{name!r} is missing")
        if name not in entries:
            raise damaged(f"{name!r} is not listed in {MANIFEST}")
        if name in contents:
            entry = _entry(io.BytesIO(contents[name]))
        else:
            with _open_file(name, descriptor) as file:
                entry = _entry(file)
        if entries[name] != entry:
            raise damaged(f"{name!r} was altered or truncated")
    # The manifest is a function of the files, byte for byte, and so needs no checksum of its own.
    if raw != _encode(entries):
        raise damaged(f"{MANIFEST} was altered")
    return found, contents


def _is_unchanged(descriptor: int, verified: _State) -> bool:
    """Returns True if the files of an opened folder are in the same state as before."""
    try:
        return _state(descriptor) == verified
    except OSError:
        return False


def _state(descriptor: int) -> _State:
    """Returns, for each file of an opened folder, values that change with every write; empty for links and pipes."""
    states: _State = {}
    for name, info in _walk(descriptor):
        regular = stat.S_ISREG(info.st_mode)
        states[name] = (info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns) if regular else ()
    return states


def _walk(descriptor: int, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, os.stat_result]]:
    """Yields relative path and status of everything but folders in an opened folder."""
    if depth > _DEEPEST:
        raise OSError(errno.ELOOP, f"folders nested more than {_DEEPEST} deep", prefix[:50])
    with os.scandir(descriptor) as entries:
        names = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
    for name, info in names:
        if not stat.S_ISDIR(info.st_mode):
            yield prefix + name, info
            continue
        inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
        try:
            yield from _walk(inner, f"{prefix}{name}/", depth + 1)
        finally:
            os.close(inner)


def _open_file(name: str, descriptor: int) -> io.BufferedIOBase:
    """Opens a file of an opened folder."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    return os.fdopen(os.open(name, flags, dir_fd=descriptor), "rb")


@contextmanager
def translated_errors(path: Path) -> Iterator[None]:
    """Turns errors of the file system inside the context into `DamagedError` or `UserError`, naming `path`."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) or error.errno == errno.EIO:
            raise DamagedError(f"{path} is damaged: {error.filename or 'a file'}: {error.strerror or error}") from error
        raise UserError(f"cannot read {path}: {error.filename or 'a file'}: {error.strerror or error}") from error


def _entry(file: io.BufferedIOBase) -> dict[str, Any]:
    """Returns the manifest entry of an open file: hash and size in bytes."""
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "size": file.seek(0, os.SEEK_END)}


def _encode(entries: dict[str, Any]) -> bytes:
    """Returns the manifest as bytes."""
    return json.dumps(entries, indent=1, sort_keys=True).encode()
