"""Strict reading of the values of a stored state, which may have been changed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.printable import printable

MOST = 2**53
"""Largest count; beyond it, floats and other JSON readers are no longer exact."""


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Converts errors in stored values inside the context to a UserError that names `what`."""
    try:
        yield
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"the stored state of the {what} is invalid ({error} is missing)") from None
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        raise UserError(f"the stored state of the {what} is invalid ({printable(str(error))})") from None


def count(value: Any, least: int = 0, most: int = MOST) -> int:
    """Returns a whole number from `least` to `most`; raises a ValueError for anything else."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"expected a whole number from {least} to {most}, got {_shown(value)}")
    return value


def number(value: Any) -> float:
    """Returns a finite number; raises a ValueError for anything else."""
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"expected a number, got {_shown(value)}")
    return float(value)


def flag(value: Any) -> bool:
    """Returns a truth value; raises a ValueError for anything else."""
    if type(value) is not bool:
        raise ValueError(f"expected true or false, got {_shown(value)}")
    return value


def text(value: Any, most: int = MOST) -> str:
    """Returns text of at most `most` characters; raises a ValueError for anything else."""
    if type(value) is not str or len(value) > most:
        raise ValueError(f"expected text, got {_shown(value)}")
    return value


def items(value: Any, most: int = MOST) -> list[Any]:
    """Returns a list of at most `most` items; raises a ValueError for anything else."""
    if not isinstance(value, (list, tuple)) or len(value) > most:
        raise ValueError(f"expected a list of at most {most} items, got {_shown(value)}")
    return list(value)


def fields(value: Any) -> dict[str, Any]:
    """Returns an object; raises a ValueError for anything else."""
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {_shown(value)}")
    return value


def texts(value: Any) -> tuple[str, ...]:
    """Returns a list of texts; raises a ValueError for anything else."""
    return tuple(text(one) for one in items(value))


def numbers(value: Any, size: int) -> np.ndarray:
    """Returns `size` numbers as float64, null as NaN; raises a ValueError for anything else."""
    if len(items(value)) != size:
        raise ValueError(f"expected {size} numbers, got {len(value)}")
    return np.array([math.nan if one is None else number(one) for one in value], np.float64)


def matrix(value: Any, shape: Sequence[int]) -> np.ndarray:
    """Returns rows of numbers as float64 of this shape, null as NaN; raises a ValueError for anything else."""
    if len(items(value)) != shape[0]:
        raise ValueError(f"expected {shape[0]} rows, got {len(value)}")
    return np.array([numbers(row, shape[1]) for row in value], np.float64).reshape(shape)


def counts(value: Any, size: int, least: int = 0, most: int = MOST) -> np.ndarray:
    """Returns `size` whole numbers from `least` to `most` as int64; raises a ValueError for anything else."""
    if len(items(value)) != size:
        raise ValueError(f"expected {size} whole numbers, got {len(value)}")
    return np.array([count(one, least, most) for one in value], np.int64)


def to_json(values: np.ndarray) -> list[Any]:
    """Returns numbers for JSON; those that are not finite become null."""
    return [value if math.isfinite(value) else None for value in values.tolist()]


def _shown(value: Any) -> str:
    """Returns a value for a message."""
    if isinstance(value, (str, int, float)) and not (isinstance(value, int) and abs(value) > MOST**2):
        return printable(repr(value), 40)
    return type(value).__name__
