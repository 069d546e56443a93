"""Which change of GANomaly helps: one at a time against one base, on seven sets, beside controls without a network.

    python benchmarks/accuracy/ablation.py --out benchmarks/accuracy/results/ablation_DEVICE

writes NAME.json, NAME.md and NAME.png. README.md beside this file says what is measured.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks.accuracy import ablation_page, ablation_variants, auroc, auroc_data
from benchmarks.accuracy.ablation_variants import BASE, VARIANTS
from benchmarks.common import command, controls, timing
from benchmarks.common.command import Log
from ganomaly_jax.core import atomic_files
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import batch_order, datasets
from ganomaly_jax.data.images import preprocess
from ganomaly_jax.evaluation import metrics
from ganomaly_jax.model.ganomaly import Ganomaly
from ganomaly_jax.scoring import latent_statistics, scores
from ganomaly_jax.training import train_step


class Source(NamedTuple):
    """A set: one row of one training of auroc.py."""

    dataset: str
    job: str
    row: str
    channels: int


SETS = {
    "digit 1": Source("mnist", "1", "1", 1),
    "digit 9": Source("mnist", "9", "9", 1),
    "car": Source("cifar10", "automobile", "automobile", 3),
    "frog": Source("cifar10", "frog", "frog", 3),
    "X-ray": Source("xray", "threats", "all", 1),
    "ELPV mono": Source("elpv", "mono", "mono p=1", 1),
    "ELPV poly": Source("elpv", "poly", "poly p=1", 1),
}
FITTED = ("residual_mahalanobis", "patches_medium", "patches_whole", "components")
MEMBERS = 3
"""Trainings of the base on one split, whose mean is the ensemble."""
_HELD_SHARE = 0.1
_SETTLED = 20
_BATCH = 256


class Images(NamedTuple):
    """One set and split, uint8 [n, H, W, C]."""

    trained: np.ndarray
    held: np.ndarray
    """Normal ones that are not trained on: scores that are added up are standardised by them."""
    tested: np.ndarray
    labels: np.ndarray


def split(source: Source, dataset: datasets.Dataset, seed: int, limit: int, test_limit: int) -> Images:
    """Splits a set for one seed: at most `limit` to train on, `test_limit` of either class to test on (0: all).

    Raises:
      UserError: images that are not uint8.
    """
    task = auroc_data.task(source.dataset, dataset, source.job, seed, limit, 0)
    random = np.random.default_rng((seed, 7))
    labels = np.where(task.rows[source.row], task.labels, -1)
    groups = [random.permutation(np.flatnonzero(labels == label))[: test_limit or None] for label in (0, 1)]
    kept = np.concatenate(groups)
    order = random.permutation(task.train)
    held = max(2, int(_HELD_SHARE * len(order)))

    def taken(indices: np.ndarray) -> np.ndarray:
        found = preprocess.to_channels(np.asarray(dataset.images[indices]), source.channels)
        if found.dtype != np.uint8:
            raise UserError(f"{dataset.name} has images of type {found.dtype}: expected uint8")
        return found

    return Images(taken(order[held:]), taken(order[:held]), taken(task.test[kept]), task.labels[kept])


def unit(raw: Any) -> Array:
    """Scales uint8 images to what the networks take."""
    return preprocess.to_unit(raw, 0, 255)


@functools.cache
def _programs(made: Ganomaly, augmentation: Any) -> tuple[Any, Any, Any, Any]:
    train = train_step.make_steps(made, 0, 255, augmentation)
    recompute_batch_stats = jax.jit(lambda variables, raw: made.recompute_batch_stats(variables, unit(raw)))
    described = jax.jit(lambda variables, raw: ablation_variants.described(made, variables, unit(raw)))
    return jax.jit(made.init), jax.jit(train, donate_argnums=0), recompute_batch_stats, described


_nearness = functools.partial(jax.jit, static_argnums=2)(ablation_variants.nearness)
_parts = functools.partial(jax.jit, static_argnums=(0, 1))(scores.parts)


def _blocks(images: np.ndarray) -> Iterable[np.ndarray]:
    """Yields blocks of one size, so that they share one program."""
    padded = np.concatenate([images, np.zeros((-len(images) % _BATCH, *images.shape[1:]), images.dtype)])
    return (padded[i : i + _BATCH] for i in range(0, len(padded), _BATCH))


def _over(function: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    """Returns {name: [n, ...]} for all images."""
    each = [jax.device_get(function(block)) for block in _blocks(images)]
    return {name: np.concatenate([one[name] for one in each])[: len(images)] for name in each[0]}


class Trained(NamedTuple):
    """Variables that score, those of the last step, and the losses [steps, L]."""

    averaged: dict[str, Any]
    last: dict[str, Any]
    losses: np.ndarray


def train(made: Ganomaly, augmentation: Any, images: np.ndarray, seed: int, options: argparse.Namespace) -> Trained:
    """Trains for `options.steps`; returns both kinds of weights, their statistics recomputed on the same images.

    Raises:
      UserError: fewer images than one batch.
    """
    init, run, recompute_batch_stats, _ = _programs(made, augmentation)
    n, batch = len(images), options.batch
    # One size for all sets, so that they are one program; what is added is never drawn.
    shown = jax.device_put(np.concatenate([images, np.zeros((max(options.limit - n, 0), *images.shape[1:]), np.uint8)]))
    state, losses = init(jax.random.key(seed)), []
    for begin in range(0, options.steps, train_step.STEPS_A_CALL):
        count = min(train_step.STEPS_A_CALL, options.steps - begin)
        index = np.zeros((train_step.STEPS_A_CALL, batch), np.int32)
        index[:count] = batch_order.batch_indices(seed, n, batch, begin, count)
        state, history = run(state, shown, index, count)
        losses.append(np.asarray(history)[:count])
    random = np.random.default_rng((seed, 5))
    drawn = images[np.stack([random.permutation(n)[:batch] for _ in range(_SETTLED)])]
    averaged = made.variables(state)
    last = averaged | {"params": state.params["generator"]}
    return Trained(recompute_batch_stats(averaged, drawn), recompute_batch_stats(last, drawn), np.concatenate(losses))


def measure(name: str, images: Images, seed: int, options: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    """Measures {score: [n] of test images} and last losses of a variant; for the base also untrained scores.

    No scores where the training diverged.
    """
    shape = images.trained.shape[1:]
    made = ablation_variants.detector(name, shape, options.latent, options.features, options.steps)
    augmentation = VARIANTS[name].augmentation
    run = train(made, augmentation, images.trained, seed, options)
    losses = dict(zip(made.losses, np.round(run.losses[-20:].mean(axis=0), 6).tolist(), strict=True))
    if not np.isfinite(run.losses).all():
        return {}, None
    described = _programs(made, augmentation)[3]
    normal, own = (_over(functools.partial(described, run.averaged), part) for part in (images.trained, images.tested))
    found = {word: own[word] for word in (*ablation_variants.PLAIN, "rotation") if word in own}
    for output in ("z", "embedding"):
        if output in own:
            fitted = jax.tree.map(jnp.asarray, latent_statistics.fit(normal[output], seed))
            found |= jax.device_get(_nearness(fitted, own[output], output == "embedding"))
    if name == BASE:
        found |= _without_training(made, run, images, seed, own)
        found["ensemble"] = _ensemble(made, run, images, seed, options)
    return found, losses


def _without_training(
    made: Ganomaly, run: Trained, images: Images, seed: int, own: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Computes other scores of the base's model."""
    *_, described = _programs(made, None)
    complexity = controls.complexity(images.tested) + 1e-3
    found = {f"{word} / complexity": own[word] / complexity for word in ablation_variants.PLAIN}
    found["last weights"] = _over(functools.partial(described, run.last), images.tested)["squared"]
    variables: dict[str, Any] = {"detector": run.averaged}
    training = (np.asarray(unit(images.trained[i : i + _BATCH])) for i in range(0, len(images.trained), _BATCH))
    held = [np.asarray(unit(images.held))]
    variables["statistics"] = scores.fit(made, FITTED, variables, training, len(images.trained), held, seed)
    return found | _over(lambda block: _parts(made, FITTED, variables, unit(block)), images.tested)


