"""Is what comes still like the calibration part? Three tests on a stream, each with a stated time between false alarms.

`ks`: Kolmogorov and Smirnov's test of each window of scores against the calibration scores, exact. `mmd`: the kernel
two-sample distance of each window of latents to the calibration latents, its limit an approximation
(`ranks.kernel_limit`). `cusum`: Page's cumulative sum (Page 1954; on these increments it is what the test of Page and
Hinkley is) of log(1/2) - log(p) / 2, the likelihood ratio of p-values with density p**(-1/2) / 2 to uniform ones, so
that it notices scores that rise, at once where they rise far.

The stated time is that between false alarms of one test, in items, while nothing has changed and items are independent:
the inverse of the alarms an item, on average over calibration parts of that size. The one part there is may give more
or fewer; items that resemble their neighbours, as those of a video, give more.

`start` and `update` are pure: a state goes in, another comes out. A state takes constant memory, and as a dict
(`to_dict`) is a value of JSON, so that a monitor can go on after a restart.
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
from ganomaly_jax.streaming import run_length

REFERENCE = 2_000
"""At most so many calibration scores and latents are kept, drawn by the seed."""
LEAST = 50
"""Fewer calibration scores say too little about what a window may look like."""
TESTS = ("ks", "mmd", "cusum")
_WORDS = {
    "ks": "scores are distributed otherwise than those of the calibration part",
    "mmd": "latents are distributed otherwise than those of the calibration part",
    "cusum": "p-values are smaller than those of normal items: scores rise",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is tested; a time of 0 leaves a test out."""

    window: int = 200
    """Items in a window of `ks` and `mmd`; windows follow each other without overlap."""
    ks: float = 50_000
    """Items between false alarms of the test, while nothing has changed."""
    mmd: float = 50_000
    """As `ks`; it runs where latents are given."""
    cusum: float = 50_000
    """As `ks`."""
    seed: int = 0
    """Draws what is kept of the calibration part, the random features and the limits."""


@dataclasses.dataclass(frozen=True)
class State:
    """Where a stream stands: numbers and tuples of numbers only."""

    settings: Settings
    reference: tuple[float, ...]
    """Calibration scores, rising."""
    limits: dict[str, float]
    """Of each test that runs."""
    between: dict[str, float]
    """Items between false alarms of each, as its limit gives them: never fewer than asked."""
    features: tuple[float, ...] = ()
    """Mean random features of the calibration latents; empty where `mmd` does not run."""
    bandwidth: float = 1.0
    seen: int = 0
    """Items so far; those without a finite score are not counted."""
    window: tuple[float, ...] = ()
    """Scores of the window that is being filled."""
    total: tuple[float, ...] = ()
    """Sum of the features of its latents."""
    latents: int = 0
    """How many these are."""
    cusum: float = 0.0
    since: int = 0
    """Items before `cusum` was last 0."""
    last: dict[str, float] = dataclasses.field(default_factory=dict)
    """Statistics of the last full window."""

    @property
    def standing(self) -> dict[str, float]:
        """How far each test is on the way to its limit, 1 being there; those on windows as of the last full one."""
        found = self.last | ({"cusum": self.cusum} if "cusum" in self.limits else {})
        return {test: value / self.limits[test] for test, value in found.items()}


@dataclasses.dataclass(frozen=True)
class Alarm:
    """One test that passed its limit."""

    test: str
    statistic: float
    limit: float
    between: float
    """Items between false alarms."""
    since: int
    """The first item, from 0, that the change is seen in: of the window, or where the sum began to rise."""
    words: str


@dataclasses.dataclass(frozen=True)
class Report:
    """What happened at an item."""

    item: int
    """Its number, from 0."""
    alarms: tuple[Alarm, ...]

    @property
    def words(self) -> str:
        return " ".join(alarm.words for alarm in self.alarms)


