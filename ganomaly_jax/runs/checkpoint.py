"""Artefacts on disk: an Orbax pytree, `meta.json`, and `manifest.json` with the sha256 of every other file.

An artefact is a folder that is there whole or not at all: it is written beside its place, the manifest last, and then
renamed. Reading checks every file against the manifest before Orbax opens one. A run's checkpoints are artefacts
named by their step, `root/00000500`.

Leaves are host arrays (numpy) when read; the caller puts them on devices. Among several processes, which share the
file system, all have to call what writes: each writes its own part of the arrays, process 0 everything else.
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
    """Write one artefact; one of that name is replaced in one step.

    Args:
      directory: the folder to make; its parents are made too.
      tree: a pytree of arrays of any shape that has elements. On disk it is nested dicts, whatever its containers.
      meta: JSON values; NaN and infinity are not JSON.

    Raises:
      UserError: a full disk, no permission and the like; what was there before is intact.
      ValueError, TypeError: a tree or a meta that cannot be stored.
    """
    if jax.process_count() > 1:
        begin_together(directory, tree, meta)()
        return
    arrays = {path: np.asarray(leaf) for path, leaf in _flatten(jax.device_get(tree)).items()}
    text = _checked(arrays, meta)
    target = Path(os.path.realpath(directory))
    with _intact(directory, target), _begun(target, arrays) as folder:
        _save_arrays(folder, _nest(arrays))
        _sealed(folder, target, text)


def begin_together(directory: Path, tree: Any, meta: dict[str, Any]) -> Callable[[], None]:
    """`write` by all processes: begins it, and returns what ends it, which may be called in another thread.

    What it begins with needs the devices, so no step may run in another thread meanwhile; the end does not.
    """
    arrays = _flatten(tree)
    text = _checked(arrays, meta)
    target = Path(os.path.realpath(directory))
    folder = sealed_folder.temporary_folder_path(target.parent, f"{target.name}-together")
    with ExitStack() as stack:
        if jax.process_index() == 0:
            stack.enter_context(_intact(directory, target))
            stack.enter_context(_begun(target, arrays, f"{target.name}-together"))
        _meet(f"{target} begun")
        # Copies: the next step may be given the memory of these to write into. What every process has whole, as numpy.
        copies = _nest({path: np.array(leaf) if _is_here(leaf) else jnp.copy(leaf) for path, leaf in arrays.items()})
        with _settings(set(range(jax.process_count()))):
            response = ocp.save_async(folder / ARRAYS, copies, checkpointable_name=_STATE)
        rest = stack.pop_all()

    def end() -> None:
        with rest:
            response.result()
            _meet(f"{target} written")
            if jax.process_index() == 0:
                _sealed(folder, target, text)
        _meet(f"{target} done")

    return end


def _is_here(leaf: Any) -> bool:
    return not isinstance(leaf, Array) or leaf.is_fully_addressable


def _meet(name: str) -> None:
    """Wait for the other processes, on the host alone: a step may run on the devices meanwhile."""
    from orbax.checkpoint import multihost

    multihost.sync_global_processes(name, processes=set(range(jax.process_count())))


def _checked(arrays: dict[tuple[str, ...], Any], meta: dict[str, Any]) -> str:
    for path, array in arrays.items():
        if array.size == 0 or array.dtype.kind in "OSU":
            raise ValueError(f"{'/'.join(path)} is {_describe(array)}: wanted numbers, at least one")
    return json.dumps(meta, indent=1, allow_nan=False)


@contextmanager
def _intact(directory: Path, target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {directory}: {error.strerror or error}; everything that was in {target.parent} is intact"
        ) from error


@contextmanager
def _begun(target: Path, arrays: dict[tuple[str, ...], Any], name: str = "") -> Iterator[Path]:
    target.parent.mkdir(parents=True, exist_ok=True)
    sealed_folder.remove_leftovers(target.parent)
    with sealed_folder.temporary_folder(target.parent, name) as folder:
        sealed_folder.check_free_space(folder, sum(array.nbytes + 4096 for array in arrays.values()) + 2**20)
        yield folder


def _sealed(folder: Path, target: Path, text: str) -> None:
    (folder / META).write_text(text)
    sealed_folder.seal(folder)
    sealed_folder.fsync_tree(folder)
    sealed_folder.move_into_place(folder, target)
    sealed_folder.fsync(target.parent)


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
    sealed_folder.verify(directory)
    with sealed_folder.translated_errors(directory):
        try:
            meta = json.loads((directory / META).read_bytes())
            # Each process for itself, and as numpy whatever the devices were that it was written from.
            with _plain(directory) as folder, _settings({jax.process_index()}):
                held: Any = ocp.metadata(folder / ARRAYS, checkpointable_name=_STATE).metadata
                arrays = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), held)
                nested = ocp.load(folder / ARRAYS, arrays, checkpointable_name=_STATE)
        except OSError:
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            raise DamagedError(f"{directory} is damaged: {what}") from error
    return nested if like is None else _unflatten(nested, like, directory), meta


def save(root: Path, step: int, tree: Any, meta: dict[str, Any], keep: int) -> None:
    """Write `root/<step, 8 digits>`, then delete the checkpoints before it but for the last `keep - 1` and the best.

    Checkpoints of later steps (of a run that went back to an earlier one) are left alone.

    Raises:
      UserError: as `write`; or an old one cannot be deleted.
    """
    root = Path(root)
    write(_folder(root, step), tree, meta)
    _thin(root, step, keep)


def _thin(root: Path, step: int, keep: int) -> None:
    older = [number for number in steps(root) if number < step]
    gone = set(older[: max(0, len(older) - (keep - 1))]) - {best(root)}
    for number in sorted(gone) if jax.process_index() == 0 else ():
        sealed_folder.delete(_folder(root, number))


def best(root: Path) -> int | None:
    """The step whose `meta` has the smallest number under `LOSS`, the earliest of several; None where none has one."""
    found: list[tuple[float, int]] = []
    for step in steps(root):
        with suppress(OSError, ValueError, KeyError, TypeError):  # a damaged one is not the best
            found.append((float(json.loads((_folder(Path(root), step) / META).read_bytes())[LOSS]), step))
    return min(found)[1] if found else None


def steps(root: Path) -> list[int]:
    """The steps that have a checkpoint in `root`, ascending; empty where there is no such folder."""
    root = Path(root)
    with sealed_folder.translated_errors(root):
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
        if jax.process_count() > 1:
            end = begin_together(_folder(root, step), tree, meta)

            def finish() -> None:
                end()
                _thin(root, step, keep)

            self._pending = self._worker.submit(finish)
            return
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
        if error is not None and jax.process_count() > 1:
            # The save would wait for processes that may be gone.
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
    return root / f"{int(step):08d}"


def _is_good(directory: Path) -> bool:
    try:
        sealed_folder.verify(directory)
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


@contextmanager
def _settings(processes: set[int]) -> Iterator[None]:
    context = ocp.Context()
    context.multiprocessing.active_processes = processes
    context.multiprocessing.primary_host = min(processes)
    # Trained weights do not compress (8 %), and it would take as long as the rest of a save.
    context.array.saving.use_compression = False
    context.memory.deepcopy_host_arrays = False
    with context:
        yield


def _save_arrays(folder: Path, nested: dict[str, Any]) -> None:
    try:
        with _settings({jax.process_index()}), _plain(folder) as plain:
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
