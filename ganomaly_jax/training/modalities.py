"""The part of a modality that inspects data before training: what can be wrong with its values."""

from __future__ import annotations

from typing import Protocol

from ganomaly_jax.core.config import Config
from ganomaly_jax.data.datasets import Dataset
from ganomaly_jax.scoring.scorer import Scorer
from ganomaly_jax.training import findings
from ganomaly_jax.training.findings import Finding, Looked


class Inspection(Protocol):
    """The interface of a modality for `data_check`."""

    @property
    def by_column(self) -> bool:
        """Returns whether the extremes of each feature are inspected and missing values may be trained on."""

    def values(self, dataset: Dataset, looked: Looked, settings: Config, found: list[Finding]) -> None:
        """Adds problems of the values to `found`."""

    def fits(self, scorer: Scorer, dataset: Dataset, looked: Looked, found: list[Finding]) -> None:
        """Adds differences from the values that a detector was trained on to `found`."""


class Images:
    """Images, and modalities that are not in the table."""

    by_column = False

    def values(self, dataset: Dataset, looked: Looked, settings: Config, found: list[Finding]) -> None:
        """Adds values that are not finite, images of one value, and a range that is hardly used."""
        findings.not_finite(dataset, looked, found)
        findings.constant(dataset, looked, found)
        findings.narrow_range(dataset, looked, settings, found)

    def fits(self, scorer: Scorer, dataset: Dataset, looked: Looked, found: list[Finding]) -> None:
        """Adds values outside the detector's range."""
        findings.beyond_range(scorer, dataset, looked, found)


class Rows:
    """Rows of sensors."""

    by_column = True

    def values(self, dataset: Dataset, looked: Looked, settings: Config, found: list[Finding]) -> None:
        """Adds missing values, sensors that never change, and columns that are not used."""
        findings.missing(dataset, looked, found)
        findings.constant_columns(dataset, looked, found)
        findings.reading(dataset, found)

    def fits(self, scorer: Scorer, dataset: Dataset, looked: Looked, found: list[Finding]) -> None:
        """Adds nothing: sensors may leave the range that they had in training."""


class Sound:
    """Windows of recordings."""

    by_column = False

    def values(self, dataset: Dataset, looked: Looked, settings: Config, found: list[Finding]) -> None:
        """Adds samples that are not finite, recordings that are clipped or silent, and notes of the decoder."""
        findings.missing(dataset, looked, found)
        findings.reading(dataset, found)
        findings.recordings(dataset, found)

    def fits(self, scorer: Scorer, dataset: Dataset, looked: Looked, found: list[Finding]) -> None:
        """Adds nothing: the loudness is part of the score."""


_OTHERS = Images()
TABLE: dict[str, Inspection] = {"images": _OTHERS, "rows": Rows(), "sound": Sound()}
"""By `Modality.name`."""


def of(dataset: Dataset) -> Inspection:
    """Returns the inspection of a data set's modality."""
    return TABLE.get(dataset.modality, _OTHERS)
