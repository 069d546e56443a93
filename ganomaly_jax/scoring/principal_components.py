"""Principal components, for every score and baseline that is made of them. NumPy, in double precision."""

from __future__ import annotations

import numpy as np


def fit(rows: np.ndarray, most: int | None = None, least: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fits the principal components of rows.

    The eigenvectors of the smaller of the two products of the centred rows, D x D or n x n, which have the same
    eigenvalues.

    Args:
      rows: [n, D] float, n at least 2.
      most: at most so many components; None: all.
      least: components below this share of the largest variance are left out, but for the first. With 0 there are D
        components, those of no variance among them.

    Returns:
      mean [D], variances [k], none below 0 and the largest first, and axes [D, k] of length 1, all float64.
    """
    mean = rows.mean(axis=0, dtype=np.float64)
    centred = rows - mean
    few = len(rows) < rows.shape[1] and least > 0
    values, vectors = np.linalg.eigh(centred @ centred.T if few else centred.T @ centred)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    count = max(1, int((values > least * values[0]).sum())) if least else len(values)
    count = min(count, most or count)
    values, vectors = values[:count], vectors[:, :count]
    axes = centred.T @ vectors / np.sqrt(np.maximum(values, 1e-12)) if few else vectors
    return mean, values / (len(rows) - 1), axes
