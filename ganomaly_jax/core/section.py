"""Sections of the configuration: dataclasses that refuse unknown names and values of the wrong type."""

from __future__ import annotations

import dataclasses
import difflib
import numbers
import os
from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform

from ganomaly_jax.core.errors import UserError

_T = TypeVar("_T")
# Dotted paths of all settings, in the order in which the sections are defined.
_PATHS: list[str] = []
# The types of settings, and what a value has to be.
_EXPECTED = {"int": "a whole number", "float": "a number", "bool": "True or False", "str": "a string"}


class UnknownSettingError(UserError, AttributeError):
    """A setting does not exist. Also an `AttributeError`, on which `hasattr`, `copy` and `pickle` rely."""


def unknown(path: str) -> UnknownSettingError:
    """Returns the error for an unknown setting, which names the most similar one."""
    leaf = path.rpartition(".")[2]
    same = [known for known in _PATHS if known.rpartition(".")[2] == leaf]
    near = (same or difflib.get_close_matches(path, _PATHS, n=1, cutoff=0.0))[0]
    return UnknownSettingError(f"unknown configuration key: {path}; did you mean {near}?")


@dataclass_transform(field_specifiers=(dataclasses.field,))
def section(path: str) -> Callable[[type[_T]], type[_T]]:
    """Returns a decorator that makes a dataclass a section of the configuration.

    Args:
      path: path of the section, such as `data.sound`; empty for the configuration itself.
    """
    prefix = f"{path}." if path else ""

    def decorate(cls: type[_T]) -> type[_T]:
        made = dataclasses.dataclass(cls)
        wanted = {field.name: str(field.type) for field in dataclasses.fields(made)}  # type: ignore[arg-type]
        _PATHS.extend(prefix + name for name, kind in wanted.items() if kind in _EXPECTED)

        def set_attribute(self: Any, name: str, value: Any) -> None:
            if name not in wanted:
                raise unknown(prefix + name)
            object.__setattr__(self, name, _checked(prefix + name, wanted[name], value))

        def missing_attribute(self: Any, name: str) -> Any:
            raise AttributeError(name) if name.startswith("_") else unknown(prefix + name)

        made.__setattr__ = set_attribute  # type: ignore[method-assign]
        made.__getattr__ = missing_attribute  # type: ignore[attr-defined]
        return made

    return decorate


def _checked(path: str, kind: str, value: Any) -> Any:
    """Converts a value, such as a NumPy number or a path, to the Python type of its setting.

    Raises:
      UserError: the value has another type.
    """
    if kind not in _EXPECTED:
        if type(value).__name__ == kind:
            return value
        raise UserError(f"{path}={value!r} is a section: expected a {kind}, or set its values as config.{path}.NAME")
    boolean = isinstance(value, bool) or type(value).__name__ == "bool"  # also NumPy's, which is not imported here
    if kind == "bool" and boolean:
        return bool(value)
    if kind == "str" and isinstance(value, (str, os.PathLike)):
        return os.fspath(value)
    if kind == "float" and isinstance(value, numbers.Real) and not boolean:
        return float(value)
    if kind == "int" and isinstance(value, numbers.Real) and not boolean and value == value // 1:
        return int(value)  # type: ignore[call-overload]
    example = ""
    if kind == "str":
        example = f", such as {','.join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)!r}"
    raise UserError(f"{path}={value!r}: expected {_EXPECTED[kind]}{example}")
