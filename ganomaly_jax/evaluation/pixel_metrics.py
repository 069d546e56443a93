"""Metrics of localisation by residual maps, given masks of the defects: pixel AUROC and AUPRO (NumPy, on the host)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.images import decode, preprocess
from ganomaly_jax.evaluation import metrics
from ganomaly_jax.scoring import attribution
from ganomaly_jax.scoring.scorer import Scorer

# AUPRO integrates up to this false-positive rate, as in the paper.
MOST = 0.3
_POINTS = 4096


def mask_file(path: str) -> Path | None:
    """Returns the mask file of an image in the layout of MVTec AD; None if there is none.

    The mask of test/DEFECT/NAME.png is ground_truth/DEFECT/NAME_mask.png or ground_truth/DEFECT/NAME.png.
    """
    file = Path(path)
    if len(file.parts) < 3:
        return None
    folder = file.parents[2] / "ground_truth" / file.parent.name
    for stem in (f"{file.stem}_mask", file.stem):
        for ending in (".png", file.suffix):
            if (folder / f"{stem}{ending}").is_file():
                return folder / f"{stem}{ending}"
    return None


def figures(scorer: Scorer, raw: Any, paths: Sequence[str], labels: np.ndarray) -> dict[str, Any]:
    """Computes the pixel metrics of a test set, for metrics.json.

    Args:
      scorer: a detector of images.
      raw: [n, H, W, C] raw images of the test set, in memory or read on demand.
      paths: [n] their files.
      labels: [n], 0 normal and 1 anomalous. Anomalous images without a mask are left out.

    Returns:
      `pixel_auroc`, `aupro_30` and `n_masks`; empty if no anomalous image has a mask.

    Raises:
      UserError: a mask cannot be read.
    """
    files = {i: file for i in np.flatnonzero(labels).tolist() if (file := mask_file(paths[i]))}
    if not files:
        return {}
    height, width, _ = scorer.input_shape
    masks = {i: read_mask(file, height, width, scorer.config.data.fit) for i, file in files.items()}
    chosen = np.array(sorted([*np.flatnonzero(labels == 0).tolist(), *files]))
    size = scorer.block
    values = np.concatenate(
        [attribution.residual_maps(scorer, raw[chosen[i : i + size]]).values for i in range(0, len(chosen), size)]
    )
    truth = np.stack([masks.get(i, np.zeros((height, width), bool)) for i in chosen.tolist()])
    valid = np.isfinite(values).all((1, 2))
    values, truth = values[valid], truth[valid]
    return {"pixel_auroc": pixel_auroc(truth, values), "aupro_30": aupro(truth, values), "n_masks": len(files)}


def read_mask(file: Path, height: int, width: int, fit: str) -> np.ndarray:
    """Reads a mask and resizes it as its image was.

    A pixel is marked if at least half of its area is. A defect too small for that marks the pixels that it covers most.

    Args:
      file: the mask; pixels above 0 are marked.
      height: the height of the network's input.
      width: the width of the network's input.
      fit: how images are fitted to that size, as in `data.fit`.

    Returns:
      [height, width] bool.

    Raises:
      UserError: the mask cannot be read.
    """
    try:
        pixels, _ = decode.read_image(file)
    except UserError as error:
        raise UserError(f"the mask {decode.shown(file)}: {error}") from None
    marked = np.where((pixels > 0).any(-1, keepdims=True), np.uint8(255), np.uint8(0))
    share = preprocess.fit_image(marked, height, width, 1, fit)[..., 0]
    return share >= min(128, max(int(share.max()), 1))


def pixel_auroc(truth: np.ndarray, values: np.ndarray) -> float | None:
    """Calculates the AUROC of pixels; None if a class has no pixels.

    Args:
      truth: [n, H, W] bool, True for pixels of defects.
      values: [n, H, W] float, higher is more anomalous.
    """
    value = float(metrics.auroc(truth.ravel(), values.ravel())) if truth.size else math.nan
    return None if math.isnan(value) else value


def aupro(truth: np.ndarray, values: np.ndarray, most: float = MOST) -> float | None:
    """Calculates the area under the per-region-overlap curve up to a false-positive rate, divided by that rate.

    The curve shows, for each threshold, the flagged share of each connected region (by sides and corners) of the masks,
    averaged over regions so that small ones count as much as large ones, against the flagged share of normal pixels.
    Chance is `most` / 2.

    Args:
      truth: [n, H, W] bool, True for pixels of defects.
      values: [n, H, W] float, higher is more anomalous.
      most: the false-positive rate up to which the area is taken, above 0 up to 1.

    Returns:
      A number in 0..1; None if there is no region or no normal pixel.

    References:
      Bergmann et al. 2021, "The MVTec Anomaly Detection Dataset", section 4.3.
    """
    from scipy import ndimage

    normal = np.sort(values[~truth])
    regions = []
    for mask, values_there in zip(truth, values, strict=True):
        marked, count = ndimage.label(mask, np.ones((3, 3), int))
        regions += [np.sort(values_there[marked == number]) for number in range(1, count + 1)]
    if not (len(normal) and regions):
        return None
    # Descending thresholds: all that occur, or a number of them spread evenly over the false-positive rates that count.
    thresholds = np.unique(values)[::-1] if values.size <= _POINTS else _spread(normal, regions, most)

    def share(ordered: np.ndarray) -> np.ndarray:
        return 1 - np.searchsorted(ordered, thresholds, "left") / len(ordered)

    rate = np.append(0.0, share(normal))
    overlap = np.append(0.0, np.mean([share(region) for region in regions], axis=0))
    inside = rate <= most
    area = np.trapezoid(np.append(overlap[inside], np.interp(most, rate, overlap)), np.append(rate[inside], most))
    return float(area / most)


def _spread(normal: np.ndarray, regions: Sequence[np.ndarray], most: float) -> np.ndarray:
    """Returns descending thresholds: one above all normal pixels, their quantiles past the rate `most`, the least."""
    at = len(normal) - 1 - np.linspace(0, min(most * 1.01, 1.0) * (len(normal) - 1), _POINTS).astype(int)
    highest = np.nextafter(normal[-1], np.inf, dtype=normal.dtype)
    least = min(normal[0], *(region[0] for region in regions))
    return np.unique(np.concatenate([normal[at], [highest, least]]))[::-1]
