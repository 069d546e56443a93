"""Building a scorer from a trained detector, and calibrating it on normal items."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from ganomaly_jax.core import config
from ganomaly_jax.data import lazy
from ganomaly_jax.data.lazy import Images
from ganomaly_jax.scoring import calibration, inference, latent_statistics, residual_map, scores
from ganomaly_jax.scoring.adapters import Adapter
from ganomaly_jax.scoring.calibration import Calibration
from ganomaly_jax.scoring.scorer import Scorer

# At most this many pixels of residual maps set the threshold of the maps.
_MAP_PIXELS = 2**25
TRAINED_ON = "that were trained on (no calibration part): expect more false alarms"
IN_TIME = "neighbours in time are correlated, so the effective sample is smaller"


def make(
    detector: Adapter,
    variables: dict[str, Any],
    settings: config.Config,
    pixels: tuple[str, Any, Any],
    training: Images,
    normals: Images,
    trained_on: bool,
    provenance: dict[str, Any],
    feature_names: tuple[str, ...] = (),
) -> Scorer:
    """Builds a scorer from a trained detector, fits its statistics and calibrates it.

    Args:
      detector: the adapter of the trained detector.
      variables: the variables of the detector.
      settings: the resolved configuration.
      pixels: (dtype, low, high) of the training images.
      training: raw training items [n, ...]; a fitted score uses at most `latent_statistics.BANK` of their inputs.
      normals: raw normal items [n, ...] to calibrate on.
      trained_on: True if `normals` were trained on, so that the threshold promises no false-positive rate.
      provenance: where the detector comes from, stored with it.
      feature_names: the names of the last axis of the inputs, if it has any.

    Returns:
      The calibrated scorer.

    Raises:
      UserError: the calibration scores cannot set a threshold, see `calibration.by`.
    """
    parts = config.score_parts(settings)
    fitted: dict[str, Any] = {"detector": variables}
    if not scores.is_plain(parts):
        training_inputs, calibration_inputs = (detector.inputs(images) for images in (training, normals))
        seed, size = settings.seed, min(latent_statistics.BANK, len(training_inputs))
        kept = np.sort(np.random.default_rng(seed).permutation(len(training_inputs))[:size])
        training_blocks = inference.blocks(detector, pixels, lazy.select(training_inputs, kept))
        calibration_blocks = inference.blocks(detector, pixels, calibration_inputs)
        fitted["statistics"] = scores.fit(
            detector.network, parts, fitted, training_blocks, size, calibration_blocks, seed
        )
    scorer = Scorer(
        detector,
        {"statistics": {}} | fitted | {"calibration": jnp.zeros((1,), jnp.float32)},
        settings,
        *pixels,
        calibration=Calibration(0.0, 1.0, "not calibrated"),
        residual_max=1.0,
        provenance=provenance,
        feature_names=feature_names,
    )
    return calibrated(scorer, normals, trained_on)


def calibrated(scorer: Scorer, normals: Images, trained_on: bool = False) -> Scorer:
    """Returns the scorer with threshold, p-values and colour scale set by other normal items.

    The fitted statistics of its score stay as they are.

    Args:
      scorer: the scorer.
      normals: raw normal items [n, ...].
      trained_on: True if they were trained on, so that the threshold promises no false-positive rate.

    Raises:
      UserError: the scores cannot set a threshold, see `calibration.by`.
    """
    calibration_scores = scorer(normals)
    items = scorer.words.items
    new_calibration = calibration.by(calibration_scores, scorer.config.evaluate, items)
    if trained_on:
        source = f"the scores of {len(normals)} {items} {TRAINED_ON}"
        new_calibration = dataclasses.replace(new_calibration, source=source)
    if scorer.modality.in_time:
        new_calibration = dataclasses.replace(new_calibration, source=f"{new_calibration.source}; {IN_TIME}")
    residual_max, map_threshold = _scales(scorer, normals)
    return dataclasses.replace(
        scorer,
        variables=scorer.variables | {"calibration": jnp.asarray(np.sort(calibration_scores))},
        calibration=new_calibration,
        residual_max=residual_max,
        map_threshold=map_threshold,
    )


def _scales(scorer: Scorer, normals: Images) -> tuple[float, float]:
    """Returns `residual_max` and `map_threshold` from the first normal items; equal where there are no pixel maps."""
    if len(scorer.detector.network.shape) != 3:
        x, x_hat = scorer.reconstruct(normals[: inference.BUCKETS[-1]])
        return (float(max(np.quantile(np.abs(x - x_hat).mean(-1), 0.999), 1e-3)),) * 2
    shown = min(inference.BUCKETS[-1], max(_MAP_PIXELS // math.prod(scorer.input_shape[:2]), 1))
    blocks = [
        scorer.explained(normals[i : min(i + scorer.block, shown)])
        for i in range(0, min(len(normals), shown), scorer.block)
    ]
    differences = np.concatenate([np.abs(x - x_hat).mean(-1) for x, x_hat, _ in blocks])
    values = np.concatenate([values for *_, values in blocks])
    return float(max(np.quantile(differences, 0.999), 1e-3)), residual_map.threshold(values)
