"""Run lengths of a CUSUM of p-values, and its limit for a requested time between false alarms. NumPy, on the host.

A conformal p-value of a normal item is k / (n + 1), k from 1 to n + 1, for n calibration scores. Averaged over
calibration parts every k is equally likely; given one part, the probabilities of the k follow a Dirichlet distribution
with ones (the spacings of n uniform order statistics). A CUSUM accumulates the deviations of that part over thousands
of items, so its limit is set for the mean over such draws.
"""

from __future__ import annotations

import math

import numpy as np

from ganomaly_jax.core.errors import UserError

CHAIN_STATES = 60
DIRICHLET_DRAWS = 300
_MAX_LIMIT = 60  # beyond any limit of a useful likelihood ratio


def run_lengths(increments: np.ndarray, probabilities: np.ndarray, limit: float) -> np.ndarray:
    """Computes the expected number of items until max(0, S + increment) first reaches `limit`, from S = 0.

    The sum is discretised to the centres of `CHAIN_STATES` cells, the first of which holds S = 0. That makes it a
    Markov chain whose mean solves a linear system.

    Args:
      increments: [K], in any order.
      probabilities: probabilities [M, K] of the increments, for M cases.
      limit: positive.

    Returns:
      [M].

    References:
      Brook and Evans, An approach to the probability distribution of cusum run length, Biometrika 59, 1972.
    """
    states, order = CHAIN_STATES, np.argsort(increments)
    ordered = increments[order]
    below = np.concatenate([np.zeros((len(probabilities), 1)), np.cumsum(probabilities[:, order], axis=1)], axis=1)
    width = 2 * limit / (2 * states - 1)
    steps = np.arange(-states, states) + 0.5  # from one cell to the upper edge of another, in units of the width
    # A jump onto an edge counts half for either cell.
    sides = (np.searchsorted(ordered, steps * width * (1 + 1e-12), side) for side in ("left", "right"))
    left, right = (below[:, found] for found in sides)
    at_most = (left + right) / 2
    rows = np.arange(states)
    index = rows[None, :] - rows[:, None] + states
    chain = at_most[:, index] - at_most[:, index - 1]
    chain[:, :, 0] = at_most[:, index[:, 0]]
    return np.linalg.solve(np.eye(states) - chain, np.ones((len(probabilities), states, 1)))[:, 0, 0]


def limit_for(increments: np.ndarray, between: float, seed: int = 0) -> float:
    """Finds the limit of the CUSUM for a mean number of items between false alarms.

    The mean rate of alarms over `DIRICHLET_DRAWS` calibration parts is 1 / between; single parts have more or fewer.

    Args:
      increments: [n + 1], those of p = 1 / (n + 1) to 1.
      between: items between false alarms.
      seed: seed of the draws.

    Raises:
      UserError: there are too few calibration scores for that time.
    """
    from scipy import optimize

    random = np.random.RandomState(seed)  # its stream is the same in all versions of NumPy
    probabilities = random.dirichlet(np.ones(len(increments)), DIRICHLET_DRAWS)

    def excess(limit: float) -> float:
        return math.log(between * float((1 / run_lengths(increments, probabilities, limit)).mean()))

    # The logarithm of the time grows almost linearly with the limit, and the time itself is at least exp(limit) for a
    # likelihood ratio; so the limit is below its logarithm or, given the random deviations of the parts, not far above.
    low, high = 0.05, math.log(between)
    if excess(low) <= 0:
        return low
    while excess(high) > 0:
        low, high = high, 1.5 * high
        if high > _MAX_LIMIT:
            raise UserError(
                f"{between:,.0f} items between false alarms are not possible with {len(increments) - 1} calibration "
                "scores: use more of them, a shorter time, or 0 to disable the test"
            )
    return float(optimize.brentq(excess, low, high, xtol=1e-3))
