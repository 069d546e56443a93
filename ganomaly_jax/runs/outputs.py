"""Locations of results on other data than a run's own, and the check that none are overwritten."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ganomaly_jax.core import sealed_folder
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.printable import printable
from ganomaly_jax.runs import layout

# Maximum size of a name in bytes, leaving room for an extension within the 255 of file systems.
_MOST = 200


def name_of(sources: Sequence[str | os.PathLike[str]]) -> str:
    """Returns a name for the results on some data: that of the folder or file, or of the folder of several files."""
    texts = [os.fspath(source) for source in sources]
    if len(texts) == 1 and ":" in texts[0] and not os.path.exists(texts[0]):  # such as tfds:mnist
        return texts[0].replace(":", "_").replace(os.sep, "_")
    full = [os.path.abspath(text) for text in texts]
    common = full[0] if len(full) == 1 else os.path.commonpath(full)
    path = Path(common)
    name = (path.name if path.is_dir() else path.stem) or "root"
    return os.fsdecode(os.fsencode(name)[:_MOST])


def predictions_file(workdir: str | os.PathLike[str], sources: Sequence[str | os.PathLike[str]]) -> Path:
    """Returns `WORKDIR/predictions/NAME.csv`, the default file for the verdicts on some data.

    Raises:
      UserError: `workdir` is a detector folder, which is sealed.
    """
    return _open_folder(workdir) / layout.OTHER_PREDICTIONS / f"{name_of(sources)}.csv"


def evaluation_folder(workdir: str | os.PathLike[str], source: str) -> Path:
    """Returns `WORKDIR/evaluations/NAME`, the default folder for an evaluation on other data.

    Args:
      workdir: the run's folder.
      source: the data; empty for arrays.

    Raises:
      UserError: `workdir` is a detector folder, which is sealed.
    """
    return _open_folder(workdir) / layout.EVALUATIONS / (name_of([source]) if source else "arrays")


def refuse_existing(paths: Sequence[str | os.PathLike[str]], overwrite: bool, elsewhere: str = "--out") -> None:
    """Checks that nothing would be overwritten, before any work begins.

    Args:
      paths: the files and folders that are to be written; a folder that is empty does not count.
      overwrite: whether they may be overwritten.
      elsewhere: the option that sets another location.

    Raises:
      UserError: one of them exists.
    """
    for path in map(Path, paths):
        if not overwrite and os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
            raise UserError(
                f"{printable(str(path))} already exists: add --overwrite to replace it, or choose another "
                f"location with {elsewhere}"
            )


def _open_folder(workdir: str | os.PathLike[str]) -> Path:
    """Returns the run's folder, or raises a UserError if it is a detector folder."""
    if (Path(workdir) / sealed_folder.MANIFEST).exists():
        raise UserError(f"{workdir} is a detector folder, which is sealed; choose another location with --out")
    return Path(workdir)
