"""Recordings judged by a trained detector of sound."""

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
from ganomaly_jax.scoring.scorer import JudgedPaths, Judgement, Scorer

NOT_FINITE = WORDS.not_finite


@dataclasses.dataclass(frozen=True, eq=False)
class JudgedRecording:
    """What is said of a file."""

    path: str
    starts: np.ndarray
    """Second at which each window begins, [n]; of a file that cannot be used one, 0."""
    judged: Judgement
    reason: str = ""
    """Why all of it is `invalid`."""

    @property
    def names(self) -> list[str]:
        """Returns `FILE@12.5s` for each window; `FILE` alone if it cannot be used."""
        return (
            [self.path]
            if self.reason
            else [audio_windows.window_name(self.path, second) for second in self.starts.tolist()]
        )

    @property
    def reasons(self) -> list[str]:
        """Returns why each window is `invalid`, empty otherwise."""
        return [self.reason or NOT_FINITE * (verdict == calibration.INVALID) for verdict in self.judged.verdicts]


def judge_recordings(scorer: Scorer, paths: Sequence[str | Path]) -> tuple[list[JudgedRecording], list[str]]:
    """Scores the windows of recordings, or of folders of them, one every `data.sound.stride` seconds.

    Returns them with notes for the user, a sentence each.

    Files are read a block at a time, at any rate and with any number of channels.

    Raises:
      UserError: no recordings.
    """
    listed: list[Path] = []
    for path in map(Path, paths):
        listed += image_files.scan_folder(path, recordings.ENDINGS)[0] if path.is_dir() else [path]
    if not listed:
        wanted = " ".join(sorted(recordings.ENDINGS))
        raise UserError(f"no recordings in {', '.join(map(decode.shown, paths))}: expected {wanted}")
    found: list[JudgedRecording] = []
    heard: list[Recording] = []
    for path in listed:
        recording, why = audio_windows.inspect_file(path, scorer.config.data.sound.channel)
        try:
            if recording is None:
                raise UserError(why)
            windows, starts = audio_windows.of_recording(recording, scorer.config.data)
            found.append(JudgedRecording(str(path), starts, scorer.judge(windows)))
            heard.append(recording)
        except UserError as error:
            nothing = np.full(1, np.nan, np.float32)
            reason = str(error).removeprefix(f"{decode.shown(path)}: ")
            found.append(
                JudgedRecording(
                    decode.shown(path), np.zeros(1), Judgement(nothing, nothing, [calibration.INVALID]), reason
                )
            )
    return found, window_settings.notes(heard, scorer.config.data)[1:] if heard else []


def judge_paths(scorer: Scorer, paths: Sequence[str | Path]) -> JudgedPaths:
    """Judges recordings as `judge_recordings` does; all windows of all files, one after the other.

    Raises:
      UserError: no recordings.
    """
    found, notes = judge_recordings(scorer, paths)
    judged = Judgement(
        np.concatenate([one.judged.scores for one in found]),
        np.concatenate([one.judged.p_values for one in found]),
        [verdict for one in found for verdict in one.judged.verdicts],
    )
    names = [name for one in found for name in one.names]
    return JudgedPaths(names, judged, [reason for one in found for reason in one.reasons], notes, found)


def write_files(path: Path, found: Sequence[JudgedRecording]) -> None:
    """Writes a CSV with a row per file: windows, anomalous windows, highest score, its position, and the reason.

    Raises:
      UserError: it cannot be written.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("path", "windows", "anomalous", "highest_score", "at_seconds", "reason"))
    for one in found:
        shown = one.path.encode("utf-8", "backslashreplace").decode("utf-8")
        anomalous = one.judged.verdicts.count(calibration.ANOMALOUS)
        if not np.isfinite(one.judged.scores).any():
            rows.writerow((shown, 0, 0, "", "", one.reason or NOT_FINITE))
            continue
        at = int(np.nanargmax(one.judged.scores))
        rows.writerow((shown, len(one.starts), anomalous, f"{one.judged.scores[at]:.9g}", f"{one.starts[at]:.6g}", ""))
    atomic_files.write_text(path, text.getvalue())


def scale_of(scorer: Scorer, begin: float = 0.0) -> spectrogram_scale.Scale:
    """Returns the scales of time and frequency of a detector's patches."""
    return spectrogram_scale.Scale(spectrogram.of_data(scorer.config.data), scorer.low, scorer.high, begin)


def of_patches(scorer: Scorer) -> Scorer:
    """Returns the detector of the patches [B, bands, frames, 1] in [-1, 1] that it computes from waveforms."""
    data = dataclasses.replace(scorer.config.data, kind=Images.name, low=-1.0, high=1.0)
    return dataclasses.replace(
        scorer,
        detector=WholeDetector(scorer.detector.network, Images().preprocessing(data)),
        config=dataclasses.replace(scorer.config, data=data),
        low=-1.0,
        high=1.0,
    )


def window_of(scorer: Scorer, given: str) -> tuple[np.ndarray, str, float]:
    """Returns the window [T] that `FILE@SECONDS` names, or the one with the highest score; its name and its beginning.

    Raises:
      UserError: a file that cannot be used, or nothing there as long as a window.
    """
    path, second = Path(given), None
    if not path.exists() and (match := re.fullmatch(r"(.+)@(\d+(?:\.\d*)?)s?", given)):
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
