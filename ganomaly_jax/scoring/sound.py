"""Judging recordings with a trained detector of sound."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ganomaly_jax.core import atomic_files
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.audio import recordings, spectrogram, spectrogram_scale, window_settings
from ganomaly_jax.data.audio import windows as audio_windows
from ganomaly_jax.data.audio.modality import WORDS
from ganomaly_jax.data.audio.recordings import Recording
from ganomaly_jax.data.images import decode
from ganomaly_jax.data.images import files as image_files
from ganomaly_jax.data.images.modality import Images
from ganomaly_jax.scoring import calibration
from ganomaly_jax.scoring.adapters import WholeDetector
from ganomaly_jax.scoring.judgement import JudgedPaths, Judgement
from ganomaly_jax.scoring.scorer import Scorer

NOT_FINITE = WORDS.not_finite


@dataclasses.dataclass(frozen=True, eq=False)
class JudgedRecording:
    """Holds the judgement of the windows of a recording."""

    path: str
    """The file."""
    starts: np.ndarray
    """[n] float, the second at which each window begins; a single 0 if the file cannot be used."""
    judged: Judgement
    """The judgement of the n windows; a single invalid item if the file cannot be used."""
    reason: str = ""
    """Why the file cannot be used; empty if it can."""

    @property
    def names(self) -> list[str]:
        """Returns the name of each window, such as `FILE@12.5s`; `FILE` alone if it cannot be used."""
        return (
            [self.path]
            if self.reason
            else [audio_windows.window_name(self.path, second) for second in self.starts.tolist()]
        )

    @property
    def reasons(self) -> list[str]:
        """Returns why each window is `invalid`; empty for other verdicts."""
        return [self.reason or NOT_FINITE * (verdict == calibration.INVALID) for verdict in self.judged.verdicts]


def judge_recordings(scorer: Scorer, paths: Sequence[str | Path]) -> tuple[list[JudgedRecording], list[str]]:
    """Judges the windows of recordings, one every `data.sound.stride` seconds.

    Files may have any sample rate and number of channels; they are read a block at a time.

    Args:
      scorer: a detector of sound.
      paths: files, and folders of files.

    Returns:
      The judgement of each file, and sentences for the user.

    Raises:
      UserError: there are no recordings.
    """
    listed: list[Path] = []
    for path in map(Path, paths):
        listed += image_files.scan_folder(path, recordings.ENDINGS)[0] if path.is_dir() else [path]
    if not listed:
        expected = " ".join(sorted(recordings.ENDINGS))
        raise UserError(f"no recordings in {', '.join(map(decode.shown, paths))}: expected {expected}")
    files: list[JudgedRecording] = []
    readable: list[Recording] = []
    for path in listed:
        recording, why = audio_windows.inspect_file(path, scorer.config.data.sound.channel)
        try:
            if recording is None:
                raise UserError(why)
            windows, starts = audio_windows.of_recording(recording, scorer.config.data)
            files.append(JudgedRecording(str(path), starts, scorer.judge(windows)))
            readable.append(recording)
        except UserError as error:
            nothing = np.full(1, np.nan, np.float32)
            reason = str(error).removeprefix(f"{decode.shown(path)}: ")
            files.append(
                JudgedRecording(
                    decode.shown(path), np.zeros(1), Judgement(nothing, nothing, [calibration.INVALID]), reason
                )
            )
    return files, window_settings.notes(readable, scorer.config.data)[1:] if readable else []


def judge_paths(scorer: Scorer, paths: Sequence[str | Path]) -> JudgedPaths:
    """Judges recordings as `judge_recordings` does and joins the windows of all files.

    Raises:
      UserError: there are no recordings.
    """
    files, notes = judge_recordings(scorer, paths)
    judged = Judgement(
        np.concatenate([file.judged.scores for file in files]),
        np.concatenate([file.judged.p_values for file in files]),
        [verdict for file in files for verdict in file.judged.verdicts],
    )
    names = [name for file in files for name in file.names]
    return JudgedPaths(names, judged, [reason for file in files for reason in file.reasons], notes, files)


def write_files(path: Path, files: Sequence[JudgedRecording]) -> None:
    """Writes a CSV file with one row per recording.

    The columns are path, windows, anomalous (windows), highest_score, at_seconds (where its window begins) and reason
    (why the file cannot be used).

    Raises:
      UserError: the file cannot be written.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("path", "windows", "anomalous", "highest_score", "at_seconds", "reason"))
    for file in files:
        shown = file.path.encode("utf-8", "backslashreplace").decode("utf-8")
        scores, starts = file.judged.scores, file.starts
        anomalous = file.judged.verdicts.count(calibration.ANOMALOUS)
        if not np.isfinite(scores).any():
            rows.writerow((shown, 0, 0, "", "", file.reason or NOT_FINITE))
            continue
        at = int(np.nanargmax(scores))
        rows.writerow((shown, len(starts), anomalous, f"{scores[at]:.9g}", f"{starts[at]:.6g}", ""))
    atomic_files.write_text(path, text.getvalue())


def scale_of(scorer: Scorer, begin: float = 0.0) -> spectrogram_scale.Scale:
    """Returns the time and frequency scales of a detector's spectrograms, which begin at second `begin`."""
    return spectrogram_scale.Scale(spectrogram.of_data(scorer.config.data), scorer.low, scorer.high, begin)


def of_patches(scorer: Scorer) -> Scorer:
    """Returns a scorer that takes spectrograms [B, bands, frames, 1] in [-1, 1] instead of waveforms."""
    data = dataclasses.replace(scorer.config.data, kind=Images.name, low=-1.0, high=1.0)
    return dataclasses.replace(
        scorer,
        detector=WholeDetector(scorer.detector.network, Images().preprocessing(data)),
        config=dataclasses.replace(scorer.config, data=data),
        low=-1.0,
        high=1.0,
    )


def window_of(scorer: Scorer, name: str) -> tuple[np.ndarray, str, float]:
    """Returns one window of a recording.

    Args:
      scorer: a detector of sound.
      name: `FILE@SECONDS`, or `FILE` for its window with the highest score.

    Returns:
      The samples [T], the name of the window, and the second at which it begins.

    Raises:
      UserError: the file cannot be used, or ends before the window does.
    """
    path, second = Path(name), None
    if not path.exists() and (match := re.fullmatch(r"(.+)@(\d+(?:\.\d*)?)s?", name)):
        path, second = Path(match[1]), float(match[2])
    settings = scorer.config.data
    recording, why = audio_windows.inspect_file(path, settings.sound.channel)
    if recording is None:
        raise UserError(f"{decode.shown(path)}: {why}")
    size, rate = window_settings.length(settings), settings.sound.rate
    if second is None:
        windows, starts = audio_windows.of_recording(recording, settings)
        scores = scorer(windows)
        if not np.isfinite(scores).any():
            raise UserError(f"{decode.shown(path)}: {NOT_FINITE}, there is nothing to explain")
        at = int(np.nanargmax(scores))
        return windows[at], audio_windows.window_name(str(path), float(starts[at])), float(starts[at])
    first = round(second * rate)
    if first + size > recordings.length(recording, rate):
        raise UserError(
            f"{decode.shown(path)} has {recording.seconds:.3g} s: no window of {size / rate:.3g} s begins at "
            f"{second:g} s"
        )
    return (
        recordings.read(recording, first, first + size, rate, settings.sound.channel),
        audio_windows.window_name(str(path), second),
        second,
    )
