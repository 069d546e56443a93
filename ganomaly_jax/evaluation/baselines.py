"""Statistical baselines to compare a detector with: same training items, same calibration items, same test items.

Nothing that is fitted here is stored; each evaluation fits again from the training part and the seed. Only the metrics
use the labels of test items.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ganomaly_jax.core import config, number_format, text_table
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import lazy
from ganomaly_jax.data.lazy import Images
from ganomaly_jax.evaluation import auroc_intervals, combination, metrics, process_statistics
from ganomaly_jax.evaluation.process_statistics import flat
from ganomaly_jax.model.protocol import Detector
from ganomaly_jax.scoring import calibration as scoring_calibration
from ganomaly_jax.scoring import inference, latent_statistics
from ganomaly_jax.scoring.scorer import Scorer

TRAINING = 2_000
"""The largest number of training items that baselines are fitted to, drawn by the seed."""
NUMBERS = 2**25
"""The largest number of their values altogether; items of more than 16,777 values are therefore fewer."""
DETECTOR = "detector"
"""The name of the compared detector among the baselines."""
_RESAMPLES = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class Baseline:
    """Defines a statistical detector; baselines that share `fit` and `on` are fitted once."""

    fit: Callable[[np.ndarray, int], Any]
    """Function (normal items [n, ...], seed) -> the fitted state."""
    score: Callable[[Any, np.ndarray], Any]
    """Function (fitted state, items [B, ...]) -> scores [B], higher is more anomalous."""
    on: str = "x"
    """`x`: items [n, ...] float32 in [-1, 1]; `z`: their latents [n, L] float32."""


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Holds the results of a detector, the baselines and their combinations on one test set, by name."""

    scores: dict[str, np.ndarray]
    """[N] float64 each, higher is more anomalous; NaN for an invalid item. Their scales differ."""
    p_values: dict[str, np.ndarray]
    """[N] float64 each, relative to the same score of the calibration items."""
    figures: dict[str, dict[str, Any]]
    """The metrics of the detector and the baselines, see `compare`."""
    combinations: dict[str, dict[str, Any]]
    """The metrics of the combinations, likewise."""
    notes: list[str]
    """Sentences for the user."""


def outside(detector: Any, on: str = "x", higher: str = "") -> Baseline:
    """Wraps an outlier detector of scikit-learn, PyOD or another library as a baseline.

    Args:
      detector: an object with methods `fit(X)` and `decision_function(X)`, X [n, D] float64; it is fitted in place.
      on: what it is fitted to, `x` or `z`, see `Baseline.on`.
      higher: the meaning of a higher value of `decision_function`, `anomalous` or `normal`; empty: `normal` for classes
        of scikit-learn and their subclasses (for a Pipeline, its last step), whose outliers are negative, and
        `anomalous` for those of PyOD and all others.

    Returns:
      The baseline.

    Raises:
      UserError: the object lacks one of the methods (scikit-learn's LocalOutlierFactor has decision_function only with
        novelty=True), or `on` or `higher` is another word.
    """
    if on not in ("x", "z") or higher not in ("", "anomalous", "normal"):
        raise UserError(f"on={on!r}, higher={higher!r}: expected x or z; anomalous, normal or nothing")
    for name in ("fit", "decision_function"):
        if not callable(getattr(detector, name, None)):
            raise UserError(f"{type(detector).__name__} has no {name}(X): expected methods fit and decision_function")
    sign = -1.0 if (higher or _higher(detector)) == "normal" else 1.0

    def fit(x: np.ndarray, seed: int) -> Any:
        detector.fit(flat(x))
        return detector

    return Baseline(fit, lambda fitted, x: sign * np.asarray(fitted.decision_function(flat(x)), np.float64), on)


def _higher(detector: Any) -> str:
    steps = getattr(detector, "steps", None)
    if steps:
        return _higher(steps[-1][1])
    homes = {kind.__module__.partition(".")[0] for kind in type(detector).__mro__}
    return "normal" if "sklearn" in homes and "pyod" not in homes else "anomalous"


def _fit_forest(x: np.ndarray, seed: int) -> Any:
    from sklearn.ensemble import IsolationForest

    return IsolationForest(random_state=seed).fit(flat(x))