def start(
    settings: Settings, calibration_scores: Sequence[float] | np.ndarray, calibration_latents: np.ndarray | None = None
) -> State:
    """A state before the first item.

    Args:
      calibration_scores: [n] of normal items that were not trained on, n at least `LEAST`.
      calibration_latents: [m, L] of the same; None: `mmd` does not run.

    Raises:
      UserError: settings or calibration items that cannot be used, or too few of them for the times asked.
    """
    _check(settings)
    scores = _finite(calibration_scores, "calibration")
    if len(scores) < LEAST:
        raise UserError(f"{len(scores)} calibration scores: wanted {LEAST} or more to say what a stream may look like")
    n, window = min(len(scores), REFERENCE), settings.window
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
        if z.ndim != 2 or len(z) < LEAST or not np.isfinite(z).all():
            raise UserError(f"calibration latents of shape {z.shape}: wanted finite ones [m, L], m at least {LEAST}")
        z = z[np.sort(np.random.RandomState(settings.seed).permutation(len(z))[:REFERENCE])]
        width = two_sample.bandwidth(z, settings.seed)
        mapped = two_sample.features(z, width, settings.seed)
        limits["mmd"] = two_sample.kernel_limit(mapped, window, window / settings.mmd, settings.seed)
        between["mmd"] = settings.mmd
        found = {"features": tuple(mapped.mean(axis=0).tolist()), "bandwidth": width}
    if not limits:
        raise UserError("no test runs: wanted a time above 0 for ks or cusum, or for mmd with calibration latents")
    return State(settings, tuple(np.sort(scores[kept]).tolist()), limits, between, **found)


def update(
    state: State, score: float, latent: Sequence[float] | np.ndarray | None = None
) -> tuple[State, Report | None]:
    """The state after one more item, and what there is to tell of it, mostly nothing.

    After an alarm of `cusum` its sum begins again at 0, so that a change that stays is told again and again.

    Args:
      score: of the item; one that is not finite changes nothing.
      latent: [L] of the same item; without one, it does not count for `mmd`.

    Raises:
      UserError: a latent of another length.
    """
    score = float(score)
    if not math.isfinite(score):
        return state, None
    item, alarms = state.seen, []
    changes: dict[str, Any] = {"seen": item + 1, "window": (*state.window, score)}
    if state.features and latent is not None:
        mapped = _mapped(state, latent)
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
            # What differs by rounding from a limit that is a multiple of 1 / (n m) is that limit.
            if found >= state.limits[test] * (1 - 1e-9):
                alarms.append(_alarm(state, test, found, first, item))
        after = dataclasses.replace(after, window=(), total=(), latents=0, last=last)
    return after, Report(item, tuple(alarms)) if alarms else None


def increments(p: Any) -> Any:
    """What the CUSUM adds at p-values p: the logarithm of the density p**(-1/2) / 2."""
    return math.log(0.5) - 0.5 * np.log(p)


def p_value(state: State, score: float) -> float:
    """The conformal p-value of a score by the calibration scores kept, as `calibration.p_values`."""
    n = len(state.reference)
    return (1 + n - bisect.bisect_left(state.reference, score)) / (n + 1)


def to_dict(state: State) -> dict[str, Any]:
    """A value of JSON."""
    return dataclasses.asdict(state)


def from_dict(values: Mapping[str, Any]) -> State:
    """The inverse of `to_dict`, also after JSON.

    Raises:
      UserError: something else.
    """
    try:
        rest = dict(values)
        settings = Settings(**rest.pop("settings"))
        _check(settings)
        rest |= {name: tuple(map(float, rest[name])) for name in ("reference", "features", "window", "total")}
        state = State(settings, **rest)
        whole = all(type(value) is int and value >= 0 for value in (state.seen, state.latents, state.since))
        numbers = [
            *state.limits.values(),
            *state.between.values(),
            *state.last.values(),
            state.bandwidth,
            state.cusum,
            *state.reference,
        ]
        fits = set(state.limits) == set(state.between) <= set(TESTS) and set(state.last) <= set(state.limits)
        fits &= len(state.window) < settings.window
        fits &= len(state.features) in (0, 2 * two_sample.FREQUENCIES) and ("mmd" in state.limits) == bool(
            state.features
        )
        if not (whole and fits and state.reference and np.isfinite(numbers).all()):
            raise ValueError("values that do not fit together")
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"no state of a drift test ({error}): wanted what drift.to_dict gave; start anew") from None
    return state


