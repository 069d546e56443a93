"""Drift tests: whether a stream still resembles the calibration part, with a stated time between false alarms.

- `ks`: the exact two-sample Kolmogorov-Smirnov test of each window of scores against the calibration scores.
- `mmd`: the kernel two-sample distance of each window of latents to the calibration latents; its limit is an
  approximation (`two_sample.kernel_limit`).
- `cusum`: Page's cumulative sum of log(1/2) - log(p) / 2, the likelihood ratio of p-values of density p**(-1/2) / 2 to
  uniform ones. It detects rising scores, at once where they rise far.

The stated time is the mean number of items between false alarms of one test while nothing has changed and items are
independent: the inverse of the rate of alarms, averaged over calibration parts of that size. A single calibration part
can give more or fewer, and dependent items, such as frames of a video, give more.

`start` and `update` are pure. A state takes constant memory and can be stored as JSON (`to_dict`), so that a monitor
can resume after a restart.

References:
  E. S. Page, Continuous inspection schemes, Biometrika 41, 1954. Gretton et al., A kernel two-sample test, JMLR 13,
  2012.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.evaluation import two_sample
from ganomaly_jax.streaming import run_length, stored

MAX_REFERENCE = 2_000
"""Calibration scores and latents that are kept at most, drawn by the seed."""
MIN_SCORES = 50
"""Least number of calibration scores; fewer say too little about the distribution of a window."""
TESTS = ("ks", "mmd", "cusum")
_DESCRIPTIONS = {
    "ks": "the distribution of scores differs from that of the calibration part",
    "mmd": "the distribution of latents differs from that of the calibration part",
    "cusum": "p-values are smaller than those of normal items (rising scores)",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the tests; a time of 0 disables a test.

    Attributes:
      window: items per window of `ks` and `mmd`; windows do not overlap.
      ks, mmd, cusum: mean number of items between false alarms of each test. `mmd` needs latents.
      seed: seed of what is kept of the calibration part, of the random features and of the limits.
    """

    window: int = 200
    ks: float = 50_000
    mmd: float = 50_000
    cusum: float = 50_000
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class State:
    """State of the drift tests of a stream: numbers and tuples of numbers only.

    Attributes:
      settings: the settings.
      reference: calibration scores, ascending.
      limits: limit of each active test.
      between: items between false alarms of each test, as its limit gives them; never fewer than requested.
      features: mean random features of the calibration latents; empty without `mmd`.
      bandwidth: bandwidth of the kernel.
      seen: items with a finite score so far.
      window: scores of the incomplete window.
      total: sum of the features of its latents.
      latents: number of these latents.
      cusum: the cumulative sum.
      since: item at which `cusum` last left 0.
      last: statistics of the last complete window.
    """

    settings: Settings
    reference: tuple[float, ...]
    limits: dict[str, float]
    between: dict[str, float]
    features: tuple[float, ...] = ()
    bandwidth: float = 1.0
    seen: int = 0
    window: tuple[float, ...] = ()
    total: tuple[float, ...] = ()
    latents: int = 0
    cusum: float = 0.0
    since: int = 0
    last: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def progress(self) -> dict[str, float]:
        """Returns statistic / limit of each test, 1 being an alarm; tests on windows as of the last complete one."""
        found = self.last | ({"cusum": self.cusum} if "cusum" in self.limits else {})
        return {test: value / self.limits[test] for test, value in found.items()}


@dataclasses.dataclass(frozen=True)
class Alarm:
    """A test that passed its limit.

    Attributes:
      test: `ks`, `mmd` or `cusum`.
      statistic: its statistic.
      limit: its limit.
      between: mean number of items between false alarms.
      since: first item, from 0, of the window, or the item at which the sum began to rise.
      words: the alarm as a sentence.
    """

    test: str
    statistic: float
    limit: float
    between: float
    since: int
    words: str


@dataclasses.dataclass(frozen=True)
class Report:
    """Alarms at one item.

    Attributes:
      item: its number, from 0.
      alarms: the alarms.
    """

    item: int
    alarms: tuple[Alarm, ...]

    @property
    def words(self) -> str:
        """Returns the alarms as sentences."""
        return " ".join(alarm.words for alarm in self.alarms)


