"""Explaining the scores of windows of recordings: spectrograms, residual maps and contributions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.images import decode
from ganomaly_jax.report import explanation, figures, spectrogram_plots
from ganomaly_jax.scoring import attribution, calibration, residual_map
from ganomaly_jax.scoring.scorer import Scorer
from ganomaly_jax.scoring.sound import (
    NOT_FINITE,
    JudgedRecording,
    of_patches,
    scale_of,
    window_of,
)

# Contributions are in full colour at this share of the threshold.
_FULL = 0.02
_PICTURE = (13.0, 3.6)


def explain_window(scorer: Scorer, wave: np.ndarray, name: str, begin: float, out: Path) -> list[str]:
    """Explains the score of one window of a recording.

    Args:
      scorer: a detector of sound.
      wave: [T], the samples of the window.
      name: the name of the window.
      begin: the second of the recording at which the window begins.
      out: the path of the picture.

    Returns:
      Lines for the terminal.

    Raises:
      UserError: a sample is not finite, matplotlib is not installed, or the picture cannot be written.
    """
    judged = scorer.judge(wave[None])
    if judged.verdicts[0] == calibration.INVALID:
        raise UserError(f"{name}: {NOT_FINITE}, there is nothing to explain")
    score, p_value = float(judged.scores[0]), float(judged.p_values[0])
    seen = of_patches(scorer)
    patch = np.asarray(scorer.unit(jnp.asarray(wave[None])))
    found = attribution.residual_maps(seen, patch)
    added = attribution.integrated_gradients(seen, patch)
    boxes = residual_map.regions(found.values[0], scorer.map_threshold)
    scale = scale_of(scorer, begin)
    title = explanation.title_of(name, judged.verdicts[0], score, p_value, scorer.threshold)
    contributions = added.values[0].sum(-1)
    full = max(_FULL * abs(scorer.threshold), float(np.abs(contributions).max()) / 2, 1e-12)

    def draw(figure: Any) -> None:
        figure.suptitle(decode.shown(title), fontsize=11, parse_math=False)
        spectrogram_plots.explained(
            figure, found.x[0], found.x_hat[0], found.values[0], scorer.map_threshold, boxes, scale, contributions, full
        )

    figures.drawn(out, *_PICTURE, draw)
    lines = [
        title,
        f"{len(boxes)} region{'s' * (len(boxes) != 1)} above the map's threshold {scorer.map_threshold:.4g}"
        + ", in the recording:" * bool(boxes),
    ]
    for i, box in enumerate(boxes, 1):
        (first, last), (low, high) = (
            scale.seconds(box.left, box.left + box.width - 1),
            scale.band(box.top, box.top + box.height - 1),
        )
        lines.append(f"{i:3}  {first:.3f} to {last:.3f} s  {low:.0f} to {high:.0f} Hz  peak {box.peak:.4g}")
    difference = added.scores[0] - added.baseline_scores[0]
    lines.append(
        f"the score differs by {difference:+.4g} from {added.baseline_scores[0]:.4g}, that of its reconstruction; what "
        f"bands and frames add comes to {added.values[0].sum():+.4g}"
    )
    return lines


def write_maps(scorer: Scorer, folder: Path, found: Sequence[JudgedRecording], most: int) -> tuple[int, int]:
    """Draws the anomalous windows, the most anomalous first.

    Args:
      scorer: a detector of sound.
      folder: the folder for the pictures; those of an earlier call are removed first.
      found: the judged recordings.
      most: the largest number of pictures; 0: no limit.

    Returns:
      The numbers of drawn and of anomalous windows.

    Raises:
      UserError: a picture cannot be written.
    """
    each = [
        (score, one.path, start)
        for one in found
        for score, start, verdict in zip(
            one.judged.scores.tolist(), one.starts.tolist(), one.judged.verdicts, strict=True
        )
        if verdict == calibration.ANOMALOUS
    ]
    chosen = sorted(each, key=lambda item: -item[0])[: most or None]
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("[0-9][0-9][0-9][0-9]_*.png"):
        old.unlink(missing_ok=True)
    for i, (_, path, start) in enumerate(chosen, 1):
        wave, name, begin = window_of(scorer, f"{path}@{start:.6f}")
        stem = re.sub(r"[^\w.-]+", "_", Path(name).name)[-60:]
        explain_window(scorer, wave, name, begin, folder / f"{i:04}_{stem}.png")
    return len(chosen), len(each)