def _ensemble(made: Ganomaly, run: Trained, images: Images, seed: int, options: argparse.Namespace) -> np.ndarray:
    """Averages the logarithms of `squared` of three trainings on one split, standardised on held-out normals.

    Models of several seeds are no ensemble: each seed has another split, and tests on what another was trained on.
    """
    *_, described = _programs(made, None)
    found = []
    for member in range(MEMBERS):
        own = run if member == 0 else train(made, None, images.trained, seed + 1000 * member, options)
        held, tested = (
            np.log(_over(functools.partial(described, own.averaged), part)["squared"] + 1e-12)
            for part in (images.held, images.tested)
        )
        found.append((tested - held.mean()) / max(float(held.std()), 1e-6))
    return np.mean(found, axis=0)


def known(out: str, protocol: Mapping[str, Any], digests: Mapping[str, str]) -> dict[tuple[str, str, int], Any]:
    """Reads earlier parts, {(variant, set, seed): part}; raises UserError for other options or data."""
    found = auroc.known(out, {"protocol": protocol, "settings": {}})
    for (name, job, seed), part in found.items():
        if job in digests:
            here = f"{out}: {name}, {job}, seed {seed}"
            auroc.differ(Path(here), "the data", {"hash": part["data"]}, {"hash": digests[job]})
    return found


