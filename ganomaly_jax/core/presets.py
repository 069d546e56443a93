"""The configurations shipped with the package, found by name.

They are the files of `configs/` at the top of the repository; a wheel carries them as `ganomaly_jax.configs`.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
from pathlib import Path

from ganomaly_jax.core.config import Config
from ganomaly_jax.core.errors import UserError

_PACKAGE = Path(__file__).resolve().parents[1]


def folder() -> Path:
    """Returns the folder of the shipped configurations: that of an installation, or that of a clone."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def names() -> list[str]:
    """Returns the names of the shipped configurations, sorted."""
    return sorted(path.stem for path in folder().glob("[!_]*.py"))


def description(name: str) -> str:
    """Returns the docstring of a shipped configuration, without running it."""
    return ast.get_docstring(ast.parse((folder() / f"{name}.py").read_text(encoding="utf-8"))) or ""


def summary(name: str) -> str:
    """Returns the first line of a shipped configuration's docstring."""
    return description(name).partition("\n")[0]


def read(name: str) -> Config:
    """Returns the `Config` of a shipped configuration, or of any Python file with a function `get_config()`.

    Args:
      name: the name of a shipped configuration, such as `surface`, or the path of a file that ends in `.py`.

    Raises:
      UserError: the name or file does not exist, the file fails to run, or its function does not return a `Config`.
    """
    path = Path(name) if name.endswith(".py") else folder() / f"{name}.py"
    spec = importlib.util.spec_from_file_location("ganomaly_config", path)
    if spec is None or spec.loader is None or not path.is_file():
        near = difflib.get_close_matches(path.stem, names(), n=1)
        kind = "no such file" if name.endswith(".py") else "unknown configuration"
        raise UserError(
            f"--config {name}: {kind}; "
            + (f"did you mean {near[0]}? " if near else "")
            + f"expected {', '.join(names())}, or a Python file with a function get_config()"
        )
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except UserError as error:  # a setting that does not exist, or a value of another type
        raise UserError(f"--config {name}: {error}") from None
    except Exception as error:  # the user's own code may do anything
        raise UserError(f"--config {name} does not run: {type(error).__name__}: {error}") from None
    if not isinstance(config, Config):
        raise UserError(f"--config {name}: get_config() returned {type(config).__name__}, expected ganomaly_jax.Config")
    return config