def named(words: str, explained: float = 0.9) -> dict[str, Baseline]:
    """Returns the baselines that `evaluate.baselines` names.

    Args:
      words: names separated by commas, or `all`, which includes the forest only if scikit-learn is installed.
      explained: the share or number of components of the PCA, see `process_statistics.fit`.

    Raises:
      UserError: a name is unknown, or the forest is named but scikit-learn is not installed.
    """
    pca = functools.partial(process_statistics.fit, components=explained)
    known = {
        "pca_t2": Baseline(pca, process_statistics.hotelling),
        "pca_q": Baseline(pca, process_statistics.squared_error),
        "mahalanobis": Baseline(latent_statistics.fit, _mahalanobis, "z"),
        "neighbours": Baseline(latent_statistics.fit, _neighbours, "z"),
        "forest": Baseline(_fit_forest, lambda forest, x: -forest.decision_function(flat(x))),
    }
    has_forest = importlib.util.find_spec("sklearn") is not None
    if words.strip() == "all":
        return {name: baseline for name, baseline in known.items() if name != "forest" or has_forest}
    names = config.words(words, config.BASELINES, "evaluate.baselines")
    if "forest" in names and not has_forest:
        raise UserError(
            "the baseline forest needs scikit-learn: pip install 'ganomaly-jax[baselines]', or leave it out"
        )
    return {name: known[name] for name in names}


_mahalanobis = jax.jit(latent_statistics.mahalanobis)
_neighbours = jax.jit(latent_statistics.neighbours)


def combinations(words: str) -> tuple[str, ...]:
    """Returns the names of combinations in `evaluate.combine`; empty if there are none.

    Raises:
      UserError: a name is unknown.
    """
    return config.words(words, config.COMBINATIONS, "evaluate.combine")


