"""The configuration in text: its keys and the shipped configurations, as `ganomaly config` prints them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from ganomaly_jax.core import config_values, presets, text_table
from ganomaly_jax.core.config_values import Key
from ganomaly_jax.core.errors import UserError


def everything() -> list[str]:
    """Returns the shipped configurations and all keys, a line each."""
    return [
        "Shipped configurations, for --config NAME:",
        *_indented(shipped()),
        "",
        "Keys, for --config.KEY=VALUE, with type and default:",
        *_indented(_table(config_values.all_keys())),
    ]


def shipped() -> list[str]:
    """Returns the shipped configurations, a line each."""
    return text_table.lines([(name, presets.summary(name)) for name in presets.names()])


def about(name: str) -> list[str]:
    """Returns the full help on a key, a section, or a shipped configuration, line by line.

    Raises:
      UserError: nothing has this name.
    """
    keys = config_values.all_keys()
    for key in keys:
        if key.path == name:
            return [f"{key.path} ({_kind(key)}, default {_shown(key)})", "", key.text]
    section = [key for key in keys if key.path.startswith(f"{name}.")]
    if section:
        return _table(section)
    if name in presets.names():
        return _preset(name)
    known = [*(key.path for key in keys), *presets.names()]
    by_leaf = {key.path.rpartition(".")[2]: key.path for key in reversed(keys)}
    near = by_leaf.get(name) or (difflib.get_close_matches(name, known, n=1) or [""])[0]
    raise UserError(
        f"no key or configuration is called {name!r}; "
        + (f"did you mean {near}?" if near else "`ganomaly config` lists them")
    )


def _preset(name: str) -> list[str]:
    """Returns the description of a shipped configuration, and its values that differ from the defaults."""
    values = config_values.flatten(config_values.to_dict(presets.read(name)))
    changed = [key for key in config_values.all_keys() if values[key.path] != key.default]
    return [presets.description(name), "", *(f"{key.path}={values[key.path]}" for key in changed)]


def _table(keys: Sequence[Key]) -> list[str]:
    return text_table.lines([(key.path, _kind(key), _shown(key), key.summary) for key in keys])


def _kind(key: Key) -> str:
    return type(key.default).__name__


def _shown(key: Key) -> str:
    return str(key.default).lower() if isinstance(key.default, bool) else repr(key.default)


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]
