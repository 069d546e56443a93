"""Registry of the detectors by name; no other module depends on which one it holds."""

from __future__ import annotations

from collections.abc import Callable

from ganomaly_jax.core.config import DETECTORS, Config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.model import autoencoder, ganomaly
from ganomaly_jax.model.protocol import Detector
from ganomaly_jax.model.relative_brightness import RelativeBrightness

_FROM_CONFIG: dict[str, Callable[[Config, str | None], Detector]] = {
    "ganomaly": ganomaly.from_config,
    "autoencoder": autoencoder.from_config,
}


def from_config(config: Config, axis_name: str | None = None) -> Detector:
    """Creates the detector that a resolved configuration describes.

    Args:
      config: resolved configuration.
      axis_name: mapped axis under which `update` will run, if any.

    Raises:
      UserError: there is no detector of that name, or its sizes are invalid.
    """
    if config.model.detector not in _FROM_CONFIG:
        raise UserError(f"model.detector={config.model.detector!r}: expected one of {', '.join(DETECTORS)}")
    detector = _FROM_CONFIG[config.model.detector](config, axis_name)
    return RelativeBrightness(detector) if config.model.exposure else detector
