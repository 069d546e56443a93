"""Machines by their vibration: a bearing (CWRU) and a ceiling fan, normal against faults, by spectrograms.

    python benchmarks/accuracy/machines.py --source DIR --out benchmarks/accuracy/results/machines_DEVICE

DIR holds cwru/ and ceiling_fan/. Writes NAME.json, NAME.md, NAME.png and NAME_seconds.png. Split by time: no window of
the test shares a sample with one that was trained on. What `--sets` leaves out is kept from the NAME.json that is
there. README.md beside this file says what is measured and how.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from benchmarks.accuracy import machines_seconds
from benchmarks.accuracy.process_page import spread
from benchmarks.common import command, controls, timing
from benchmarks.common.command import Log
from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import datasets
from ganomaly_jax.data.audio import spectrogram
from ganomaly_jax.data.audio.spectrogram import Spectrogram
from ganomaly_jax.evaluation import metrics
from ganomaly_jax.training import trainer

SETS = {
    "bearing": ("cwru/cwru_1797rpm_DE_48k_f32.npz", Spectrogram(48_000, 0.01, 128 / 48_000, 32, scale="linear"), 32),
    # 200 samples a second, as the program that recorded them sets it: a window is a second.
    "fan": ("ceiling_fan/ceiling_fan_accel.npz", Spectrogram(200, 0.25, 0.05, 16, scale="linear"), 16),
}
TOGETHER = "seconds"
"""The fan once more, by several windows together."""
PARTS = 3
"""Of each normal recording one third in time is tested, another one in each split."""
GAP = 2
"""Windows of the fan that are left out beside the tested third."""
OVERLAP = 8
"""Windows of the bearing that is trained on begin so many times in their length."""
SCALE = 8.0
"""Standard deviations of a band, as it is in training, that lie at the ends of the pixels' range."""
NETWORKS = {
    "ganomaly": ("ganomaly", ""),
    "ganomaly, error of x_hat": ("ganomaly", "pixel"),
    "autoencoder": ("autoencoder", ""),
}


class Split(NamedTuple):
    """Waveforms float32 [n, T, C], and of each tested one what it is: "" is normal."""

    train: np.ndarray
    test: np.ndarray
    kinds: list[str]


def cut(wave: np.ndarray, length: int, step: int) -> np.ndarray:
    """Cuts a waveform [T] into windows [n, length, 1]."""
    starts = np.arange(0, len(wave) - length + 1, step)
    return wave[starts[:, None] + np.arange(length)][..., None]


