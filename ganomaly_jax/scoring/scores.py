"""The scores that `evaluate.score` names, alone or combined. JAX, pure once fitted.

`squared` and `l1` are norms of the detector's `difference` (for GANomaly of its two latents, for an autoencoder of
input and reconstruction) and need no fit. All other names, and names joined by `+`, are fitted after the training: to
the latents, embeddings, residuals or patches of training items, and to the distribution of each part on the calibration
items. The score is then the mean of the standardised logarithms of its parts; a repeated name counts repeatedly.

Patches, components and features (`core.features`) are computed from the image itself, all others from the outputs of
the detector.

`residual_mahalanobis` is (r' S^-1 r)^1/2 of the residual r = x - x_hat with its covariance S on training items. It
corresponds to Q of principal components, with each direction measured in units of the residuals of normal items. The
residual of an image is averaged over squares until it has at most `config.RESIDUAL` values (32x32 for 64x64).
`residual_local` divides each squared residual by its mean over the training items nearest in z. It suits machines and
processes with several normal operating states, which are reconstructed with different accuracy.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ganomaly_jax.core import features
from ganomaly_jax.core.config import SCORES, residual_down
from ganomaly_jax.model import extractors, losses
from ganomaly_jax.model.protocol import Detector
from ganomaly_jax.scoring import feature_distance, latent_statistics, patch_distance

PLAIN = tuple(losses.DISTANCES)
_LEAST = 1e-9
_SCALES = (2, 4, 8)

Outputs = dict[str, Array]
Fitted = dict[str, Any]


def _residual(outputs: Outputs) -> Array:
    """Returns x - x_hat of each item, flat [B, D]; large images are averaged down to fit a covariance."""
    residual = outputs["x"] - outputs["x_hat"]
    residual = patch_distance.averaged(residual, residual_down(residual.shape[1:]))
    return residual.reshape(-1, math.prod(residual.shape[1:]))


def _multiscale(outputs: Outputs, _: Fitted) -> Array:
    residual = outputs["x"] - outputs["x_hat"]
    errors: list[Array] = []
    for scale in _SCALES:
        if errors and scale > min(residual.shape[1:-1], default=scale):  # a short window
            break
        size = (1, *[scale] * (residual.ndim - 2), 1)  # squares of an image, spans of a window's rows
        pooled = jax.lax.reduce_window(residual, 0.0, jax.lax.add, size, size, "VALID") / math.prod(size)
        errors.append(losses.mean_absolute(pooled))
    return jnp.mean(jnp.stack(errors), axis=0)


def _of_difference(distance: Callable[[Array], Array]) -> Callable[[Outputs, Fitted], Array]:
    return lambda outputs, _: distance(outputs["difference"])


def _statistic(function: Callable[[Fitted, Array], Array], output: str) -> Callable[[Outputs, Fitted], Array]:
    return lambda outputs, fitted: function(fitted[output], outputs[output])


PARTS: dict[str, Callable[[Outputs, Fitted], Array]] = {
    **{name: _of_difference(distance) for name, distance in losses.DISTANCES.items()},
    "pixel": lambda outputs, _: losses.mean_absolute(outputs["x"] - outputs["x_hat"]),
    "multiscale": _multiscale,
    "residual_mahalanobis": lambda outputs, fitted: latent_statistics.mahalanobis(
        fitted["residual"], _residual(outputs)
    ),
    "residual_local": lambda outputs, fitted: latent_statistics.local(
        fitted["z"], fitted["residual"], outputs["z"], _residual(outputs)
    ),
}


def _patches(size: str, share: float) -> Callable[[Outputs, Fitted], Array]:
    return lambda outputs, fitted: patch_distance.distance(fitted[size], outputs["image"], share)


_FITTED = {"latent": "z", "embedding": "embedding"}
_USES = (*_FITTED.items(), ("residual", "residual"), ("residual_local", "z"))
for _name in SCORES:
    _word, _, _kind = _name.partition("_")
    if _word == "patches":
        PARTS[_name] = _patches(_kind, patch_distance.SHARES[_kind])
    if _word in _FITTED:
        PARTS[_name] = _statistic(getattr(latent_statistics, _kind), _FITTED[_word])
PARTS["components"] = lambda outputs, fitted: patch_distance.components(fitted["components"], outputs["image"])


def is_plain(names: tuple[str, ...]) -> bool:
    """Returns True if the score is one of `PLAIN` alone, so that nothing has to be fitted."""
    return len(names) == 1 and names[0] in PLAIN


def parts(detector: Detector, names: tuple[str, ...], variables: dict[str, Any], x: Array) -> dict[str, Array]:
    """Computes each part of a score, not standardised. Pure.

    Args:
      detector: the detector of the network's inputs.
      names: the names of the parts, as in `evaluate.score`.
      variables: the variables of the detector under `detector`, and for fitted parts the result of `fit` under
        `statistics`.
      x: [B, ...] float32 in [-1, 1].

    Returns:
      [B] float32 for each name.
    """
    fitted = variables.get("statistics", {})
    outputs = {"x": x} | detector.outputs(variables["detector"], x) | {"image": x}
    vectors = {name: feature_distance.maps(name, fitted[name]["network"], x) for name in features.of_scores(names)}
    values = {}
    for name in dict.fromkeys(names):
        extractor, kind = features.of_score(name)
        if extractor:
            values[name] = feature_distance.score(kind, fitted[extractor], *vectors[extractor])
        else:
            values[name] = PARTS[name](outputs, fitted)
    return values


def score(detector: Detector, names: tuple[str, ...], variables: dict[str, Any], x: Array) -> Array:
    """Computes the score. Pure.

    Args:
      detector: as in `parts`.
      names: as in `parts`.
      variables: as in `parts`.
      x: [B, ...] float32 in [-1, 1].

    Returns:
      [B] float32, higher is more anomalous.
    """
    values = parts(detector, names, variables, x)
    if is_plain(names):
        return values[names[0]].astype(jnp.float32)
    return combined(values, names, variables["statistics"]["scale"])


def combined(values: dict[str, Any], names: tuple[str, ...], scale: dict[str, Array]) -> Array:
    """Computes the mean [B] of the standardised logarithms of parts.

    Args:
      values: [B] for each part, as returned by `parts`.
      names: the names to average; a repeated one counts repeatedly.
      scale: location and scale [2] of each part, from the result of `fit`.
    """
    return jnp.mean(jnp.stack([_standardised(values[name], scale[name]) for name in names]), axis=0)


def _standardised(values: Array, scale: Array) -> Array:
    return (jnp.log(jnp.maximum(values, _LEAST)) - scale[0]) / scale[1]


def fit(
    detector: Detector,
    names: tuple[str, ...],
    variables: dict[str, Any],
    training: Iterable[np.ndarray],
    count: int,
    calibration: Iterable[np.ndarray],
    seed: int,
) -> Fitted:
    """Fits the statistics that `score` needs in addition to the weights.

    Args:
      detector: as in `parts`.
      names: as in `parts`.
      variables: the variables of the detector under `detector`.
      training: batches [B, ...] float32 in [-1, 1] of training items.
      count: the number of training items.
      calibration: batches [B, ...] float32 in [-1, 1] of normal items not used in training.
      seed: draws the training items and patches that are kept.

    Returns:
      float32 arrays by part, and under `scale` the location and scale [2] of each part; empty for a plain score.
    """
    if is_plain(names):
        return {}
    networks = {name: extractors.of(name).variables() for name in features.of_scores(names)}
    samples = _training_samples(detector, names, variables | networks, training, count, seed)
    fitted = _fitted(names, samples, seed)
    for name, network in networks.items():
        vectors, means = samples[name]
        fitted[name] = {"network": network} | feature_distance.fit(vectors, means, seed)
    fitted = jax.tree.map(jnp.asarray, fitted)
    with_statistics = {"detector": variables["detector"], "statistics": fitted}
    batches = [_parts(detector, tuple(dict.fromkeys(names)), with_statistics, x) for x in calibration]
    fitted["scale"] = {
        name: jnp.asarray(_location_and_scale(np.concatenate([np.asarray(batch[name]) for batch in batches])))
        for name in dict.fromkeys(names)
    }
    return fitted


def _training_samples(
    detector: Detector,
    names: tuple[str, ...],
    variables: dict[str, Any],
    training: Iterable[np.ndarray],
    count: int,
    seed: int,
) -> dict[str, Any]:
    """Returns what the parts are fitted to: outputs of the detector, patches by size, `exposed` images, and features.

    `variables` contains those of the detector, and those of each extractor under its name.
    """
    used = tuple(sorted({output for word, output in _USES if any(name.startswith(word) for name in names)}))
    cut = {size: share for size, share in patch_distance.SHARES.items() if f"patches_{size}" in names}
    random = np.random.default_rng(seed)
    collected: dict[str, list[Any]] = {}
    for x in training if used or cut or features.of_scores(names) or "components" in names else ():
        new = _outputs(detector, used, variables["detector"], x) if used else {}
        for size, share in cut.items():
            places = patch_distance.drawn(x.shape[1:], share, count, len(x), random)
            new[size] = np.concatenate(np.asarray(patch_distance.described(x, places, share)))
        if "components" in names:
            new["components"] = patch_distance.exposed(x)
        for extractor in features.of_scores(names):
            new[extractor] = feature_distance.drawn(extractor, variables[extractor], x, count, random)
        for name, values in new.items():
            collected.setdefault(name, []).append(jax.tree.map(np.asarray, values))
    return {name: jax.tree.map(lambda *leaves: np.concatenate(leaves), *values) for name, values in collected.items()}


def _fitted(names: tuple[str, ...], samples: dict[str, Any], seed: int) -> Fitted:
    fitted: Fitted = {
        output: latent_statistics.fit(samples[output], seed) for output in ("z", "embedding") if output in samples
    }
    if "residual_mahalanobis" in names:
        fitted["residual"] = latent_statistics.fit_residual(samples["residual"])
    if "residual_local" in names:
        fitted["residual"] = fitted.get("residual", {}) | latent_statistics.fit_squares(samples["residual"], seed)
    fitted |= {size: patch_distance.fit(samples[size], seed) for size in patch_distance.SHARES if size in samples}
    if "components" in names:
        fitted["components"] = patch_distance.fit_components(samples["components"])
    return fitted


def _location_and_scale(values: np.ndarray) -> np.ndarray:
    logs = np.log(np.maximum(values, _LEAST))
    return np.array([logs.mean(), max(float(logs.std()), 1e-6)], np.float32)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _outputs(detector: Detector, names: tuple[str, ...], variables: dict[str, Any], x: Array) -> Outputs:
    outputs = {"x": x} | detector.outputs(variables, x)
    return {name: _residual(outputs) if name == "residual" else outputs[name] for name in names}


_parts = functools.partial(jax.jit, static_argnums=(0, 1))(parts)
