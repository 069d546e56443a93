"""How long a CUSUM of p-values runs between false alarms, and the limit for a wanted time. NumPy, on the host.

A conformal p-value of a normal item is k / (n + 1), k from 1 to n + 1, by n calibration scores. Over calibration parts
each k is as likely as any other; but one part is all there is, and given that part the probabilities of the k are those
of a Dirichlet distribution with ones (the spacings of n uniform order statistics). A CUSUM adds up what that part has
by chance over thousands of items, so its limit is set for the mean over such draws, not for the ideal.
"""

from __future__ import annotations

import math

import numpy as np

from ganomaly_jax.core.errors import UserError

STATES = 60
DRAWS = 300
_MOST = 60  # a limit beyond it belongs to no likelihood ratio that is worth following


def run_lengths(increments: np.ndarray, probabilities: np.ndarray, limit: float, states: int = STATES) -> np.ndarray:
    """Expected items [M] until max(0, S + increment) first reaches `limit`, from S = 0.

    The sum is taken to be at the middles of `states` cells, which makes it a Markov chain with a linear system for the
    mean (Brook and Evans 1972, "An approach to the probability distribution of cusum run length", Biometrika 59).

    Args:
      increments: [K], what is added, falling or rising.
      probabilities: [M, K], of each, for M cases.
      limit: above 0.
      states: of the chain; the first is S = 0 alone.
    """
    order = np.argsort(increments)
    ordered = increments[order]
    below = np.concatenate([np.zeros((len(probabilities), 1)), np.cumsum(probabilities[:, order], axis=1)], axis=1)
    width = 2 * limit / (2 * states - 1)
    steps = np.arange(-states, states) + 0.5  # from one cell to the upper edge of another, in widths
    # A jump that lands on an edge is counted half to either cell.
    sides = (np.searchsorted(ordered, steps * width * (1 + 1e-12), side) for side in ("left", "right"))
    left, right = (below[:, found] for found in sides)
    at_most = (left + right) / 2
    rows = np.arange(states)
    index = rows[None, :] - rows[:, None] + states
    chain = at_most[:, index] - at_most[:, index - 1]
    chain[:, :, 0] = at_most[:, index[:, 0]]
    return np.linalg.solve(np.eye(states) - chain, np.ones((len(probabilities), states, 1)))[:, 0, 0]


def limit_for(increments: np.ndarray, between: float, seed: int = 0) -> float:
    """The limit of the CUSUM of `increments` [n + 1], those of p = 1 / (n + 1) to 1, for so many items between alarms.

    Alarms are counted over calibration parts: the mean over `DRAWS` of them of the alarms an item is 1 / between.
    Single parts have more or fewer.

    Raises:
      UserError: no limit gives it with so few calibration scores.
    """
    from scipy import optimize

    random = np.random.RandomState(seed)  # a stream that no later version of NumPy changes
    probabilities = random.dirichlet(np.ones(len(increments)), DRAWS)

    def excess(limit: float) -> float:
        return math.log(between * float((1 / run_lengths(increments, probabilities, limit)).mean()))

    # The logarithm of the time grows almost linearly with the limit, and the time itself is at least exp(limit) for a
    # likelihood ratio, so the limit lies below its logarithm or, for what the parts have by chance, not far above.
    low, high = 0.05, math.log(between)
    if excess(low) <= 0:
        return low
    while excess(high) > 0:
        low, high = high, 1.5 * high
        if high > _MOST:
            raise UserError(
                f"{between:,.0f} items between false alarms cannot be had with {len(increments) - 1} calibration "
                "scores: wanted more of them, a shorter time, or 0 to leave the test out"
            )
    return float(optimize.brentq(excess, low, high, xtol=1e-3))
