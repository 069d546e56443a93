"""Checkpoints of a run: one sealed pytree a step, `root/00000500`; see `sealed_pytree`."""

from __future__ import annotations

import copy
import os
import re
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ganomaly_jax.core import atomic_folders, sealed_folder, strict_json
from ganomaly_jax.core.errors import DamagedError, UserError
from ganomaly_jax.runs import sealed_pytree

LOSS = "calibration_loss"


def save(root: Path, step: int, tree: Any, meta: dict[str, Any], keep: int) -> None:
    """Writes `root/<step, 8 digits>`, then deletes earlier checkpoints except for the last `keep - 1` and the best.

    Checkpoints of later steps (of a run that returned to an earlier one) are kept.

    Raises:
      UserError: as `sealed_pytree.write`, or an old checkpoint cannot be deleted.
    """
    root = Path(root)
    sealed_pytree.write(_folder(root, step), tree, meta)
    _delete_old(root, step, keep)


def _delete_old(root: Path, step: int, keep: int) -> None:
    """Deletes the checkpoints before `step` except for the last `keep - 1` and the best."""
    older = [number for number in steps(root) if number < step]
    obsolete = set(older[: max(0, len(older) - (keep - 1))]) - {best(root)}
    for number in sorted(obsolete) if jax.process_index() == 0 else ():
        atomic_folders.delete(_folder(root, number))


def best(root: Path) -> int | None:
    """Returns the step with the smallest number under `LOSS` in its meta, the earliest of several; None without any."""
    found: list[tuple[float, int]] = []
    for step in steps(root):
        with suppress(OSError, ValueError, KeyError, TypeError):  # skip damaged ones
            found.append(
                (float(strict_json.loads((_folder(Path(root), step) / sealed_pytree.META).read_bytes())[LOSS]), step)
            )
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
        tree, meta = sealed_pytree.read(_folder(root, step), like)
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
            tree, meta = sealed_pytree.read(_folder(Path(root), step), like)
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
            end = sealed_pytree.begin_distributed_write(_folder(root, step), tree, meta)

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
