"""Is it as good for everyone? Figures and thresholds by group: line, site, sex, machine, whatever a file says."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.scoring import calibration
from ganomaly_jax.scoring import scorer as scoring_scorer
from ganomaly_jax.scoring.scorer import Judgement, Scorer

Given = str | os.PathLike[str] | Sequence[str]
"""A CSV file of `path,group`, or the group of each image in order; an empty name stands for no group."""


def of_images(given: Given, paths: Sequence[str], root: str = "") -> np.ndarray:
    """Returns the group of each image, [n] strings, empty without a group.

    Args:
      given: a file whose rows name images by absolute path, or relative to the file, to `root` or to where the command
        runs; or one name an image.
      paths: [n] as `Dataset.paths`.
      root: the folder of the data set.

    Raises:
      UserError: a file that is no such table or names none of the images, another number of names.
    """
    if not isinstance(given, (str, os.PathLike)):
        names = np.array([str(name) for name in given], object)
        if len(names) != len(paths):
            raise UserError(f"{len(names)} groups for {len(paths)} images: expected one an image")
        return names
    rows = _read(Path(given))
    known: dict[str, str] = {}
    for base in ("", os.path.dirname(given), root):
        for path, group in rows.items():
            known.setdefault(os.path.abspath(os.path.join(base, path)), group)
    names = np.array([rows.get(path) or known.get(os.path.abspath(path), "") for path in paths], object)
    if not any(names):
        raise UserError(
            f"{given} names none of the {len(paths)} images, such as {paths[0] if len(paths) else ''}: its first is "
            f"{next(iter(rows))}; expected their paths, absolute or relative to the file or the data"
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
                held = ", ".join(reader.fieldnames or ()) or "nothing"
                raise UserError(f"{path} has the columns {held}: expected path and group in its first line")
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
    """Returns the calibration scores of each group, ascending, leaving out images without a group."""
    return {name: np.sort(scores[names == name]).tolist() for name in sorted(set(names.tolist()) - {""})}


def judge_by(scorer: Scorer, judged: Judgement, names: np.ndarray) -> Judgement:
    """Computes p-values and verdicts by the calibration scores of each image's group, if the detector has them.

    Conformal prediction within each group (Vovk, Lindsay, Nouretdinov and Gammerman 2003, "Mondrian Confidence
    Machine"), so that the promised rate holds in each. Scores stay; images of other groups are judged as by all.
    """
    p_values, verdicts = judged.p_values.copy(), list(judged.verdicts)
    for name in set(names.tolist()) & scorer.calibration.groups.keys():
        at = np.flatnonzero(names == name)
        own = calibration.of_group(scorer.calibration, name, scorer.config.evaluate)
        reference = jnp.asarray(scorer.calibration.groups[name], jnp.float32)
        p_values[at] = np.asarray(calibration.p_values(reference, jnp.asarray(judged.scores[at])))
        for i, verdict in zip(at, calibration.verdicts(judged.scores[at], own.threshold, own.review), strict=True):
            verdicts[i] = verdict
    return scoring_scorer.Judgement(judged.scores, p_values, verdicts)
