"""Comparing two runs on the same test images: is one significantly better?"""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path

import numpy as np

from ganomaly_jax.core import calls
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.evaluation import auroc_intervals, predictions
from ganomaly_jax.evaluation.auroc_intervals import Interval, Paired
from ganomaly_jax.runs import layout

# With fewer images of a class than this, the normal approximation is rough.
_FEW = 10


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Holds the comparison of two runs on the same test images."""

    names: tuple[str, str]
    """The folders of both runs."""
    auroc: tuple[Interval, Interval]
    """Both AUROCs with 95 % bootstrap intervals."""
    paired: Paired
    """The difference, first minus second, by DeLong's test."""
    n_normal: int
    """The number of normal images compared."""
    n_anomalous: int
    """The number of anomalous images compared."""
    left_out: int
    """The number of images without a score in one of the runs."""


def compare(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> Comparison:
    """Compares the predictions of two runs on the same test images, matched by path.

    Args:
      first: the folder of an evaluated run, one of its `evaluations/NAME`, or a table of predictions.
      second: the other one, likewise.

    Returns:
      The comparison.

    Raises:
      UserError: a run has no labelled predictions, the test images or labels differ, or there is one class only.
    """
    calls.expect(
        calls.PATH, "the path of a run, as in gj.compare('runs/mine', 'runs/other')", first=first, second=second
    )
    a, b = predictions.read(Path(first)), predictions.read(Path(second))
    shared = a.keys() & b.keys()
    if len(shared) < max(len(a), len(b)):
        larger, where = (a, first) if a.keys() - shared else (b, second)
        example = min(larger.keys() - shared)
        raise UserError(
            f"the two runs were tested on different images: {len(a)} in {first}, {len(b)} in {second}, "
            f"{len(shared)} in both ({example} is only in {where}). Evaluate both on the same images: "
            f"ganomaly evaluate --workdir W --data DIR, then compare their {layout.EVALUATIONS}/DIR"
        )
    paths = sorted(shared)
    changed = [path for path in paths if a[path][0] != b[path][0]]
    if changed:
        raise UserError(
            f"{len(changed)} of {len(paths)} images are normal in one run and anomalous in the other, such as "
            f"{changed[0]}: expected runs with the same labels"
        )
    kept = [path for path in paths if math.isfinite(a[path][1]) and math.isfinite(b[path][1])]
    labels = np.array([a[path][0] for path in kept], np.int64)
    scores = [np.array([run[path][1] for path in kept]) for run in (a, b)]
    return Comparison(
        names=(str(first), str(second)),
        auroc=(auroc_intervals.auroc_interval(labels, scores[0]), auroc_intervals.auroc_interval(labels, scores[1])),
        paired=auroc_intervals.paired(labels, scores[0], scores[1]),
        n_normal=int((labels == 0).sum()),
        n_anomalous=int((labels == 1).sum()),
        left_out=len(paths) - len(kept),
    )


def describe(comparison: Comparison) -> list[str]:
    """Describes the comparison in lines for the terminal."""
    n_normal, n_anomalous = comparison.n_normal, comparison.n_anomalous
    lines = [f"{n_normal} normal and {n_anomalous} anomalous test images, the same for both"]
    if comparison.left_out:
        lines.append(f"{comparison.left_out} images without a score in one of the runs are left out")
    width = max(map(len, comparison.names))
    for name, value in zip(comparison.names, comparison.auroc, strict=True):
        lines.append(f"{name:{width}}  AUROC {value.value:.4f}, 95 % interval {value.low:.4f} to {value.high:.4f}")
    change, p_value = comparison.paired.difference, comparison.paired.p_value
    shown = "below 0.0001" if p_value < 1e-4 else f"{p_value:.4f}"
    lines.append(
        f"difference {change.value:+.4f}, 95 % interval {change.low:+.4f} to {change.high:+.4f}, p value {shown} "
        "(DeLong's test, paired)"
    )
    if p_value < 0.05:
        better, worse = comparison.names if change.value > 0 else comparison.names[::-1]
        lines.append(f"{better} separates significantly better than {worse} on these images.")
    else:
        lines.append("The difference on these images is not significant: it may be due to chance.")
    if min(n_normal, n_anomalous) < _FEW:
        lines.append(f"note: with fewer than {_FEW} images of a class, intervals and p value are rough")
    lines.append("note: one training each; the intervals do not include the variation between seeds")
    return lines
