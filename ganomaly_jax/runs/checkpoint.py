"""Artefacts on disk: an Orbax pytree, `meta.json`, and `manifest.json` with the sha256 of every other file.

An artefact is a folder that is written atomically: under a temporary name, the manifest last, and then renamed. Reading
verifies every file against the manifest before Orbax opens one. The checkpoints of a run are artefacts named by their
step, `root/00000500`.

Leaves are NumPy arrays when read; the caller places them on devices. With several processes, which share the file
system, everything that writes is a collective: each process writes its own shards, process 0 everything else.
"""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from orbax.checkpoint import v1 as ocp

from ganomaly_jax.core import sealed_folder
from ganomaly_jax.core.errors import DamagedError, UserError

ARRAYS = "arrays"
META = "meta.json"
LOSS = "calibration_loss"
_STATE = "state"


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
    folder = sealed_folder.temporary_folder_path(target.parent, f"{target.name}-together")
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
    return json.dumps(meta, indent=1, allow_nan=False)


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
    sealed_folder.remove_leftovers(target.parent)
    with sealed_folder.temporary_folder(target.parent, name) as folder:
        sealed_folder.check_free_space(folder, sum(array.nbytes + 4096 for array in arrays.values()) + 2**20)
        yield folder


def _seal_and_move(folder: Path, target: Path, text: str) -> None:
    """Writes meta and manifest, flushes all files, and renames the folder."""
    (folder / META).write_text(text)
    sealed_folder.seal(folder)
    sealed_folder.fsync_tree(folder)
    sealed_folder.move_into_place(folder, target)
    sealed_folder.fsync(target.parent)


def read(directory: Path, like: Any = None) -> tuple[Any, dict[str, Any]]:
    """Reads an artefact, bit for bit as written.

    Args:
      directory: the artefact.
      like: pytree of arrays or `jax.ShapeDtypeStruct` whose structure the result takes; None for nested dicts.

    Returns:
      The tree, with NumPy arrays as leaves, and the meta.

    Raises:
      DamagedError: a file is missing, extra, altered or truncated; the message names it.
      UserError: the folder does not exist or cannot be read, or its arrays differ from those of `like`; the message
        says which.
    """
    directory = Path(directory)
    sealed_folder.verify(directory)
    with sealed_folder.translated_errors(directory):
        try:
            meta = json.loads((directory / META).read_bytes())
            # Each process reads for itself, as NumPy, whatever the devices were when it was written.
            with _path_for_orbax(directory) as folder, _orbax_context({jax.process_index()}):
                metadata: Any = ocp.metadata(folder / ARRAYS, checkpointable_name=_STATE).metadata
                arrays = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), metadata)
                nested = ocp.load(folder / ARRAYS, arrays, checkpointable_name=_STATE)
        except OSError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            raise DamagedError(f"{directory} is damaged: {reason}") from error
    return nested if like is None else _unflatten(nested, like, directory), meta


def save(root: Path, step: int, tree: Any, meta: dict[str, Any], keep: int) -> None:
    """Writes `root/<step, 8 digits>`, then deletes earlier checkpoints except for the last `keep - 1` and the best.

    Checkpoints of later steps (of a run that returned to an earlier one) are kept.

    Raises:
      UserError: as `write`, or an old checkpoint cannot be deleted.
    """
    root = Path(root)
    write(_folder(root, step), tree, meta)
    _delete_old(root, step, keep)


def _delete_old(root: Path, step: int, keep: int) -> None:
    """Deletes the checkpoints before `step` except for the last `keep - 1` and the best."""
    older = [number for number in steps(root) if number < step]
    obsolete = set(older[: max(0, len(older) - (keep - 1))]) - {best(root)}
    for number in sorted(obsolete) if jax.process_index() == 0 else ():
        sealed_folder.delete(_folder(root, number))


def best(root: Path) -> int | None:
    """Returns the step with the smallest number under `LOSS` in its meta, the earliest of several; None without any."""
    found: list[tuple[float, int]] = []
    for step in steps(root):
        with suppress(OSError, ValueError, KeyError, TypeError):  # skip damaged ones
            found.append((float(json.loads((_folder(Path(root), step) / META).read_bytes())[LOSS]), step))
    return min(found)[1] if found else None


