"""The detectors there are, by name. Nothing else asks which one it holds."""

from __future__ import annotations

from collections.abc import Callable

from ganomaly_jax.core.config import DETECTORS, Config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.model import autoencoder, ganomaly
from ganomaly_jax.model.protocol import Detector
from ganomaly_jax.model.relative_brightness import RelativeBrightness

_MAKERS: dict[str, Callable[[Config, str | None], Detector]] = {
    "ganomaly": ganomaly.from_config,
    "autoencoder": autoencoder.from_config,
}


def from_config(config: Config, axis_name: str | None = None) -> Detector:
    """The detector that a resolved configuration describes; `axis_name` as its attribute.

    Raises:
      UserError: there is none of that name, or its sizes cannot work.
    """
    if config.model.detector not in _MAKERS:
        raise UserError(f"model.detector={config.model.detector!r}: wanted one of {', '.join(DETECTORS)}")
    made = _MAKERS[config.model.detector](config, axis_name)
    return RelativeBrightness(made) if config.model.exposure else made
