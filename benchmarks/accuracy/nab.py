"""The temperature of a machine (NAB): which of the four labelled windows raise an alarm, how late, and false alarms.

    python benchmarks/accuracy/nab.py --source DIR/nab --out benchmarks/accuracy/results/nab_DEVICE

writes NAME.json, NAME.md and NAME.png. Trained on the first rows outside the labelled windows, calibrated on the rows
after them. README.md beside this file says what is measured and how.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from benchmarks.accuracy.process import late, smoothed, windows
from benchmarks.accuracy.process_page import spread
from benchmarks.common import command, timing
from benchmarks.common.command import Log
from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.rows import windows as row_windows
from ganomaly_jax.evaluation import process_statistics
from ganomaly_jax.training import trainer

ROWS, LABELS = "machine_temperature_system_failure.csv", "machine_temperature_labels.json"
DAY = 288
"""Rows of 5 minutes."""
TRAINED, CALIBRATED = 20 * DAY, 30 * DAY
"""Rows up to which networks are trained, and up to which thresholds are set; labelled windows in them are left out."""
WINDOW = 64
RATE = 0.001
"""Of the calibration rows lie above the threshold: less than one every three days."""
WEIGHT = 0.05
COOL_DOWN = DAY
"""An alarm within a day of the last one is the same."""


def read(source: str) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int]]]:
    """Reads times [n], temperatures [n, 1] and (first row, last row) of each labelled window.

    Raises:
      UserError: the two files are not there or hold something else.
    """
    try:
        with open(Path(source) / ROWS, encoding="utf-8", newline="") as file:
            lines = [(line["timestamp"], line["value"]) for line in csv.DictReader(file)]
        held = json.loads((Path(source) / LABELS).read_text(encoding="utf-8"))["windows"]
        times = np.array([time for time, _ in lines], "datetime64[s]")
        values = np.array([[value] for _, value in lines], np.float64)
        spans = np.array([[np.datetime64(word[:19], "s") for word in pair] for pair in held])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--source {source}: {error}; expected a folder with {ROWS} and {LABELS}") from None
    at = np.searchsorted(times, spans)
    return times, values, [(int(first), int(last)) for first, last in at]


def scores_of(name: str, values: np.ndarray, normal: np.ndarray, seed: int, steps: int) -> np.ndarray:
    """Scores each row [n] by the window that ends with it; `normal` [n] says which rows are trained on."""
    cut = windows(values, WINDOW)
    whole = windows(normal[:, None], WINDOW).all(axis=(1, 2))
    if name in LINEAR:
        share, function = LINEAR[name]
        fitted = process_statistics.fit(cut[whole].reshape(-1, WINDOW), components=share)
        return late(function(fitted, cut.reshape(-1, WINDOW)), len(values))
    if name == "distance from the median":
        middle = np.median(values[normal])
        return np.abs(values[:, 0] - middle)
    detector, _, score = name.partition(", ")
    settings = config.Config(seed=seed)
    settings.data.kind, settings.data.calibration, settings.data.test = "rows", 0.0, 0.01
    settings.data.window = WINDOW
    settings.model.detector, settings.model.latent_size, settings.model.features = detector, 16, 16
    settings.train.steps, settings.train.picture_every = steps, 0
    settings.evaluate.score = SCORES[score]
    with tempfile.TemporaryDirectory() as folder:
        scorer = trainer.train(
            settings,
            folder,
            row_windows.from_rows(values, np.where(normal, 0, 1), ["temperature"], settings=settings.data),
            log=lambda line: None,
        )
    return late(scorer(cut).astype(float), len(values))


def figures(scores: np.ndarray, spans: Sequence[tuple[int, int]], weight: float) -> dict[str, Any]:
    """Counts false alarms of a method, and hours from the start of each labelled window to its first alarm.

    The threshold is the one above which `RATE` of the rows of the calibration part lie. An alarm begins where a score
    is above it, `COOL_DOWN` rows or more after the last that was.
    """
    found = smoothed(scores, weight)
    inside = np.zeros(len(found), bool)
    for first, last in spans:
        inside[first:last] = True
    rows_ = np.arange(len(found))
    calibration = found[(rows_ >= TRAINED) & (rows_ < CALIBRATED) & ~inside & np.isfinite(found)]
    threshold = float(np.quantile(calibration, 1 - RATE))
    above = np.flatnonzero(found > threshold)
    begins = above[np.diff(above, prepend=-COOL_DOWN - 1) > COOL_DOWN]
    delays = []
    for first, last in spans:
        own = above[(above >= first) & (above < last)]
        delays.append(float(own[0] - first) / 12 if len(own) else None)
    judged = (rows_ >= CALIBRATED) & ~inside
    false = int(sum(judged[i] for i in begins))
    return {
        "threshold": threshold,
        "delays_h": delays,
        "found": sum(delay is not None for delay in delays),
        "false_alarms": false,
        "false_alarms_a_month": false / (judged.sum() / (30 * DAY)),
        "rows_above": float((found[judged] > threshold).mean()),
        "timeline": [None if np.isnan(v) else float(v) for v in found[:: DAY // 24]],
    }


LINEAR: dict[str, tuple[float, Callable[..., np.ndarray]]] = {
    "PCA T2": (0.9, process_statistics.hotelling),
    "PCA Q": (0.9, process_statistics.squared_error),
    "Mahalanobis": (WINDOW, process_statistics.hotelling),
}
"""Share of the variance or number of the components, and the statistic; Mahalanobis is T2 of all of them."""
SCORES = {"": "squared", "error of x_hat": "pixel", "residual Mahalanobis": "residual_mahalanobis"}
METHODS = (
    *("distance from the median", *LINEAR),
    *("ganomaly", "ganomaly, error of x_hat", "ganomaly, residual Mahalanobis"),
    *("autoencoder", "autoencoder, residual Mahalanobis"),
)


def measure(options: argparse.Namespace, log: Log) -> dict[str, Any]:
    """Measures {method: {seed: figures}}."""
    _, values, spans = read(options.source)
    normal = np.arange(len(values)) < TRAINED
    for first, last in spans:
        normal[first:last] = False
    found: dict[str, Any] = {}
    for name in METHODS:
        for seed in options.seeds if name[0] in "ga" else [0]:
            own = scores_of(name, values, normal, seed, options.steps)
            found.setdefault(name, {})[str(seed)] = figures(own, spans, WEIGHT)
            made = found[name][str(seed)]
            log(f"{name}, seed {seed}: {made['found']} of 4, {made['false_alarms_a_month']:.1f} false alarms a month")
    return found


def markdown(report: Mapping[str, Any], picture: str = "") -> str:
    """Formats the report as a page."""
    found, settings = report["found"], report["settings"]
    lines = [
        *command.opening(report, "Temperature of a machine (NAB)", packages=("jax", "flax", "optax", "numpy")),
        f"22,695 rows of 5 minutes. Networks and PCA take windows of {WINDOW} rows and are trained on the first "
        f"{TRAINED // DAY} days without the labelled windows in them; the threshold is that above which 0.1 % of the "
        f"scores of days {TRAINED // DAY} to {CALIBRATED // DAY} lie, with nothing labelled in them; false alarms are "
        "counted in the days after. The first two labelled windows lie in the days that are trained on, and are left "
        "out of the training. Scores are smoothed (a running mean, weight 0.05 on the newest). Alarms less than a day "
        f"apart are one. Networks: {settings['steps']} steps, latent 16, 16 features.",
        "",
        *([f"![Smoothed scores over their thresholds]({picture})", ""] if picture else []),
        *command.table("method | windows found | hours to the first alarm in each | false alarms a month"),
    ]
    for name, seeds in found.items():
        own = list(seeds.values())
        each = [spread([one["delays_h"][i] for one in own], ".0f") for i in range(4)]
        lines.append(
            f"| {name} | {spread([one['found'] for one in own], '.1f')} of 4 | {', '.join(each)} | "
            f"{spread([one['false_alarms_a_month'] for one in own], '.1f')} |"
        )
    lines += ["", "A window of NAB begins some 23 hours before the moment that is labelled in it.", ""]
    return "\n".join(lines)


def picture(report: Mapping[str, Any], path: Path) -> str:
    """Draws scores over threshold in time, labelled windows shaded; the file name, "" without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return ""
    found = report["found"]
    figure = Figure(figsize=(10, 1.25 * len(found) + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(found), 1, sharex=True)
    for ax, (name, seeds) in zip(axes, found.items(), strict=True):
        one = next(iter(seeds.values()))
        line = np.array([np.nan if v is None else v for v in one["timeline"]]) / one["threshold"]
        days = np.arange(len(line)) / 24
        ax.plot(days, line, linewidth=0.8, color="#2166ac")
        ax.axhline(1, color="#b2182b", linewidth=0.8)
        for first, last in report["spans"]:
            ax.axvspan(first / DAY, last / DAY, color="#f4a582", alpha=0.5, linewidth=0)
        ax.axvspan(0, TRAINED / DAY, ymax=0.04, color="#666666", linewidth=0)
        ax.axvspan(TRAINED / DAY, CALIBRATED / DAY, ymax=0.04, color="#bbbbbb", linewidth=0)
        ax.set_yscale("symlog", linthresh=1)
        ax.set_ylim(bottom=0)
        ax.set_title(name, loc="left", fontsize=9)
        ax.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel(
        "days; dark: trained on, grey: calibrated with, shaded: labelled; scores in units of the threshold (red)"
    )
    figure.savefig(path, dpi=120)
    return path.name


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--source", required=True, help="the folder with rows and labels")
    parser.add_argument("--seeds", default="0,1,2", help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=1000, help="of each training (default: %(default)s)")
    options = parser.parse_args(argv)
    command.at_least(options, 1, "steps")
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
        "nab",
        machine=timing.machine(),
        load_average=load,
        settings={name: value for name, value in vars(options).items() if name not in ("source", "out")},
        spans=read(options.source)[2],
        found=found,
    )
    shown = picture(report, Path(f"{options.out}.png"))
    command.write(report, options.out, functools.partial(markdown, picture=shown))


main = functools.partial(command.main, arguments, run, stopped="the files are written only at the end")


if __name__ == "__main__":
    sys.exit(main())
