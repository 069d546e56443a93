"""JSON from untrusted files: no repeated keys, no NaN, no infinity."""

from __future__ import annotations

import json
from typing import Any


def loads(content: bytes | str) -> Any:
    """Returns the value of a JSON document.

    Args:
      content: the document, of a size that the caller has bounded.

    Raises:
      ValueError: it is not JSON, an object repeats a key, a number is not finite, or nested too deeply.
    """
    try:
        return json.loads(content, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"duplicate key {name[:50]!r}")
        values[name] = value
    return values


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:30]} is too large")
    return number
