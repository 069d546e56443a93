"""Principal components, shared by all scores and baselines that use them. NumPy, in double precision."""

from __future__ import annotations

import numpy as np


def fit(rows: np.ndarray, most: int | None = None, least: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fits the principal components of rows.

    They come from the eigenvectors of the covariance [D, D] or, with fewer rows than columns and `least` above 0, of
    the Gram matrix [n, n], which has the same non-zero eigenvalues.

    Args:
      rows: [n, D] float, n at least 2.
      most: the largest number of components; None: no limit.
      least: components with less than this share of the largest variance are left out, except for the first. With 0 all
        D components are kept, including those without variance.

    Returns:
      The mean [D], the variances [k], at least 0 and descending, and the axes [D, k] of unit length, all float64.
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
