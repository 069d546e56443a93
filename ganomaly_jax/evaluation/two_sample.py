"""Two-sample tests: Kolmogorov-Smirnov with exact p-values, and MMD by random features. NumPy, on the host."""

from __future__ import annotations

import functools
import math

import numpy as np

from ganomaly_jax.core.errors import UserError

FREQUENCIES = 64
"""The number of random frequencies that approximate a Gaussian kernel."""
_DRAWS = 100_000
# Beyond this many pairs the exact p-value takes seconds, and the asymptotic one is as good.
_EXACT = 10**8


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Calculates D of two samples [n] and [m], the largest difference of their empirical distribution functions."""
    first, second = np.sort(first), np.sort(second)
    both = np.concatenate([first, second])
    shares = (np.searchsorted(sample, both, side="right") / len(sample) for sample in (first, second))
    return float(np.abs(np.subtract(*shares)).max())


def kolmogorov_smirnov(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Tests by Kolmogorov and Smirnov whether two samples [n] and [m] have the same distribution.

    Returns:
      D and its p-value; exact for up to 10**8 pairs, asymptotic beyond.
    """
    from scipy import special

    d, n, m = distance(first, second), len(first), len(second)
    exact = n * m <= _EXACT
    return d, chance(d, n, m) if exact else float(special.kolmogorov(d * math.sqrt(n * m / (n + m))))


def chance(d: float, n: int, m: int) -> float:
    """Calculates the exact probability that D of samples [n] and [m] of one continuous distribution is at least d.

    It counts the orderings of both samples as paths on a grid, of which those within the band |i / n - j / m| < d have
    a smaller D. With ties it is an upper bound. (scipy computes it only for given samples.)

    References:
      Hodges 1958, "The significance probability of the Smirnov two-sample test".
    """
    if n > m:
        n, m = m, n
    if d <= 1e-12:
        return 1.0
    j = np.arange(m + 1)
    inside = np.append(1.0, np.zeros(m))  # the number of paths to each j
    log_scale = 0.0
    for i in range(n + 1):
        # Multiplied out, so that a difference that equals d up to rounding counts as d.
        band = np.abs(i * m - j * n) < d * n * m - 1e-9 * n * m
        inside = np.cumsum(inside * band)
        if not band.all():  # paths along a row end where the band ends
            inside *= band
        top = inside.max()
        if top == 0:
            return 1.0
        inside /= top
        log_scale += math.log(top)
    if inside[m] <= 0:
        return 1.0
    whole = math.lgamma(n + m + 1) - math.lgamma(n + 1) - math.lgamma(m + 1)
    return min(max(-math.expm1(math.log(inside[m]) + log_scale - whole), 0.0), 1.0)


def limit(n: int, m: int, level: float) -> tuple[float, float]:
    """Calculates the critical value of D for samples [n] and [m].

    Returns:
      The smallest D whose `chance` is at most `level`, and that chance.

    Raises:
      UserError: the samples are so small that even D = 1 has a greater chance.
    """
    step = math.gcd(n, m) / (n * m)  # D is a multiple of it
    low, high = 0, round(1 / step)
    if chance(1.0, n, m) > level:
        raise UserError(f"a level of {level:.2g} is impossible with {n} and {m} scores: expected more scores")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if chance(middle * step, n, m) <= level else (middle, high)
    return high * step, chance(high * step, n, m)


def features(z: np.ndarray, bandwidth: float, seed: int) -> np.ndarray:
    """Computes random Fourier features [n, 2 * `FREQUENCIES`] of rows z [n, L].

    Their scalar products approximate a Gaussian kernel, exp(-|a - b|^2 / (2 bandwidth^2)).

    References:
      Rahimi and Recht 2007, "Random Features for Large-Scale Kernel Machines".
    """
    angles = z @ (_frequencies(z.shape[1], seed) / bandwidth)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1) / math.sqrt(FREQUENCIES)


@functools.lru_cache(maxsize=8)
def _frequencies(size: int, seed: int) -> np.ndarray:
    # RandomState, whose stream no later version of NumPy changes.
    return np.random.RandomState(seed).standard_normal((size, FREQUENCIES))


def bandwidth(z: np.ndarray, seed: int) -> float:
    """Returns the median distance between rows z [n, L], of at most 300 random ones; 1 if it is 0."""
    kept = z[np.random.default_rng(seed).permutation(len(z))[:300]]
    squares = (kept**2).sum(axis=1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * kept @ kept.T, 0))
    return float(np.median(distances[np.triu_indices(len(kept), 1)])) or 1.0


def kernel_limit(reference: np.ndarray, window: int, level: float, seed: int) -> float:
    """Calculates the critical value of the squared MMD of a window from the reference.

    The difference of the two means of features is approximated as normal, with the covariance of the reference times
    1 / window + 1 / n. Its square is then a weighted sum of chi-squared variables, whose quantile is taken from 100,000
    draws.

    Args:
      reference: features [n, F] of the reference.
      window: the number of rows in a window.
      level: the probability that a window of the same distribution exceeds the limit.
      seed: the seed of the draws.
    """
    weights = np.linalg.eigvalsh(np.cov(reference.T)) * (1 / window + 1 / len(reference))
    weights = weights[weights > 1e-6 * weights.max()]
    random, sums = np.random.RandomState(seed), np.zeros(_DRAWS)
    for weight in weights:
        sums += weight * random.chisquare(1, _DRAWS)
    return float(np.quantile(sums, 1 - level))