def start(
    settings: Settings, calibration_scores: Sequence[float] | np.ndarray, calibration_latents: np.ndarray | None = None
) -> State:
    """Returns the state before the first item.

    Args:
      settings: the settings.
      calibration_scores: scores [n] of normal items that were not trained on, n at least `MIN_SCORES`.
      calibration_latents: latents [m, L] of the same items; None disables `mmd`.

    Raises:
      UserError: the settings or the calibration items are unusable, or too few for the requested times.
    """
    _check_settings(settings)
    scores = _finite(calibration_scores, "calibration")
    if len(scores) < MIN_SCORES:
        raise UserError(f"{len(scores)} calibration scores: expected at least {MIN_SCORES}")
    n, window = min(len(scores), MAX_REFERENCE), settings.window
    kept = np.sort(np.random.RandomState(settings.seed).permutation(len(scores))[:n])
    limits, between = {}, {}
    found: dict[str, Any] = {}
    if settings.ks:
        limits["ks"], level = two_sample.limit(n, window, window / settings.ks)
        between["ks"] = window / level
    if settings.cusum:
        limits["cusum"] = run_length.limit_for(increments(np.arange(1, n + 2) / (n + 1)), settings.cusum, settings.seed)
        between["cusum"] = settings.cusum
    if settings.mmd and calibration_latents is not None:
        z = np.asarray(calibration_latents, np.float64)
        if z.ndim != 2 or len(z) < MIN_SCORES or not np.isfinite(z).all():
            raise UserError(
                f"calibration latents of shape {z.shape}: expected finite ones [m, L], m at least {MIN_SCORES}"
            )
        z = z[np.sort(np.random.RandomState(settings.seed).permutation(len(z))[:MAX_REFERENCE])]
        width = two_sample.bandwidth(z, settings.seed)
        mapped = two_sample.features(z, width, settings.seed)
        limits["mmd"] = two_sample.kernel_limit(mapped, window, window / settings.mmd, settings.seed)
        between["mmd"] = settings.mmd
        found = {"features": tuple(mapped.mean(axis=0).tolist()), "bandwidth": width}
    if not limits:
        raise UserError(
            "no drift test is active: expected a time above 0 for ks or cusum, or for mmd with calibration latents"
        )
    return State(settings, tuple(np.sort(scores[kept]).tolist()), limits, between, **found)


def update(
    state: State, score: float, latent: Sequence[float] | np.ndarray | None = None
) -> tuple[State, Report | None]:
    """Returns the state after one more item, and a report if a test raised an alarm.

    After an alarm `cusum` restarts at 0, so that a lasting change is reported repeatedly.

    Args:
      state: the state so far.
      score: score of the item; a score that is not finite leaves the state unchanged.
      latent: latent [L] of the item; without one it does not count for `mmd`.

    Raises:
      UserError: the latent has another length.
    """
    score = float(score)
    if not math.isfinite(score):
        return state, None
    item, alarms = state.seen, []
    changes: dict[str, Any] = {"seen": item + 1, "window": (*state.window, score)}
    if state.features and latent is not None:
        mapped = _features_of(state, latent)
        total = mapped if not state.total else mapped + np.asarray(state.total)
        changes |= {"total": tuple(total.tolist()), "latents": state.latents + 1}
    if "cusum" in state.limits:
        total = state.cusum + float(increments(p_value(state, score)))
        changes |= {"cusum": total} if total > 0 else {"cusum": 0.0, "since": item + 1}
        if total >= state.limits["cusum"]:
            alarms.append(_alarm(state, "cusum", total, state.since, item))
            changes |= {"cusum": 0.0, "since": item + 1}
    after = dataclasses.replace(state, **changes)
    if len(after.window) == state.settings.window:
        first = item + 1 - len(after.window)
        last = _window_statistics(after)
        for test, found in last.items():
            # Statistic and limit may be the same multiple of 1 / (n m) and differ by rounding.
            if found >= state.limits[test] * (1 - 1e-9):
                alarms.append(_alarm(state, test, found, first, item))
        after = dataclasses.replace(after, window=(), total=(), latents=0, last=last)
    return after, Report(item, tuple(alarms)) if alarms else None


def increments(p: Any) -> Any:
    """Returns the increments of the CUSUM for p-values p: the logarithm of the density p**(-1/2) / 2."""
    return math.log(0.5) - 0.5 * np.log(p)


def p_value(state: State, score: float) -> float:
    """Returns the conformal p-value of a score with respect to the calibration scores that are kept."""
    n = len(state.reference)
    return (1 + n - bisect.bisect_left(state.reference, score)) / (n + 1)


