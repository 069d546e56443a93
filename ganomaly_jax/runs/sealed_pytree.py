"""Pytrees on disk: a folder of arrays by Orbax, `meta.json`, and `manifest.json` with the sha256 of every other file.

The folder is written atomically: under a temporary name, the manifest last, and then renamed. Reading verifies every
file against the manifest before Orbax opens one.

Leaves are NumPy arrays when read; the caller places them on devices. With several processes, which share the file
system, everything that writes is a collective: each process writes its own shards, process 0 everything else.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from orbax.checkpoint import v1 as ocp

from ganomaly_jax.core import atomic_folders, sealed_folder, strict_json
from ganomaly_jax.core.errors import DamagedError, UserError

ARRAYS = "arrays"
META = "meta.json"
_STATE = "state"
# Bytes that arrays may claim beyond the size of their files, since the smallest ones are compressed.
_SLACK = 2**20


def write(directory: Path, tree: Any, meta: dict[str, Any]) -> None:
    """Writes an artefact; an existing one of that name is replaced atomically.

    Args:
      directory: folder to create, with its parents.
      tree: pytree of non-empty arrays. On disk it is nested dicts, whatever its containers.
      meta: JSON values, without NaN and infinity.

    Raises:
      UserError: it cannot be written (full disk, permissions); what was there before is unchanged.
      ValueError, TypeError: the tree or the meta cannot be stored.
    """
    if jax.process_count() > 1:
        begin_distributed_write(directory, tree, meta)()
        return
    arrays = {path: np.asarray(leaf) for path, leaf in _flatten(jax.device_get(tree)).items()}
    text = _check(arrays, meta)
    target = Path(os.path.realpath(directory))
    with _readable_errors(directory, target), _new_folder(target, arrays) as folder:
        _save_arrays(folder, _nest(arrays))
        _seal_and_move(folder, target, text)


def begin_distributed_write(directory: Path, tree: Any, meta: dict[str, Any]) -> Callable[[], None]:
    """Begins `write` in all processes.

    The beginning uses the devices, so no step may run in another thread meanwhile; the end does not.

    Returns:
      A function that finishes the write, which may be called in another thread.
    """
    arrays = _flatten(tree)
    text = _check(arrays, meta)
    target = Path(os.path.realpath(directory))
    folder = atomic_folders.temporary_folder_path(target.parent, f"{target.name}-together")
    with ExitStack() as stack:
        if jax.process_index() == 0:
            stack.enter_context(_readable_errors(directory, target))
            stack.enter_context(_new_folder(target, arrays, f"{target.name}-together"))
        _barrier(f"{target} begun")
        # Copies, since the next step may reuse these buffers; of fully addressable arrays, as NumPy.
        copies = _nest(
            {path: np.array(leaf) if _is_addressable(leaf) else jnp.copy(leaf) for path, leaf in arrays.items()}
        )
        with _orbax_context(set(range(jax.process_count()))):
            response = ocp.save_async(folder / ARRAYS, copies, checkpointable_name=_STATE)
        rest = stack.pop_all()

    def end() -> None:
        with rest:
            response.result()
            _barrier(f"{target} written")
            if jax.process_index() == 0:
                _seal_and_move(folder, target, text)
        _barrier(f"{target} done")

    return end


def _is_addressable(leaf: Any) -> bool:
    """Returns True if this process holds the whole array."""
    return not isinstance(leaf, Array) or leaf.is_fully_addressable


def _barrier(name: str) -> None:
    """Waits for the other processes, on the host only: a step may run on the devices meanwhile."""
    from orbax.checkpoint import multihost

    multihost.sync_global_processes(name, processes=set(range(jax.process_count())))


def _check(arrays: dict[tuple[str, ...], Any], meta: dict[str, Any]) -> str:
    """Checks that the tree can be stored, and returns the meta as JSON."""
    for path, array in arrays.items():
        if array.size == 0 or array.dtype.kind in "OSU":
            raise ValueError(f"{'/'.join(path)} is {_describe(array)}: expected a non-empty array of numbers")
    text = json.dumps(meta, indent=1, allow_nan=False)
    if len(text) > sealed_folder.LARGEST_JSON:
        raise UserError(f"{META} would have {len(text):,} bytes: expected at most {sealed_folder.LARGEST_JSON:,}")
    return text


@contextmanager
def _readable_errors(directory: Path, target: Path) -> Iterator[None]:
    """Turns an OSError into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {directory}: {error.strerror or error}; the previous content of {target.parent} is intact"
        ) from error


@contextmanager
def _new_folder(target: Path, arrays: dict[tuple[str, ...], Any], name: str = "") -> Iterator[Path]:
    """Creates a temporary folder beside `target`, after checking that there is enough space."""
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic_folders.remove_leftovers(target.parent)
    with atomic_folders.temporary_folder(target.parent, name) as folder:
        atomic_folders.check_free_space(folder, sum(array.nbytes + 4096 for array in arrays.values()) + 2**20)
        yield folder


def _seal_and_move(folder: Path, target: Path, text: str) -> None:
    """Writes meta and manifest, flushes all files, and renames the folder."""
    (folder / META).write_text(text)
    sealed_folder.seal(folder)
    atomic_folders.fsync_tree(folder)
    atomic_folders.move_into_place(folder, target)
    atomic_folders.fsync(target.parent)


