"""The results of scoring: scores, p-values and verdicts of items."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Judgement:
    """Holds scores, p-values and verdicts of n items."""

    scores: np.ndarray
    """[n] float32, higher is more anomalous; NaN for an invalid item."""
    p_values: np.ndarray
    """[n] float32 above 0 up to 1; NaN for an invalid item."""
    verdicts: list[str]
    """n words, see `calibration.verdicts`."""


@dataclasses.dataclass(frozen=True, eq=False)
class JudgedPaths:
    """Holds the judgement of all items in some files."""

    names: list[str]
    """The name of each item: a file, or a file and a place in it."""
    judged: Judgement
    reasons: list[str]
    """Why each verdict is `invalid`; empty for other verdicts."""
    notes: list[str] = dataclasses.field(default_factory=list)
    """Sentences for the user."""
    detail: Any = None
    """Further results, which only code of the same modality reads."""
    times: list[str] | None = None
    """The time of each item as text, empty if unknown; None if all are unknown."""
