"""Judging tables of sensors, and attributing scores to sensors by integrated gradients."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ganomaly_jax.core import calls
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.printable import listed
from ganomaly_jax.data.rows import folders as row_folders
from ganomaly_jax.data.rows import splits as row_splits
from ganomaly_jax.data.rows import tables
from ganomaly_jax.scoring import inference
from ganomaly_jax.scoring.judgement import JudgedPaths, Judgement
from ganomaly_jax.scoring.scorer import Scorer

# Points of the path along which gradients are integrated: few enough for every row of a live stream.
STEPS = 32


def judge_tables(scorer: Scorer, paths: Sequence[str | Path]) -> JudgedPaths:
    """Judges each row, or each window at a stride of `data.stride` rows, of CSV and Parquet files.

    The sensors are taken from each table by name, in any order of columns. Items are named `FILE:ROW`, where the row is
    the last of the window, counted from 1, or `FILE` alone if the file cannot be read.

    Args:
      scorer: a detector of sensors.
      paths: files, and folders of files.

    Returns:
      The judgement of all items, one file after the other.

    Raises:
      UserError: there are no tables, or none of them can be judged.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        files += row_folders.files(path) if path.is_dir() else [path]
    if not files:
        raise UserError(f"no tables in {', '.join(map(str, paths))}: expected {' '.join(tables.ENDINGS)}")
    names: list[str] = []
    reasons: list[str] = []
    notes: list[str] = []
    parts: list[Judgement] = []
    failed: list[str] = []
    times: list[str] = []
    for file in files:
        try:
            table = tables.read(file, scorer.feature_names, stated=scorer.config.data.csv)
            x = scorer.as_input(table.values)
        except UserError as error:
            failed.append(str(error))
            names.append(str(file))
            reasons.append(str(error))
            times.append("")
            parts.append(Judgement(np.full(1, np.nan, np.float32), np.full(1, np.nan, np.float32), ["invalid"]))
            continue
        notes += [note for note in table.notes if note not in notes]
        counts = np.isnan(table.values).sum(0)
        if counts.any():
            notes.append(
                f"{table.name}: missing values: {tables.counted(table.columns, counts)}; data.missing="
                f"{scorer.config.data.missing}, as in training"
            )
        parts.append(scorer.judge(x))
        last = np.arange(len(x)) * (scorer.config.data.stride if x.ndim == 3 else 1) + (
            x.shape[1] if x.ndim == 3 else 1
        )
        names += [f"{file}:{row}" for row in last]
        times += [""] * len(last) if table.times is None else table.times[last - 1].text()
        bad = ~np.isfinite(x) if x.ndim == 2 else (~np.isfinite(x)).any(1)
        why = {i: _why(scorer.feature_names, bad[i]) for i in np.flatnonzero(bad.any(1)).tolist()}
        reasons += [why.get(i, "") for i in range(len(x))]
    if len(failed) == len(files):
        raise UserError(failed[0] if len(failed) == 1 else f"none of {len(failed)} tables can be judged: {failed[0]}")
    whole = Judgement(
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.p_values for part in parts]),
        [verdict for part in parts for verdict in part.verdicts],
    )
    return JudgedPaths(names, whole, reasons, notes, times=times if any(times) else None)


def _why(columns: Sequence[str], bad: np.ndarray) -> str:
    return f"missing or infinite values: {listed([columns[k] for k in np.flatnonzero(bad).tolist()])}"


@dataclasses.dataclass(frozen=True, eq=False)
class Contributions:
    """Holds the contribution of each sensor to the scores of n rows or windows, relative to the centre."""

    values: np.ndarray
    """[n, D] float32; they sum to `scores - centre_score`, up to the error of numerical integration. NaN if invalid."""
    scores: np.ndarray
    """[n] float32."""
    centre_score: float
    """The score of an item with all sensors at their centres."""
    columns: tuple[str, ...]
    """The names of the D sensors."""

    def top(self, i: int, most: int = 3) -> list[tuple[str, float]]:
        """Returns the largest contributions to the score of item i.

        Args:
          i: the index of the row or window.
          most: the largest number of sensors.

        Returns:
          (sensor, contribution), the largest first; empty if the item is invalid.
        """
        if not np.isfinite(self.values[i]).all():
            return []
        order = np.argsort(-self.values[i], kind="stable")[:most].tolist()
        return [(self.columns[k], float(self.values[i, k])) for k in order]


