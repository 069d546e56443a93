"""A chemical process and a machine watched by their sensors: what is detected, how late, and at how many false alarms.

    python benchmarks/accuracy/process.py --source DIR/tep/tep_f32.npz --out benchmarks/accuracy/results/process_DEVICE

writes NAME.json, NAME.md and NAME.png. Tennessee Eastman: trained on the normal run of 500 rows, thresholds from the
normal test run, as in the tables that are quoted. README.md beside this file says what is measured and how.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from benchmarks.accuracy import process_page
from benchmarks.accuracy.auroc_page import PUBLISHED
from benchmarks.common import command, timing
from benchmarks.common.command import Log
from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.evaluation import combination, metrics, process_statistics
from ganomaly_jax.scoring import scores as scoring_scores
from ganomaly_jax.scoring.scorer import Scorer
from ganomaly_jax.training import trainer

FAULTS = 21
FIRST = 160
"""Row of a test run at which its fault begins."""
HARD = (3, 9, 15)
"""Faults that hardly differ from normal, for all methods that are known."""
RATE = 0.01
SUCCESSIVE = 6
"""Rows above the threshold one after the other that count as a detection, for the delay."""
LAGGED = 3
"""Rows that the dynamic PCA takes together: two lags, as in the tables that are quoted."""
SCORES = ("squared", "pixel", "residual_mahalanobis")
"""What is computed of each training, in `scores.PARTS`' words."""
SMOOTHING = {"each row": 1.0, "smoothed": 0.1}
"""Weight of the newest score in the running mean (Lucas and Saccucci 1990 use 0.1 to 0.25)."""

COMBINED = {"Stouffer's sum": "stouffer", "the highest": "maximum"}

Scores = dict[str, dict[str, np.ndarray]]
"""{method: {run: a score for each of its rows, NaN where the window is not full}}."""


def read(source: str) -> dict[str, np.ndarray]:
    """Reads the runs of the process, `train_00` and `test_00` to `test_21`, each [rows, 52] float32.

    Raises:
      UserError: the file is not there or holds something else.
    """
    path = Path(source)
    try:
        held = np.load(path, allow_pickle=False)
        runs = {name: held[name] for name in ("train_00", *(f"test_{i:02d}" for i in range(FAULTS + 1)))}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--source {source}: {error}; expected an npz of train_00 and test_00 to test_21") from None
    wrong = [name for name, x in runs.items() if x.ndim != 2 or x.shape[1] != runs["train_00"].shape[1]]
    if wrong:
        raise UserError(f"--source {source}: {wrong[0]} has shape {runs[wrong[0]].shape}: expected rows of sensors")
    return runs


def windows(x: np.ndarray, length: int) -> np.ndarray:
    """Returns all windows of rows [n, D]: [n - length + 1, length, D]."""
    return np.lib.stride_tricks.sliding_window_view(x, length, axis=0).swapaxes(1, 2)


def late(scores: np.ndarray, rows: int) -> np.ndarray:
    """Assigns scores of windows to their last rows, NaN to rows before the first full window."""
    return np.concatenate([np.full(rows - len(scores), np.nan), scores])


def smoothed(scores: np.ndarray, weight: float) -> np.ndarray:
    """Computes the running mean with this weight on the newest score, starting from the first finite one."""
    found, mean = scores.copy(), np.nan
    for i, value in enumerate(scores):
        mean = value if np.isnan(mean) else weight * value + (1 - weight) * mean
        found[i] = mean
    return found


def settings_of(options: argparse.Namespace, detector: str, window: int, sensors: int, seed: int) -> config.Config:
    """Returns a training of one network: latent of a quarter of the sensors, otherwise the defaults."""
    settings = config.Config(seed=seed)
    settings.data.kind, settings.data.window = "rows", window
    # All normal rows but the few that a run has to hold back are trained on: thresholds come from another run.
    settings.data.test, settings.data.calibration = 0.01, 0.0
    settings.model.detector, settings.model.latent_size = detector, sensors // 4
    settings.train.steps, settings.train.picture_every = options.steps, 0
    if detector == "autoencoder":
        settings.model.mask = 0.0
    return settings


def lagged(x: np.ndarray, length: int) -> np.ndarray:
    """Returns each row of rows [n, D] beside those before it: [n - length + 1, length D]."""
    return windows(x, length).reshape(len(x) - length + 1, -1)


