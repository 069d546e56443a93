"""The table of predictions, one row per item: written by `evaluate` and `predict`, read by `compare`."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from ganomaly_jax.core import atomic_files
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.printable import spreadsheet_safe
from ganomaly_jax.runs import layout
from ganomaly_jax.scoring.judgement import Judgement


def write(
    path: Path,
    paths: Sequence[str],
    labels: Sequence[int | None],
    judged: Judgement,
    reasons: Sequence[str],
    times: Sequence[str] | None = None,
    safe: bool = False,
) -> None:
    """Writes a table of predictions, such as predictions.csv.

    The columns are path, label (0 normal, 1 anomalous, empty if unknown), score, p_value, verdict and reason (of the
    verdict `invalid`, for which score and p_value are empty), and time, if times are known.

    Args:
      path: the file to write.
      paths: [n] the names of the items.
      labels: [n] 0, 1, or None if unknown.
      judged: the judgement of the n items.
      reasons: [n] why a verdict is `invalid`; empty for other verdicts.
      times: [n] the times of the items, empty if unknown; None if all are unknown.
      safe: whether to mark text that a spreadsheet would interpret as a formula.

    Raises:
      UserError: the file cannot be written.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("path", "label", "score", "p_value", "verdict", "reason", *([] if times is None else ["time"])))
    words = spreadsheet_safe if safe else str
    for i, (name, label, score, p_value, verdict, reason) in enumerate(
        zip(paths, labels, judged.scores.tolist(), judged.p_values.tolist(), judged.verdicts, reasons, strict=True)
    ):
        numbers = ("", "") if not math.isfinite(score) else (f"{score:.9g}", f"{p_value:.6g}")
        # File names may be invalid text; a carriage return, which Python does not quote, would end the row.
        shown = name.encode("utf-8", "backslashreplace").decode("utf-8").replace("\r", "\\r")
        time = [] if times is None else [times[i]]
        rows.writerow((words(shown), "" if label is None else label, *numbers, verdict, words(reason), *time))
    atomic_files.write_text(path, text.getvalue())


def read(source: Path) -> dict[str, tuple[int, float]]:
    """Reads the labelled predictions of a run, of an evaluation on other data, or in a file.

    Args:
      source: the folder of an evaluated run, one of its `evaluations/NAME`, or a table of predictions.

    Returns:
      {path: (label, score)}; the score of an invalid item is NaN.

    Raises:
      UserError: there is no such table, or it has rows without a label or duplicate paths.
    """
    path = source if source.is_file() else source / layout.PREDICTIONS
    if not path.is_file():
        if (source / layout.MEMBERS).is_dir():
            raise UserError(f"{source} contains several members; name one, such as {source}/members/NAME")
        raise UserError(
            f"no {layout.PREDICTIONS} in {source}: expected the --workdir of a run, after `ganomaly evaluate`, one of "
            f"its {layout.EVALUATIONS}/NAME, or a table of predictions"
        )
    predictions: dict[str, tuple[int, float]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row["label"] == "":
                    raise UserError(
                        f"{path} has images without a label, as `ganomaly predict` writes them: expected the result of "
                        "`ganomaly evaluate`, on the test set or with --data"
                    )
                if row["path"] in predictions:
                    raise UserError(f"{path} has {row['path']} twice, so images cannot be matched by path")
                predictions[row["path"]] = (int(row["label"]), float(row["score"]) if row["score"] else math.nan)
    except UserError:
        raise
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as rows of path, label, score: {error}") from None
    if not predictions:
        raise UserError(f"{path} has no rows: evaluate again")
    return predictions
