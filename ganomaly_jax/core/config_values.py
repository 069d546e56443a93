"""Configurations as dictionaries and as overrides."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from ganomaly_jax.core.config import MAY_CHANGE, Config
from ganomaly_jax.core.errors import UserError

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def to_dict(config: Config) -> dict[str, Any]:
    """The nested dict that `config.json` holds."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any]) -> Config:
    """The inverse of `to_dict`.

    Keys that are left out keep their default.

    Raises:
      UserError: a key that does not exist (the nearest that does is named), or a value of another type.
    """
    config = Config()
    for path, value in flatten(values).items():
        set_value(config, path, value)
    return config


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"train": {"epochs": 5}}` as `{"train.epochs": 5}`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def set_value(config: Config, path: str, value: Any) -> None:
    """Set one value by its dotted path; a string is read as the type of the default.

    Raises:
      UserError: no such key, or a value that the type does not take.
    """
    known = flatten(to_dict(Config()))
    if path not in known:
        near = difflib.get_close_matches(path, known, n=1, cutoff=0.0)
        raise UserError(f"unknown configuration key {path!r}; the nearest that exists is {near[0]!r}")
    want = type(known[path])
    try:
        converted = _BOOLEANS[str(value).lower()] if want is bool else want(value)
        if want is int and float(value) != converted:
            raise ValueError
    except (TypeError, ValueError, KeyError):
        wanted = "true or false" if want is bool else f"{want.__name__}, such as {known[path]!r}"
        raise UserError(f"{path}={value!r}: wanted {wanted}") from None
    *parents, name = path.split(".")
    owner: Any = config
    for parent in parents:
        owner = getattr(owner, parent)
    setattr(owner, name, converted)


def differences(stored: Config, asked: Config) -> list[str]:
    """What keeps a stored run from going on as `asked`: one line a key, empty where nothing does."""
    old, new = flatten(to_dict(stored)), flatten(to_dict(asked))
    return [
        f"{key}: the run has {old[key]!r}, asked is {new[key]!r}"
        for key in old
        if old[key] != new[key] and key not in MAY_CHANGE
    ]