def kinds(window: int) -> dict[str, tuple[str, int, int]]:
    """Returns {name: (detector, rows side by side, rows of a window)} of what is trained."""
    return {
        "ganomaly": ("ganomaly", 1, 0),
        f"ganomaly, windows of {window}": ("ganomaly", 1, window),
        "autoencoder": ("autoencoder", 1, 0),
        f"ganomaly, {LAGGED} rows": ("ganomaly", LAGGED, 0),
        f"autoencoder, {LAGGED} rows": ("autoencoder", LAGGED, 0),
    }


def judged(scorer: Scorer, items: np.ndarray) -> dict[str, np.ndarray]:
    """Computes each of `SCORES` [n] of items, by one training."""
    found = scoring_scores.parts(
        scorer.detector.network, SCORES, scorer.variables, scorer.unit(np.asarray(items, np.float32))
    )
    return {name: np.asarray(value, np.float64) for name, value in found.items()}


def networks(options: argparse.Namespace, runs: Mapping[str, np.ndarray], seed: int, log: Log) -> Scores:
    """Trains GANomaly and the autoencoder on rows and on rows with the two before, and GANomaly on windows."""
    found: Scores = {}
    for name, (detector, length, window) in kinds(options.window).items():
        begin = time.perf_counter()
        rows = {run: lagged(x, length) for run, x in runs.items()}
        settings = settings_of(options, detector, window, rows["train_00"].shape[1], seed)
        settings.evaluate.score = "+".join(SCORES)
        with tempfile.TemporaryDirectory() as folder:
            scorer = trainer.train(settings, folder, rows["train_00"], log=lambda line: None)
        for run, x in rows.items():
            if run == "train_00":
                continue
            own = judged(scorer, windows(x, window) if window else x)
            shown = {name: own["squared"], f"{name}, residual Mahalanobis": own["residual_mahalanobis"]}
            if detector == "ganomaly":
                shown[f"{name}, error of x_hat"] = own["pixel"]
            for label, values in shown.items():
                found.setdefault(label, {})[run] = late(values, len(runs[run]))
        log(f"seed {seed}: {name} in {time.perf_counter() - begin:.0f} s")
    return found


def statistical(runs: Mapping[str, np.ndarray]) -> Scores:
    """Scores by PCA of rows and of rows with the two before: T2, Q, and T2 of all components (Mahalanobis)."""
    found: Scores = {}
    for kind, length in (("", 1), ("dynamic ", LAGGED)):
        rows = {run: lagged(x, length) for run, x in runs.items()}
        normal = rows.pop("train_00")
        fitted, whole = process_statistics.fit(normal), process_statistics.fit(normal, components=normal.shape[1])
        for name, function, own in (
            ("PCA T2", process_statistics.hotelling, fitted),
            ("PCA Q", process_statistics.squared_error, fitted),
            ("Mahalanobis", process_statistics.hotelling, whole),
        ):
            found[f"{kind}{name}"] = {run: late(function(own, x), len(runs[run])) for run, x in rows.items()}
    return found


def together(found: Scores, names: Sequence[str], combine: str) -> dict[str, np.ndarray]:
    """Combines how rare each score is among those of the normal test run."""
    made = {}
    for run in found[names[0]]:
        rare = []
        for name in names:
            reference = found[name]["test_00"]
            rare.append(combination.rarity(reference[np.isfinite(reference)], found[name][run]))
        full = ~np.isnan(rare).any(axis=0)
        made[run] = np.full(len(full), np.nan)
        made[run][full] = combination.COMBINE[combine](np.array(rare)[:, full])
    return made


def figures(found: Mapping[str, np.ndarray], weight: float) -> dict[str, Any]:
    """Computes what one method detects: per fault the share of rows, the delay in rows (None: never), AUROC."""
    runs = {run: smoothed(values, weight) for run, values in found.items()}
    normal = runs["test_00"][np.isfinite(runs["test_00"])]
    allowed = max(int(RATE * len(normal) + 0.5), 1)
    threshold = float(np.sort(normal)[-allowed])  # the tenth highest of 960, as in the tables that are quoted
    before = np.concatenate([runs[f"test_{i:02d}"][:FIRST] for i in range(1, FAULTS + 1)])
    before = before[np.isfinite(before)]
    faults = {}
    for i in range(1, FAULTS + 1):
        after = runs[f"test_{i:02d}"][FIRST:]
        above = after > threshold
        held = np.convolve(above, np.ones(SUCCESSIVE), "valid") == SUCCESSIVE
        labels = np.repeat([0, 1], [len(before), len(after)])
        faults[str(i)] = {
            "detected": float(above.mean()),
            "delay": int(held.argmax()) + SUCCESSIVE - 1 if held.any() else None,
            "auroc": float(metrics.auroc(labels, np.concatenate([before, after]))),
        }
    return {"threshold": threshold, "false_alarms": float((before > threshold).mean()), "faults": faults}


