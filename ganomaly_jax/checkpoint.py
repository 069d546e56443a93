"""Artefacts on disk: an Orbax pytree, `meta.json`, and `manifest.json` with the sha256 of every other file.

An artefact is a folder that is there whole or not at all: it is written beside its place, the manifest last, and then
renamed. Reading checks every file against the manifest before Orbax opens one. A run's checkpoints are artefacts
named by their step, `root/00000500`.

Leaves are host arrays (numpy) on both sides; the caller puts them on devices.
"""

from __future__ import annotations

import copy
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from ganomaly_jax.errors import DamagedError, UserError

ARRAYS = "arrays"
META = "meta.json"
MANIFEST = "manifest.json"
_TEMPORARY = ".ganomaly-tmp-"
_ASIDE = ".ganomaly-old-"
_STATE = "state"


def write(directory: Path, tree: Any, meta: dict[str, Any]) -> None:
    """Write one artefact; one of that name is replaced in one step.

    Args:
      directory: the folder to make; its parents are made too.
      tree: a pytree of arrays of any shape that has elements. On disk it is nested dicts, whatever its containers.
      meta: JSON values; NaN and infinity are not JSON.

    Raises:
      UserError: a full disk, no permission and the like; what was there before is intact.
      ValueError, TypeError: a tree or a meta that cannot be stored.
    """
    arrays = {path: np.asarray(leaf) for path, leaf in _flatten(jax.device_get(tree)).items()}
    for path, array in arrays.items():
        if array.size == 0 or array.dtype.kind in "OSU":
            raise ValueError(f"{'/'.join(path)} is {_describe(array)}: wanted numbers, at least one")
    text = json.dumps(meta, indent=1, allow_nan=False)
    target = Path(os.path.realpath(directory))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _tidy(target.parent)
        with _temporary(target.parent) as folder:
            _reserve(folder, sum(array.nbytes + 4096 for array in arrays.values()) + 2**20)
            (folder / META).write_text(text)
            _save_arrays(folder, _nest(arrays))
            seal(folder)
            _sync(folder)
            _put(folder, target)
            _sync_one(target.parent)
    except OSError as error:
        raise UserError(
            f"cannot write {directory}: {error.strerror or error}; everything that was in {target.parent} is intact"
        ) from error


def read(directory: Path, like: Any = None) -> tuple[Any, dict[str, Any]]:
    """The tree and the meta of an artefact, bit for bit as written.

    Args:
      directory: the artefact.
      like: a pytree of arrays or of `jax.ShapeDtypeStruct`, whose structure the result takes. None: nested dicts.

    Returns:
      The tree, its leaves numpy arrays, and the meta.

    Raises:
      DamagedError: a file is missing, extra, altered or cut short (the message names it).
      UserError: no such folder, no permission, or arrays other than `like` has (the message says which).
    """
    directory = Path(directory)
    verify(directory)
    with _reading(directory):
        try:
            meta = json.loads((directory / META).read_bytes())
            with _plain(directory) as folder:
                nested = ocp.load(folder / ARRAYS, checkpointable_name=_STATE)
        except OSError:
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            raise DamagedError(f"{directory} is damaged: {what}") from error
    return nested if like is None else _unflatten(nested, like, directory), meta


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

    with _reading(directory):
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


def save(root: Path, step: int, tree: Any, meta: dict[str, Any], keep: int) -> None:
    """Write `root/<step, 8 digits>`, then delete the checkpoints before it but for the last `keep - 1`.

    Checkpoints of later steps (of a run that went back to an earlier one) are left alone.

    Raises:
      UserError: as `write`; or an old one cannot be deleted.
    """
    root = Path(root)
    write(_folder(root, step), tree, meta)
    older = [number for number in steps(root) if number < step]
    for number in older[: max(0, len(older) - (keep - 1))]:
        _delete(_folder(root, number))


def steps(root: Path) -> list[int]:
    """The steps that have a checkpoint in `root`, ascending; empty where there is no such folder."""
    root = Path(root)
    with _reading(root):
        if not root.is_dir():
            return []
        found = [entry.name for entry in os.scandir(root) if re.fullmatch(r"\d{8,}", entry.name) and entry.is_dir()]
    return sorted(int(name) for name in found if name == f"{int(name):08d}")


def restore(root: Path, like: Any, step: int | None = None) -> tuple[int, Any, dict[str, Any]]:
    """The latest checkpoint, or that of `step`: (step, tree, meta).

    Raises:
      DamagedError: it is damaged; the message says how to go on, and from which steps.
      UserError: there is none, or one of another model.
    """
    root = Path(root)
    present = steps(root)
    if not present:
        raise UserError(f"there is no checkpoint in {root}")
    if step is None:
        step = present[-1]
    if step not in present:
        raise UserError(f"there is no checkpoint of step {step} in {root}; there are {_list(present)}")
    try:
        tree, meta = read(_folder(root, step), like)
    except DamagedError as error:
        good = [number for number in present if number < step and _is_good(_folder(root, number))]
        way_on = (
            f"delete that folder, or ask for an earlier step, to go on from step {good[-1]} (good: {_list(good)})"
            if good
            else "no earlier checkpoint is good: delete that folder to start afresh"
        )
        raise DamagedError(f"{error}; {way_on}") from error
    return step, tree, meta


