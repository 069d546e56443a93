"""Determines the class and the part of files from the folders they are in. No file is read."""

from __future__ import annotations

from collections.abc import Container, Iterable
from pathlib import Path

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.datasets import ANOMALOUS_WORDS, NORMAL_WORDS, PARTS, normal_by_words, plain_word
from ganomaly_jax.data.images.decode import shown
from ganomaly_jax.data.images.files import ENDINGS, scan_folder

Item = tuple[Path, str, int]
"""A file, its class and its part (0 train, 1 test)."""


def holds_only(folder: Path, endings: Container[str]) -> bool:
    """Returns whether a folder holds files of some endings and no images: a table beside images is a list, not data."""
    found = False
    for path in folder.rglob("*"):
        if path.suffix.lower() in ENDINGS:
            return False
        found = found or path.suffix.lower() in endings
    return found


def layout(
    root: Path, abnormal: str, endings: frozenset[str], what: str
) -> tuple[list[Item], frozenset[str] | None, bool]:
    """Returns the files below a folder with their classes and parts.

    Args:
      root: The folder.
      abnormal: `data.abnormal`; if it is set, names that mean neither normal nor anomalous are allowed.
      endings: File name endings to include, lower case with the dot.
      what: What messages call these files, such as "images".

    Returns:
      Path, class and part of each file; the normal classes, None if their names do not tell; and whether the folder has
      a training and a test part.

    Raises:
      UserError: The folder holds no such files, or its layout is not recognised.
    """
    found, others = scan_folder(root, endings)
    top, folders = _grouped(found, root, 0)
    if not found or not (top or folders):
        files = f"{others} other file{'s' if others > 1 else ''}; to use an array file (npz, npy), name the file itself"
        held = f"it holds {files}" if others else "it is empty"
        raise UserError(f"no {what} in {shown(root)}: {held}; expected {' '.join(sorted(endings))}")
    if not folders:
        return [(path, "normal", 0) for path in top], frozenset({"normal"}), False
    if top:
        raise UserError(
            f"{shown(root)} holds both {what} ({top[0].name}) and folders of {what} ({', '.join(folders)}): "
            f"expected one or the other"
        )
    known = [name for name in folders if name.lower() in PARTS]
    if not known:
        normal = normal_by_words(folders)
        if normal is None and not abnormal:
            raise _not_understood(root, folders)
        return [(path, name, 0) for name, paths in folders.items() for path in paths], normal, False
    if len(known) < len(folders):
        beside = ", ".join(name for name in folders if name not in known)
        raise UserError(f"{shown(root)} holds {beside} beside {', '.join(known)}: not understood, move it elsewhere")
    items: list[Item] = []
    for name in known:
        part = PARTS[name.lower()]
        top, classes = _grouped(folders[name], root, 1)
        if top and (classes or part == 1):
            raise UserError(f"{shown(top[0])} is in no class: expected {name}/good/... or the name of a defect")
        items += [(path, "normal", part) for path in top]
        items += [(path, word, part) for word, paths in classes.items() for path in paths]
    words = sorted({word for _, word, _ in items})
    # As in MVTec AD, the training part names the normal class, and every other name in the test part is a defect.
    if normal_by_words({word for _, word, part in items if part == 0}) is not None:
        return items, frozenset(word for word in words if plain_word(word) in NORMAL_WORDS), True
    if not abnormal:
        raise _not_understood(root, words)
    return items, None, True


def _grouped(files: Iterable[Path], root: Path, depth: int) -> tuple[list[Path], dict[str, list[Path]]]:
    """Returns the files `depth` folders below root, and those in each folder there, without the masks of MVTec AD."""
    top: list[Path] = []
    folders: dict[str, list[Path]] = {}
    for path in files:
        parts = path.relative_to(root).parts[depth:]
        if len(parts) == 1:
            top.append(path)
        elif parts[0] != "ground_truth":
            folders.setdefault(parts[0], []).append(path)
    return top, folders


def _not_understood(root: Path, names: Iterable[str]) -> UserError:
    """Returns the error for folders whose names mean neither normal nor anomalous."""
    inner = [name for name in names if (root / name / "train").is_dir()]
    if inner:
        return UserError(f"{shown(root)} holds several data sets; take one, such as {shown(root / inner[0])}")
    return UserError(
        f"{shown(root)} holds the folders {', '.join(map(shown, names))}; understood are, for normal images, "
        f"{', '.join(NORMAL_WORDS)}, and for anomalous ones {', '.join(ANOMALOUS_WORDS)}, or train/good, test/good, "
        f"test/ANY-DEFECT; --config.data.abnormal=NAME counts the images of NAME as anomalous, all others as normal"
    )
