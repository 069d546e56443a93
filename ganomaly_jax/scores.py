"""The scores that can be asked for, and sums of several: what `evaluate.score` names. Pure JAX once fitted.

`squared` and `l1` are the detector's own, the size of its `difference` (of GANomaly's two latents; of image and
reconstruction), and need no fit. Any other name, and names
joined by `+`, are fitted after the training: what latents and embeddings of training images look like, and how each
score lies on the calibration images. The score is then the mean of the parts' standardised logarithms. A name may be
repeated, and then counts so often.
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

from ganomaly_jax import patches, statistics
from ganomaly_jax.config import SCORES
from ganomaly_jax.detector import Detector
from ganomaly_jax.errors import UserError

PLAIN = ("squared", "l1")
_LEAST = 1e-9
_SCALES = (2, 4, 8)

Outputs = dict[str, Array]
Fitted = dict[str, Any]


def _mean_of_each(values: Array) -> Array:
    return jnp.mean(values, axis=tuple(range(1, values.ndim)))


def _squared(outputs: Outputs, _: Fitted) -> Array:
    return _mean_of_each(jnp.square(outputs["difference"]))


def _l1(outputs: Outputs, _: Fitted) -> Array:
    return _mean_of_each(jnp.abs(outputs["difference"]))


def _pixel(outputs: Outputs, _: Fitted) -> Array:
    return _mean(jnp.abs(outputs["x"] - outputs["x_hat"]))


def _mean(x: Array) -> Array:
    """Of each item, [B, ...] -> [B]."""
    return jnp.mean(x, axis=tuple(range(1, x.ndim)))


def _multiscale(outputs: Outputs, _: Fitted) -> Array:
    residual = outputs["x"] - outputs["x_hat"]
    found: list[Array] = []
    for scale in _SCALES:
        if found and scale > min(residual.shape[1:-1], default=scale):  # a short window
            break
        size = (1, *[scale] * (residual.ndim - 2), 1)  # squares of an image, spans of a window's rows
        pooled = jax.lax.reduce_window(residual, 0.0, jax.lax.add, size, size, "VALID") / math.prod(size)
        found.append(_mean(jnp.abs(pooled)))
    return jnp.mean(jnp.stack(found), axis=0)


def _statistic(function: Callable[[Fitted, Array], Array], output: str) -> Callable[[Outputs, Fitted], Array]:
    return lambda outputs, fitted: function(fitted[output], outputs[output])


PARTS: dict[str, Callable[[Outputs, Fitted], Array]] = {
    "squared": _squared,
    "l1": _l1,
    "pixel": _pixel,
    "multiscale": _multiscale,
}


def _patches(size: str, share: float) -> Callable[[Outputs, Fitted], Array]:
    return lambda outputs, fitted: patches.distance(fitted[size], outputs["x"], share)


_FITTED = {"latent": "z", "embedding": "embedding"}
for _name in SCORES:
    _word, _, _kind = _name.partition("_")
    if _word == "patches":
        PARTS[_name] = _patches(_kind, patches.SHARES[_kind])
    if _word in _FITTED:
        PARTS[_name] = _statistic(getattr(statistics, _kind), _FITTED[_word])
PARTS["components"] = lambda outputs, fitted: patches.components(fitted["components"], outputs["x"])


def is_plain(names: tuple[str, ...]) -> bool:
    """Whether nothing has to be fitted for it."""
    return len(names) == 1 and names[0] in PLAIN


def parts(detector: Detector, names: tuple[str, ...], variables: dict[str, Any], x: Array) -> dict[str, Array]:
    """Each part [B] of images x [B, ...] in [-1, 1], as it is; `variables` are a scorer's."""
    outputs = detector.outputs(variables["detector"], x) | {"x": x}
    return {name: PARTS[name](outputs, variables.get("statistics", {})) for name in dict.fromkeys(names)}


def score(detector: Detector, names: tuple[str, ...], variables: dict[str, Any], x: Array) -> Array:
    """The score [B] float32, higher is more anomalous, of images x [B, ...] in [-1, 1]. Pure."""
    found = parts(detector, names, variables, x)
    if is_plain(names):
        return found[names[0]].astype(jnp.float32)
    return combined(found, names, variables["statistics"]["scale"])


def combined(found: dict[str, Any], names: tuple[str, ...], scale: dict[str, Array]) -> Array:
    """The mean [B] of the standardised logarithms of parts [B]; `scale` is what `fit` found of each."""
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
    """What `score` needs beside the weights, empty for a plain score.

    `training` are batches of images that were trained on, `count` in all, `calibration` of normal images that were not,
    all [B, ...] float32 in [-1, 1]; the arrays of the result are float32.

    Raises:
      UserError: patches of what are no images.
    """
    if is_plain(names):
        return {}
    fitted: Fitted = {}
    used = {output for word, output in _FITTED.items() if any(name.startswith(word) for name in names)}
    cut = [size for size in patches.SHARES if f"patches_{size}" in names]
    shown = ["components"] if "components" in names else []
    if used or cut or shown:
        random = np.random.default_rng(seed)
        found: dict[str, list[np.ndarray]] = {output: [] for output in (*used, *cut, *shown)}
        shape: tuple[int, ...] = ()
        for x in training:
            shape = x.shape[1:]
            if (cut or shown) and len(shape) < 3:
                raise UserError("evaluate.score: patches and components are of images, and these are rows of sensors")
            for output, values in _outputs(detector, tuple(sorted(used)), variables["detector"], x).items():
                found[output].append(np.asarray(values))
            for size in cut:
                share, each = patches.SHARES[size], -(-patches.BANK // count)
                places = random.integers(patches.places(shape, share), size=(len(x), each))
                found[size].append(np.concatenate(np.asarray(patches.described(x, places, share))))
            for name in shown:
                found[name].append(np.asarray(patches.exposed(x)))
        fitted = {output: statistics.fit(np.concatenate(found[output]), seed) for output in used}
        fitted |= {size: patches.fit(np.concatenate(found[size]), shape, patches.SHARES[size], seed) for size in cut}
        fitted |= {name: patches.fit_components(np.concatenate(found[name])) for name in shown}
    fitted = jax.tree.map(jnp.asarray, fitted)
    own = {"detector": variables["detector"], "statistics": fitted}
    seen = [_parts(detector, tuple(dict.fromkeys(names)), own, x) for x in calibration]
    fitted["scale"] = {
        name: jnp.asarray(_location_and_scale(np.concatenate([np.asarray(one[name]) for one in seen])))
        for name in dict.fromkeys(names)
    }
    return fitted


def _location_and_scale(values: np.ndarray) -> np.ndarray:
    logs = np.log(np.maximum(values, _LEAST))
    return np.array([logs.mean(), max(float(logs.std()), 1e-6)], np.float32)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _outputs(detector: Detector, names: tuple[str, ...], variables: dict[str, Any], x: Array) -> Outputs:
    found = detector.outputs(variables, x)
    return {name: found[name] for name in names}


_parts = functools.partial(jax.jit, static_argnums=(0, 1))(parts)
