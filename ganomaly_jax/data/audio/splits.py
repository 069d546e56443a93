"""Splits windows of sound, by recording or in time, and fits the scaling of their bands."""

from __future__ import annotations

import math

import numpy as np

from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.printable import printable
from ganomaly_jax.data import splits
from ganomaly_jax.data.audio import layout, spectrogram
from ganomaly_jax.data.datasets import Dataset
from ganomaly_jax.data.modality import Scaling
from ganomaly_jax.data.splits import Split

WHOLE = 10
"""Least number of normal recordings for holding out whole ones; of fewer, the end of each is held out."""
SPREADS = 8.0
"""Half the range of the network's input, in standard deviations of a band's log power in training."""
LEAST = 0.05
"""Lower bound of that standard deviation, in log10 of power: half a decibel."""
# Most windows and most values that the scaling is fitted on, and windows that are transformed at once.
_FITTED, _VALUES, _AT_ONCE = 2000, 2**24, 64


def split(dataset: Dataset, settings: config.Data, seed: int) -> Split:
    """Splits windows into training, calibration and test sets that share no samples.

    If the source has a training and a test part and `settings.abnormal` is empty, the test part is tested on; otherwise
    the fraction `settings.test` of the normal windows, and all anomalous ones. The fraction `settings.calibration` of
    the training part is set aside for calibration. From `WHOLE` normal recordings on, whole recordings are held out,
    drawn at random; of fewer, the last windows of each.

    Args:
      dataset: Data set of sound.
      settings: Abnormal class, fractions and limit of training windows.
      seed: Seed of the random draw.

    Raises:
      UserError: There are no or too few normal windows, or some have NaN or infinite samples.
    """
    spans = layout.of(dataset).spans
    normal = splits.normal_classes(dataset, settings.abnormal)
    is_normal = np.isin(dataset.labels, [i for i, name in enumerate(dataset.classes) if name in normal])
    parts = np.zeros(len(is_normal), np.int8) if dataset.parts is None else dataset.parts
    own = not settings.abnormal and bool((parts == 1).any())
    pool = np.flatnonzero(is_normal & (parts == 0)) if own else np.flatnonzero(is_normal)
    whole = len(np.unique(spans[pool, 0])) >= WHOLE
    random = np.random.default_rng((seed, 1))
    if own:
        kept, test = pool, np.flatnonzero((parts == 1) | ~is_normal)
    else:
        kept, held = _set_aside(spans, pool, settings.test, whole, random)
        test = np.sort(np.concatenate([held, np.flatnonzero(~is_normal)]))
    kept, calibration = _set_aside(spans, kept, settings.calibration, whole, random)
    used = len(kept) + len(calibration) + int(is_normal[test].sum())
    if settings.limit:
        kept = kept[np.unique(np.linspace(0, len(kept) - 1, min(settings.limit, len(kept))).astype(int))]
    if len(kept) < 2:
        raise UserError(
            f"{dataset.name} has {len(pool)} normal windows in {len(np.unique(spans[pool, 0]))} recordings, of which "
            f"{len(kept)} would be trained on: expected more or longer recordings, or shorter windows "
            "(data.sound.frame)"
        )
    _refuse_not_finite(dataset, np.concatenate([kept, calibration]))
    how = "whole recordings held out" if whole else "the end of each recording held out"
    left = int(is_normal.sum()) - used
    between = (f"{left} normal windows overlap two parts and are not used",) if left else ()
    protocol = f"own labels, {'own split, ' if own else ''}{how}"
    if settings.abnormal:
        protocol = f"one class abnormal: {printable(settings.abnormal)}, {how}"
    return Split(kept, calibration, test, (~is_normal[test]).astype(np.int64), protocol, between)


def _set_aside(
    spans: np.ndarray, chosen: np.ndarray, share: float, whole: bool, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Splits the windows at `chosen` [n] into those kept and those set aside; windows that overlap both are dropped."""
    if not share or not len(chosen):
        return chosen, chosen[:0]
    number = spans[chosen, 0]
    there = np.unique(number)
    if whole and len(there) > 1:
        count = min(max(round(share * len(there)), 1), len(there) - 1)
        aside = np.isin(number, random.permutation(there)[:count])
        return chosen[~aside], chosen[aside]
    kept, aside_too = [], []
    for one in there:
        own = chosen[number == one]
        count = min(max(round(share * len(own)), 1), len(own) - 1)
        last = own[len(own) - count :]
        kept.append(own[spans[own, 2] <= spans[last[0], 1]] if count else own)
        aside_too.append(last)
    return np.concatenate(kept), np.concatenate(aside_too)


def _refuse_not_finite(dataset: Dataset, chosen: np.ndarray) -> None:
    """Raises a UserError if any of the windows at `chosen` [n] has NaN or infinite samples."""
    own = layout.of(dataset)
    there = [i for i, one in enumerate(own.recordings) if not one.finite]
    suspects = chosen[np.isin(own.spans[chosen, 0], there)]
    bad = [i for i in suspects.tolist() if not np.isfinite(dataset.images[i]).all()]
    if bad:
        raise UserError(
            f"{len(bad)} of {len(chosen)} normal windows of {dataset.name} have NaN or infinite samples (the first is "
            f"{dataset.paths[bad[0]]}): repair the recording or remove it"
        )


def scaled(dataset: Dataset, own: Split) -> Scaling:
    """Returns (low, high) of each band: the log10 of the power that becomes -1 and +1.

    The centre of the range is the median of the training windows. Half the range is `SPREADS` standard deviations,
    each at least `LEAST`, of a normal distribution with the same quartiles: normal noise fills an eighth of the range,
    so that levels far from normal can still be told from levels even farther away.

    Raises:
      UserError: The training windows are silent.
    """
    settings = layout.of(dataset).settings
    most = min(_FITTED, max(_VALUES // (settings.height * settings.width), 1), len(own.train))
    chosen = own.train[np.linspace(0, len(own.train) - 1, most).astype(int)]
    import jax

    run = jax.jit(spectrogram.function(spectrogram.of_data(settings)))
    found = np.concatenate(
        [np.asarray(run(dataset.images[chosen[i : i + _AT_ONCE]])) for i in range(0, most, _AT_ONCE)]
    )
    if float(found.max()) <= math.log10(spectrogram.FLOOR) + 1e-3:
        raise UserError(f"the {len(own.train)} normal training windows of {dataset.name} are silent: nothing to learn")
    first, middle, third = np.quantile(found, (0.25, 0.5, 0.75), axis=(0, 2))
    reach = SPREADS * np.maximum((third - first) / 1.349, LEAST)
    low, high = (middle - reach).astype(np.float32), (middle + reach).astype(np.float32)
    return tuple(low.tolist()), tuple(high.tolist())
