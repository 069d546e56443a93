"""Problems of data sets, each reported as a finding with a sentence and advice.

The functions take the result of one pass over the items (`Looked`) and append their findings to the list `found`.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from ganomaly_jax.core.config import Config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import lazy
from ganomaly_jax.data.audio import layout
from ganomaly_jax.data.datasets import Dataset
from ganomaly_jax.data.splits import Split
from ganomaly_jax.evaluation import acceptance, two_sample
from ganomaly_jax.scoring.scorer import Scorer

Headers = dict[str, tuple[int, int, str]]
"""(height, width, Pillow mode) of each image file, by its path."""
UNUSABLE, WARNING, NOTE = "unusable", "warning", "note"
WEIGHTS = (UNUSABLE, WARNING, NOTE)
# Figures of a class with fewer items than this mean little; training needs at least so many normal items.
_FEW, _FEW_NORMAL = 10, 100
# Change of the aspect ratio that distorts an image, and the aspect ratio at which hardly any of the short side is left.
_STRETCHED, _LONG = 2.0, 4.0
# The share of samples at full scale above which a recording is clipped, and the peak below which it is silent.
_CLIPPED, _SILENT = 1e-3, 1e-4
# Values that span less than this share of their dtype's range use too little of it.
_NARROW = 1 / 4
# Items that are named for each finding on the terminal.
EXAMPLES = 3


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is wrong or worth knowing, and what to do about it."""

    weight: str
    """`unusable`: these items, or all of them, cannot be used; `warning`: usable, but probably not intended; `note`."""
    code: str
    """A fixed name of the kind of finding, for programs."""
    what: str
    """A sentence on what was found."""
    do: str
    """A sentence on what to do about it."""
    items: tuple[str, ...] = ()
    """Paths of the items concerned, or `path: reason`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Looked:
    """The result of one pass over the items, one entry per item."""

    hashes: list[bytes]
    """`datasets.image_hash` of each item."""
    low: np.ndarray
    """Smallest value of each item, float [N]."""
    high: np.ndarray
    """Largest value of each item, float [N]."""
    finite: np.ndarray
    """Whether all values of each item are finite, bool [N]."""
    columns: tuple[np.ndarray, np.ndarray] | None
    """For rows, the smallest and largest value of each column in the items that training may use; None otherwise."""


def _named(dataset: Dataset, chosen: Iterable[int]) -> tuple[str, ...]:
    return tuple(dataset.paths[i] for i in chosen)


def unusable(dataset: Dataset, found: list[Finding]) -> None:
    """Adds files that cannot be read."""
    if dataset.problems:
        listed = tuple(f"{path}: {reason}" for path, reason in dataset.problems)
        what = f"{len(listed)} files cannot be read"
        found.append(Finding(UNUSABLE, "unreadable", what, "repair or remove them", listed))


def missing(dataset: Dataset, looked: Looked, found: list[Finding]) -> None:
    """Adds items with missing values; `data.missing` decides whether training uses them."""
    bad = np.flatnonzero(~looked.finite)
    if len(bad):
        what = f"{len(bad)} items have missing or infinite values: {'; '.join(dataset.notes)}"
        do = "--config.data.missing=last repeats the last value, mask ignores them; otherwise they are invalid"
        found.append(Finding(NOTE, "missing", what, do, _named(dataset, bad)))


def not_finite(dataset: Dataset, looked: Looked, found: list[Finding]) -> None:
    """Adds items with values that are not finite, which training refuses."""
    bad = np.flatnonzero(~looked.finite)
    if len(bad):
        what = f"{len(bad)} items have NaN or infinite values"
        do = "repair or remove them: training refuses them"
        found.append(Finding(UNUSABLE, "not_finite", what, do, _named(dataset, bad)))


def classes(dataset: Dataset, normal: frozenset[str] | None, found: list[Finding]) -> None:
    """Adds classes with few items, and a small number of normal items."""
    counts = np.bincount(dataset.labels, minlength=len(dataset.classes))
    few = [f"{name} ({count})" for name, count in zip(dataset.classes, counts.tolist(), strict=True) if count < _FEW]
    if few:
        what = f"classes with fewer than {_FEW} items: {', '.join(few)}"
        found.append(Finding(WARNING, "small_class", what, "add items, or do not rely on figures of these classes"))
    total = sum(int(counts[i]) for i, name in enumerate(dataset.classes) if normal is not None and name in normal)
    if normal is not None and _FEW <= total < _FEW_NORMAL:
        what = f"only {total} normal items"
        found.append(Finding(WARNING, "few_normal", what, "add more: training needs some hundreds"))


def parts(dataset: Dataset, normal: frozenset[str] | None, found: list[Finding]) -> None:
    """Adds items in the wrong part and parts that lack a class, if the source has parts."""
    if dataset.parts is None or normal is None:
        return
    is_normal = np.array([dataset.classes[label] in normal for label in dataset.labels])
    moved = np.flatnonzero(~is_normal & (dataset.parts == 0))
    if len(moved):
        what = f"{len(moved)} anomalous items are in the training part"
        do = "they are tested on, never trained on; move them to the test part if that is intended"
        found.append(Finding(WARNING, "anomalous_in_training", what, do, _named(dataset, moved)))
    test = dataset.parts == 1
    if test.any() and not (is_normal & test).any():
        what = "the test part has no normal items: neither AUROC nor false alarms can be measured"
        found.append(Finding(WARNING, "no_normal_in_test", what, "move some normal items from training to test"))
    if test.any() and (is_normal & test).sum() == test.sum():
        what = "the test part has no anomalous items: AUROC cannot be measured"
        found.append(Finding(NOTE, "no_anomalous", what, "add labelled anomalies if there are any"))
    if (is_normal & test).sum() > (is_normal & ~test).sum() > 0:
        what = f"more normal items in the test part ({(is_normal & test).sum()}) than in training"
        do = "move normal items to the training part unless this is intended"
        found.append(Finding(WARNING, "normal_in_test", what, do))


def copies(
    dataset: Dataset,
    looked: Looked,
    same: str,
    normal: frozenset[str] | None,
    split: Split | None,
    found: list[Finding],
) -> None:
    """Adds items that are copies of others, are in two parts, or have contradictory labels.

    Args:
      dataset: the data.
      looked: the result of a pass over them.
      same: words for what copies have in common, from the modality.
      normal: names of the normal classes, if known.
      split: the split of a training, if there is one.
      found: the findings are appended to it.
    """
    groups: dict[bytes, list[int]] = collections.defaultdict(list)
    for i, digest in enumerate(looked.hashes):
        groups[digest].append(i)
    twice = [group for group in groups.values() if len(group) > 1]
    if not twice:
        return
    extra = sum(len(group) - 1 for group in twice)
    what = f"{extra} items are copies of others, {same}"
    do = "remove the copies: they count double, and the model may be tested on one after training on the other"
    found.append(Finding(WARNING, "duplicates", what, do, _named(dataset, [i for group in twice for i in group])))
    use = np.full(len(looked.hashes), -1)
    if split is not None:
        use[split.train], use[split.calibration], use[split.test] = 0, 0, 1
    elif dataset.parts is not None:
        use = dataset.parts.astype(int)
    both = [i for group in twice if {0, 1} <= set(use[group].tolist()) for i in group if use[i] == 1]
    if both:
        what = f"{len(both)} test items are in the training part as well: figures would be too good"
        found.append(Finding(WARNING, "overlap", what, "remove them from one of the two", _named(dataset, both)))
    if normal is not None:
        kinds = [{dataset.classes[dataset.labels[i]] in normal for i in group} for group in twice]
        mixed = [i for group, kind in zip(twice, kinds, strict=True) if len(kind) > 1 for i in group]
        if mixed:
            what = f"{len(mixed)} items are the same and labelled both normal and anomalous"
            found.append(Finding(WARNING, "contradiction", what, "correct the labels", _named(dataset, mixed)))


def constant(dataset: Dataset, looked: Looked, found: list[Finding]) -> None:
    """Adds images whose pixels all have the same value."""
    flat = np.flatnonzero(looked.finite & (looked.low == looked.high))
    if len(flat):
        what = f"{len(flat)} images have one value throughout"
        found.append(
            Finding(WARNING, "constant", what, "check them: covered lens, failed export?", _named(dataset, flat))
        )


def constant_columns(dataset: Dataset, looked: Looked, found: list[Finding]) -> None:
    """Adds columns that never change in the items that training may use."""
    if looked.columns is None:
        return
    still = tuple(name for name, low, high in zip(dataset.feature_names, *looked.columns, strict=True) if low == high)
    if still:
        what = f"{len(still)} columns never change in the training items"
        do = "leave them out: nothing can be learned from them, and any change of them is anomalous"
        found.append(Finding(WARNING, "constant_column", what, do, still))


def narrow_range(dataset: Dataset, looked: Looked, settings: Config, found: list[Finding]) -> None:
    """Adds integer images that use a small part of their dtype's range, unless `data.low` and `data.high` are set."""
    kind = dataset.images.dtype.kind
    is_range_set = settings.data.low < settings.data.high
    if not looked.finite.any() or is_range_set:
        return
    low, high = float(looked.low[looked.finite].min()), float(looked.high[looked.finite].max())
    if kind == "u" and dataset.images.dtype == np.uint16 and high <= 255:
        what = f"16-bit images that use 8 bits: no value is above {high:g} of 65535, all of them look black"
        found.append(Finding(WARNING, "narrow_range", what, "--config.data.low=0 --config.data.high=255"))
    elif kind == "u" and 0 < high - low < _NARROW * np.iinfo(dataset.images.dtype).max:
        what = f"the values span {low:g} to {high:g}, a small part of {dataset.images.dtype}"
        # Up to the next power of two: images that were resized do not show their true extremes.
        begin, end = (low if low > high - low else 0), 2 ** math.ceil(math.log2(high + 1)) - 1
        do = f"--config.data.low={begin:g} --config.data.high={end} scales them, if later data stay within that range"
        found.append(Finding(WARNING, "narrow_range", what, do))


