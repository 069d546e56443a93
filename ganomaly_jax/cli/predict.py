"""A verdict for each of many files: `ganomaly predict`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ganomaly_jax.core import sealed_folder
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.images import decode
from ganomaly_jax.data.images import files as image_files
from ganomaly_jax.evaluation import evaluate
from ganomaly_jax.scoring import groups
from ganomaly_jax.scoring import scorer as scoring_scorer
from ganomaly_jax.scoring.scorer import Judgement, Scorer

_SOME_FAILED = 3
# Rows of the verdict table on the terminal; predictions.csv has them all.
_ROWS = 20


def predict(given: Any) -> int:
    """What `ganomaly predict` does, from its parsed flags; returns the exit code.

    Raises:
      UserError: flags that do not go together, a detector that is not there, or no files.
    """
    if given.most_maps < 0:
        raise UserError(f"--most-maps {given.most_maps}: wanted a number of pictures, 0 for all")
    scorer = scoring_scorer.load(given.workdir)
    if not given.out and (Path(given.workdir) / sealed_folder.MANIFEST).exists():
        raise UserError(f"{given.workdir} is a detector folder, which nothing may be written into: wanted --out FILE")
    if scorer.columns:
        return _of_rows(scorer, given)
    if scorer.sound:
        return _of_sound(scorer, given)
    files: list[Path] = []
    for path in map(Path, given.paths):
        files += image_files.list_images(path) if path.is_dir() else [path]
    if not files:
        raise UserError(f"no image files in {', '.join(given.paths)}")
    judged, problems = scorer.judge_files(files, progress=True)
    if given.groups:
        judged = groups.judge_by(scorer, judged, groups.of_images(given.groups, [str(path) for path in files]))
    reasons = dict(problems)
    out = Path(given.out) if given.out else Path(given.workdir) / evaluate.PREDICTIONS
    names = [str(path) for path in files]
    why = [
        reasons.get(decode.shown(path), evaluate.NOT_FINITE) if verdict == "invalid" else ""
        for path, verdict in zip(files, judged.verdicts, strict=True)
    ]
    evaluate.write_predictions(out, names, [None] * len(files), judged, why)
    failed = _verdicts(scorer, names, judged, why, out)
    if given.maps:
        from ganomaly_jax.report import explanation

        explanation.write_all(scorer, given, files, judged)
    return failed


def _of_rows(scorer: Scorer, given: Any) -> int:
    """Of tables of sensors: a row a window."""
    from ganomaly_jax.scoring import sensors

    if given.maps or given.groups:
        raise UserError("--maps and --groups are for images: wanted neither with tables of sensors")
    found = sensors.judge_tables(scorer, given.paths)
    out = Path(given.out) if given.out else Path(given.workdir) / evaluate.PREDICTIONS
    evaluate.write_predictions(out, found.paths, [None] * len(found.paths), found.judged, found.reasons)
    for note in found.notes:
        print(f"note: {note}")
    return _verdicts(scorer, found.paths, found.judged, found.reasons, out)


def _of_sound(scorer: Scorer, given: Any) -> int:
    """Of recordings: a row a window, and a row a file beside."""
    from ganomaly_jax.report import sound_explanation
    from ganomaly_jax.scoring import sound

    if given.groups:
        raise UserError("--groups is for images: wanted none with recordings")
    out = Path(given.out) if given.out else Path(given.workdir) / evaluate.PREDICTIONS
    found, notes = sound_explanation.predict(scorer, given, out)
    names = [name for one in found for name in one.names]
    why = [reason for one in found for reason in one.reasons]
    judged = sound.together(found)
    evaluate.write_predictions(out, names, [None] * len(names), judged, why)
    for note in notes:
        print(f"note: {note}")
    return _verdicts(scorer, names, judged, why, out)


def _verdicts(scorer: Scorer, names: Sequence[str], judged: Judgement, why: Sequence[str], out: Path) -> int:
    """Print the verdicts and how many there are of each; returns the exit code."""
    _table(names, judged, why)
    counts = {verdict: judged.verdicts.count(verdict) for verdict in ("normal", "review", "anomalous", "invalid")}
    if scorer.calibration.review is None:
        counts.pop("review")
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()) + f"; rows in {out}")
    return _SOME_FAILED if counts["invalid"] else 0


def _table(names: Sequence[str], judged: Judgement, why: Sequence[str]) -> None:
    """The verdicts, invalid ones and then the most anomalous first."""
    order = sorted(range(len(names)), key=lambda i: (judged.verdicts[i] != "invalid", -judged.scores[i]))
    print(f"{'verdict':9}  {'score':>10}  {'p-value':>7}  path")
    for i in order[:_ROWS]:
        if judged.verdicts[i] == "invalid":
            print(f"{'invalid':9}  {'':>10}  {'':>7}  {_one_line(names[i])}: {why[i]}")
        else:
            print(f"{judged.verdicts[i]:9}  {judged.scores[i]:10.4g}  {judged.p_values[i]:7.4f}  {_one_line(names[i])}")
    if len(order) > _ROWS:
        print(f"... and {len(order) - _ROWS} less anomalous ones")


def _one_line(name: str) -> str:
    """A file name without line ends and without what a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
