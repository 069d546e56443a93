"""Two samples compared, in NumPy on the host.

The Kolmogorov-Smirnov test with its exact law, and the kernel two-sample distance (MMD) by random features.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from ganomaly_jax.core.errors import UserError

FREQUENCIES = 64
"""Of the random features that stand for a Gaussian kernel."""
_DRAWS = 100_000
# Beyond so many pairs the exact law takes seconds, and its limit is as good.
_EXACT = 10**8


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Returns D of two samples [n] and [m]: the largest difference of their empirical distribution functions."""
    first, second = np.sort(first), np.sort(second)
    both = np.concatenate([first, second])
    shares = (np.searchsorted(one, both, side="right") / len(one) for one in (first, second))
    return float(np.abs(np.subtract(*shares)).max())


def kolmogorov_smirnov(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Tests whether two samples [n] and [m] are of one distribution, by Kolmogorov and Smirnov.

    Returns:
      `distance`, and its `chance`; of more than 10**8 pairs the chance by its limit for large samples.
    """
    from scipy import special

    d, n, m = distance(first, second), len(first), len(second)
    exact = n * m <= _EXACT
    return d, chance(d, n, m) if exact else float(special.kolmogorov(d * math.sqrt(n * m / (n + m))))


def chance(d: float, n: int, m: int) -> float:
    """Calculates the exact probability that D of samples [n] and [m] of one continuous distribution is at least d.

    Of all orders in which the samples can mix, counted as paths on a grid that stay within the band |i / n - j / m| <
    d. With ties it is an upper bound. It takes n additions of vectors of m. (scipy has it for given samples only.)

    References:
      Hodges 1958, "The significance probability of the Smirnov two-sample test".
    """
    if n > m:
        n, m = m, n
    if d <= 1e-12:
        return 1.0
    j = np.arange(m + 1)
    inside = np.append(1.0, np.zeros(m))  # ways to each j
    log_scale = 0.0
    for i in range(n + 1):
        # Multiplied out, so that a difference that is d but for rounding counts as d.
        band = np.abs(i * m - j * n) < d * n * m - 1e-9 * n * m
        inside = np.cumsum(inside * band)
        if not band.all():  # along a row the paths end where the band does
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
    """Returns (the least D whose chance is at most `level`, that chance) for samples [n] and [m].

    Raises:
      UserError: even samples that do not overlap have a greater chance.
    """
    step = math.gcd(n, m) / (n * m)  # D is a multiple of it
    low, high = 0, round(1 / step)
    if chance(1.0, n, m) > level:
        raise UserError(f"a level of {level:.2g} cannot be had with {n} and {m} scores: expected more of them")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if chance(middle * step, n, m) <= level else (middle, high)
    return high * step, chance(high * step, n, m)


def features(z: np.ndarray, bandwidth: float, seed: int) -> np.ndarray:
    """Returns random Fourier features [n, 2 * `FREQUENCIES`] of rows z [n, L].

    Their scalar products are about those of a Gaussian kernel, exp(-|a - b|^2 / (2 bandwidth^2)).

    References:
      Rahimi and Recht 2007, "Random Features for Large-Scale Kernel Machines".
    """
    angles = z @ (_frequencies(z.shape[1], seed) / bandwidth)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1) / math.sqrt(FREQUENCIES)


@functools.lru_cache(maxsize=8)
def _frequencies(size: int, seed: int) -> np.ndarray:
    # A stream that no later version of NumPy changes.
    return np.random.RandomState(seed).standard_normal((size, FREQUENCIES))


def bandwidth(z: np.ndarray, seed: int) -> float:
    """Returns the median distance of rows z [n, L] to one another, of 300 at most; 1 where it is 0."""
    kept = z[np.random.default_rng(seed).permutation(len(z))[:300]]
    squares = (kept**2).sum(axis=1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * kept @ kept.T, 0))
    return float(np.median(distances[np.triu_indices(len(kept), 1)])) or 1.0


def kernel_limit(found: np.ndarray, window: int, level: float, seed: int) -> float:
    """Returns the limit of a window's squared distance from the reference: it is passed with chance `level`.

    An approximation: the difference of two means of features is taken as normal with the covariance of `found` [n, F],
    the reference's own, times 1 / window + 1 / n; its square is then a weighted sum of chi-squares, of which 100,000
    are drawn.
    """
    weights = np.linalg.eigvalsh(np.cov(found.T)) * (1 / window + 1 / len(found))
    weights = weights[weights > 1e-6 * weights.max()]
    random, sums = np.random.RandomState(seed), np.zeros(_DRAWS)
    for weight in weights:
        sums += weight * random.chisquare(1, _DRAWS)
    return float(np.quantile(sums, 1 - level))
