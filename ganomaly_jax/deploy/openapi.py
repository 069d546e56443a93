"""The OpenAPI document of `ganomaly serve`."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from ganomaly_jax import __version__

_WITH_TOKEN = ("/score", "/explain", "/metrics")


def document(with_token: bool = False) -> dict[str, Any]:
    """Returns the OpenAPI 3.1 document: the file `openapi.json` with the version of this package.

    Args:
      with_token: whether the server requires a token; the document then states where.
    """
    found: dict[str, Any] = json.loads(resources.files(__package__).joinpath("openapi.json").read_text("utf-8"))
    found["info"]["version"] = __version__
    if with_token:
        found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path in _WITH_TOKEN:
            for operation in found["paths"][path].values():
                operation["security"] = [{"token": []}]
                operation["responses"]["401"] = {"$ref": "#/components/responses/NoToken"}
    else:
        del found["components"]["responses"]["NoToken"]
    return found
