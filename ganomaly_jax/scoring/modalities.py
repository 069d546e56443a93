"""What scoring knows of each modality: how files are judged, and what contributions there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from jax import Array

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.images import decode, files
from ganomaly_jax.scoring import calibration, sensors, sound
from ganomaly_jax.scoring.scorer import JudgedPaths, Scorer

Attribution = Callable[[Any, Array], tuple[Array, Array, Array]]
"""(variables, raw items) -> contributions `[B, D]`, scores `[B]` and the score of the baseline; pure."""


class ScoringModality(Protocol):
    """What scoring asks of a modality."""

    @property
    def grouped(self) -> bool:
        """Returns True if files may be judged by the calibration of groups."""

    def judge_paths(self, scorer: Scorer, paths: Sequence[str | Path]) -> JudgedPaths:
        """Judges everything in files and folders.

        Raises:
          UserError: nothing there that can be judged.
        """

    def write_files(self, out: Path, found: JudgedPaths) -> list[str]:
        """Writes what there is beside the rows of `predictions.csv` at `out`.

        Returns:
          Sentences on what was written.

        Raises:
          UserError: it cannot be written.
        """

    def attributed(self, scorer: Scorer, steps: int) -> Attribution | None:
        """Returns what each feature of an item adds to its score, by `steps` of an integral; None: there is none."""


class Images:
    """Images in files, any number."""

    grouped = True

    def judge_paths(self, scorer: Scorer, paths: Sequence[str | Path]) -> JudgedPaths:
        """Judges image files, and those in folders."""
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

    def write_files(self, out: Path, found: JudgedPaths) -> list[str]:
        """Writes nothing."""
        return []

    def attributed(self, scorer: Scorer, steps: int) -> None:
        """Returns None: contributions of pixels are for pictures, see `attribution`."""
        return None


class Rows:
    """Rows of sensors in tables."""

    grouped = False

    def judge_paths(self, scorer: Scorer, paths: Sequence[str | Path]) -> JudgedPaths:
        """Judges tables, see `sensors.judge_tables`."""
        return sensors.judge_tables(scorer, paths)

    def write_files(self, out: Path, found: JudgedPaths) -> list[str]:
        """Writes nothing."""
        return []

    def attributed(self, scorer: Scorer, steps: int) -> Attribution:
        """Returns what each sensor adds, see `sensors.contributions`."""
        return sensors.attributed(scorer, steps)


class Sound:
    """Windows of recordings."""

    grouped = False

    def judge_paths(self, scorer: Scorer, paths: Sequence[str | Path]) -> JudgedPaths:
        """Judges recordings, see `sound.judge_recordings`."""
        return sound.judge_paths(scorer, paths)

    def write_files(self, out: Path, found: JudgedPaths) -> list[str]:
        """Writes a table with a row a recording."""
        beside = out.with_name(f"{out.stem}_files.csv")
        sound.write_files(beside, found.detail)
        return [f"a row a file in {beside}"]

    def attributed(self, scorer: Scorer, steps: int) -> None:
        """Returns None: contributions of bands and frames are for pictures."""
        return None


class Arrays:
    """What is not in the table: items in arrays, of no known files."""

    grouped = False

    def judge_paths(self, scorer: Scorer, paths: Sequence[str | Path]) -> JudgedPaths:
        """Refuses files.

        Raises:
          UserError: always.
        """
        raise UserError(f"files of {scorer.words.kind} are not known: expected arrays, given to the scorer in Python")

    def write_files(self, out: Path, found: JudgedPaths) -> list[str]:
        """Writes nothing."""
        return []

    def attributed(self, scorer: Scorer, steps: int) -> None:
        """Returns None: nothing is known of the features."""
        return None


TABLE: dict[str, ScoringModality] = {"images": Images(), "rows": Rows(), "sound": Sound()}
"""By `Modality.name`."""
_OTHERS = Arrays()


def of(scorer: Scorer) -> ScoringModality:
    """Returns the entry of a scorer's modality."""
    return TABLE.get(scorer.modality.name, _OTHERS)
