"""The fan of machines.py judged by several seconds together: spectra of one second each, their mean over 1 to 20.

Without gravity: the mean acceleration of a window, which is the tilt of the sensor, is taken off, since nothing tells
whether the weight or the hand that fixed it has tilted the fan. The score that is named first is chosen without
anomalous windows, by a change that is made in normal ones (`changed`).
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.accuracy.process_page import spread
from benchmarks.common import command, controls
from benchmarks.common.command import Log
from ganomaly_jax.core import config
from ganomaly_jax.data.audio import spectrogram
from ganomaly_jax.data.audio.spectrogram import Spectrogram
from ganomaly_jax.evaluation import metrics
from ganomaly_jax.scoring import latent_statistics, scores
from ganomaly_jax.training import trainer

RATE = 200
"""Samples a second, as the program that recorded them sets it; a window of 200 is a second."""
SETTINGS = Spectrogram(RATE, 1.0, 1.0, 50, low=1.0, scale="linear")
CUTS = {"thirds": 3, "twelfths": 12}
"""Blocks in time that each normal recording is cut into; every third of them is tested."""
GAP = 2
SECONDS = (1, 2, 5, 10, 20)
NETWORKS = ("ganomaly", "autoencoder")
SCORES = ("residual_local", "residual_mahalanobis", "latent_density", "pixel")
STEPS = 800
TRAINED = 1_300
"""Judgements trained on, evenly drawn from all that there are: one program for all splits, cuts and seconds."""
CHANGE = 0.1
"""Log10 by which the made-up change raises or lowers a fifth of one axis' bands: 26 % of their power."""

Runs = list[tuple[str, np.ndarray]]
"""(condition, "" where it is normal; which windows, one after the other)."""


class Judged(NamedTuple):
    """Mean spectra float32 [n, bands x axes], and of each what it is: "" is normal."""

    rows: np.ndarray
    kinds: list[str]


def blocks(held: Mapping[str, np.ndarray], part: int, count: int) -> tuple[Runs, Runs]:
    """Returns runs of windows to train on and to test: every third of `count` blocks per recording, with a gap."""
    train: Runs = []
    test: Runs = []
    for i, name in enumerate(held["condition"]):
        own = np.flatnonzero(held["y"] == i)
        if "_0_weight" not in name:
            test.append((str(name), own))
            continue
        ends = np.linspace(0, len(own), count + 1).astype(int)
        for k, (begin, end) in enumerate(itertools.pairwise(ends)):
            if k % 3 == part:
                test.append(("", own[begin:end]))
                continue
            begin += GAP if k and (k - 1) % 3 == part else 0
            end -= GAP if k + 1 < count and (k + 1) % 3 == part else 0
            train.append(("", own[begin:end]))
    return train, test


def together(values: np.ndarray, runs: Runs, seconds: int, step: int) -> Judged:
    """Averages values [n, ...] over this many windows of one run, every `step` of them."""
    found, kinds = [], []
    for kind, own in runs:
        for begin in range(0, len(own) - seconds + 1, step):
            found.append(values[own[begin : begin + seconds]].mean(axis=0))
            kinds.append(kind)
    return Judged(np.array(found, np.float32), kinds)


def spectra(waves: np.ndarray) -> np.ndarray:
    """Converts waveforms [n, T, C] to log power [n, bands x C] with the mean subtracted."""
    centred = np.swapaxes(waves - waves.mean(axis=1, keepdims=True), 1, 2).astype(np.float32)
    apply = spectrogram.function(SETTINGS)
    return np.asarray(apply(centred)[..., 0]).reshape(len(waves), -1)


def changed(rows: np.ndarray, seed: int, axes: int = 3) -> np.ndarray:
    """Raises or lowers a fifth of the bands of one axis, in turn, of spectra [n, bands x axes]."""
    random, bands = np.random.default_rng(seed), rows.shape[1] // axes
    width, found = bands // 5, rows.copy()
    for row in found:
        begin = random.integers(axes) * bands + random.integers(bands - width + 1)
        row[begin : begin + width] += random.choice([-CHANGE, CHANGE])
    return found


