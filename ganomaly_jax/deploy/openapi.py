"""The OpenAPI document of `ganomaly serve`."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from ganomaly_jax import __version__


def document() -> dict[str, Any]:
    """Returns the OpenAPI 3.1 document, the file `openapi.json` with the version of this package."""
    found: dict[str, Any] = json.loads(resources.files(__package__).joinpath("openapi.json").read_text("utf-8"))
    found["info"]["version"] = __version__
    return found
