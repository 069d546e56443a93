"""Recordings judged by a trained detector of sound, and what in a window is heard that is not normal."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from ganomaly_jax import audio, calibration, explain, files, images, maps, recordings, report, spectra
from ganomaly_jax.errors import UserError
from ganomaly_jax.recordings import Recording
from ganomaly_jax.scorer import Judgement, Scorer

NOT_FINITE = "NaN or infinite samples"
# Contributions are in full colour at this share of the threshold.
_FULL = 0.02
_PICTURE = (13.0, 3.6)


@dataclasses.dataclass(frozen=True, eq=False)
class Heard:
    """What is said of a file."""

    path: str
    starts: np.ndarray
    """Second at which each window begins, [n]; of a file that cannot be used one, 0."""
    judged: Judgement
    reason: str = ""
    """Why all of it is `invalid`."""

    @property
    def names(self) -> list[str]:
        """`FILE@12.5s` for each window; `FILE` alone where it cannot be used."""
        return [self.path] if self.reason else [audio.at(self.path, second) for second in self.starts.tolist()]

    @property
    def reasons(self) -> list[str]:
        """Why a window is `invalid`, otherwise empty."""
        return [self.reason or NOT_FINITE * (verdict == calibration.INVALID) for verdict in self.judged.verdicts]


def judge_recordings(judge: Scorer, paths: Sequence[str | Path]) -> tuple[list[Heard], list[str]]:
    """A verdict for each window of recordings, or of folders of them, every `data.sound.stride` seconds; and what the
    user should know, a sentence each.

    Files are read a block at a time, at any rate and with any number of channels.

    Raises:
      UserError: no recordings, or a detector of something else.
    """
    if not judge.sound:
        raise UserError("this detector is not of sound")
    listed: list[Path] = []
    for path in map(Path, paths):
        listed += images.scan_folder(path, recordings.ENDINGS)[0] if path.is_dir() else [path]
    if not listed:
        wanted = " ".join(sorted(recordings.ENDINGS))
        raise UserError(f"no recordings in {', '.join(map(images.shown, paths))}: wanted {wanted}")
    found: list[Heard] = []
    heard: list[Recording] = []
    for path in listed:
        recording, why = audio.looked_through(path, judge.config.data.sound.channel)
        try:
            if recording is None:
                raise UserError(why)
            windows, starts = audio.of_recording(recording, judge.config.data)
            found.append(Heard(str(path), starts, judge.judge(windows)))
            heard.append(recording)
        except UserError as error:
            nothing = np.full(1, np.nan, np.float32)
            reason = str(error).removeprefix(f"{images.shown(path)}: ")
            found.append(
                Heard(images.shown(path), np.zeros(1), Judgement(nothing, nothing, [calibration.INVALID]), reason)
            )
    return found, audio.notes(heard, judge.config.data)[1:] if heard else []


def together(found: Sequence[Heard]) -> Judgement:
    """What is said of all windows of all files, one after the other."""
    return Judgement(
        np.concatenate([one.judged.scores for one in found]),
        np.concatenate([one.judged.p_values for one in found]),
        [verdict for one in found for verdict in one.judged.verdicts],
    )


def write_files(path: Path, found: Sequence[Heard]) -> None:
    """A CSV with a row a file: path, windows, how many of them are anomalous, the highest score and where, the reason.

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
    files.write_text(path, text.getvalue())


def scale_of(judge: Scorer, begin: float = 0.0) -> spectra.Scale:
    """What the patches of a detector's windows mean."""
    return spectra.Scale(judge.detector.spectrogram, judge.low, judge.high, begin)  # type: ignore[union-attr]


def of_patches(judge: Scorer) -> Scorer:
    """The detector of the patches [B, bands, frames, 1] in [-1, 1] that it takes of waveforms: one of images."""
    data = dataclasses.replace(judge.config.data, kind="images", low=-1.0, high=1.0)
    return dataclasses.replace(
        judge,
        detector=judge.detector.network,  # type: ignore[union-attr]
        config=dataclasses.replace(judge.config, data=data),
        low=-1.0,
        high=1.0,
    )


