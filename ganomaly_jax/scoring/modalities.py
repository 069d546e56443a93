"""Scoring by modality: how files are judged, and how features contribute to a score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from jax import Array

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.images import decode, files
from ganomaly_jax.scoring import calibration, sensors, sound
from ganomaly_jax.scoring.judgement import JudgedPaths
from ganomaly_jax.scoring.scorer import Scorer

Attribution = Callable[[Any, Array], tuple[Array, Array, Array]]
"""Pure function (variables, raw items) -> contributions `[B, D]`, scores `[B]`, score of the baseline."""


class ScoringModality(Protocol):
    """Defines what scoring needs from a modality."""

    @property
    def grouped(self) -> bool:
        """Returns True if files may be judged by the calibration of groups."""

    def judge_paths(self, scorer: Scorer, paths: Sequence[str | Path]) -> JudgedPaths:
        """Judges everything in files and folders.

        Raises:
          UserError: there is nothing that can be judged.
        """

    def files(self, out: Path) -> list[Path]:
        """Returns the files that `write_files` writes."""

    def write_files(self, out: Path, judged: JudgedPaths) -> list[str]:
        """Writes additional results beside the table of predictions at `out`.

        Returns:
          Sentences about what was written.

        Raises:
          UserError: a file cannot be written.
        """

    def attributed(self, scorer: Scorer, steps: int) -> Attribution | None:
        """Returns a function for the contribution of each feature to the score; None if there is none.

        Args:
          scorer: the detector.
          steps: points of the path along which gradients are integrated.
        """


class Images:
    """Judges image files."""

    grouped = True

    def judge_paths(self, scorer: Scorer, paths: Sequence[str | Path]) -> JudgedPaths:
        """Judges image files and all images in folders, see `ScoringModality.judge_paths`."""
        listed: list[Path] = []
        for path in map(Path, paths):
            listed += files.list_images(path) if path.is_dir() else [path]
        if not listed:
            raise UserError(f"no image files in {', '.join(map(str, paths))}")
        judged, problems = scorer.judge_files(listed, progress=True)
        unread = dict(problems)
        reasons = [
            unread.get(decode.shown(path), scorer.words.not_finite) if verdict == calibration.INVALID else ""
            for path, verdict in zip(listed, judged.verdicts, strict=True)
        ]
        return JudgedPaths([str(path) for path in listed], judged, reasons, detail=listed)

    def files(self, out: Path) -> list[Path]:
        """Returns none."""
        return []

    def write_files(self, out: Path, judged: JudgedPaths) -> list[str]:
        """Writes nothing."""
        return []

    def attributed(self, scorer: Scorer, steps: int) -> None:
        """Returns None: the contributions of pixels are drawn as pictures, see `attribution`."""
        return None


class Rows:
    """Judges rows of sensors in tables."""

    grouped = False

    def judge_paths(self, scorer: Scorer, paths: Sequence[str | Path]) -> JudgedPaths:
        """Judges tables, see `sensors.judge_tables`."""
        return sensors.judge_tables(scorer, paths)

    def files(self, out: Path) -> list[Path]:
        """Returns none."""
        return []

    def write_files(self, out: Path, judged: JudgedPaths) -> list[str]:
        """Writes nothing."""
        return []

    def attributed(self, scorer: Scorer, steps: int) -> Attribution:
        """Returns the function for the contribution of each sensor, see `sensors.contributions`."""
        return sensors.attributed(scorer, steps)


class Sound:
    """Judges windows of sound recordings."""

    grouped = False

    def judge_paths(self, scorer: Scorer, paths: Sequence[str | Path]) -> JudgedPaths:
        """Judges recordings, see `sound.judge_recordings`."""
        return sound.judge_paths(scorer, paths)

    def files(self, out: Path) -> list[Path]:
        """Returns `NAME_files.csv`."""
        return [out.with_name(f"{out.stem}_files.csv")]

    def write_files(self, out: Path, judged: JudgedPaths) -> list[str]:
        """Writes `NAME_files.csv` with one row per recording, see `sound.write_files`."""
        (path,) = self.files(out)
        sound.write_files(path, judged.detail)
        return [f"one row per file in {path}"]

    def attributed(self, scorer: Scorer, steps: int) -> None:
        """Returns None: the contributions of bands and frames are drawn as pictures."""
        return None


class Arrays:
    """Refuses files: items of any other modality come as arrays."""

    grouped = False

    def judge_paths(self, scorer: Scorer, paths: Sequence[str | Path]) -> JudgedPaths:
        """Refuses files.

        Raises:
          UserError: always.
        """
        raise UserError(
            f"{scorer.words.kind} cannot be read from files: expected arrays, passed to the scorer in Python"
        )

    def files(self, out: Path) -> list[Path]:
        """Returns none."""
        return []

    def write_files(self, out: Path, judged: JudgedPaths) -> list[str]:
        """Writes nothing."""
        return []

    def attributed(self, scorer: Scorer, steps: int) -> None:
        """Returns None: nothing is known about the features."""
        return None


TABLE: dict[str, ScoringModality] = {"images": Images(), "rows": Rows(), "sound": Sound()}
"""The scoring of each modality, by `Modality.name`."""
_OTHERS = Arrays()


def of(scorer: Scorer) -> ScoringModality:
    """Returns the scoring of a scorer's modality."""
    return TABLE.get(scorer.modality.name, _OTHERS)