def reading(dataset: Dataset, found: list[Finding]) -> None:
    """Adds notes on how the source was read and on unused parts of it."""
    found += [Finding(NOTE, dataset.modality, note, "check that this is intended") for note in dataset.notes]


def recordings(dataset: Dataset, found: list[Finding]) -> None:
    """Adds recordings that are clipped or silent."""
    clipped = [recording for recording in layout.of(dataset).recordings if recording.clipped > _CLIPPED]
    if clipped:
        what = f"{len(clipped)} recordings are clipped: more than {_CLIPPED:.1%} of their samples are at full scale"
        named = tuple(f"{recording.name}: {recording.clipped:.1%}" for recording in clipped)
        do = "record them again with less gain: clipping distorts the sound"
        found.append(Finding(WARNING, "clipped", what, do, named))
    silent = [recording for recording in layout.of(dataset).recordings if recording.peak < _SILENT]
    if silent:
        what = f"{len(silent)} recordings are silent: no sample is above -80 dB of full scale"
        named = tuple(recording.name for recording in silent)
        found.append(Finding(WARNING, "silent", what, "check them: microphone off, wrong channel?", named))


def shapes(dataset: Dataset, headers: Headers, settings: Config, found: list[Finding]) -> None:
    """Adds image files that resizing distorts, and files of several kinds."""
    if not headers:
        return
    height, width = dataset.images.shape[1:3]
    long = [path for path, (h, w, _) in headers.items() if max(h, w) >= _LONG * max(min(h, w), 1)]
    if long:
        what = f"{len(long)} images have sides that differ by a factor of {_LONG:g} or more"
        do = f"cut them into parts: at {height} x {width} little is left of the short side"
        found.append(Finding(WARNING, "aspect", what, do, tuple(long)))
    ratios = {path: h * width / (w * height) for path, (h, w, _) in headers.items() if min(h, w) and path not in long}
    other = [path for path, ratio in ratios.items() if not 1 / _STRETCHED < ratio < _STRETCHED]
    if other and settings.data.fit == "stretch":
        what = f"{len(other)} images change their aspect ratio by a factor of {_STRETCHED:g} or more when resized"
        do = "--config.data.fit=letterbox keeps it, or choose data.height and data.width to match"
        found.append(Finding(WARNING, "stretched", what, do, tuple(other)))
    modes = collections.Counter(sort_of(mode) for _, _, mode in headers.values())
    if len(modes) > 1:
        listed = ", ".join(f"{count} {name}" for name, count in modes.most_common())
        do = f"convert them to one kind unless this is intended: all become {dataset.images.shape[3]} channels of "
        found.append(Finding(WARNING, "mixed", f"images of several kinds: {listed}", do + str(dataset.images.dtype)))


