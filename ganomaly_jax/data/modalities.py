"""The registry of modalities. To add one, `register` an instance of a class that satisfies `modality.Modality`."""

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
"""Value of `data.kind` with which the modality is chosen by the data."""
_MODALITIES: dict[str, Modality] = {}


def register(modality: Modality) -> None:
    """Adds a modality under its name.

    Raises:
      ValueError: There is a modality of that name already.
    """
    if modality.name in (AUTO, *_MODALITIES):
        raise ValueError(f"there is a modality named {modality.name!r} already")
    _MODALITIES[modality.name] = modality


def names() -> tuple[str, ...]:
    """Returns the names of all modalities."""
    return tuple(_MODALITIES)


def named(name: str) -> Modality:
    """Returns the modality of a name.

    Raises:
      UserError: There is no modality of that name; the message lists the names.
    """
    if name not in _MODALITIES:
        raise UserError(f"data.kind={name!r}: expected one of {', '.join((AUTO, *_MODALITIES))}")
    return _MODALITIES[name]


def of(data: config.Data) -> Modality:
    """Returns the modality of resolved settings, in which `auto` stands for images.

    Raises:
      UserError: There is no modality of that name.
    """
    return named(Images.name if data.kind == AUTO else data.kind)


def candidates(settings: config.Data) -> Iterator[Modality]:
    """Yields the one modality that `data.kind` names, or with `auto` all of them, images last.

    Raises:
      UserError: There is no modality of that name.
    """
    if settings.kind != AUTO:
        yield named(settings.kind)
        return
    yield from (modality for name, modality in _MODALITIES.items() if name != Images.name)
    yield named(Images.name)


def of_arrays(given: Any, settings: config.Data) -> Modality:
    """Returns the first of the `candidates` that accepts arrays, or the last one if none does.

    Raises:
      UserError: There is no modality of that name.
    """
    asked = list(candidates(settings))
    return next((modality for modality in asked if modality.takes(given, settings)), asked[-1])


for _modality in (Sound(), Rows(), Images()):
    register(_modality)
