"""Names of the feature extractors that scores can use: the built-in one and registered ones."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from ganomaly_jax.core.config import SCORES
from ganomaly_jax.core.errors import UserError

KINDS = ("patches", "angle")
"""The scores of each extractor: NAME_patches and NAME_angle."""
BUILT_IN = ("efficientnet",)


@dataclasses.dataclass(frozen=True)
class Extractor:
    """Extracts feature maps from images."""

    function: Callable[[Any, Any], Any]
    """`function(variables, x)`, pure: images [B, H, W, C] float32 in [-1, 1] to one map [B, h, w, F], or several."""
    variables: Callable[[], Any]
    """Returns the function's variables, a pytree of arrays; a detector stores a copy of them."""


_registered: dict[str, Extractor] = {}


def register_features(name: str, function: Callable[[Any, Any], Any], variables: Any = None) -> None:
    """Registers a function from images to feature maps, so that scores can use it.

    Afterwards `evaluate.score` may name NAME_patches, the distance of the map's vectors to the nearest ones of training
    images, and NAME_angle, the angle of the mean vector to the nearest ones. Of several maps, the last one
    is used for the angle; the others are resized to the first and concatenated for the patches. A detector stores the
    variables but not the function: register it again before loading the detector in another program. An export contains
    both.

    Args:
      name: a lower-case word.
      function: `function(variables, x)`, pure and traceable by JAX, which returns a map [B, h, w, F], or a sequence of
        maps, for images x [B, H, W, C] float32 in [-1, 1] of the detector's size. The map of an image must not depend
        on the other images.
      variables: pytree of arrays.

    Raises:
      UserError: the name is not a word, or is taken.
    """
    if not re.fullmatch("[a-z][a-z0-9]*", name):
        raise UserError(f"features {name!r}: expected a word of lower-case letters and digits, such as 'resnet'")
    if any(score.startswith(name) for score in SCORES):
        raise UserError(f"features {name!r}: this name is taken; choose another")
    _registered[name] = Extractor(function, lambda: {} if variables is None else variables)


def registered(name: str) -> Extractor | None:
    """Returns the registered extractor of this name, if there is one."""
    return _registered.get(name)


def names() -> tuple[str, ...]:
    """Returns the names of all extractors."""
    return (*BUILT_IN, *_registered)


def all_scores() -> tuple[str, ...]:
    """Returns the names that `evaluate.score` may use, those of registered features included."""
    return (*SCORES, *(f"{name}_{kind}" for name in _registered for kind in KINDS))


def of_score(score: str) -> tuple[str, str]:
    """Returns extractor and kind of a part of a score, such as ("efficientnet", "patches"); otherwise ("", "")."""
    name, _, kind = score.rpartition("_")
    return (name, kind) if name in names() and kind in KINDS else ("", "")


def of_scores(scores: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the extractors that parts of a score need, each once."""
    return tuple(dict.fromkeys(name for name, _ in map(of_score, scores) if name))
