"""Registry of the detectors by name; no other module depends on which one it holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from ganomaly_jax.core.config import DETECTORS, Config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.model import autoencoder, ganomaly
from ganomaly_jax.model.protocol import Detector
from ganomaly_jax.model.relative_brightness import RelativeBrightness

_FROM_CONFIG: dict[str, Callable[[Config], Detector]] = {
    "ganomaly": ganomaly.from_config,
    "autoencoder": autoencoder.from_config,
}


def from_config(config: Config) -> Detector:
    """Creates the detector that a resolved configuration describes.

    Args:
      config: resolved configuration.

    Raises:
      UserError: there is no detector of that name, or its sizes are invalid.
    """
    if config.model.detector not in _FROM_CONFIG:
        raise UserError(f"model.detector={config.model.detector!r}: expected one of {', '.join(DETECTORS)}")
    detector = _FROM_CONFIG[config.model.detector](config)
    return RelativeBrightness(detector) if config.model.exposure else detector


def over_axis(detector: Detector, axis_name: str | None) -> Detector:
    """Returns the detector whose `update` averages over a mapped axis; None: over no axis."""
    if isinstance(detector, RelativeBrightness):
        return RelativeBrightness(over_axis(detector.network, axis_name))
    return dataclasses.replace(detector, axis_name=axis_name)  # type: ignore[type-var]