def steps(root: Path) -> list[int]:
    """Returns the steps that have a checkpoint in `root`, ascending; empty if the folder does not exist."""
    root = Path(root)
    with sealed_folder.translated_errors(root):
        if not root.is_dir():
            return []
        found = [entry.name for entry in os.scandir(root) if re.fullmatch(r"\d{8,}", entry.name) and entry.is_dir()]
    return sorted(int(name) for name in found if name == f"{int(name):08d}")


def restore(root: Path, like: Any, step: int | None = None) -> tuple[int, Any, dict[str, Any]]:
    """Reads the latest checkpoint, or that of `step`.

    Returns:
      The step, the tree and the meta.

    Raises:
      DamagedError: it is damaged; the message says which steps the run can resume from.
      UserError: there is none, or one of another model.
    """
    root = Path(root)
    present = steps(root)
    if not present:
        raise UserError(f"no checkpoint in {root}")
    if step is None:
        step = present[-1]
    if step not in present:
        raise UserError(f"no checkpoint of step {step} in {root}; there are {_list(present)}")
    try:
        tree, meta = read(_folder(root, step), like)
    except DamagedError as error:
        good = [number for number in present if number < step and _is_good(_folder(root, number))]
        advice = (
            f"delete that folder, or choose an earlier step, to resume from step {good[-1]} (undamaged: {_list(good)})"
            if good
            else "no earlier checkpoint is undamaged: delete that folder to start afresh"
        )
        raise DamagedError(f"{error}; {advice}") from error
    return step, tree, meta


def restore_latest_good(root: Path, like: Any) -> tuple[int, Any, dict[str, Any], list[str]]:
    """Reads the latest undamaged checkpoint.

    Returns:
      The step, the tree, the meta, and a sentence per damaged checkpoint that was skipped, the latest first.

    Raises:
      DamagedError: all checkpoints are damaged.
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
        raise DamagedError(f"all checkpoints in {root} are damaged: {'; '.join(damaged)}; delete them to start afresh")
    raise UserError(f"no checkpoint in {root}")


class Saver:
    """Calls `save` in a background thread; a context manager that waits for the last save at its end.

    An error of a save is raised by the next `save`, by `wait`, or at the end of the context.
    """

    def __init__(self) -> None:
        """Creates the thread."""
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, root: Path, step: int, tree: Any, meta: dict[str, Any], keep: int) -> None:
        """Saves as the function `save`; returns once the arrays are on the host and the previous save is finished."""
        self.wait()
        if jax.process_count() > 1:
            end = begin_distributed_write(_folder(root, step), tree, meta)

            def finish() -> None:
                end()
                _delete_old(root, step, keep)

            self._pending = self._worker.submit(finish)
            return
        # On CPUs device_get returns views of buffers that the next step may reuse.
        host = jax.tree.map(np.array, jax.device_get(tree))
        self._pending = self._worker.submit(save, root, step, host, copy.deepcopy(meta), keep)

    def wait(self) -> None:
        """Waits for the current save, and raises its error."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is not None and jax.process_count() > 1:
            # Finishing the save would wait for processes that may be gone.
            self._worker.shutdown(wait=False, cancel_futures=True)
            return
        try:
            self.wait()
        except Exception as failure:
            if error is None:
                raise
            error.add_note(str(failure))
        finally:
            self._worker.shutdown()


def _folder(root: Path, step: int) -> Path:
    """Returns the folder of the checkpoint of a step."""
    return root / f"{int(step):08d}"


def _is_good(directory: Path) -> bool:
    """Returns True if the artefact is undamaged."""
    try:
        sealed_folder.verify(directory)
    except (DamagedError, UserError):
        return False
    return True


def _list(numbers: list[int]) -> str:
    """Returns numbers separated by commas."""
    return ", ".join(map(str, numbers))


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


def _unflatten(nested: dict[str, Any], like: Any, directory: Path) -> Any:
    """Returns nested dicts in the structure of `like`; raises a UserError if shapes or dtypes differ."""
    stored, expected = _flatten(nested), _flatten(like)
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
    return jax.tree.unflatten(jax.tree.structure(like), [stored[path] for path in expected])


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