def bearing(held: Mapping[str, np.ndarray], length: int, part: int) -> Split:
    """Splits bearings: the normal recording without its tested third overlapping, all else not overlapping."""
    (normal,) = [name for name in held if "Normal" in name]
    ends = np.linspace(0, len(held[normal]), PARTS + 1).astype(int)
    blocks = [held[normal][begin:end] for begin, end in itertools.pairwise(ends)]
    train = [cut(block, length, length // OVERLAP) for i, block in enumerate(blocks) if i != part]
    test, kinds = [cut(blocks[part], length, length)], [""]
    for name in sorted(set(held) - {normal}):
        test.append(cut(held[name], length, length))
        kinds.append(name.removeprefix("1797_").removesuffix("_DE48"))
    return Split(
        np.concatenate(train),
        np.concatenate(test),
        [kind for kind, found in zip(kinds, test, strict=True) for _ in found],
    )


def fan(held: Mapping[str, np.ndarray], length: int, part: int) -> Split:
    """Splits fans: each normal condition without its tested third and the windows beside it."""
    train, test, kinds = [], [], []
    for i, name in enumerate(held["condition"]):
        own = held["x"][held["y"] == i][:, :length]
        if "_0_weight" not in name:
            test.append(own)
            kinds += [str(name)] * len(own)
            continue
        begin, end = (len(own) * k // PARTS for k in (part, part + 1))
        train += [own[: max(begin - GAP, 0)], own[end + GAP :]]
        test.append(own[begin:end])
        kinds += [""] * (end - begin)
    return Split(np.concatenate(train), np.concatenate(test), kinds)


def read(source: str, name: str) -> dict[str, np.ndarray]:
    """Reads the arrays of one set.

    Raises:
      UserError: its file is not there, or holds something else.
    """
    path = Path(source) / SETS[name][0]
    try:
        with np.load(path) as file:
            held = {key: file[key] for key in file}
    except (OSError, ValueError) as error:
        raise UserError(f"--source {source}: {error}; expected a folder with {SETS[name][0]}") from None
    if name == "fan" and not {"x", "y", "condition"} <= set(held):
        raise UserError(f"{path} holds {', '.join(held)}: expected x, y, condition")
    if name == "bearing" and sum("Normal" in key for key in held) != 1:
        raise UserError(f"{path} holds {', '.join(held)}: expected one recording with Normal in its name")
    return held


def pictures(train: np.ndarray, test: np.ndarray, settings: Spectrogram) -> tuple[np.ndarray, np.ndarray]:
    """Converts waveforms [n, T, C] to uint8 images [n, bands, frames, C], bands in units of training spread."""
    apply = spectrogram.function(settings)
    both = [
        np.concatenate([np.asarray(apply(np.swapaxes(waves[i : i + 256], 1, 2))) for i in range(0, len(waves), 256)])
        for waves in (train, test)
    ]
    mean, deviation = both[0].mean(axis=(0, 3), keepdims=True), both[0].std(axis=(0, 3), keepdims=True)
    scaled = [np.clip((one - mean) / (SCALE * deviation), -1, 1) for one in both]
    first, second = (np.moveaxis(np.round(127.5 * (one + 1)).astype(np.uint8), 1, 3) for one in scaled)
    return first, second


def energy(waves: np.ndarray) -> np.ndarray:
    """Computes the trivial score [n]: root mean square about the mean of a window, over all channels."""
    centred = waves - waves.mean(axis=1, keepdims=True)
    return np.sqrt((centred.astype(np.float64) ** 2).mean(axis=(1, 2)))


def network(images: np.ndarray, tested: np.ndarray, detector: str, score: str, seed: int, steps: int) -> np.ndarray:
    """Scores `tested` [n] after training on `images`."""
    settings = config.Config(seed=seed)
    settings.data.calibration, settings.data.test = 0.05, 0.01
    settings.model.detector, settings.model.latent_size, settings.model.features = detector, 32, 16
    settings.train.steps, settings.train.picture_every = steps, 0
    settings.evaluate.score = score or settings.evaluate.score
    given = datasets.from_arrays(images, np.zeros(len(images), np.int64), name="spectrograms")
    with tempfile.TemporaryDirectory() as folder:
        scorer = trainer.train(settings, folder, given, log=lambda line: None)
    return np.asarray(scorer(tested), np.float64)


def figures(scores: np.ndarray, kinds: list[str]) -> dict[str, float]:
    """Computes the AUROC of all anomalous windows, and of each kind, against the normal ones."""
    label = np.array([bool(kind) for kind in kinds])
    found = {"all": metrics.auroc(label, scores)}
    for kind in sorted(set(kinds) - {""}):
        own = np.array([other in ("", kind) for other in kinds])
        found[kind] = metrics.auroc(label[own], scores[own])
    return {name: float(value) for name, value in found.items()}


def measure(options: argparse.Namespace, log: Log) -> dict[str, Any]:
    """Measures {set: {"windows": [[trained, normal, anomalous]], "methods": {method: [figures of each split]}}}."""
    found: dict[str, Any] = {}
    for name in [one for one in options.sets if one in SETS]:
        held, (_, settings, frames) = read(options.source, name), SETS[name]
        made = found.setdefault(name, {"windows": [], "methods": {}})
        for part in range(options.splits):
            split = {"bearing": bearing, "fan": fan}[name](held, settings.length(frames), part)
            images, tested = pictures(split.train, split.test, settings)
            together = np.concatenate([images, tested])
            here = np.arange(len(together))
            scores = {"energy": energy(split.test)}
            scores |= controls.scores(together, here[: len(images)], here[len(images) :], part)
            for label, (detector, score) in NETWORKS.items():
                scores[label] = network(images, tested, detector, score, part, options.steps)
            normal = split.kinds.count("")
            made["windows"].append([len(images), normal, len(tested) - normal])
            for label, own in scores.items():
                made["methods"].setdefault(label, []).append(figures(own, split.kinds))
                log(f"{name}, split {part}, {label}: {made['methods'][label][-1]['all']:.4f}")
    return found


def kept(out: str, sets: Sequence[str]) -> dict[str, Any]:
    """Reads earlier results from OUT.json: all of `seconds`, and the other sets with their time and commit."""
    path = Path(f"{out}.json")
    if not path.is_file():
        return {"found": {}, "kept": {}}
    before = json.loads(path.read_text(encoding="utf-8"))
    when = {"date": before["date"], "commit": before["machine"]["commit"], "steps": before["settings"]["steps"]}
    parts = {name: one for name, one in before["found"].items() if name not in sets}
    more = {TOGETHER: before[TOGETHER]} if TOGETHER in before else {}
    others = [name for name in [*parts, *more] if name not in sets]
    return {"found": parts, "kept": {name: before.get("kept", {}).get(name, when) for name in others}} | more


def markdown(report: Mapping[str, Any], pictures: Sequence[str] = ()) -> str:
    """Formats the report as a page."""
    settings, lines = report["settings"], command.opening(report, "Machines by their vibration")
    lines += [
        f"Log power in bands of frequency over time. Mean of {settings['splits']} splits ± standard deviation; in each "
        "another third in time of every normal recording is tested, networks have another seed, and no window of the "
        "test shares a sample with one that was trained on. Networks: "
        f"{settings['steps']} steps, 16 features, latent 32.",
        "",
    ]
    for name, when in report.get("kept", {}).items():
        lines += [f"{name} was measured on {when['date']}, commit {when['commit']}, {when['steps']} steps.", ""]
    for picture in pictures:
        lines += [f"![AUROC of each method]({picture})", ""]
    for name, made in report["found"].items():
        kinds = list(next(iter(made["methods"].values()))[0])
        trained, normal, anomalous = made["windows"][0]
        made_of = SETS[name][1]
        lines += [
            f"## {name}",
            "",
            f"{trained:,} windows trained on, {normal:,} normal and {anomalous:,} anomalous ones tested (first split). "
            f"{made_of.bands} {made_of.scale} bands, {SETS[name][2]} frames of {made_of.samples} samples, "
            f"{made_of.step} apart.",
            "",
            *command.table("method | AUROC, all | least of the kinds | its kind"),
        ]
        for label, each in made["methods"].items():
            means = {kind: np.mean([one[kind] for one in each]) for kind in kinds if kind != "all"}
            least = min(means, key=lambda kind: means[kind])
            lines.append(
                f"| {label} | {spread([one['all'] for one in each], '.4f')} | "
                f"{spread([one[least] for one in each], '.4f')} | {least} |"
            )
        lines.append("")
    lines += [
        "energy: root mean square of the waveform. complexity, pixel PCA, raw neighbours: on the same spectrograms, "
        "without a network (controls.py). The fan's lowest band holds the tilt of the sensor as well, see below.",
        "",
        *(machines_seconds.lines(report[TOGETHER]) if TOGETHER in report else []),
    ]
    return "\n".join(lines)


def picture(report: Mapping[str, Any], path: Path) -> str:
    """Draws bars of AUROC with splits as points; returns the file name, "" without matplotlib or bars."""
    if not report["found"]:
        return ""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return ""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for ax, (name, made) in zip(
        figure.subplots(1, len(report["found"]), sharey=True, squeeze=False)[0], report["found"].items(), strict=True
    ):
        labels = list(made["methods"])[::-1]
        for i, label in enumerate(labels):
            each = [one["all"] for one in made["methods"][label]]
            ax.barh(i, np.mean(each), color="#2166ac" if label in NETWORKS else "#bbbbbb")
            ax.plot(each, [i] * len(each), "o", color="#222222", markersize=3)
        ax.axvline(0.5, color="#888888", linewidth=0.8, linestyle="--")
        ax.set_yticks(range(len(labels)), labels)
        ax.set_xlim(0, 1.02)
        ax.set_xlabel("AUROC")
        ax.set_title(name, loc="left", fontsize=10)
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    return path.name


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--source", required=True, help="the folder with cwru/ and ceiling_fan/")
    parser.add_argument("--sets", default=",".join([*SETS, TOGETHER]), help="default: %(default)s")
    parser.add_argument("--splits", type=int, default=PARTS, help="1 to 3 (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=400, help="of each training (default: %(default)s)")
    parser.add_argument(
        "--seconds",
        default=",".join(map(str, machines_seconds.SECONDS)),
        help="of the fan that are judged together (default: %(default)s)",
    )
    options = parser.parse_args(argv)
    command.at_least(options, 1, "steps", "splits")
    options.sets = options.sets.split(",")
    if not set(options.sets) <= {*SETS, TOGETHER} or options.splits > PARTS:
        raise UserError(f"got --sets {','.join(options.sets)}, --splits {options.splits}: expected some of "
                        f"{', '.join([*SETS, TOGETHER])}, and at most {PARTS}")  # fmt: skip
    options.seconds = sorted(set(command.numbers(options.seconds, "--seconds")))
    if max(options.seconds) > 20:
        raise UserError(f"--seconds {max(options.seconds)}: expected at most 20, what a tested block holds twice")
    return options


def run(options: argparse.Namespace, log: Log) -> None:
    """Measures and writes the files."""
    load = command.load(log)
    before = kept(options.out, options.sets)
    found = {**before.pop("found"), **measure(options, log)}
    if TOGETHER in options.sets:
        own = machines_seconds.measure(read(options.source, "fan"), options, log)
        before[TOGETHER] = machines_seconds.joined(before.get(TOGETHER, {}), own)
    load["after"] = timing.load_average()
    report = command.begin(
        "machines",
        machine=timing.machine(),
        load_average=load,
        settings={name: value for name, value in vars(options).items() if name not in ("source", "out")},
        found={name: found[name] for name in SETS if name in found},
        **before,
    )
    shown = [picture(report, Path(f"{options.out}.png"))]
    if TOGETHER in report:
        shown.append(machines_seconds.picture(report[TOGETHER], Path(f"{options.out}_{TOGETHER}.png")))
    command.write(report, options.out, functools.partial(markdown, pictures=[name for name in shown if name]))


main = functools.partial(command.main, arguments, run, stopped="the files are written only at the end")


if __name__ == "__main__":
    sys.exit(main())
