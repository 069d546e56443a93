"""AUROC of GANomaly under the paper's protocol, honestly and as its code is shipped, beside controls without a network.

    python benchmarks/accuracy/auroc.py --dataset mnist --out benchmarks/accuracy/results/auroc_mnist_DEVICE

writes NAME.json, NAME.md and NAME.png anew after each training. README.md beside this file says what is measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import numpy as np

from benchmarks.accuracy import auroc_data, auroc_model, auroc_page, auroc_recipe
from benchmarks.accuracy.auroc_data import KINDS, Task
from benchmarks.accuracy.auroc_model import Measured, Settings
from benchmarks.common import command, controls, timing
from benchmarks.common.command import Log
from configs import inspection, recipe, surface
from ganomaly_jax.core import atomic_files
from ganomaly_jax.core.config import Config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import datasets
from ganomaly_jax.evaluation import auroc_intervals, metrics


class Configuration(NamedTuple):
    """One more column of the table: what it is, and how it is trained and scored.

    `measure(task, images, span, settings, seed, say)` is as `auroc_model.measure`, whatever columns and scores it
    gives; the column `running` must be honest: last epoch, each score from its own image alone.
    """

    words: str
    measure: Callable[..., Measured]
    changed: Mapping[str, Any] = {}
    """Settings that differ from the command line's."""


# Scores from the same models, beside those that a configuration asks for.
_RECIPE = ("latent_density+embedding_angle+pixel", "squared", "pixel", "latent_neighbours", "embedding_density")
_INSPECTION = (
    *("components+latent_angle", "squared", "pixel", "latent_neighbours", "latent_density", "patches_whole"),
    "residual_mahalanobis",
)
_SURFACE = (*_INSPECTION, "patches_medium", "components+latent_angle+residual_mahalanobis+patches_medium")


def _pretrained() -> Config:
    own = Config()
    own.evaluate.score = "efficientnet_patches+efficientnet_angle"
    return own


CONFIGURATIONS = {
    "paper": Configuration("GANomaly as published, images in [-1, 1]", auroc_model.measure),
    "original_scaling": Configuration(
        f"the same, MNIST scaled with {auroc_model.MNIST_MEAN} and {auroc_model.MNIST_STD} as the authors' code does",
        auroc_model.measure,
        {"scaling": "original"},
    ),
    "recipe": Configuration(
        "configs/recipe.py: contrast of the discriminator's embedding, averaged weights, local density and nearest "
        "directions; a tenth of the training part is held out to standardise the parts of the score, at most 1,000",
        functools.partial(auroc_recipe.measure, recipe.get_config(), auroc_recipe.asked(recipe.get_config(), _RECIPE)),
    ),
    "inspection": Configuration(
        "configs/inspection.py: averaged weights, principal components, the direction of z, patches beside those of "
        "training images; a tenth of the training part is held out as for recipe",
        functools.partial(
            auroc_recipe.measure,
            inspection.get_config(),
            auroc_recipe.asked(inspection.get_config(), _INSPECTION),
        ),
    ),
    "surface": Configuration(
        "configs/surface.py: brightness relative to the image's mean, averaged weights, principal components, the "
        "direction of z, the residual by its covariance; a tenth of the training part is held out as for recipe",
        functools.partial(
            auroc_recipe.measure, surface.get_config(), auroc_recipe.asked(surface.get_config(), _SURFACE)
        ),
    ),
    "pretrained": Configuration(
        "no network trained on these images: features of EfficientNet-Lite0, trained on ImageNet; a tenth of the "
        "training part is held out as for recipe",
        functools.partial(auroc_recipe.measure, _pretrained(), auroc_recipe.asked(_pretrained(), ())),
        # The networks of the package are made all the same, and not used.
        {"epochs": 1, "features": 4},
    ),
}
# The score that stands for a configuration against the controls and in the picture.
MAIN = ("running", "squared")


def settings_of(options: argparse.Namespace, name: str) -> Settings:
    """Returns what a configuration is trained with."""
    given = Settings(options.epochs, options.features, options.latent, options.batch)
    return dataclasses.replace(given, **CONFIGURATIONS[name].changed)


def protocol(options: argparse.Namespace, dataset: datasets.Dataset) -> dict[str, Any]:
    """Returns what has to be the same for all results of one table."""
    return {
        "format": 1,
        "dataset": options.dataset,
        "data": datasets.content_hash(dataset),
        "side": options.side,
        "split": KINDS[options.dataset].split,
        "limit": options.limit,
        "test_limit": options.test_limit,
    }