def sort_of(mode: str) -> str:
    """Returns words for a Pillow mode, such as "8-bit grey"."""
    if mode.startswith("I") or mode == "F":
        return "16-bit grey" if mode.startswith("I") else "floating-point grey"
    return "8-bit grey" if mode in ("L", "LA", "La", "1") else "8-bit colour"


def enough(split: Split, settings: Config, found: list[Finding]) -> None:
    """Adds a calibration part that is too small for the requested false-positive rate, or a batch that is too large."""
    rate, n = settings.evaluate.false_positive_rate, len(split.calibration)
    if not n:
        found.append(
            Finding(WARNING, "no_calibration", "no normal items are set aside for the threshold",
                    "--config.data.calibration=0.1")
        )  # fmt: skip
    elif settings.evaluate.threshold_by == "rate" and 1 / (n + 1) > rate:
        needed = math.ceil(1 / rate - 1e-9) - 1
        whole = math.ceil(needed / settings.data.calibration)
        what = (
            f"{n} calibration items can guarantee a false-positive rate of {1 / (n + 1):.2%} at best, {rate:.2%} is "
            "requested"
        )
        do = (
            f"{needed} would do, that is {whole} normal items at data.calibration={settings.data.calibration:g}; or "
            f"use --config.evaluate.false_positive_rate={math.ceil(1e3 / (n + 1)) / 1e3:g}"
        )
        found.append(Finding(WARNING, "few_for_rate", what, do))
    if len(split.train) < settings.train.batch_size:
        what = f"a batch of {settings.train.batch_size} is larger than the training part of {len(split.train)} items"
        found.append(Finding(WARNING, "batch", what, f"--config.train.batch_size={max(len(split.train) // 4, 2)}"))