def explain_window(judge: Scorer, wave: np.ndarray, name: str, begin: float, out: Path) -> list[str]:
    """A picture of one window [T] that begins at a second of a recording, and what is to say of it in lines.

    Raises:
      UserError: samples that are not finite; matplotlib is not installed; the picture cannot be written.
    """
    judged = judge.judge(wave[None])
    if judged.verdicts[0] == calibration.INVALID:
        raise UserError(f"{name}: {NOT_FINITE}, there is nothing to explain")
    score, p_value = float(judged.scores[0]), float(judged.p_values[0])
    seen = of_patches(judge)
    patch = np.asarray(judge.unit(jnp.asarray(wave[None])))
    found = explain.residual_maps(seen, patch)
    added = explain.integrated_gradients(seen, patch)
    boxes = maps.regions(found.values[0], judge.map_threshold)
    scale = scale_of(judge, begin)
    title = explain.title_of(name, judged.verdicts[0], score, p_value, judge.threshold)
    contributions = added.values[0].sum(-1)
    full = max(_FULL * abs(judge.threshold), float(np.abs(contributions).max()) / 2, 1e-12)

    def draw(figure: Any) -> None:
        figure.suptitle(images.shown(title), fontsize=11, parse_math=False)
        spectra.explained(
            figure, found.x[0], found.x_hat[0], found.values[0], judge.map_threshold, boxes, scale, contributions, full
        )

    report.drawn(out, *_PICTURE, draw)
    lines = [
        title,
        f"{len(boxes)} region{'s' * (len(boxes) != 1)} above the map's threshold {judge.map_threshold:.4g}"
        + ", in the recording:" * bool(boxes),
    ]
    for i, box in enumerate(boxes, 1):
        (first, last), (low, high) = (
            scale.seconds(box.left, box.left + box.width - 1),
            scale.band(box.top, box.top + box.height - 1),
        )
        lines.append(f"{i:3}  {first:.3f} to {last:.3f} s  {low:.0f} to {high:.0f} Hz  peak {box.peak:.4g}")
    difference = added.scores[0] - added.baseline_scores[0]
    lines.append(
        f"the score differs by {difference:+.4g} from {added.baseline_scores[0]:.4g}, that of its reconstruction; what "
        f"bands and frames add comes to {added.values[0].sum():+.4g}"
    )
    return lines


def window_of(judge: Scorer, given: str) -> tuple[np.ndarray, str, float]:
    """The window [T] that `FILE@SECONDS` names, or the one of the highest score in FILE; its name and where it begins.

    Raises:
      UserError: a file that cannot be used, or nothing there as long as a window.
    """
    path, second = Path(given), None
    if not path.exists() and (match := re.fullmatch(r"(.+)@(\d+(?:\.\d*)?)s?", given)):
        path, second = Path(match[1]), float(match[2])
    settings = judge.config.data
    recording, why = audio.looked_through(path, settings.sound.channel)
    if recording is None:
        raise UserError(f"{images.shown(path)}: {why}")
    size, rate = audio.length(settings), settings.sound.rate
    if second is None:
        windows, starts = audio.of_recording(recording, settings)
        scores = judge(windows)
        if not np.isfinite(scores).any():
            raise UserError(f"{images.shown(path)}: {NOT_FINITE}, there is nothing to explain")
        at = int(np.nanargmax(scores))
        return windows[at], audio.at(str(path), float(starts[at])), float(starts[at])
    first = round(second * rate)
    if first + size > recordings.length(recording, rate):
        raise UserError(
            f"{images.shown(path)} has {recording.seconds:.3g} s: no window of {size / rate:.3g} s begins at "
            f"{second:g} s"
        )
    return (
        recordings.read(recording, first, first + size, rate, settings.sound.channel),
        audio.at(str(path), second),
        second,
    )


def main(given: Any, judge: Scorer) -> int:
    """The verb `explain` of sound: parsed arguments in, lines on standard output, the exit code back."""
    wave, name, begin = window_of(judge, given.image)
    stem = re.sub(r"[^\w.-]+", "_", Path(name).name)
    out = Path(given.out) if given.out else explain.folder_of(Path(given.workdir)) / f"{stem}.png"
    out.parent.mkdir(parents=True, exist_ok=True)
    print("\n".join(explain_window(judge, wave, name, begin, out)))
    print(f"picture in {out}")
    return 0


def write_maps(judge: Scorer, folder: Path, found: Sequence[Heard], most: int) -> tuple[int, int]:
    """Pictures of the anomalous windows, the most anomalous first, `most` of them (0: all); (drawn, anomalous)."""
    each = [
        (score, one.path, start)
        for one in found
        for score, start, verdict in zip(
            one.judged.scores.tolist(), one.starts.tolist(), one.judged.verdicts, strict=True
        )
        if verdict == calibration.ANOMALOUS
    ]
    chosen = sorted(each, key=lambda item: -item[0])[: most or None]
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("[0-9][0-9][0-9][0-9]_*.png"):
        old.unlink(missing_ok=True)
    for i, (_, path, start) in enumerate(chosen, 1):
        wave, name, begin = window_of(judge, f"{path}@{start:.6f}")
        stem = re.sub(r"[^\w.-]+", "_", Path(name).name)[-60:]
        explain_window(judge, wave, name, begin, folder / f"{i:04}_{stem}.png")
    return len(chosen), len(each)


def predict(judge: Scorer, given: Any, out: Path) -> tuple[list[Heard], list[str]]:
    """What `predict` does with recordings: rows a file beside the rows a window, pictures where asked for."""
    found, notes = judge_recordings(judge, given.paths)
    beside = out.with_name(f"{out.stem}_files.csv")
    write_files(beside, found)
    notes = [*notes, f"a row a file in {beside}"]
    if given.maps:
        folder = out.with_name(f"{out.stem}_{explain.FOLDER}") if given.out else explain.folder_of(Path(given.workdir))
        drawn, anomalous = write_maps(judge, folder, found, given.most_maps)
        left = f", the most anomalous of {anomalous} (--most-maps 0 draws all)" if drawn < anomalous else ""
        notes.append(f"{drawn} pictures in {folder}{left}")
    return found, notes