def run(options: argparse.Namespace, log: Log) -> None:
    """Measures what is missing, seed by seed and variant by variant, and writes the page."""
    command.choose_device(options)
    kinds = {SETS[name].dataset for name in options.sets}
    home = auroc_data.HOME if options.data is None else Path(options.data)
    held = {}
    for kind in sorted(kinds):
        folder = auroc_data.KINDS[kind].folder
        held[kind] = auroc_data.read(kind, str(home / folder) if folder else None, options.side)
    digests = {name: datasets.content_hash(held[SETS[name].dataset])[:16] for name in options.sets}
    protocol = {word: getattr(options, word) for word in _PROTOCOL} | {"format": 1}
    parts = known(options.out, protocol, digests)
    load = command.load(log)
    asked = [(v, name, seed) for seed in options.seeds for v in options.variants for name in options.sets]
    left = [key for key in asked if key not in parts]
    log(f"{len(asked)} parts asked for, {len(asked) - len(left)} of them measured before")
    made: dict[tuple[str, int], Images] = {}
    for name, job, seed in left:
        begin = time.perf_counter()
        source = SETS[job]
        if (job, seed) not in made:
            made = {key: kept for key, kept in made.items() if key[1] == seed}
            made[job, seed] = split(source, held[source.dataset], seed, options.limit, options.test_limit)
        images = made[job, seed]
        found, losses = measure(name, images, seed, options)
        if losses is None:
            log(f"{name}, {job}, seed {seed}: diverged, in no figure")
        part = {
            "configuration": name,
            "job": job,
            "seed": seed,
            "protocol": protocol,
            "settings": {},
            "data": digests[job],
            "images": {word: len(getattr(images, word)) for word in ("trained", "held", "tested")},
            "losses": losses,
            "auroc": _aurocs(images.labels, found),
        }
        if name == BASE:
            together = np.concatenate([images.trained, images.held, images.tested])
            fitted = np.arange(len(together) - len(images.tested))
            plain = controls.scores(together, fitted, np.arange(len(fitted), len(together)), seed)
            part["auroc"] |= _aurocs(images.labels, plain)
        part["seconds"] = round(time.perf_counter() - begin, 1)
        parts[name, job, seed] = part
        atomic_files.write_text(
            Path(f"{options.out}.parts") / f"{name}-{job}-seed{seed}.json", json.dumps(part, indent=1)
        )
        log(f"{name}, {job}, seed {seed}: {part['seconds']:.1f} s")
        if job == options.sets[-1]:
            write(options, parts, load)
    if not left or left[-1][1] != options.sets[-1]:
        write(options, parts, load)


def _aurocs(labels: np.ndarray, found: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {name: round(metrics.auroc(labels, values), 5) for name, values in found.items()}


def write(options: argparse.Namespace, parts: Mapping[Any, Any], load: dict[str, Any]) -> None:
    """Writes OUT.json, OUT.md and, if matplotlib is installed, OUT.png."""
    load["after"] = timing.load_average()
    sets, seeds = ({key[place] for key in parts} for place in (1, 2))
    report = command.begin(
        "ablation",
        machine=timing.machine(),
        load_average=load,
        variants={name: one.words for name, one in VARIANTS.items()},
        sets=list(SETS),
        finished=len(parts) == len(VARIANTS) * len(sets) * len(seeds),
        parts=[parts[key] for key in sorted(parts)],
    )
    picture = ablation_page.picture(report, Path(f"{options.out}.png"))
    command.write(report, options.out, functools.partial(ablation_page.markdown, picture=picture))


_PROTOCOL = ("side", "features", "latent", "steps", "batch", "limit", "test_limit")


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line and checks it as far as possible without the data."""
    parser = command.parser(__doc__)
    parser.add_argument("--data", help="the folder with mnist/, cifar10/, xray_baggage/ (default: ../shared/data)")
    parser.add_argument("--variants", default="all", help=f"of {', '.join(VARIANTS)} (default: %(default)s)")
    parser.add_argument("--sets", default="all", help=f"of {', '.join(SETS)} (default: %(default)s)")
    parser.add_argument("--seeds", default="0,1,2", help="of split, weights and batches (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=200, help="of each training (default: %(default)s)")
    parser.add_argument("--features", type=int, default=8, help="width of the networks (default: %(default)s)")
    parser.add_argument("--latent", type=int, default=100, help="size of z (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="images a step (default: %(default)s)")
    parser.add_argument("--side", type=int, default=32, help="pixels (default: %(default)s)")
    parser.add_argument(
        "--limit", type=int, default=3000, help="training images at most, 0: all (default: %(default)s)"
    )
    parser.add_argument(
        "--test-limit",
        type=int,
        default=1000,
        help="test images of either class at most, 0: all (default: %(default)s)",
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "gpu"), help="default: %(default)s")
    options = parser.parse_args(argv)
    options.variants = auroc_data.chosen(options.variants, tuple(VARIANTS), "--variants")
    options.sets = auroc_data.chosen(options.sets, tuple(SETS), "--sets")
    options.seeds = auroc.seeds(options.seeds)
    command.at_least(options, 1, "steps", "features", "latent")
    command.at_least(options, 2, "batch")
    command.at_least(options, 0, "limit", "test_limit")
    return options


main = functools.partial(
    command.main, arguments, run, stopped="what is measured is kept, and the same command goes on after it"
)


if __name__ == "__main__":
    sys.exit(main())