def summarise(task: Task, found: Measured, beside: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Summarises {row: numbers of images, AUROCs by column, score and control, DeLong's test against controls}."""
    rows = {}
    for row, where in task.rows.items():
        labels = task.labels[where]
        columns = {
            column: {name: metrics.auroc(labels, values[where]) for name, values in each.items()}
            for column, each in found.scores.items()
        }
        plain = {name: metrics.auroc(labels, values[where]) for name, values in beside.items()}
        rows[row] = {
            "n_normal": int((labels == 0).sum()),
            "n_anomalous": int((labels == 1).sum()),
            "columns": columns,
            "controls": plain,
        }
        # The score that the configuration itself puts first.
        honest = next(iter(found.scores.get("running", {}).items()), None)
        if honest is not None:
            name, values = honest
            one = auroc_intervals.auroc_interval(labels, values[where], resamples=500)
            rows[row] |= {"score": name, "interval": [one.low, one.high], "against": {}}
            for control, others in beside.items():
                test = auroc_intervals.paired(labels, values[where], others[where])
                rows[row]["against"][control] = {"difference": test.difference.value, "p_value": test.p_value}
    return rows


def known(out: str, wanted: Mapping[str, Any]) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Reads earlier partial results from OUT.json and OUT.parts/: {(configuration, job, seed): part}.

    Raises:
      UserError: one of another protocol, one configuration with several settings, or a file that is no such result.
    """
    report, folder = Path(f"{out}.json"), Path(f"{out}.parts")
    parts: list[tuple[Path, Any]] = []
    for path in [*([report] if report.exists() else []), *sorted(folder.glob("*.json"))]:
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            parts += [(path, part) for part in (held["parts"] if path == report else [held])]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is no result of this benchmark ({error}): move it away, or take another --out"
            ) from None
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    for path, part in parts:
        try:
            key = (part["configuration"], part["job"], part["seed"])
            check(path, part, wanted)
            for other in found.values():
                if other["configuration"] == part["configuration"]:
                    differ(path, f"the settings of {part['configuration']}", part["settings"], other["settings"])
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is no result of this benchmark ({error!r}): move it away") from None
        found[key] = part
    return found


def check(path: Path, part: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises UserError if a part was measured under another protocol, or its configuration had other settings."""
    differ(path, "the protocol", part["protocol"], wanted["protocol"])
    if part["configuration"] in wanted["settings"]:
        name = part["configuration"]
        differ(path, f"the settings of {name}", part["settings"], wanted["settings"][name])


def differ(path: Path, what: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raises UserError if two descriptions differ."""
    other = [name for name in here.keys() | there.keys() if here.get(name) != there.get(name)]
    if other:
        listed = "; ".join(f"{name} {there.get(name)!r} there and {here.get(name)!r} here" for name in sorted(other))
        raise UserError(
            f"{path}: {what} differs, {listed}. Such results are never put into one table: take another --out, or "
            "the same options"
        )


def measure(options: argparse.Namespace, log: Log) -> None:
    """Measures what is requested and missing, one training after the other; rewrites the page after each."""
    dataset = auroc_data.read(options.dataset, options.data, options.side)
    jobs = auroc_data.chosen(options.classes, auroc_data.jobs(options.dataset, dataset), "--classes")
    wanted = {
        "protocol": protocol(options, dataset),
        "settings": {name: dataclasses.asdict(settings_of(options, name)) for name in options.configurations},
    }
    parts = known(options.out, wanted)
    span = datasets.value_range(dataset, np.arange(len(dataset.images)))
    images = np.asarray(dataset.images)
    on_device = jax.device_put(images)
    load = command.load(log)
    asked = [(name, job, seed) for seed in options.seeds for job in jobs for name in options.configurations]
    left = [key for key in asked if key not in parts]
    log(f"{len(asked)} trainings asked for, {len(asked) - len(left)} of them measured before")
    beside: dict[tuple[str, int], dict[str, np.ndarray]] = {}
    for name, job, seed in left:
        begin = time.perf_counter()
        task = auroc_data.task(options.dataset, dataset, job, seed, options.limit, options.test_limit)
        if (job, seed) not in beside:
            beside = {(job, seed): controls.scores(images, task.train, task.test, seed)}
        found = CONFIGURATIONS[name].measure(task, on_device, span, settings_of(options, name), seed, log)
        part = {
            "configuration": name,
            "job": job,
            "seed": seed,
            "protocol": wanted["protocol"],
            "settings": wanted["settings"][name],
            "n_train": len(task.train),
            "test": hashlib.sha256(task.test.astype("<i8").tobytes()).hexdigest()[:16],
            "rows": summarise(task, found, beside[job, seed]),
            **found.more,
            "seconds": round(time.perf_counter() - begin, 1),
            "device": jax.local_devices()[0].device_kind,
        }
        parts[name, job, seed] = part
        atomic_files.write_text(
            Path(f"{options.out}.parts") / f"{name}-{job}-seed{seed}.json", json.dumps(part, indent=1)
        )
        log(f"{name}, {job}, seed {seed}: {part['seconds']:.0f} s")
        write(options, parts, jobs, load)
    if not left:
        write(options, parts, jobs, load)


def write(options: argparse.Namespace, parts: Mapping[Any, Any], jobs: Sequence[str], load: dict[str, Any]) -> None:
    """Writes OUT.json, OUT.md and, if matplotlib is installed, OUT.png."""
    load["after"] = timing.load_average()
    kind = KINDS[options.dataset]
    report = command.begin(
        "auroc",
        machine=timing.machine(),
        load_average=load,
        dataset=options.dataset,
        main=list(MAIN),
        configurations={name: one.words for name, one in CONFIGURATIONS.items()},
        paper=dataclasses.asdict(Settings(kind.epochs)) | {"side": kind.side},
        published=auroc_page.published(kind),
        parts=[parts[key] for key in sorted(parts)],
    )
    picture = auroc_page.picture(report, Path(f"{options.out}.png"))
    command.write(report, options.out, functools.partial(auroc_page.markdown, picture=picture))


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line and checks it as far as possible without the data."""
    parser = command.parser(__doc__)
    parser.add_argument("--dataset", required=True, help=f"one of {', '.join(KINDS)}")
    parser.add_argument("--data", help="where it lies, or tfds:NAME (default: ../shared/data/NAME beside the checkout)")
    parser.add_argument("--seeds", default="0,1,2", help="of split, weights and batches (default: %(default)s)")
    parser.add_argument("--classes", default="all", help="each abnormal in turn, A,B,... (default: %(default)s)")
    parser.add_argument("--configurations", help="A,B,... (default: paper, for MNIST original_scaling too)")
    parser.add_argument("--epochs", type=int, help="default: the paper's, 15 or 25")
    parser.add_argument("--features", type=int, default=64, help="width of the networks (default: %(default)s)")
    parser.add_argument("--latent", type=int, default=100, help="size of z (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="images a step (default: %(default)s)")
    parser.add_argument("--side", type=int, help="pixels (default: 32, or 64 for xray and elpv)")
    parser.add_argument("--limit", type=int, default=0, help="train on at most so many images; 0: all")
    parser.add_argument(
        "--test-limit", type=int, default=0, help="test on so many normal ones and of each anomalous class; 0: all"
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "gpu"), help="default: %(default)s")
    options = parser.parse_args(argv)
    options.dataset = auroc_data.one_of(options.dataset, tuple(KINDS), "--dataset")
    kind = KINDS[options.dataset]
    command.fill(options, {"epochs": kind.epochs, "side": kind.side})
    digits = options.dataset in ("mnist", "mnist5k")
    command.fill(options, {"configurations": "paper,original_scaling" if digits else "paper"})
    options.configurations = auroc_data.chosen(options.configurations, tuple(CONFIGURATIONS), "--configurations")
    if "original_scaling" in options.configurations and not digits:
        raise UserError(
            "--configurations original_scaling is the authors' for MNIST: expected mnist or mnist5k with it"
        )
    options.seeds = seeds(options.seeds)
    command.at_least(options, 1, "epochs", "features", "latent")
    command.at_least(options, 2, "batch")
    command.at_least(options, 0, "limit", "test_limit")
    if options.test_limit == 1:
        raise UserError("--test-limit: got 1, expected 2 or more, or 0 for all: a test needs two images of each class")
    return options


def seeds(text: str) -> list[int]:
    """Parses N,N,... from 0; raises UserError for anything else."""
    try:
        found = sorted({int(seed) for seed in text.split(",")})
    except ValueError:
        found = [-1]
    if not 0 <= found[0] <= found[-1] < 2**32:
        raise UserError("--seeds: expected whole numbers from 0 with commas between, such as 0,1,2")
    return found


def run(options: argparse.Namespace, log: Log) -> None:
    """Measures what is missing and writes the page."""
    command.choose_device(options)
    measure(options, log)


main = functools.partial(
    command.main, arguments, run, stopped="what is measured is kept, and the same command goes on after it"
)


if __name__ == "__main__":
    sys.exit(main())