def without_network(train: np.ndarray, test: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Scores the spectra themselves by neighbours and local density, each number in units of training spread."""
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    train, test = ((x - mean) / deviation for x in (train, test))
    fitted = {"bank": train, "spacing": latent_statistics.spacing(train)}
    unit = fitted | {
        "mean": np.zeros(train.shape[1], np.float32),
        "whitening": np.eye(train.shape[1], dtype=np.float32),
    }
    return {
        "raw neighbours": controls.neighbours(train, test, controls.NEIGHBOURS),
        "raw density": np.asarray(latent_statistics.density(unit, test), np.float64),
    }


def network(train: np.ndarray, test: np.ndarray, detector: str, seed: int) -> dict[str, np.ndarray]:
    """Returns {score: [n]} of one training."""
    settings = config.Config(seed=seed)
    settings.data.kind, settings.data.test, settings.data.calibration = "rows", 0.01, 0.05
    settings.model.detector, settings.model.latent_size = detector, 32
    if detector == "autoencoder":
        settings.model.mask = 0.0
    settings.train.steps, settings.train.picture_every = STEPS, 0
    settings.evaluate.score = "+".join(SCORES)
    with tempfile.TemporaryDirectory() as folder:
        scorer = trainer.train(settings, folder, train, log=lambda line: None)
    found = scores.parts(scorer.detector.network, SCORES, scorer.variables, scorer.unit(test))
    return {f"{detector}, {name}": np.asarray(found[name], np.float64) for name in SCORES}


def figures(found: np.ndarray, kinds: list[str], made_up: int) -> dict[str, float]:
    """Computes AUROC of all and of each kind; the last `made_up` scores are of normal items with a change."""
    real, label = found[: len(kinds)], np.array([bool(kind) for kind in kinds])
    normal = real[~label]
    own = {"all": metrics.auroc(label, real)}
    groups = {kind: real[[one == kind for one in kinds]] for kind in sorted(set(kinds) - {""})}
    if made_up:
        groups["change"] = found[-made_up:]
    for kind, values in groups.items():
        own[kind] = metrics.auroc(np.repeat([0, 1], [len(normal), len(values)]), np.concatenate([normal, values]))
    return {name: float(value) for name, value in own.items()}


def each_split(held: Mapping[str, np.ndarray], count: int, seconds: int, part: int) -> Iterator[tuple[str, Any]]:
    """Returns what was judged and the figures of each method, for each split."""
    runs, waves = blocks(held, part, count), held["x"][:, :RATE]
    values = spectra(waves)
    train = together(values, runs[0], seconds, 1).rows
    train = train[np.linspace(0, len(train) - 1, min(TRAINED, len(train))).astype(int)]
    test, kinds = together(values, runs[1], seconds, seconds)
    normal = test[[not kind for kind in kinds]]
    yield "judged", [len(train), len(normal), len(test) - len(normal)]
    given = np.concatenate([test, changed(normal, part)])
    power = ((waves - waves.mean(axis=1, keepdims=True)) ** 2).mean(axis=(1, 2))[:, None]
    tilt = waves.mean(axis=1)
    for name, one in (("energy", power), ("tilt alone", tilt)):
        own = [together(one, run, seconds, step).rows for run, step in zip(runs, (1, seconds), strict=True)]
        found = own[1][:, 0] if name == "energy" else controls.neighbours(*own, controls.NEIGHBOURS)
        yield name, figures(found, kinds, 0)
    methods = without_network(train, given, part)
    for detector in NETWORKS:
        methods |= network(train, given, detector, part)
    for name, found in methods.items():
        yield name, figures(found, kinds, len(normal))


def measure(held: Mapping[str, np.ndarray], options: argparse.Namespace, log: Log) -> dict[str, Any]:
    """Measures {cut: {seconds: {"judged": [[trained, normal, anomalous]], "methods": {method: figures}}}}."""
    found: dict[str, Any] = {}
    for (cut, count), seconds in itertools.product(CUTS.items(), options.seconds):
        made = found.setdefault(cut, {}).setdefault(str(seconds), {"judged": [], "methods": {}})
        for part in range(options.splits):
            for name, one in each_split(held, count, seconds, part):
                if name == "judged":
                    made["judged"].append(one)
                    continue
                made["methods"].setdefault(name, []).append(one)
                log(f"fan, {cut}, {seconds} s, split {part}, {name}: {one['all']:.4f}")
    return found


def joined(before: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Merges both by increasing seconds; new results replace old ones."""
    both = {cut: {**before.get(cut, {}), **ways} for cut, ways in found.items()}
    return {cut: dict(sorted(ways.items(), key=lambda pair: int(pair[0]))) for cut, ways in both.items()}


def mean(each: list[dict[str, float]], kind: str) -> float:
    """Averages over the splits."""
    return float(np.mean([one[kind] for one in each]))


def chosen(found: Mapping[str, Any]) -> str:
    """Returns the method with a network that finds the made-up change best, over all cuts and seconds."""
    made = [one["methods"] for ways in found.values() for one in ways.values()]
    names = [name for name in made[0] if name.startswith(NETWORKS)]
    return max(names, key=lambda name: np.mean([mean(one[name], "change") for one in made]))


def lines(found: Mapping[str, Any]) -> list[str]:
    """Returns this part of the page."""
    best = chosen(found)
    shown = [
        "## fan, several seconds together",
        "",
        f"Log power of each second in {SETTINGS.bands} linear bands of each axis, without gravity, averaged over the "
        "seconds that are judged together (windows of one recording one after the other; the pause between them, in "
        "which they were sent, is not known). As rows of sensors through the same trainings: "
        f"{STEPS} steps, latent 32, otherwise the defaults; three scores of each training beside the plain error. "
        "Judgements of the test share no window. `thirds`: as above, a recording that drifts is tested in a state that "
        "was never trained on. `twelfths`: every third of twelve blocks in time, two windows apart from those trained "
        "on.",
        "",
        f"`change`: AUROC of normal test spectra with {SETTINGS.bands // 5} bands of an axis raised or lowered by "
        f"{CHANGE} in log10 against the same without; no anomalous window is in it. By its mean over this whole table "
        f"**{best}** is chosen. That these scores were tried at all comes from having seen the others on this fan.",
        "",
    ]
    for cut, ways in found.items():
        seconds = list(ways)
        counts = "; ".join(f"{s} s: {one['judged'][0][1]} and {one['judged'][0][2]}" for s, one in ways.items())
        shown += [f"### {cut}", "", f"Normal and anomalous judgements of the first split: {counts}.", ""]
        last = seconds[-1]
        shown += command.table(
            " | ".join(["method", *(f"AUROC, {s} s" for s in seconds), f"least of the kinds, {last} s", "change"])
        )
        for name in ways[last]["methods"]:
            each = [ways[s]["methods"][name] for s in seconds]
            kinds = {kind: mean(each[-1], kind) for kind in each[-1][0] if kind not in ("all", "change")}
            least = min(kinds, key=lambda kind: kinds[kind])
            cells = [spread([one["all"] for one in own], ".4f") for own in each]
            change = f"{np.mean([mean(own, 'change') for own in each]):.3f}" if "change" in each[0][0] else "-"
            shown.append(f"| {name} | {' | '.join(cells)} | {kinds[least]:.4f} ({least}) | {change} |")
        shown.append("")
    return [
        *shown,
        "energy: mean power. tilt alone: distance of the mean acceleration to that of the 5 nearest training items, "
        "what the others are not given. raw neighbours, raw density: on the same spectra, without a network.",
        "",
    ]


def picture(found: Mapping[str, Any], path: Path) -> str:
    """Draws AUROC over seconds; returns the file name, "" without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return ""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    drawn = {"energy": "#bbbbbb", "raw neighbours": "#888888", "raw density": "#444444", "ganomaly, pixel": "#92c5de",
             "ganomaly, residual_local": "#2166ac", "autoencoder, residual_local": "#b2182b"}  # fmt: skip
    for ax, (cut, ways) in zip(axes, found.items(), strict=True):
        at = range(len(ways))
        for name, color in drawn.items():
            each = [[one["all"] for one in own["methods"][name]] for own in ways.values()]
            spreads = [np.std(one, ddof=1) if len(one) > 1 else 0 for one in each]
            ax.errorbar(
                at, np.mean(each, axis=1), spreads, color=color, marker="o", markersize=4, capsize=2, label=name
            )
        ax.axhline(0.99, color="#888888", linewidth=0.8, linestyle="--")
        ax.set_xticks(at, ways)
        ax.set_xlabel("seconds judged together")
        ax.set_title(f"fan, {cut}", loc="left", fontsize=10)
        ax.set_ylim(0.45, 1.01)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("AUROC")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)
    return path.name
