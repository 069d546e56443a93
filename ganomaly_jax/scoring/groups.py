"""Thresholds by group of items, such as production line, site, sex or machine, as named in a CSV file."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from ganomaly_jax.core import calls
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.scoring import calibration
from ganomaly_jax.scoring.judgement import Judgement
from ganomaly_jax.scoring.scorer import Scorer

GroupSource = str | os.PathLike[str] | Sequence[str]
"""A CSV file with the columns path and group, or the group of each image in order; an empty name means no group."""


def of_images(source: GroupSource, paths: Sequence[str], root: str = "") -> np.ndarray:
    """Returns the group of each image.

    Args:
      source: a CSV file whose rows name images by absolute path, or by a path relative to the file, to `root` or to
        the current directory; or one name per image.
      paths: [n] the paths of the images, as in `Dataset.paths`.
      root: the folder of the data set.

    Returns:
      [n] strings; empty for an image without a group.

    Raises:
      UserError: the file is no such table or names none of the images, or the number of names differs from n.
    """
    calls.expect((*calls.PATH, Sequence, np.ndarray), "a CSV file, or one name per image", by=source)
    if not isinstance(source, (str, os.PathLike)):
        names = np.array([str(name) for name in source], object)
        if len(names) != len(paths):
            raise UserError(f"{len(names)} groups for {len(paths)} images: expected one per image")
        return names
    rows = _read(Path(source))
    known: dict[str, str] = {}
    for base in ("", os.path.dirname(source), root):
        for path, group in rows.items():
            known.setdefault(os.path.abspath(os.path.join(base, path)), group)
    names = np.array([rows.get(path) or known.get(os.path.abspath(path), "") for path in paths], object)
    if not any(names):
        raise UserError(
            f"{source} names none of the {len(paths)} images, such as {paths[0] if len(paths) else ''}: its first path "
            f"is {next(iter(rows))}; expected paths that are absolute, or relative to the file or the data"
        )
    return names


def _read(path: Path) -> dict[str, str]:
    """Reads {path: group} from a CSV file with a header."""
    try:
        if not path.is_file():
            raise UserError(f"--groups {path}: expected a CSV file with the columns path and group")
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if not {"path", "group"} <= set(reader.fieldnames or ()):
                columns = ", ".join(reader.fieldnames or ()) or "nothing"
                raise UserError(f"{path} has the columns {columns}: expected path and group in its first line")
            rows: dict[str, str] = {}
            for row in reader:
                name, group = (row["path"] or "").strip(), (row["group"] or "").strip()
                if name and rows.setdefault(name, group) != group:
                    raise UserError(f"{path}: {name} is in {rows[name]!r} and in {group!r}; expected one group each")
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not rows:
        raise UserError(f"{path} has no rows: expected a path and a group in each")
    return rows


def calibrated(scores: np.ndarray, names: np.ndarray) -> dict[str, list[float]]:
    """Returns the sorted calibration scores of each group; items without a group are left out.

    Args:
      scores: [n] float, the scores of normal items.
      names: [n] their groups, as returned by `of_images`.
    """
    return {name: np.sort(scores[names == name]).tolist() for name in sorted(set(names.tolist()) - {""})}


def judge_by(scorer: Scorer, judged: Judgement, names: np.ndarray) -> Judgement:
    """Recomputes p-values and verdicts from the calibration scores of each item's group.

    This is conformal prediction within each group, so that the promised rate holds in each. Scores do not change, and
    items of a group without calibration scores keep their p-values and verdicts.

    Args:
      scorer: the detector, calibrated by group.
      judged: the judgement of n items by the overall calibration.
      names: [n] their groups, as returned by `of_images`.

    References:
      Vovk, Lindsay, Nouretdinov and Gammerman 2003, "Mondrian Confidence Machine".
    """
    p_values, verdicts = judged.p_values.copy(), list(judged.verdicts)
    for name in set(names.tolist()) & scorer.calibration.groups.keys():
        at = np.flatnonzero(names == name)
        group = calibration.of_group(scorer.calibration, name, scorer.config.evaluate)
        reference = jnp.asarray(scorer.calibration.groups[name], jnp.float32)
        p_values[at] = np.asarray(calibration.p_values(reference, jnp.asarray(judged.scores[at])))
        group_verdicts = calibration.verdicts(judged.scores[at], group.threshold, group.review)
        for i, verdict in zip(at, group_verdicts, strict=True):
            verdicts[i] = verdict
    return Judgement(judged.scores, p_values, verdicts)