def restore_latest_good(root: Path, like: Any) -> tuple[int, Any, dict[str, Any], list[str]]:
    """The latest checkpoint that is whole: (step, tree, meta, damaged).

    `damaged` has one sentence for each later checkpoint that was passed over, the latest first.

    Raises:
      DamagedError: all of them are damaged.
      UserError: there is none, or one of another model.
    """
    damaged: list[str] = []
    for step in reversed(steps(root)):
        try:
            tree, meta = read(_folder(Path(root), step), like)
        except DamagedError as error:
            damaged.append(str(error))
            continue
        return step, tree, meta, damaged
    if damaged:
        raise DamagedError(f"no checkpoint in {root} is good: {'; '.join(damaged)}; delete them to start afresh")
    raise UserError(f"there is no checkpoint in {root}")


class Saver:
    """`save` on one background thread, for use in a `with` block: only its end is sure to wait for the last one.

    An error of a save is raised by the next `save`, by `wait`, or at the end of the block.
    """

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, root: Path, step: int, tree: Any, meta: dict[str, Any], keep: int) -> None:
        """As the function `save`; returns once the arrays are on the host and the save before this one is done."""
        self.wait()
        # On the CPU device_get gives views of buffers that the next step may be given to write into.
        host = jax.tree.map(np.array, jax.device_get(tree))
        self._pending = self._worker.submit(save, root, step, host, copy.deepcopy(meta), keep)

    def wait(self) -> None:
        """Until nothing is being written. Raises what the last `save` met."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        try:
            self.wait()
        except Exception as failure:
            if error is None:
                raise
            error.add_note(str(failure))
        finally:
            self._worker.shutdown()


def _folder(root: Path, step: int) -> Path:
    return root / f"{int(step):08d}"


def _is_good(directory: Path) -> bool:
    try:
        verify(directory)
    except (DamagedError, UserError):
        return False
    return True


def _list(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


# Trees. On disk: nested dicts, so that no container type of ours, of Flax or of Optax is part of the format.


def _flatten(tree: Any) -> dict[tuple[str, ...], Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    flat = {tuple(jax.tree_util.keystr((key,), simple=True) for key in path): leaf for path, leaf in leaves}
    # Orbax joins the keys with dots, and two leaves of one name would overwrite each other.
    if len({".".join(path) for path in flat}) != len(leaves) or () in flat or not flat:
        raise ValueError("wanted a container of at least one array, with names that stay apart when joined by dots")
    return flat


def _nest(flat: dict[tuple[str, ...], Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for (*parents, name), leaf in flat.items():
        level = nested
        for parent in parents:
            level = level.setdefault(parent, {})
        level[name] = leaf
    return nested


def _unflatten(nested: dict[str, Any], like: Any, directory: Path) -> Any:
    stored, wanted = _flatten(nested), _flatten(like)
    differences = [
        f"{'/'.join(path)} is {_describe(stored.get(path))} there, {_describe(wanted.get(path))} here"
        for path in wanted | stored
        if _describe(stored.get(path)) != _describe(wanted.get(path))
    ]
    if differences:
        more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise UserError(
            f"{directory} is of another model: {'; '.join(differences[:3])}{more}; "
            "use the configuration that it was written with, or another folder"
        )
    return jax.tree.unflatten(jax.tree.structure(like), [stored[path] for path in wanted])


def _describe(leaf: Any) -> str:
    if leaf is None:
        return "absent"
    leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _save_arrays(folder: Path, nested: dict[str, Any]) -> None:
    context = ocp.Context()
    # Trained weights do not compress (8 %), and it would take as long as the rest of a save.
    context.array.saving.use_compression = False
    context.memory.deepcopy_host_arrays = False
    try:
        with context, _plain(folder) as plain:
            ocp.save(plain / ARRAYS, nested, checkpointable_name=_STATE)
    except Exception as error:
        # TensorStore reports errors of the system as text.
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from error


@contextmanager
def _plain(directory: Path) -> Iterator[Path]:
    """The folder under a name that Orbax can take: with `[` in the path it loses the arrays without an error."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        alias = Path(f"/proc/self/fd/{descriptor}")
        yield alias if alias.exists() else directory
    finally:
        os.close(descriptor)


# Files.


@contextmanager
def _reading(path: Path) -> Iterator[None]:
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


def _reserve(folder: Path, size: int) -> None:
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


@contextmanager
def _temporary(parent: Path) -> Iterator[Path]:
    """A new folder in `parent`, locked while this process lives, removed at the end if it is still there."""
    while True:
        path = parent / f"{_TEMPORARY}{secrets.token_hex(8)}"
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


def _tidy(parent: Path) -> None:
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


def _put(folder: Path, target: Path) -> None:
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
    # Where the file system has no exchange (NFS), a kill between these two leaves the old one aside for `_tidy`.
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


def _delete(directory: Path) -> None:
    """Whole or not at all, as seen under its name."""
    away = directory.with_name(f"{_TEMPORARY}{secrets.token_hex(8)}")
    try:
        directory.rename(away)
    except OSError as error:
        raise UserError(
            f"cannot delete {directory}: {error.strerror or error}; the new checkpoint is in place"
        ) from error
    shutil.rmtree(away, ignore_errors=True)


def _sync(directory: Path) -> None:
    for folder, _, files in os.walk(directory):
        for name in files:
            _sync_one(Path(folder, name))
        _sync_one(Path(folder))


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with _unless_unsupported():
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
