"""Finds tables in folders, with their classes and parts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import folders
from ganomaly_jax.data.datasets import PARTS
from ganomaly_jax.data.rows import tables
from ganomaly_jax.data.rows.layout import NAME


def is_source(path: Path, settings: config.Data) -> bool:
    """Returns whether a path is a table, or a folder of tables only."""
    if path.is_dir():
        return settings.kind == NAME or folders.holds_only(path, tables.ENDINGS)
    return path.suffix.lower() in tables.ENDINGS


def files(folder: Path) -> list[Path]:
    """Returns the tables of a folder and its subfolders, sorted by name."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in tables.ENDINGS and path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def layout(root: Path) -> Iterator[tuple[Path, str, int | None]]:
    """Yields each table of a folder with its class ("" if no folder names one) and its part."""
    for path in sorted(files(root), key=lambda path: PARTS.get(path.relative_to(root).parts[0].lower(), 0)):
        names = list(path.relative_to(root).parts[:-1])
        part = PARTS.get(names[0].lower()) if names else None
        if part is not None:
            names = names[1:]
        if len(names) > 1:
            raise UserError(
                f"{path}: nested folders are not supported: expected train/ and test/ with a folder for each "
                "class in them"
            )
        yield path, names[0] if names else "", part
