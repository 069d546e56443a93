"""Conversion of configurations to and from dictionaries and single values, and the help on each key."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from typing import Any

from ganomaly_jax.core import section
from ganomaly_jax.core.config import Config, Evaluate
from ganomaly_jax.core.errors import UserError

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
# A run may be resumed with other values of these keys: they change how long it trains, what it stores and what it
# shows, but never what a step computes.
_MAY_CHANGE = frozenset(
    {"train.epochs", "train.steps", "train.save_every", "train.keep", "train.choose", "train.log_every"}
    | {"train.picture_every", "train.check_every", "train.patience"}
    | {"mesh.devices", "mesh.transform", "mesh.shard_from"}
    | {"data.source"}  # moved data are the same data: their hash is compared
    | {"data.stream"}
    | {f"evaluate.{field.name}" for field in dataclasses.fields(Evaluate) if field.name != "score"}
)
# Keys in stored configurations of version 0.1.0, with their present names.
_RENAMED = {"evaluate.partners": "evaluate.baselines"}


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of the configuration, as `ganomaly config` shows it."""

    path: str
    """Dotted path, such as `train.epochs`."""
    default: str | int | float | bool
    text: str
    """Its docstring in `config.py`."""

    @property
    def summary(self) -> str:
        """Returns the first line of its docstring."""
        return self.text.partition("\n")[0]


def all_keys() -> list[Key]:
    """Returns every key of the configuration with its default and its help, in the order of `config.py`.

    The help is read from the source: Python keeps no docstrings of attributes.
    """
    return _keys(Config(), "")


def _keys(owner: Any, prefix: str) -> list[Key]:
    (body,) = ast.parse(inspect.getsource(type(owner))).body
    texts: dict[str, str] = {}
    assert isinstance(body, ast.ClassDef)
    for node, following in zip(body.body, [*body.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            match following:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    texts[node.target.id] = inspect.cleandoc(text)
    found: list[Key] = []
    for field in dataclasses.fields(owner):
        value = getattr(owner, field.name)
        path = prefix + field.name
        found += (
            _keys(value, f"{path}.")
            if dataclasses.is_dataclass(value)
            else [Key(path, value, texts.get(field.name, ""))]
        )
    return found


def to_dict(config: Config) -> dict[str, Any]:
    """Returns a configuration as a nested dict, as stored in `config.json`."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any]) -> Config:
    """Returns the configuration of a nested dict; the inverse of `to_dict`.

    Missing keys get their defaults; keys of older versions are accepted.

    Raises:
      UserError: a key does not exist (names the most similar one), or a value has the wrong type.
    """
    config = Config()
    for path, value in flatten(values).items():
        set_value(config, _RENAMED.get(path, path), value)
    return config


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns a nested dict with dotted keys: `{"train": {"epochs": 5}}` as `{"train.epochs": 5}`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def set_value(config: Config, path: str, value: Any) -> None:
    """Sets one value by its dotted path; a string is converted to the type of the default.

    Raises:
      UserError: the key does not exist, or the value cannot be converted.
    """
    known = flatten(to_dict(Config()))
    if path not in known:
        raise section.unknown(path)
    want = type(known[path])
    try:
        converted = _BOOLEANS[str(value).lower()] if want is bool else want(value)
        if want is int and float(value) != converted:
            raise ValueError
    except (TypeError, ValueError, KeyError, OverflowError):
        expected = "true or false" if want is bool else f"{want.__name__}, such as {known[path]!r}"
        raise UserError(f"{path}={value!r}: expected {expected}") from None
    *parents, name = path.split(".")
    owner: Any = config
    for parent in parents:
        owner = getattr(owner, parent)
    setattr(owner, name, converted)


def differences(stored: Config, requested: Config) -> list[str]:
    """Returns why a stored run cannot be resumed with the requested configuration: one line per key, or none."""
    old, new = flatten(to_dict(stored)), flatten(to_dict(requested))
    return [
        f"{key}: {old[key]!r} in the stored run, {new[key]!r} now"
        for key in old
        if old[key] != new[key] and key not in _MAY_CHANGE
    ]