def read(directory: Path, like: Any = None) -> tuple[Any, dict[str, Any]]:
    """Reads an artefact, bit for bit as written, in a single version even if another process replaces it.

    Args:
      directory: the artefact.
      like: pytree of arrays or `jax.ShapeDtypeStruct` whose structure the result takes; None for nested dicts.

    Returns:
      The tree, with NumPy arrays as leaves, and the meta.

    Raises:
      DamagedError: a file is missing, extra, altered or truncated; the message names it.
      UserError: the folder does not exist or cannot be read, or its arrays differ from those of `like`; the message
        names them. No memory is allocated for arrays that differ or that are larger than the folder.
    """
    directory = Path(directory)

    def use(folder: Path, contents: dict[str, bytes]) -> tuple[Any, dict[str, Any]]:
        try:
            meta = strict_json.loads(contents[META])
            if not isinstance(meta, dict):
                raise ValueError(f"{META} is no object")
            # Each process reads for itself, as NumPy, whatever the devices were when it was written.
            with _orbax_context({jax.process_index()}):
                metadata: Any = ocp.metadata(folder / ARRAYS, checkpointable_name=_STATE).metadata
                _check_sizes(folder, metadata)
                expected = None if like is None else _expected(metadata, like, directory)
                arrays = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), metadata)
                nested = ocp.load(folder / ARRAYS, arrays, checkpointable_name=_STATE)
        except (OSError, UserError):
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            raise DamagedError(f"{directory} is damaged: {reason}") from error
        if expected is None:
            return nested, meta
        stored = _flatten(nested)
        return jax.tree.unflatten(jax.tree.structure(like), [stored[path] for path in expected]), meta

    return sealed_folder.read(directory, use, [META])


def _check_sizes(folder: Path, metadata: Any) -> None:
    """Refuses arrays that claim to be larger than the files that hold them: arrays are stored uncompressed."""
    chunks = [(leaf.dtype.itemsize, leaf.shape, leaf.storage_metadata) for leaf in jax.tree.leaves(metadata)]
    declared = sum(
        size * max(math.prod(shape), math.prod((storage and storage.chunk_shape) or ()))
        for size, shape, storage in chunks
    )
    stored = sum(path.stat().st_size for path in (folder / ARRAYS).rglob("*") if path.is_file())
    if declared > stored + _SLACK:
        raise ValueError(f"its arrays claim {declared:,} bytes, but its files contain {stored:,}")


# Trees. On disk: nested dicts, so that no container type of Flax, Optax or this package is part of the format.


def _flatten(tree: Any) -> dict[tuple[str, ...], Any]:
    """Returns the leaves of a pytree by their path."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    flat = {tuple(jax.tree_util.keystr((key,), simple=True) for key in path): leaf for path, leaf in leaves}
    # Orbax joins the keys with dots; leaves of the same name would overwrite each other.
    if len({".".join(path) for path in flat}) != len(leaves) or () in flat or not flat:
        raise ValueError("expected a container of at least one array, with names that are unique when joined by dots")
    return flat


def _nest(flat: dict[tuple[str, ...], Any]) -> dict[str, Any]:
    """Returns nested dicts of leaves by their path."""
    nested: dict[str, Any] = {}
    for (*parents, name), leaf in flat.items():
        level = nested
        for parent in parents:
            level = level.setdefault(parent, {})
        level[name] = leaf
    return nested


def _expected(metadata: Any, like: Any, directory: Path) -> dict[tuple[str, ...], Any]:
    """Returns the leaves of `like` by their path; raises a UserError if stored shapes or dtypes differ from them."""
    stored, expected = _flatten(metadata), _flatten(like)
    differences = [
        f"{'/'.join(path)} is {_describe(stored.get(path))} on disk, expected {_describe(expected.get(path))}"
        for path in expected | stored
        if _describe(stored.get(path)) != _describe(expected.get(path))
    ]
    if differences:
        more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise UserError(
            f"{directory} belongs to another model: {'; '.join(differences[:3])}{more}; "
            "use the configuration with which it was written, or another folder"
        )
    return expected


def _describe(leaf: Any) -> str:
    """Returns dtype and shape of an array, such as `float32[3,4]`."""
    if leaf is None:
        return "absent"
    leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


@contextmanager
def _orbax_context(processes: set[int]) -> Iterator[None]:
    """Configures Orbax for these processes."""
    context = ocp.Context()
    context.multiprocessing.active_processes = processes
    context.multiprocessing.primary_host = min(processes)
    # Trained weights hardly compress (8 %), and compression would double the time of a save.
    context.array.saving.use_compression = False
    context.memory.deepcopy_host_arrays = False
    with context:
        yield


def _save_arrays(folder: Path, nested: dict[str, Any]) -> None:
    """Writes the arrays by Orbax; raises an OSError for errors of the file system."""
    try:
        with _orbax_context({jax.process_index()}), _path_for_orbax(folder) as plain:
            ocp.save(plain / ARRAYS, nested, checkpointable_name=_STATE)
    except Exception as error:
        # TensorStore reports errors of the file system as text.
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from error


@contextmanager
def _path_for_orbax(directory: Path) -> Iterator[Path]:
    """Yields a path to the folder that Orbax can handle: with `[` in a path it silently loses the arrays."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        alias = Path(f"/proc/self/fd/{descriptor}")
        yield alias if alias.exists() else directory
    finally:
        os.close(descriptor)
