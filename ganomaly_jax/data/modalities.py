"""The modalities that there are, by name. Another one is a class that satisfies `modality.Modality`, and `register`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.audio.modality import Sound
from ganomaly_jax.data.images.modality import Images
from ganomaly_jax.data.modality import Modality
from ganomaly_jax.data.rows.modality import Rows

AUTO = "auto"
"""The value of `data.kind` that leaves the choice to the data."""
_MODALITIES: dict[str, Modality] = {}


def register(modality: Modality) -> None:
    """Adds a modality under its name.

    Raises:
      ValueError: there is one of that name.
    """
    if modality.name in (AUTO, *_MODALITIES):
        raise ValueError(f"there is a modality named {modality.name!r} already")
    _MODALITIES[modality.name] = modality


def unregister(name: str) -> None:
    """Removes a modality that was registered.

    Raises:
      KeyError: there is none of that name.
    """
    del _MODALITIES[name]


def names() -> tuple[str, ...]:
    """Returns the names of all modalities."""
    return tuple(_MODALITIES)


def named(name: str) -> Modality:
    """Returns the modality of this name.

    Raises:
      UserError: there is none, with the names that there are.
    """
    if name not in _MODALITIES:
        raise UserError(f"data.kind={name!r}: expected one of {', '.join((AUTO, *_MODALITIES))}")
    return _MODALITIES[name]


def of(data: config.Data) -> Modality:
    """Returns the modality of resolved settings; those of images may have kept `auto`.

    Raises:
      UserError: there is none of that name.
    """
    return named(Images.name if data.kind == AUTO else data.kind)


def candidates(settings: config.Data) -> Iterator[Modality]:
    """Yields the modalities that data may be of, the choosiest first: one where `data.kind` names it, otherwise all.

    Raises:
      UserError: there is none of that name.
    """
    if settings.kind != AUTO:
        yield named(settings.kind)
        return
    yield from (modality for name, modality in _MODALITIES.items() if name != Images.name)
    yield named(Images.name)


def of_arrays(given: Any, settings: config.Data) -> Modality:
    """Returns the first of the `candidates` that takes arrays.

    Raises:
      UserError: there is none of that name.
    """
    asked = list(candidates(settings))
    return next((modality for modality in asked if modality.takes(given, settings)), asked[-1])


for _modality in (Sound(), Rows(), Images()):
    register(_modality)
