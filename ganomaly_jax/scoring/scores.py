"""The scores that can be asked for, and sums of several: what `evaluate.score` names. Pure JAX once fitted.

`squared` and `l1` are the detector's own, the size of its `difference` (of GANomaly's two latents; of image and
reconstruction), and need no fit. Any other name, and names
joined by `+`, are fitted after the training: what latents and embeddings of training images look like, and how each
score lies on the calibration images. The score is then the mean of the parts' standardised logarithms. A name may be
repeated, and then counts so often.

Patches and components are of the image itself, whatever a detector sees of it; the rest is of what the detector sees.

`residual_mahalanobis` is (r' S^-1 r)^1/2 of the residual r = x - x_hat, S the covariance that it has on training items:
what Q is for principal components, but each direction in units of what a network leaves there of normal items. The
residual of an image is averaged over squares until it has at most `config.RESIDUAL` numbers (32x32 of 64x64).
`residual_local` divides each number's squared residual by its mean over the training items nearest in z: for machines
and processes of several normal states, each of which is reconstructed well or badly in its own way.
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

from ganomaly_jax.core.config import SCORES, residual_down
from ganomaly_jax.model import losses
from ganomaly_jax.model.protocol import Detector
from ganomaly_jax.scoring import latent_statistics, patch_distance

PLAIN = tuple(losses.DISTANCES)
_LEAST = 1e-9
_SCALES = (2, 4, 8)

Outputs = dict[str, Array]
Fitted = dict[str, Any]


def _residual(outputs: Outputs) -> Array:
    """Returns x - x_hat of each item, flat [B, D]; that of a large image averaged down to what has a covariance."""
    residual = outputs["x"] - outputs["x_hat"]
    residual = patch_distance.averaged(residual, residual_down(residual.shape[1:]))
    return residual.reshape(-1, math.prod(residual.shape[1:]))


def _multiscale(outputs: Outputs, _: Fitted) -> Array:
    residual = outputs["x"] - outputs["x_hat"]
    found: list[Array] = []
    for scale in _SCALES:
        if found and scale > min(residual.shape[1:-1], default=scale):  # a short window
            break
        size = (1, *[scale] * (residual.ndim - 2), 1)  # squares of an image, spans of a window's rows
        pooled = jax.lax.reduce_window(residual, 0.0, jax.lax.add, size, size, "VALID") / math.prod(size)
        found.append(losses.mean_absolute(pooled))
    return jnp.mean(jnp.stack(found), axis=0)


def _own(distance: Callable[[Array], Array]) -> Callable[[Outputs, Fitted], Array]:
    return lambda outputs, _: distance(outputs["difference"])


def _statistic(function: Callable[[Fitted, Array], Array], output: str) -> Callable[[Outputs, Fitted], Array]:
    return lambda outputs, fitted: function(fitted[output], outputs[output])


PARTS: dict[str, Callable[[Outputs, Fitted], Array]] = {
    **{name: _own(distance) for name, distance in losses.DISTANCES.items()},
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
    """Returns whether nothing has to be fitted for a score: one of `PLAIN` alone."""
    return len(names) == 1 and names[0] in PLAIN


def parts(detector: Detector, names: tuple[str, ...], variables: dict[str, Any], x: Array) -> dict[str, Array]:
    """Returns each part of a score, not standardised.

    Args:
      detector: what `variables["detector"]` are the variables of.
      names: of the parts, as `evaluate.score` has them.
      variables: a scorer's: `detector`, and `statistics` from `fit` where parts are fitted.
      x: [B, ...] float32 in [-1, 1].

    Returns:
      [B] float32 for each name.
    """
    outputs = {"x": x} | detector.outputs(variables["detector"], x) | {"image": x}
    return {name: PARTS[name](outputs, variables.get("statistics", {})) for name in dict.fromkeys(names)}


def score(detector: Detector, names: tuple[str, ...], variables: dict[str, Any], x: Array) -> Array:
    """Returns the score [B] float32, higher is more anomalous. Pure.

    Args:
      detector: as in `parts`.
      names: as in `parts`.
      variables: as in `parts`.
      x: [B, ...] float32 in [-1, 1].
    """
    found = parts(detector, names, variables, x)
    if is_plain(names):
        return found[names[0]].astype(jnp.float32)
    return combined(found, names, variables["statistics"]["scale"])


def combined(found: dict[str, Any], names: tuple[str, ...], scale: dict[str, Array]) -> Array:
    """Returns the mean [B] of the standardised logarithms of parts [B]; `scale` is what `fit` found of each."""
    return jnp.mean(jnp.stack([_standardised(found[name], scale[name]) for name in names]), axis=0)


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
    """Fits what `score` needs beside the weights.

    Args:
      detector: as in `parts`.
      names: as in `parts`.
      variables: of the detector, under `detector`.
      training: batches [B, ...] float32 in [-1, 1] of items that were trained on.
      count: how many items these are.
      calibration: batches of normal items that were not trained on.
      seed: draws what is kept of the training items.

    Returns:
      Arrays of float32 by part, and `scale`, the location and scale of each; empty for a plain score.
    """
    if is_plain(names):
        return {}
    fitted = jax.tree.map(jnp.asarray, _fitted(names, _seen(detector, names, variables, training, count, seed), seed))
    own = {"detector": variables["detector"], "statistics": fitted}
    each = [_parts(detector, tuple(dict.fromkeys(names)), own, x) for x in calibration]
    fitted["scale"] = {
        name: jnp.asarray(_location_and_scale(np.concatenate([np.asarray(one[name]) for one in each])))
        for name in dict.fromkeys(names)
    }
    return fitted


def _seen(
    detector: Detector,
    names: tuple[str, ...],
    variables: dict[str, Any],
    training: Iterable[np.ndarray],
    count: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """Returns what is fitted to, of all training items: outputs of the detector, some patches by size, `exposed`."""
    used = tuple(sorted({output for word, output in _USES if any(name.startswith(word) for name in names)}))
    cut = {size: share for size, share in patch_distance.SHARES.items() if f"patches_{size}" in names}
    random = np.random.default_rng(seed)
    found: dict[str, list[np.ndarray]] = {}
    for x in training if used or cut or "components" in names else ():
        new = _outputs(detector, used, variables["detector"], x) if used else {}
        for size, share in cut.items():
            places = patch_distance.drawn(x.shape[1:], share, count, len(x), random)
            new[size] = np.concatenate(np.asarray(patch_distance.described(x, places, share)))
        if "components" in names:
            new["components"] = patch_distance.exposed(x)
        for name, values in new.items():
            found.setdefault(name, []).append(np.asarray(values))
    return {name: np.concatenate(values) for name, values in found.items()}


def _fitted(names: tuple[str, ...], seen: dict[str, np.ndarray], seed: int) -> Fitted:
    fitted: Fitted = {
        output: latent_statistics.fit(seen[output], seed) for output in ("z", "embedding") if output in seen
    }
    if "residual_mahalanobis" in names:
        fitted["residual"] = latent_statistics.fit_residual(seen["residual"])
    if "residual_local" in names:
        fitted["residual"] = fitted.get("residual", {}) | latent_statistics.fit_squares(seen["residual"], seed)
    fitted |= {size: patch_distance.fit(seen[size], seed) for size in patch_distance.SHARES if size in seen}
    if "components" in names:
        fitted["components"] = patch_distance.fit_components(seen["components"])
    return fitted


def _location_and_scale(values: np.ndarray) -> np.ndarray:
    logs = np.log(np.maximum(values, _LEAST))
    return np.array([logs.mean(), max(float(logs.std()), 1e-6)], np.float32)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _outputs(detector: Detector, names: tuple[str, ...], variables: dict[str, Any], x: Array) -> Outputs:
    found = {"x": x} | detector.outputs(variables, x)
    return {name: _residual(found) if name == "residual" else found[name] for name in names}


_parts = functools.partial(jax.jit, static_argnums=(0, 1))(parts)
