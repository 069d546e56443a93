"""Two runs on the same test images: whether one separates better than the other, or only seems to."""

from __future__ import annotations

import csv
import dataclasses
import math
import os
from pathlib import Path

import numpy as np

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.evaluation import auroc_intervals
from ganomaly_jax.evaluation.auroc_intervals import Interval, Paired
from ganomaly_jax.runs import layout

# With fewer images of a class than this, the normal distribution is a rough guess.
_FEW = 10


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Holds what two runs came to on the same test items."""

    names: tuple[str, str]
    auroc: tuple[Interval, Interval]
    """With 95 % bootstrap intervals."""
    paired: Paired
    """First minus second, by DeLong's test."""
    n_normal: int
    n_anomalous: int
    left_out: int
    """Images that one of the runs gave no score."""


def compare(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> Comparison:
    """Compares two runs by their predictions.csv, image by image, matched by path.

    Args:
      first: folder of an evaluated run.
      second: folder of another one.

    Raises:
      UserError: no predictions with labels there, other test images or other labels, or one class only.
    """
    one, other = _read(Path(first)), _read(Path(second))
    shared = one.keys() & other.keys()
    if len(shared) < max(len(one), len(other)):
        lone, where = (one, first) if one.keys() - shared else (other, second)
        example = min(lone.keys() - shared)
        raise UserError(
            f"the two runs were tested on different images: {len(one)} in {first}, {len(other)} in {second}, "
            f"{len(shared)} in both ({example} is only in {where}). Test both on the same ones: "
            "ganomaly evaluate --workdir W --data DIR, with the same DIR for both"
        )
    paths = sorted(shared)
    changed = [path for path in paths if one[path][0] != other[path][0]]
    if changed:
        raise UserError(
            f"{len(changed)} of {len(paths)} images are normal in one run and anomalous in the other, such as "
            f"{changed[0]}: the two runs answer different questions"
        )
    kept = [path for path in paths if math.isfinite(one[path][1]) and math.isfinite(other[path][1])]
    labels = np.array([one[path][0] for path in kept], np.int64)
    scores = [np.array([run[path][1] for path in kept]) for run in (one, other)]
    return Comparison(
        names=(str(first), str(second)),
        auroc=(auroc_intervals.auroc_interval(labels, scores[0]), auroc_intervals.auroc_interval(labels, scores[1])),
        paired=auroc_intervals.paired(labels, scores[0], scores[1]),
        n_normal=int((labels == 0).sum()),
        n_anomalous=int((labels == 1).sum()),
        left_out=len(paths) - len(kept),
    )


def describe(found: Comparison) -> list[str]:
    """Describes the comparison, one line per finding."""
    lines = [f"{found.n_normal} normal and {found.n_anomalous} anomalous test images, the same for both"]
    if found.left_out:
        lines.append(f"{found.left_out} images without a score in one of the runs are left out")
    width = max(map(len, found.names))
    for name, value in zip(found.names, found.auroc, strict=True):
        lines.append(f"{name:{width}}  AUROC {value.value:.4f}, 95 % interval {value.low:.4f} to {value.high:.4f}")
    change, p_value = found.paired.difference, found.paired.p_value
    shown = "below 0.0001" if p_value < 1e-4 else f"{p_value:.4f}"
    lines.append(
        f"difference {change.value:+.4f}, 95 % interval {change.low:+.4f} to {change.high:+.4f}, p value {shown} "
        "(DeLong's test, paired)"
    )
    if p_value < 0.05:
        better, worse = found.names if change.value > 0 else found.names[::-1]
        lines.append(f"{better} separates better than {worse} on these images: chance alone rarely does that.")
    else:
        lines.append("These images do not tell the two apart: a difference of this size is what chance alone can give.")
    if min(found.n_normal, found.n_anomalous) < _FEW:
        lines.append(f"note: with fewer than {_FEW} images of a class, intervals and p value are rough")
    lines.append("note: one training each; another seed would move both figures, and that is not in the intervals")
    return lines


def _read(workdir: Path) -> dict[str, tuple[int, float]]:
    """Returns {path: (label, score)} of a run; the score is NaN for invalid items."""
    path = workdir / layout.PREDICTIONS
    if not path.is_file():
        if (workdir / layout.MEMBERS).is_dir():
            raise UserError(f"{workdir} holds several members: name one, such as {workdir}/members/NAME")
        raise UserError(
            f"no {layout.PREDICTIONS} in {workdir}: expected the --workdir of a run, after `ganomaly evaluate`"
        )
    found: dict[str, tuple[int, float]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row["label"] == "":
                    raise UserError(
                        f"{path} has images without a label, as `ganomaly predict` writes them: "
                        f"ganomaly evaluate --workdir {workdir} writes those of the test set again"
                    )
                if row["path"] in found:
                    raise UserError(f"{path} has {row['path']} twice: images cannot be matched by path")
                found[row["path"]] = (int(row["label"]), float(row["score"]) if row["score"] else math.nan)
    except UserError:
        raise
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as rows of path, label, score: {error}") from None
    if not found:
        raise UserError(f"{path} has no rows: evaluate {workdir} again")
    return found
