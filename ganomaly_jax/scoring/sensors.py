"""Tables of sensors judged by a trained detector, and which sensors a score comes from."""

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

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.rows import folders as row_folders
from ganomaly_jax.data.rows import splits as row_splits
from ganomaly_jax.data.rows import tables
from ganomaly_jax.scoring import inference
from ganomaly_jax.scoring.scorer import JudgedPaths, Judgement, Scorer

# Points of the path that gradients are integrated along: what a row of a live stream can pay for.
STEPS = 32


def judge_tables(scorer: Scorer, paths: Sequence[str | Path]) -> JudgedPaths:
    """Judges each row, or each window (every `data.stride` rows), of CSV or Parquet files or folders of them.

    The detector's sensors are taken from each table by their names, wherever they are in it. Items are called
    `FILE:ROW`, the row being the last of the window, counted from 1; `FILE` alone where it cannot be read.

    Raises:
      UserError: no tables, or not one that can be read.
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
    for file in files:
        try:
            table = tables.read(file, scorer.feature_names)
            x = scorer.as_input(table.values)
        except UserError as error:
            failed.append(str(error))
            names.append(str(file))
            reasons.append(str(error))
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
    return JudgedPaths(names, whole, reasons, notes)


def _why(columns: Sequence[str], bad: np.ndarray) -> str:
    return f"missing or infinite values: {tables.listed([columns[k] for k in np.flatnonzero(bad).tolist()])}"


@dataclasses.dataclass(frozen=True, eq=False)
class Contributions:
    """What each sensor adds to the score of n rows or windows, over that of the sensors' centres.

    `values` [n, D] float32 add up to `scores` - `centre_score` but for the error of the integral; NaN where invalid.
    """

    values: np.ndarray
    scores: np.ndarray
    centre_score: float
    columns: tuple[str, ...]

    def top(self, i: int, most: int = 3) -> list[tuple[str, float]]:
        """Returns (sensor, contribution) of the largest contributions to row or window i; none if it is invalid."""
        if not np.isfinite(self.values[i]).all():
            return []
        order = np.argsort(-self.values[i], kind="stable")[:most].tolist()
        return [(self.columns[k], float(self.values[i, k])) for k in order]


def contributions(scorer: Scorer, rows: Any, steps: int = STEPS) -> Contributions:
    """Computes what each sensor adds to the score, by integrated gradients, summed over the rows of a window.

    The gradient is taken along the straight line from the centre of all sensors, their medians in training, to the row
    (Gauss-Legendre, denser near the centre), by one compiled program for any number of rows up to a bucket.

    Args:
      scorer: a detector of sensors.
      rows: rows or windows, as a call of the scorer takes them.
      steps: points along the line. Each costs a forward and a backward pass a row; the scores have kinks, and more
        points bring the sum closer to the difference of the scores.

    Returns:
      The contributions to the score of each row or window.

    Raises:
      UserError: a detector of something else, or as a call of the scorer.

    References:
      Sundararajan, Taly and Yan 2017, "Axiomatic Attribution for Deep Networks".
    """
    if not scorer.feature_names:
        raise UserError(
            f"this detector judges {scorer.words.kind}, which have no sensors: ganomaly_jax.integrated_gradients says "
            "what the pixels of an image add"
        )
    x, run = scorer.as_input(rows), _program(scorer, steps)
    size = inference.BUCKETS[2]
    found = []
    for begin in range(0, len(x), size):
        block = x[begin : begin + size]
        found.append(
            [np.asarray(part) for part in run(scorer.variables, inference.pad(block, inference.bucket(len(block))))]
        )
    values, scores = (np.concatenate([one[i] for one in found])[: len(x)] for i in (0, 1))
    return Contributions(values, scores, float(found[0][2]), scorer.feature_names)


@functools.lru_cache(maxsize=4)
def _program(scorer: Scorer, steps: int) -> Callable[..., tuple[Array, Array, Array]]:
    """Returns `attributed`, compiled."""
    return jax.jit(attributed(scorer, steps))


def attributed(scorer: Scorer, steps: int = STEPS) -> Callable[[Any, Array], tuple[Array, Array, Array]]:
    """Returns a function from (variables, raw rows [B, ...]) to contributions [B, D], scores [B] and centre's score.

    It is pure and not compiled; see `contributions`.
    """
    function, _ = scorer.function()
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    # Denser at the centre, by t = u ** 2: the logarithm in a fitted score is steepest there.
    u = (nodes + 1) / 2
    along, share = jnp.asarray(u**2, jnp.float32), jnp.asarray(weights * u, jnp.float32)
    baseline = jnp.broadcast_to(jnp.asarray(row_splits.centre_of(scorer.low, scorer.high)), scorer.input_shape)

    def run(variables: Any, x: Array) -> tuple[Array, Array, Array]:
        def one(row: Array) -> Array:
            points = baseline + along.reshape(-1, *[1] * row.ndim) * (row - baseline)
            slopes = jax.grad(lambda p: function(variables, p).sum())(points)
            return ((row - baseline) * jnp.tensordot(share, slopes, 1)).reshape(-1, row.shape[-1]).sum(0)

        scores = function(variables, x)
        values = jnp.where(jnp.isfinite(scores)[:, None], jax.vmap(one)(x), jnp.nan)
        return values, scores, function(variables, baseline[None])[0]

    return run
