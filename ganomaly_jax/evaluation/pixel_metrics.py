"""How well maps find the place of a defect, where masks say where it is: pixel AUROC and AUPRO (NumPy, on the host)."""

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

# The area is taken up to this false-positive rate, as in the benchmark's papers.
MOST = 0.3
_POINTS = 4096


def mask_file(path: str) -> Path | None:
    """Returns the mask of test/DEFECT/NAME.png in the layout of MVTec AD, None where it has none.

    It is ground_truth/DEFECT/NAME_mask.png, or NAME.png.
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
    """Returns `pixel_auroc`, `aupro_30` and `n_masks` for metrics.json; empty where no anomalous image has a mask.

    Args:
      raw: [n, H, W, C] images of the test set, in memory or read on demand.
      paths: [n] where they come from.
      labels: [n], 0 normal and 1 anomalous. Of anomalous images those with a mask count.

    Raises:
      UserError: a mask cannot be read.
    """
    found = {i: file for i in np.flatnonzero(labels).tolist() if (file := mask_file(paths[i]))}
    if not found:
        return {}
    height, width, _ = scorer.input_shape
    masks = {i: read_mask(file, height, width, scorer.config.data.fit) for i, file in found.items()}
    chosen = np.array(sorted([*np.flatnonzero(labels == 0).tolist(), *found]))
    size = scorer.block
    values = np.concatenate(
        [attribution.residual_maps(scorer, raw[chosen[i : i + size]]).values for i in range(0, len(chosen), size)]
    )
    truth = np.stack([masks.get(i, np.zeros((height, width), bool)) for i in chosen.tolist()])
    valid = np.isfinite(values).all((1, 2))
    values, truth = values[valid], truth[valid]
    return {"pixel_auroc": pixel_auroc(truth, values), "aupro_30": aupro(truth, values), "n_masks": len(found)}


def read_mask(file: Path, height: int, width: int, fit: str) -> np.ndarray:
    """Returns a mask [height, width] bool, brought to size as its image was.

    A pixel is marked where at least half of what lies under it is. A defect so small that no pixel is half full marks
    the pixel that holds most of it.

    Raises:
      UserError: it cannot be read.
    """
    try:
        pixels, _ = decode.read_image(file)
    except UserError as error:
        raise UserError(f"the mask {decode.shown(file)}: {error}") from None
    marked = np.where((pixels > 0).any(-1, keepdims=True), np.uint8(255), np.uint8(0))
    share = preprocess.fit_image(marked, height, width, 1, fit)[..., 0]
    return share >= min(128, max(int(share.max()), 1))


def pixel_auroc(truth: np.ndarray, values: np.ndarray) -> float | None:
    """Returns the AUROC of pixels, None where there are none of a class.

    Args:
      truth: [n, H, W] bool, where defects are.
      values: [n, H, W] float, higher is more anomalous.
    """
    found = float(metrics.auroc(truth.ravel(), values.ravel())) if truth.size else math.nan
    return None if math.isnan(found) else found


def aupro(truth: np.ndarray, values: np.ndarray, most: float = MOST) -> float | None:
    """Calculates the area under the per-region overlap, up to a false-positive rate of `most`, as a share of `most`.

    For each threshold the share of every connected region (by sides and corners) of the masks that the map finds,
    averaged over regions so that small ones count as much as large ones, over the share of normal pixels flagged.
    Chance has `most` / 2.

    Args:
      truth: [n, H, W] bool.
      values: [n, H, W], higher is more anomalous.
      most: above 0 up to 1.

    Returns:
      0..1; None where there is no region or no normal pixel.

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
    # Thresholds from the highest down: all that occur, or as many as are evenly spread over the rates that count.
    thresholds = np.unique(values)[::-1] if values.size <= _POINTS else _spread(normal, regions, most)

    def share(ordered: np.ndarray) -> np.ndarray:
        return 1 - np.searchsorted(ordered, thresholds, "left") / len(ordered)

    rate = np.append(0.0, share(normal))
    overlap = np.append(0.0, np.mean([share(region) for region in regions], axis=0))
    inside = rate <= most
    area = np.trapezoid(np.append(overlap[inside], np.interp(most, rate, overlap)), np.append(rate[inside], most))
    return float(area / most)


def _spread(normal: np.ndarray, regions: Sequence[np.ndarray], most: float) -> np.ndarray:
    """Returns falling thresholds: above all normal pixels, quantiles of them to beyond the rate `most`, the least."""
    at = len(normal) - 1 - np.linspace(0, min(most * 1.01, 1.0) * (len(normal) - 1), _POINTS).astype(int)
    highest = np.nextafter(normal[-1], np.inf, dtype=normal.dtype)
    least = min(normal[0], *(region[0] for region in regions))
    return np.unique(np.concatenate([normal[at], [highest, least]]))[::-1]
