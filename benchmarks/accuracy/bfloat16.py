"""What computing in bfloat16 does to the AUROC: the same members trained and scored in both types.

    python benchmarks/accuracy/bfloat16.py --source DIR --out benchmarks/accuracy/results/bfloat16_DEVICE

writes NAME.json and NAME.md. DIR is MNIST (four idx files); README.md beside this file says more.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from benchmarks.common import command, timing
from benchmarks.common.command import Log
from ganomaly_jax.core import config
from ganomaly_jax.data import datasets, sources
from ganomaly_jax.evaluation import evaluate, sweep_summary
from ganomaly_jax.runs import sweep
from ganomaly_jax.training import trainer

DTYPES = ("float32", "bfloat16")


def subset(dataset: datasets.Dataset, images: int) -> datasets.Dataset:
    """Draws this many images of all parts pooled, with seed 0; all of them if there are fewer."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(dataset.images))[:images])
    return datasets.from_arrays(dataset.images[chosen], dataset.labels[chosen], dataset.classes, name=dataset.name)


def measure(options: argparse.Namespace, log: Log) -> dict[str, Any]:
    """Measures {dtype: summary of its members, seconds of training and evaluation}."""
    settings = config.Config()
    settings.data.source, settings.data.height, settings.data.width = options.source, options.side, options.side
    settings.model.features, settings.train.epochs = options.features, options.epochs
    settings.members.classes, settings.members.seeds = options.classes, options.seeds
    dataset = subset(sources.read(settings.data, progress=True), options.images)
    found = {}
    for dtype in DTYPES:
        settings.model.dtype = dtype
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            trainer.train_members(settings, folder, dataset, log=log)
            took = time.perf_counter() - begin
            each = evaluate.evaluate_members(folder, own=dataset)
            summary = sweep_summary.summarise(sweep.read_members(Path(folder)), each)
        found[dtype] = summary | {"training_s": took}
        log(f"{dtype}: trained in {took:.0f} s")
        log("\n".join(sweep_summary.lines(summary)))
    return found


def differences(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Computes AUROC in bfloat16 minus in float32 by member, with the mean and its standard error."""
    one, other = ({row["name"]: row["auroc"] for row in found[dtype]["members"]} for dtype in DTYPES)
    each = {name: other[name] - one[name] for name in one if None not in (one[name], other[name])}
    values = np.array(list(each.values()))
    several = len(values) > 1
    return {
        "members": each,
        "mean": float(values.mean()) if len(values) else None,
        "standard_error": float(values.std(ddof=1) / len(values) ** 0.5) if several else None,
    }


def markdown(report: Mapping[str, Any]) -> str:
    """Formats the report as a page."""
    machine, settings, change = report["machine"], report["settings"], report["differences"]
    columns = [{row["name"]: row["auroc"] for row in report["found"][dtype]["members"]} for dtype in DTYPES]

    def shown(value: float | None, sign: str = "") -> str:
        return "-" if value is None else f"{value:{sign}.4f}"

    lines = [
        f"# bfloat16 against float32 on {machine['jax']['device']}",
        "",
        f"{report['date']}, commit {machine['commit'] or 'unknown'}; jax {machine['versions'].get('jax')}; "
        f"{report['images']:,} images of MNIST, one digit abnormal, 80/20 split, {settings['features']} features, "
        f"{settings['epochs']} epoch(s), running statistics, last step.",
        "",
        f"bfloat16 minus float32 over all members: {shown(change['mean'], '+')}, standard error of that mean "
        f"{shown(change['standard_error'])}. Training took {report['found']['float32']['training_s']:.0f} s in float32 "
        f"and {report['found']['bfloat16']['training_s']:.0f} s in bfloat16, compilation included.",
        "",
        *command.table("member | AUROC float32 | AUROC bfloat16 | difference"),
    ]
    for name in columns[0]:
        line = (name, *(shown(column[name]) for column in columns), shown(change["members"].get(name), "+"))
        lines.append(f"| {' | '.join(line)} |")
    return "\n".join([*lines, ""])


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line and checks what the configuration does not check."""
    parser = command.parser(__doc__)
    parser.add_argument("--source", required=True, help="a data set with classes, as `data.source`")
    parser.add_argument("--classes", default="0,5,8", help="each abnormal in turn (default: %(default)s)")
    parser.add_argument("--seeds", default="0,1,2", help="default: %(default)s")
    parser.add_argument("--images", type=int, default=15_000, help="of all, drawn at random (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--features", type=int, default=32, help="width of the networks (default: %(default)s)")
    parser.add_argument("--side", type=int, default=32, help="pixels (default: %(default)s)")
    options = parser.parse_args(argv)
    command.at_least(options, 20, "images")
    return options


def run(options: argparse.Namespace, log: Log) -> None:
    """Measures and writes the two files."""
    found = measure(options, log)
    report = command.begin(
        "bfloat16",
        machine=timing.machine(),
        settings={name: value for name, value in vars(options).items() if name not in ("source", "out")},
        images=options.images,
        found=found,
        differences=differences(found),
    )
    command.write(report, options.out, markdown)


main = functools.partial(command.main, arguments, run, stopped="the files are written only at the end")


if __name__ == "__main__":
    sys.exit(main())
