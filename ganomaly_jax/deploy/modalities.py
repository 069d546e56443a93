"""Deployment by modality: whether it is served, and how exports are described and checked."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np

from ganomaly_jax.scoring.scorer import Scorer


class DeployModality(Protocol):
    """Interface that deployment needs of a modality."""

    @property
    def served(self) -> bool:
        """Returns True if the HTTP server and Ray accept its files."""

    @property
    def onnx(self) -> bool:
        """Returns True if its preprocessing is known to work as ONNX."""

    def fields(self, scorer: Scorer) -> dict[str, Any]:
        """Returns further entries about the input for an export's manifest."""

    def generate(self, scorer: Scorer, n: int) -> np.ndarray:
        """Returns n deterministic raw items [n, *shape] of the training dtype and range, weak to strong."""


class Images:
    """Images."""

    served = True
    onnx = True

    def fields(self, scorer: Scorer) -> dict[str, Any]:
        """Returns nothing more."""
        return {}

    def generate(self, scorer: Scorer, n: int) -> np.ndarray:
        """Returns soft waves with noise, flat to loud."""
        random = np.random.default_rng(0)
        height, width, channels = scorer.input_shape
        rows, columns = np.mgrid[:height, :width]
        turns = random.uniform(0, 3, (n, 1, 1, channels, 2))
        phase = random.uniform(0, 2 * np.pi, (n, 1, 1, channels))
        angle = 2 * np.pi * (turns[..., 0] * rows[..., None] / height + turns[..., 1] * columns[..., None] / width)
        waves = 0.5 + 0.5 * np.sin(angle + phase) * random.uniform(0, 1, (n, 1, 1, channels))
        noisy = waves + random.normal(0, 1, waves.shape) * random.uniform(0, 0.2, (n, 1, 1, 1))
        pixels = scorer.low + np.clip(noisy, 0, 1) * (scorer.high - scorer.low)
        return (np.rint(pixels) if np.dtype(scorer.dtype).kind == "u" else pixels).astype(scorer.dtype)


class Arrays:
    """Rows of sensors, and whatever is not in the table: numbers around the middle of their range."""

    served = False
    onnx = True

    def fields(self, scorer: Scorer) -> dict[str, Any]:
        """Returns the names of the last axis."""
        return {"columns": list(scorer.feature_names)} if scorer.feature_names else {}

    def generate(self, scorer: Scorer, n: int) -> np.ndarray:
        """Returns items as normal as noise can be, and quieter and louder ones."""
        random, shape = np.random.default_rng(0), scorer.input_shape
        low, high = np.asarray(scorer.low), np.asarray(scorer.high)
        noise = random.normal(0, 1, (n, *shape)) * random.uniform(0, 3, (n, *[1] * len(shape)))
        return ((low + high) / 2 + noise * (high - low) / 2).astype(scorer.dtype)


class Sound:
    """Waveforms."""

    served = False
    onnx = False

    def fields(self, scorer: Scorer) -> dict[str, Any]:
        """Returns the settings of the spectrogram."""
        return {"sound": dataclasses.asdict(scorer.config.data.sound)}

    def generate(self, scorer: Scorer, n: int) -> np.ndarray:
        """Returns noise and tones, faint to loud."""
        random, rate = np.random.default_rng(0), scorer.config.data.sound.rate
        seconds = np.arange(scorer.input_shape[0]) / rate
        hertz = random.uniform(0, rate / 2, (n, 1))
        waves = random.normal(0, 0.1, (n, *scorer.input_shape)) + np.sin(2 * np.pi * hertz * seconds)
        return (waves * 10 ** random.uniform(-4, 0, (n, 1))).astype(scorer.dtype)


_OTHERS = Arrays()
TABLE: dict[str, DeployModality] = {"images": Images(), "rows": _OTHERS, "sound": Sound()}
"""By `Modality.name`."""


def of(scorer: Scorer) -> DeployModality:
    """Returns the entry of a scorer's modality."""
    return TABLE.get(scorer.modality.name, _OTHERS)