def _window_statistics(state: State) -> dict[str, float]:
    """Of each test on windows that runs; `mmd` only where each item of the window had its latent."""
    found = {}
    if "ks" in state.limits:
        found["ks"] = two_sample.distance(np.array(state.reference), np.array(state.window))
    if "mmd" in state.limits and state.latents == len(state.window):
        off = np.array(state.total) / state.latents - np.array(state.features)
        found["mmd"] = float(off @ off)
    return found


def _mapped(state: State, latent: Any) -> np.ndarray:
    z = np.asarray(latent, np.float64)
    if z.ndim != 1 or not np.isfinite(z).all():
        raise UserError(f"a latent of shape {z.shape}, or one that is not finite: wanted [L]")
    return two_sample.features(z[None], state.bandwidth, state.settings.seed)[0]


def _alarm(state: State, test: str, statistic: float, since: int, item: int) -> Alarm:
    limit, between = state.limits[test], state.between[test]
    words = (
        f"Drift ({test}): {_WORDS[test]}, seen in items {since} to {item}; statistic {statistic:.4g}, "
        f"limit {limit:.4g}, which without drift is passed every {between:,.0f} items on average."
    )
    return Alarm(test, statistic, limit, between, since, words)


def _check(settings: Settings) -> None:
    if not (isinstance(settings.window, int) and settings.window >= 10):
        raise UserError(f"window={settings.window!r}: wanted a number of items from 10")
    for test in TESTS:
        between = getattr(settings, test)
        least, most = (1, math.inf) if test == "cusum" else (2 * settings.window, 10_000 * settings.window)
        if between and not (least <= between <= most and math.isfinite(between)):
            raise UserError(
                f"{test}={between!r} items between false alarms: wanted 0 to leave it out, or from {least:,} to "
                f"{most:,} with a window of {settings.window}"
            )


def _finite(scores: Any, name: str) -> np.ndarray:
    found = np.asarray(scores, np.float64)
    if found.ndim != 1 or not len(found) or not np.isfinite(found).all():
        raise UserError(f"{name} scores of shape {found.shape}: wanted finite ones [n], n at least 1")
    return found


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two sets of scores, compared once."""

    distance: float
    """Kolmogorov and Smirnov's D."""
    p_value: float
    """Its exact chance (with ties an upper bound) if nothing has changed."""
    alarm_rate: float | None
    """Share of the new scores above the threshold; None without one."""
    reference_alarm_rate: float | None
    differs: bool
    """Whether the p-value is below the level."""
    words: str


def compare(
    reference_scores: Sequence[float] | np.ndarray,
    new_scores: Sequence[float] | np.ndarray,
    threshold: float | None = None,
    level: float = 0.01,
) -> Comparison:
    """Whether new scores [m] are distributed like reference scores [n], once, with advice.

    Args:
      threshold: that of the detector, for the rates.
      level: the chance of saying that they differ where they do not, once a call.

    Raises:
      UserError: no scores, some that are not finite, or a level that cannot be.
    """
    if not 0 < level < 1:
        raise UserError(f"level={level}: wanted a chance between 0 and 1, such as 0.01")
    reference, new = _finite(reference_scores, "reference"), _finite(new_scores, "new")
    found, p = two_sample.kolmogorov_smirnov(reference, new)
    rates = [None if threshold is None else float((one > threshold).mean()) for one in (new, reference)]
    higher = float(np.median(new)) > float(np.median(reference))
    above = f"; {rates[0]:.1%} of them are above the threshold, {rates[1]:.1%} there" if threshold is not None else ""
    if p >= level:
        words = f"{len(new)} scores show no difference from {len(reference)} reference scores (p {p:.2g}){above}."
    else:
        words = (
            f"{len(new)} scores differ from {len(reference)} reference scores (p {p:.2g}), mostly "
            f"{'higher' if higher else 'lower'}{above}. If these items are normal, the data have changed: "
            "`ganomaly recalibrate --data NEW_NORMALS` sets the threshold for such, and training anew may be needed."
        )
    return Comparison(found, p, rates[0], rates[1], p < level, words)