def means(found: Mapping[str, Any]) -> dict[str, float | None]:
    """Averages over all faults and over those that are not hard."""
    every = [str(i) for i in range(1, FAULTS + 1)]
    easy = [i for i in every if int(i) not in HARD]
    faults = found["faults"]
    delays = [faults[i]["delay"] for i in easy if faults[i]["delay"] is not None]
    return {
        "detected": float(np.mean([faults[i]["detected"] for i in every])),
        "detected_easy": float(np.mean([faults[i]["detected"] for i in easy])),
        "auroc": float(np.mean([faults[i]["auroc"] for i in every])),
        "delay_easy": float(np.median(delays)) if delays else None,
        "false_alarms": found["false_alarms"],
    }


def measure(options: argparse.Namespace, log: Log) -> dict[str, Any]:
    """Measures {method: {smoothing: {seed: figures}}}; methods without a network have only seed 0."""
    runs = read(options.source)
    fixed = statistical(runs)
    found: dict[str, Any] = {}

    def add(name: str, values: Mapping[str, np.ndarray], seed: int) -> None:
        for word, weight in SMOOTHING.items():
            made = figures(values, weight)
            found.setdefault(name, {}).setdefault(word, {})[str(seed)] = made | {"means": means(made)}

    for name, own in fixed.items():
        add(name, own, 0)
    linear = [name for name in fixed if "PCA" in name]
    for word, combine in COMBINED.items():
        add(f"PCA and dynamic PCA, {word}", together(fixed, linear, combine), 0)
    for seed in options.seeds:
        own = networks(options, runs, seed, log)
        for name, values in own.items():
            add(name, values, seed)
        every = fixed | own
        for word, combine in COMBINED.items():
            add(f"all, {word}", together(every, list(every), combine), seed)
    return found


def published() -> dict[str, dict[str, Any]]:
    """Returns mean detection rates over the 21 faults that others report, with their reliability."""
    held = [one for one in json.loads(PUBLISHED.read_text(encoding="utf-8")) if one["dataset"].startswith("TEP")]
    found: dict[str, dict[str, Any]] = {}
    for method in dict.fromkeys(one["method"] for one in held):
        own = {int(one["class"].removeprefix("fault ")): 1 - one["value"] for one in held if one["method"] == method}
        first = next(one for one in held if one["method"] == method)
        easy = [value for fault, value in own.items() if fault not in HARD]
        found[method] = {
            "detected": float(np.mean(list(own.values()))),
            "detected_easy": float(np.mean(easy)),
            "paper": first["paper"],
            "trust": first["trust"],
        }
    return found


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--source", required=True, help="the npz of the process")
    parser.add_argument("--seeds", default="0,1,2", help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=1000, help="of each training (default: %(default)s)")
    parser.add_argument(
        "--window", type=int, default=16, help="rows that networks take together (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    command.at_least(options, 1, "steps")
    command.at_least(options, 4, "window")
    try:
        options.seeds = [int(seed) for seed in options.seeds.split(",")]
    except ValueError:
        raise UserError(f"--seeds: got {options.seeds!r}, expected whole numbers with commas between") from None
    return options


def run(options: argparse.Namespace, log: Log) -> None:
    """Measures and writes the files."""
    load = command.load(log)
    found = measure(options, log)
    load["after"] = timing.load_average()
    report = command.begin(
        "process",
        machine=timing.machine(),
        load_average=load,
        settings={name: value for name, value in vars(options).items() if name not in ("source", "out")},
        found=found,
        published=published(),
    )
    picture = process_page.picture(report, Path(f"{options.out}.png"))
    command.write(report, options.out, functools.partial(process_page.markdown, picture=picture))


main = functools.partial(command.main, arguments, run, stopped="the files are written only at the end")


if __name__ == "__main__":
    sys.exit(main())
