"""The lock of a folder that a process writes to: a second process is refused at once and told who holds the lock.

The lock is `flock` on a file in the folder; the system releases it when the process ends for any reason. The file
contains who holds the lock and is removed at the end. Processes that only read, such as `predict` and `serve`, take no
lock.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from ganomaly_jax.core import sealed_folder, strict_json
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.printable import printable
from ganomaly_jax.runs import layout

NAME = ".ganomaly-lock"
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
# Descriptors of the locks that this process holds: a child that it forks must not keep them.
_descriptors: set[int] = set()
# The files of the locks that this thread holds.
_mine = threading.local()


def _close_all() -> None:
    for descriptor in _descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _descriptors.clear()


os.register_at_fork(after_in_child=_close_all)


@contextlib.contextmanager
def held(verb: str, *folders: str | os.PathLike[str], create: bool = False) -> Iterator[None]:
    """Holds the locks of folders while the context lasts; a thread may hold a lock several times.

    On a file system without locks, a note is printed to standard error and the work continues.

    Args:
      verb: the verb of this process, for the message to other processes.
      *folders: the folders, each that of a run or a detector. One that does not exist is not locked.
      create: create the folders that do not exist; those that are empty at the end are removed again.

    Raises:
      UserError: another process holds a lock, which is named with its verb and start; or a folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        for folder in map(Path, folders):
            try:
                if create and not folder.is_dir():
                    stack.callback(_remove_empty, [path for path in (folder, *folder.parents) if not path.exists()])
                    folder.mkdir(parents=True, exist_ok=True)
                if folder.is_dir():
                    stack.enter_context(_held(verb, folder))
            except OSError as error:
                raise UserError(
                    f"{folder} cannot be written: {error.strerror or error}; choose another folder or free up space"
                ) from error
        yield


@contextlib.contextmanager
def _held(verb: str, folder: Path) -> Iterator[None]:
    path, mine = _path(folder), _mine.__dict__.setdefault("paths", set())
    if path in mine:
        yield
        return
    descriptor = _locked(path, folder)
    mine.add(path)
    try:
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "verb": verb, "since": _now()}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield
    finally:
        mine.discard(path)
        with contextlib.suppress(OSError):
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                path.unlink()
        _close(descriptor)


def _locked(path: Path, folder: Path) -> int:
    """Returns a descriptor of the locked file.

    Raises:
      UserError: another process holds the lock.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        _descriptors.add(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), os.fstat(descriptor)):
                    return descriptor
        except BlockingIOError:
            holder = _holder(descriptor)
            _close(descriptor)
            raise UserError(
                f"{folder} is in use: {holder} writes to it; wait until it has finished, or use another folder"
            ) from None
        except OSError as error:
            if error.errno in _NO_LOCKS:
                print(
                    f"note: the file system of {folder} has no locks, so nothing prevents a second process from "
                    "writing to it",
                    file=sys.stderr,
                )
                return descriptor
            _close(descriptor)
            raise
        _close(descriptor)  # its holder has just removed the file


def _close(descriptor: int) -> None:
    _descriptors.discard(descriptor)
    os.close(descriptor)


def _holder(descriptor: int) -> str:
    """Returns the owner of a lock, from the content of its file."""
    try:
        holder = strict_json.loads(os.pread(descriptor, 4096, 0))
        verb, pid, host, since = (printable(str(holder[name])) for name in ("verb", "pid", "host", "since"))
    except (OSError, ValueError, TypeError, KeyError):  # it has not been written yet
        return "another process"
    return f"`{verb}` (process {pid} on {host}, since {since})"


def _path(folder: Path) -> Path:
    """Returns the lock file of a folder; that of a sealed detector folder is in or next to its run's folder."""
    folder = Path(os.path.realpath(folder))
    if not (folder / sealed_folder.MANIFEST).exists():
        return folder / NAME
    return folder.parent / (NAME if folder.name == layout.DETECTOR else f"{NAME}-{folder.name}")


def _remove_empty(folders: list[Path]) -> None:
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
