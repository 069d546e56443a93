"""The feature extractors that scores can use: the built-in one and registered ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ganomaly_jax.core import features
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.features import Extractor
from ganomaly_jax.model import efficientnet


def of(name: str) -> Extractor:
    """Returns the extractor of this name, one of `features.names`."""
    return features.registered(name) or Extractor(efficientnet.features, efficientnet.read)


def check(name: str, shape: tuple[int, ...]) -> None:
    """Checks that an extractor has its variables and returns feature maps, without computing any.

    Args:
      name: one of `features.names`.
      shape: (H, W, C) of the images.

    Raises:
      UserError: its weights are not installed, or its function does not return maps [B, h, w, F].
      DamagedError: its weights are not those expected.
    """
    found = of(name)
    variables, images = found.variables(), jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    try:
        maps = jax.eval_shape(found.function, variables, images)
    except Exception as error:  # the function is the user's
        what = str(error).splitlines()[0][:200] if str(error) else ""
        raise UserError(
            f"features {name!r} cannot be computed for images {images.shape} ({type(error).__name__}: {what})"
        ) from error
    for one in maps if isinstance(maps, tuple | list) and maps else [maps]:
        shaped = getattr(one, "ndim", 0) == 4 and len(one) == 2 and 0 not in one.shape
        if not shaped or not jnp.issubdtype(one.dtype, jnp.floating):
            got = f"{one.dtype}{list(one.shape)}" if hasattr(one, "shape") else f"{type(one).__name__}"
            raise UserError(f"features {name!r} of 2 images are {got}: expected floating-point maps [2, h, w, F]")
