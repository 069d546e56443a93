"""How a scorer is made of a trained detector, and calibrated on normal images."""

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

# Pixels of maps that their threshold is taken from.
_MAP_PIXELS = 2**25
TRAINED_ON = "that were trained on (no calibration part): expect more false alarms"
IN_TIME = "neighbours in time are alike, so that they count for fewer than they are"


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
    """Builds a scorer, calibrated on raw normal images [n, H, W, C].

    `pixels` are (dtype, low, high) of the training images.

    What statistics the score needs are those of `training` images, at most `statistics.BANK` of them. `trained_on`
    says that `normals` are of these, so that the threshold is no promise.
    """
    parts = config.score_parts(settings)
    own: dict[str, Any] = {"detector": variables}
    if not scores.is_plain(parts):
        learned, held = (detector.inputs(images) for images in (training, normals))
        seed, size = settings.seed, min(latent_statistics.BANK, len(learned))
        kept = np.sort(np.random.default_rng(seed).permutation(len(learned))[:size])
        chosen = lazy.select(learned, kept)
        fitted_on, standard = inference.blocks(detector, pixels, chosen), inference.blocks(detector, pixels, held)
        own["statistics"] = scores.fit(detector.network, parts, own, fitted_on, size, standard, seed)
    scorer = Scorer(
        detector,
        {"statistics": {}} | own | {"calibration": jnp.zeros((1,), jnp.float32)},
        settings,
        *pixels,
        calibration=Calibration(0.0, 1.0, "not calibrated"),
        residual_max=1.0,
        provenance=provenance,
        feature_names=feature_names,
    )
    return calibrated(scorer, normals, trained_on)


def calibrated(scorer: Scorer, normals: Images, trained_on: bool = False) -> Scorer:
    """Returns the scorer with threshold, p-values and colour scale of other raw normal images [n, H, W, C].

    The parts of its score stay as they are; `trained_on` as in `make`.
    """
    found_scores = scorer(normals)
    items = scorer.words.items
    found = calibration.by(found_scores, scorer.config.evaluate, items)
    if trained_on:
        found = dataclasses.replace(found, source=f"the scores of {len(normals)} {items} {TRAINED_ON}")
    if scorer.modality.in_time:
        found = dataclasses.replace(found, source=f"{found.source}; {IN_TIME}")
    residual_max, map_threshold = _scales(scorer, normals)
    return dataclasses.replace(
        scorer,
        variables=scorer.variables | {"calibration": jnp.asarray(np.sort(found_scores))},
        calibration=found,
        residual_max=residual_max,
        map_threshold=map_threshold,
    )


def _scales(scorer: Scorer, normals: Images) -> tuple[float, float]:
    """Returns `residual_max` and `map_threshold` of the first raw normals; one value for both without pixel maps."""
    if len(scorer.detector.network.shape) != 3:
        x, x_hat = scorer.reconstruct(normals[: inference.BUCKETS[-1]])
        return (float(max(np.quantile(np.abs(x - x_hat).mean(-1), 0.999), 1e-3)),) * 2
    shown = min(inference.BUCKETS[-1], max(_MAP_PIXELS // math.prod(scorer.input_shape[:2]), 1))
    seen = [
        scorer.explained(normals[i : min(i + scorer.block, shown)])
        for i in range(0, min(len(normals), shown), scorer.block)
    ]
    differences = np.concatenate([np.abs(x - x_hat).mean(-1) for x, x_hat, _ in seen])
    values = np.concatenate([values for *_, values in seen])
    return float(max(np.quantile(differences, 0.999), 1e-3)), residual_map.threshold(values)