def to_dict(state: State) -> dict[str, Any]:
    """Returns the state as a JSON-ready dict."""
    return dataclasses.asdict(state)


def from_dict(values: Mapping[str, Any]) -> State:
    """Restores a state from `to_dict`, also after JSON.

    Raises:
      UserError: the values are not those of a state.
    """
    with stored.reading("drift tests"):
        if set(values) != {field.name for field in dataclasses.fields(State)}:
            raise ValueError("other fields than those of a state")
        settings = Settings(**stored.fields(values["settings"]))
        _check_settings(settings)
        stored.count(settings.seed, most=2**32 - 1)
        held: dict[str, Any] = {
            name: tuple(map(stored.number, stored.items(values[name])))
            for name in ("reference", "features", "window", "total")
        }
        held |= {
            name: {test: stored.number(value) for test, value in stored.fields(values[name]).items()}
            for name in ("limits", "between", "last")
        }
        held |= {name: stored.count(values[name]) for name in ("seen", "latents", "since")}
        held |= {name: stored.number(values[name]) for name in ("bandwidth", "cusum")}
        state = State(settings, **held)
        if not _fits_together(state):
            raise ValueError("values that do not fit together")
    return state


def _fits_together(state: State) -> bool:
    """Returns True if the values of a state can be those of one stream."""
    tests, features = set(state.limits), len(state.features)
    return (
        bool(state.reference)
        and list(state.reference) == sorted(state.reference)
        and tests == set(state.between) <= set(TESTS)
        and set(state.last) <= tests
        and all(value > 0 for value in (*state.limits.values(), *state.between.values(), state.bandwidth))
        and len(state.window) < state.settings.window
        and features in (0, 2 * two_sample.FREQUENCIES)
        and ("mmd" in tests) == bool(features)
        and state.latents <= len(state.window) <= state.seen
        and len(state.total) == (features if state.latents else 0)
        and 0 <= state.cusum <= state.limits.get("cusum", 0.0)
        and state.since <= state.seen
    )


def _window_statistics(state: State) -> dict[str, float]:
    """Returns the statistics of the tests on windows; `mmd` only if every item of the window had a latent."""
    found = {}
    if "ks" in state.limits:
        found["ks"] = two_sample.distance(np.array(state.reference), np.array(state.window))
    if "mmd" in state.limits and state.latents == len(state.window):
        difference = np.array(state.total) / state.latents - np.array(state.features)
        found["mmd"] = float(difference @ difference)
    return found


def _features_of(state: State, latent: Any) -> np.ndarray:
    """Returns the random features of a latent."""
    z = np.asarray(latent, np.float64)
    if z.ndim != 1 or not np.isfinite(z).all():
        raise UserError(f"latent of shape {z.shape}: expected a finite one [L]")
    return two_sample.features(z[None], state.bandwidth, state.settings.seed)[0]


def _alarm(state: State, test: str, statistic: float, since: int, item: int) -> Alarm:
    """Returns the alarm of a test, with its sentence."""
    limit, between = state.limits[test], state.between[test]
    words = (
        f"Drift ({test}): {_DESCRIPTIONS[test]}, seen in items {since} to {item}; statistic {statistic:.4g}, "
        f"limit {limit:.4g}, which is exceeded every {between:,.0f} items on average without drift."
    )
    return Alarm(test, statistic, limit, between, since, words)


def _check_settings(settings: Settings) -> None:
    """Raises a UserError if the settings are invalid."""
    if not (isinstance(settings.window, int) and settings.window >= 10):
        raise UserError(f"window={settings.window!r}: expected a number of items of at least 10")
    for test in TESTS:
        between = getattr(settings, test)
        least, most = (1, math.inf) if test == "cusum" else (2 * settings.window, 10_000 * settings.window)
        if between and not (least <= between <= most and math.isfinite(between)):
            raise UserError(
                f"{test}={between!r} items between false alarms: expected 0 to disable the test, or from {least:,} to "
                f"{most:,} with a window of {settings.window}"
            )


def _finite(scores: Any, name: str) -> np.ndarray:
    """Returns scores as float64 [n]; raises a UserError if they are not finite."""
    found = np.asarray(scores, np.float64)
    if found.ndim != 1 or not len(found) or not np.isfinite(found).all():
        raise UserError(f"{name} scores of shape {found.shape}: expected finite ones [n], n at least 1")
    return found
