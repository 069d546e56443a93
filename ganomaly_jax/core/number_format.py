"""Figures as text, for pages and terminals."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

UNDEFINED = "not defined"


def number(value: Any) -> str:
    """Returns a number with four digits, and `not defined` for None and NaN."""
    if value is None or value != value:
        return UNDEFINED
    whole = isinstance(value, numbers.Integral) or not isinstance(value, numbers.Real)
    return str(value) if whole else f"{value:.4g}"


def decimal(value: Any) -> str:
    """Returns a figure from 0 to 1 with four decimals, and `not defined` for None and NaN."""
    return number(value) if value is None or value != value else f"{value:.4f}"


def percent(share: Any) -> str:
    """Returns a share of 1 in per cent with three digits."""
    return f"{100 * share:.3g} %" if isinstance(share, float) and share == share else number(share)


def interval(figure: Sequence[float] | None, form: str, factor: float = 1, unit: str = "") -> str:
    """Returns a value with the ends of its interval in brackets, `not defined` for None.

    Args:
      figure: the value and the ends of its interval.
      form: how each is formatted, such as `.3f`.
      factor: what each is multiplied by first.
      unit: what follows the value and the upper end, such as ` %`.
    """
    if figure is None:
        return UNDEFINED
    value, low, high = (format(factor * part, form) for part in figure)
    return f"{value}{unit} ({low} to {high}{unit})"
