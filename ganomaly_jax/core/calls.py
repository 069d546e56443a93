"""Checks of the arguments of public functions; the message for a wrong type shows a correct call."""

from __future__ import annotations

import numbers
import os
from typing import Any

from ganomaly_jax.core.config import Config
from ganomaly_jax.core.errors import UserError

PATH: tuple[type, ...] = (str, os.PathLike)
NUMBER: tuple[type, ...] = (numbers.Real,)
# The longest value that a message shows.
_SHOWN = 60


def expect(kind: type | tuple[type, ...], wanted: str, **given: Any) -> None:
    """Checks the type of arguments.

    Args:
      kind: the type, or several.
      wanted: what is expected, with an example.
      **given: the arguments by name.

    Raises:
      UserError: an argument has another type.
    """
    for name, value in given.items():
        if not isinstance(value, kind):
            raise UserError(f"{name} is {_described(value)}: expected {wanted}")


def expect_config(settings: Any, call: str) -> None:
    """Checks that an argument is a configuration; `call` is the right call, for the message.

    Raises:
      UserError: it is something else, such as the folder of the data.
    """
    source = str(settings) if isinstance(settings, PATH) else "DATA"
    example = f"config = gj.Config(); config.data.source = {source!r}; {call}"
    expect(Config, f"a gj.Config, as in {example}", config=settings)


def expect_folder(workdir: Any, call: str) -> None:
    """Checks that an argument is the path of a folder; `call` is the right call, for the message.

    Raises:
      UserError: it is something else, such as a configuration or a scorer.
    """
    expect(PATH, f"the path of a folder, as in {call}", workdir=workdir)


def _described(value: Any) -> str:
    """Returns a value as shown in a message: itself if it is short and simple, otherwise its type."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or (isinstance(value, (str, int, float)) and len(repr(value)) <= _SHOWN):
        return repr(value)
    return f"of type {type(value).__name__}"