def beyond_range(scorer: Scorer, dataset: Dataset, looked: Looked, found: list[Finding]) -> None:
    """Adds items with values outside the range that a detector scales from."""
    outside = np.flatnonzero(looked.finite & ((looked.low < scorer.low) | (looked.high > scorer.high)))
    if len(outside):
        what = f"{len(outside)} items have values outside the detector's range {scorer.low:g} to {scorer.high:g}"
        do = "check whether the exposure or the unit has changed; if it has for good, train a new detector"
        found.append(Finding(WARNING, "range", what, do, _named(dataset, outside)))


def other_type(scorer: Scorer, dataset: Dataset, found: list[Finding]) -> bool:
    """Adds a dtype other than the one that a detector was trained on, and returns whether it is."""
    if str(dataset.images.dtype) == scorer.dtype:
        return False
    what = f"these are {dataset.images.dtype}, the detector was trained on {scorer.dtype}"
    found.append(Finding(WARNING, "type", what, f"convert them as the training {scorer.words.items} were"))
    return True


def other_channels(scorer: Scorer, headers: Headers, found: list[Finding]) -> None:
    """Adds image files that are grey where a detector was trained on colour, or the reverse."""
    colour = [path for path, (_, _, mode) in headers.items() if "colour" in sort_of(mode)]
    channels = scorer.input_shape[-1]
    if headers and channels in (1, 3):
        other = colour if channels == 1 else [path for path in headers if path not in set(colour)]
        if other:
            kind = "colour" if channels == 1 else "grey"
            what = f"{len(other)} images are {kind}, the detector takes {channels} channel{'s' if channels > 1 else ''}"
            found.append(
                Finding(WARNING, "channels", what, "record them as the training images were recorded", tuple(other))
            )


def scores(
    scorer: Scorer, dataset: Dataset, looked: Looked, normal: frozenset[str], source: str, found: list[Finding]
) -> None:
    """Adds how a detector scores the normal items, compared with those that it was calibrated on.

    Args:
      scorer: the detector.
      dataset: the data.
      looked: the result of a pass over them; items that are not finite are left out.
      normal: names of the normal classes.
      source: the source of the data as the user wrote it, for the advice.
      found: the finding is appended to it.
    """
    is_normal = np.array([dataset.classes[label] in normal for label in dataset.labels])
    chosen = np.flatnonzero(is_normal & looked.finite)
    if not len(chosen):
        return
    try:
        scores = scorer(lazy.select(dataset.images, chosen))
    except UserError as error:
        found.append(Finding(UNUSABLE, "not_scored", f"the detector cannot score them: {error}", "convert them"))
        return
    before = np.asarray(scorer.variables["calibration"])
    distance, p_value = two_sample.kolmogorov_smirnov(before, scores)
    flagged = int((scores > scorer.threshold).sum())
    numbers = (
        f"{flagged} of {len(scores)} normal items are flagged ({flagged / len(scores):.1%}, expected "
        f"{scorer.calibration.rate:.1%}); median score {np.median(scores):.4g}, {np.median(before):.4g} for the "
        f"{len(before)} calibration items; Kolmogorov-Smirnov distance {distance:.2f}, p value {p_value:.2g}"
    )
    if p_value >= acceptance.SHIFTED:
        what = f"the scores are distributed like those of the calibration items: {numbers}"
        found.append(Finding(NOTE, "scores", what, "nothing"))
        return
    do = (
        f"if these are normal now: `ganomaly update --workdir W --data {source} --out W2` trains further and says "
        "whether a new threshold (`ganomaly recalibrate`) would be enough"
    )
    what = f"the scores are not distributed like those of the calibration items: {numbers}"
    found.append(Finding(WARNING, "shifted", what, do))