def contributions(scorer: Scorer, rows: Any, steps: int = STEPS) -> Contributions:
    """Computes the contribution of each sensor to the score by integrated gradients, summed over the rows of a window.

    The gradient is integrated along the straight line from the centre of all sensors, their medians in training, to the
    row (Gauss-Legendre points, denser near the centre).

    Args:
      scorer: a detector of sensors.
      rows: rows or windows, as accepted by calling the scorer.
      steps: points along the line. Each costs a forward and a backward pass per row; the score is not smooth, so more
        points bring the sum of contributions closer to the difference of the scores.

    Returns:
      The contributions to the score of each row or window.

    Raises:
      UserError: the detector is not one of sensors, or as raised by calling the scorer.

    References:
      Sundararajan, Taly and Yan 2017, "Axiomatic Attribution for Deep Networks".
    """
    calls.expect(Scorer, "a gj.Scorer, as in gj.contributions(gj.load('runs/mine'), rows)", scorer=scorer)
    if not scorer.feature_names:
        raise UserError(
            f"this detector judges {scorer.words.kind}, which have no sensors: use ganomaly_jax.integrated_gradients "
            "for the contributions of pixels"
        )
    x, run = scorer.as_input(rows), _program(scorer, steps)
    size = inference.BUCKETS[2]
    results = []
    for begin in range(0, len(x), size):
        block = x[begin : begin + size]
        results.append(
            [np.asarray(part) for part in run(scorer.variables, inference.pad(block, inference.bucket(len(block))))]
        )
    values, scores = (np.concatenate([result[i] for result in results])[: len(x)] for i in (0, 1))
    return Contributions(values, scores, float(results[0][2]), scorer.feature_names)


@functools.lru_cache(maxsize=4)
def _program(scorer: Scorer, steps: int) -> Callable[..., tuple[Array, Array, Array]]:
    """Returns `attributed`, compiled."""
    return jax.jit(attributed(scorer, steps))


def attributed(scorer: Scorer, steps: int = STEPS) -> Callable[[Any, Array], tuple[Array, Array, Array]]:
    """Builds the pure function that computes contributions, not compiled; see `contributions`.

    Args:
      scorer: a detector of sensors.
      steps: points of the path along which gradients are integrated.

    Returns:
      A function from (variables, raw rows or windows [B, ...]) to contributions [B, D], scores [B] and the score of
      the centre.
    """
    function, _ = scorer.function()
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    # t = u ** 2 makes points denser near the centre, where the logarithm in a fitted score is steepest.
    u = (nodes + 1) / 2
    along, share = jnp.asarray(u**2, jnp.float32), jnp.asarray(weights * u, jnp.float32)
    baseline = jnp.broadcast_to(jnp.asarray(row_splits.centre_of(scorer.low, scorer.high)), scorer.input_shape)

    def run(variables: Any, x: Array) -> tuple[Array, Array, Array]:
        def contribution(row: Array) -> Array:
            points = baseline + along.reshape(-1, *[1] * row.ndim) * (row - baseline)
            slopes = jax.grad(lambda p: function(variables, p).sum())(points)
            return ((row - baseline) * jnp.tensordot(share, slopes, 1)).reshape(-1, row.shape[-1]).sum(0)

        scores = function(variables, x)
        values = jnp.where(jnp.isfinite(scores)[:, None], jax.vmap(contribution)(x), jnp.nan)
        return values, scores, function(variables, baseline[None])[0]

    return run