def compare(
    scorer: Scorer,
    training: Images,
    calibration: Images,
    test: Images,
    labels: np.ndarray | None = None,
    detectors: str | Mapping[str, Any] = "all",
    combine: str = "mean,maximum,stouffer",
    explained: float = 0.9,
    rate: float | None = None,
    seed: int = 0,
    scores: np.ndarray | None = None,
) -> Comparison:
    """Compares a detector with statistical baselines on the same items.

    Args:
      scorer: the detector.
      training: raw normal items [n, *scorer.input_shape] to fit to, of which at most `TRAINING` with at most `NUMBERS`
        values are used.
      calibration: raw normal items [n, ...] not used in training, on which thresholds are set.
      test: raw items [N, ...] to compare on.
      labels: [N] 0 or 1, the labels of the test items; None: metrics that need labels are None.
      detectors: names as in `evaluate.baselines`, or a dict from name to a `Baseline` or an object with methods fit and
        decision_function (see `outside`).
      combine: names as in `evaluate.combine`. Each combines the detector and all baselines, and, as
        NAME_without_detector, the baselines alone.
      explained: the share or number of components of the PCA, see `process_statistics.fit`.
      rate: the false-positive rate of all thresholds, see `calibration.calibrate`; None: the rate that the detector
        promises.
      seed: draws the training items and seeds random fits.
      scores: [N] the scores of the test items if known.

    Returns:
      The comparison. Its `figures` and `combinations` hold for each name `auroc`, `interval` (95 %, bootstrap),
      `average_precision`, `threshold`, `promised_false_positive_rate`, `false_positive_rate`, `true_positive_rate` and,
      except for the detector, `difference` (AUROC minus the detector's, with the ends of DeLong's 95 % interval) and
      `difference_p_value`; None if undefined. The threshold of the detector is set by the same rule as all others.

    Raises:
      UserError: items have another shape or are missing, a name is unknown, or a baseline returns unusable scores.
    """
    chosen = named(detectors, explained) if isinstance(detectors, str) else _as_baselines(detectors)
    ways = combinations(combine)
    for name, items in (("training", training), ("calibration", calibration), ("test", test)):
        if not len(items) or tuple(items.shape[1:]) != scorer.input_shape:
            raise UserError(f"{name} items {tuple(items.shape)}: expected [n, *{scorer.input_shape}], n at least 1")
    kept = min(TRAINING, len(training), max(NUMBERS // math.prod(scorer.input_shape), 2))
    drawn = np.sort(np.random.default_rng(seed).permutation(len(training))[:kept])
    fitted = _fit(scorer, lazy.select(training, drawn), chosen, seed)
    on_calibration = {DETECTOR: np.asarray(scorer(calibration), np.float64)} | _scores(
        scorer, calibration, chosen, fitted
    )
    detector_scores = scorer(test) if scores is None else scores
    on_test = {DETECTOR: np.asarray(detector_scores, np.float64)} | _scores(scorer, test, chosen, fitted)
    valid = np.isfinite(np.stack(list(on_calibration.values()))).all(axis=0)
    on_calibration = {name: values[valid] for name, values in on_calibration.items()}
    if valid.sum() < 2:
        raise UserError(f"{valid.sum()} calibration items can be scored: expected at least two")
    _combine(ways, on_calibration, on_test)
    rate = scorer.calibration.rate if rate is None else rate
    p_values, figures = {}, {}
    for name, values in on_test.items():
        reference = np.sort(on_calibration[name])
        at_least = len(reference) - np.searchsorted(reference, values, side="left")
        p_values[name] = np.where(np.isfinite(values), (1.0 + at_least) / (len(reference) + 1), np.nan)
        figures[name] = _figures(name, on_test, reference, rate, labels, seed)
    notes = [
        f"The baselines are fitted to {kept:,} of {len(training):,} training items, and all thresholds are set on "
        f"{valid.sum():,} calibration items."
    ]
    single = (DETECTOR, *chosen)
    return Comparison(
        on_test,
        p_values,
        {name: figures[name] for name in single},
        {name: values for name, values in figures.items() if name not in single},
        notes + _conclusions(figures),
    )


def _as_baselines(detectors: Mapping[str, Any]) -> dict[str, Baseline]:
    if not detectors or DETECTOR in detectors:
        raise UserError(f"detectors={list(detectors)}: expected at least one, none of them called {DETECTOR!r}")
    return {name: value if isinstance(value, Baseline) else outside(value) for name, value in detectors.items()}


def _blocks(scorer: Scorer, items: Images, latents: bool) -> Iterator[dict[str, np.ndarray]]:
    """Yields blocks of items, `x` [B, ...] float32 in [-1, 1] and, with `latents`, `z` [B, L]."""
    size = inference.BUCKETS[-1]
    for begin in range(0, len(items), size):
        raw = np.asarray(items[begin : begin + size])
        x = np.asarray(scorer.unit(jnp.asarray(raw)))
        block = {"x": x}
        if latents:
            z = _latents(
                scorer.detector.network, scorer.variables["detector"], inference.pad(x, inference.bucket(len(x)))
            )
            block["z"] = np.asarray(z)[: len(x)]
        yield block


@functools.partial(jax.jit, static_argnums=0)
def _latents(detector: Detector, variables: dict[str, Any], x: Array) -> Array:
    outputs = detector.outputs(variables, x)
    if "z" not in outputs:
        raise UserError(f"{type(detector).__name__} has no latents z: expected baselines on x, such as pca_t2,pca_q")
    return outputs["z"]


def _fit(scorer: Scorer, items: Images, chosen: Mapping[str, Baseline], seed: int) -> dict[Any, Any]:
    used = {baseline.on for baseline in chosen.values()}
    blocks = list(_blocks(scorer, items, "z" in used))
    inputs = {on: np.concatenate([block[on] for block in blocks]) for on in used}
    good = np.isfinite(np.concatenate([block["x"].reshape(len(block["x"]), -1).sum(axis=1) for block in blocks]))
    fitted: dict[Any, Any] = {}
    for baseline in chosen.values():
        key = (baseline.fit, baseline.on)
        if key not in fitted:
            fitted[key] = baseline.fit(inputs[baseline.on][good], seed)
    return fitted


def _scores(
    scorer: Scorer, items: Images, chosen: Mapping[str, Baseline], fitted: Mapping[Any, Any]
) -> dict[str, np.ndarray]:
    """Returns the scores [n] float64 of each baseline; NaN for items with a NaN or infinite value."""
    blocks: dict[str, list[np.ndarray]] = {name: [] for name in chosen}
    latents = any(baseline.on == "z" for baseline in chosen.values())
    for block in _blocks(scorer, items, latents):
        good = np.isfinite(block["x"].reshape(len(block["x"]), -1)).all(axis=1)
        for name, baseline in chosen.items():
            scores = np.full(len(good), np.nan)
            if good.any():
                values = np.asarray(
                    baseline.score(fitted[baseline.fit, baseline.on], block[baseline.on][good]), np.float64
                )
                if values.shape != (good.sum(),) or not np.isfinite(values).all():
                    raise UserError(
                        f"the baseline {name} returned scores of shape {values.shape} for {good.sum()} items, or some "
                        "that are not finite: expected one finite number per item"
                    )
                scores[good] = values
            blocks[name].append(scores)
    return {name: np.concatenate(parts) for name, parts in blocks.items()}


def _combine(ways: Sequence[str], on_calibration: dict[str, np.ndarray], on_test: dict[str, np.ndarray]) -> None:
    """Adds the combinations to both dicts of scores."""
    names = list(on_calibration)
    of_calibration = np.stack([combination.rarity_of_reference(on_calibration[name]) for name in names])
    of_test = np.stack([combination.rarity(on_calibration[name], on_test[name]) for name in names])
    for way in ways:
        on_calibration[way], on_test[way] = combination.COMBINE[way](of_calibration), combination.COMBINE[way](of_test)
        if len(names) > 2:
            name = f"{way}_without_{DETECTOR}"
            on_calibration[name], on_test[name] = (
                combination.COMBINE[way](of_calibration[1:]),
                combination.COMBINE[way](of_test[1:]),
            )


def _figures(
    name: str,
    on_test: Mapping[str, np.ndarray],
    reference: np.ndarray,
    rate: float,
    labels: np.ndarray | None,
    seed: int,
) -> dict[str, Any]:
    set_by = scoring_calibration.calibrate(reference, min(rate, len(reference) / (len(reference) + 1)))
    result: dict[str, Any] = {"threshold": set_by.threshold, "promised_false_positive_rate": set_by.rate}
    empty = ("auroc", "interval", "average_precision", "false_positive_rate", "true_positive_rate")
    result |= dict.fromkeys(empty) | ({} if name == DETECTOR else dict.fromkeys(("difference", "difference_p_value")))
    if labels is None:
        return result
    # The same items for all scores, so that differences are paired.
    valid = np.isfinite(np.stack(list(on_test.values()))).all(axis=0)
    labels, scores = np.asarray(labels)[valid], on_test[name][valid]
    summary = metrics.summary(labels, scores, set_by.threshold)
    result |= {key: summary[key] for key in empty if key in summary}
    if summary["auroc"] is None:
        return result
    interval = auroc_intervals.auroc_interval(labels, scores, resamples=_RESAMPLES, seed=seed)
    result["interval"] = [interval.low, interval.high]
    if name != DETECTOR and min(summary["n_normal"] or 0, summary["n_anomalous"] or 0) > 1:
        paired = auroc_intervals.paired(labels, scores, on_test[DETECTOR][valid])
        result["difference"] = list(dataclasses.astuple(paired.difference))
        result["difference_p_value"] = paired.p_value
    return result


def _conclusions(figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Describes whether the detector is better than the baselines, by the intervals of the differences."""
    known = {name: values["difference"] for name, values in figures.items() if values.get("difference")}
    sides = {
        "The detector separates better than": [name for name, (_, _, high) in known.items() if high < 0],
        "The test set shows no significant difference between the detector and": [
            name for name, (_, low, high) in known.items() if low <= 0 <= high
        ],
        "The detector separates worse than": [name for name, (_, low, _) in known.items() if low > 0],
    }
    return [f"{words} {', '.join(names)}." for words, names in sides.items() if names]


def lines(figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Formats the baselines of `metrics.json` as a table for the terminal."""
    rows: list[tuple[str, ...]] = [
        ("", "AUROC", "(95 %)", "av. prec.", "false pos.", "true pos.", "AUROC minus the detector's")
    ]
    for name, values in figures.items():
        cells = [number_format.UNDEFINED, "", "-"]
        if values["auroc"] is not None:
            low, high = values["interval"]
            cells = [f"{values['auroc']:.4f}", f"({low:.4f}-{high:.4f})", f"{values['average_precision']:.4f}"]
        for key in ("false_positive_rate", "true_positive_rate"):
            cells.append("-" if values[key] is None else f"{values[key]:.1%}")
        difference = values.get("difference")
        cells.append(number_format.interval(difference, "+.4f") if difference else "")
        rows.append((name, *cells))
    return text_table.lines(rows, right={3, 4, 5})
