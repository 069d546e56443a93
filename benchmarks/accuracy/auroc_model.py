"""GANomaly trained once and judged in four ways, of which only the first is honest. See README.md beside this file.

Scoring with batch statistics is here and nowhere in the package: a score then depends on the images beside it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks.accuracy.auroc_data import Task
from ganomaly_jax.data import batch_order
from ganomaly_jax.data.images import preprocess
from ganomaly_jax.evaluation import metrics
from ganomaly_jax.model import ganomaly
from ganomaly_jax.training import train_step

Log = Callable[[str], None]
SCORES = ("squared", "l1")
COLUMNS = {
    "running": "running statistics, last epoch: the honest one, what this package does",
    "batch": "batch statistics of 64 images, test set shuffled, last epoch",
    "as_shipped": "batch statistics, original order (normal images first), the epoch that is best on the test set: "
    "what the authors' code does with CIFAR-10",
    "as_shipped_shuffled": "the same, the test set shuffled anew at every epoch: what it does with MNIST and folders",
}
# Mean and standard deviation by which the authors' code scales MNIST, of pixels in 0..1.
MNIST_MEAN, MNIST_STD = 0.1307, 0.3081


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a training of the reproduction is; the defaults are the paper's."""

    epochs: int
    features: int = 64
    latent: int = 100
    batch: int = 64
    scaling: str = "unit"
    """`unit`: [-1, 1]; `original`: as the authors scale MNIST, which a tanh cannot reach."""


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """Scores of the test images, and what else there is to tell of a training."""

    scores: dict[str, dict[str, np.ndarray]]
    """{column: {score: [n] float32}}."""
    more: dict[str, Any]


@functools.cache
def programs(
    detector: ganomaly.Ganomaly, low: float, high: float, scaling: str
) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """Returns (init, train, distances), compiled once for all classes and seeds.

    `train(state, images, index, count)` is that of `train_step.make_steps`; `distances(state, images, index,
    batch_statistics)` are the squared and the L1 score [B, 2] of images[index].
    """

    def scaled(x: Array) -> Array:
        return x if scaling == "unit" else ((x + 1) / 2 - MNIST_MEAN) / MNIST_STD

    def distances(state: Any, images: Array, index: Array, batch_statistics: bool) -> Array:
        x = scaled(preprocess.to_unit(images[index], low, high))
        variables = detector.variables(state)
        if batch_statistics:
            outputs: Any = detector.generator.apply(variables, x, train=True, mutable=["batch_stats"])[0]
        else:
            outputs = detector.generator.apply(variables, x, train=False)
        difference = outputs[1] - outputs[2]
        return jnp.stack([jnp.mean(jnp.square(difference), -1), jnp.mean(jnp.abs(difference), -1)], axis=-1)

    # The scaling takes the place of an augmentation: after to_unit, which would clip it.
    train = train_step.make_steps(detector, low, high, None if scaling == "unit" else lambda x, step: scaled(x))
    return (
        jax.jit(detector.init),
        jax.jit(train, donate_argnums=0),
        jax.jit(distances, static_argnums=3),
    )


def score(
    distances: Callable[..., Any], state: Any, images: Array, order: np.ndarray, batch: int, batch_statistics: bool
) -> np.ndarray:
    """Computes squared and L1 scores [n, 2] of images[order], in this order in batches of `batch`.

    With batch statistics the last batch is as short as it is, its statistics its own, as in the authors' code; with
    running statistics it is filled up, which changes nothing.
    """
    order = order.astype(np.int32)
    padded = order if batch_statistics else np.append(order, np.zeros(-len(order) % batch, np.int32))
    parts = [padded[i : i + batch] for i in range(0, len(padded), batch)]
    found = [distances(state, images, part, batch_statistics) for part in parts]
    return np.concatenate([np.asarray(part) for part in found])[: len(order)]


def measure(
    task: Task, images: Array, span: tuple[float, float], settings: Settings, seed: int, log: Log = lambda line: None
) -> Measured:
    """Trains on images[task.train] and scores images[task.test] in all four ways.

    Args:
      images: [N, H, W, C] raw pixels on the device, the whole data set.
      span: pixel values that become -1 and +1.

    Returns:
      Its `more` holds `best_epoch` {column: {score: epoch from 1}}, `auroc_by_epoch` {column: {score: [epochs]}} over
      the whole test set, `losses` (means of the last epoch). A training that diverged has `diverged`, its epoch, and no
      scores.

    Raises:
      UserError: fewer training images than one batch.
    """
    detector = ganomaly.Ganomaly(tuple(images.shape[1:]), latent_size=settings.latent, features=settings.features)
    init, train, distances = programs(detector, *span, settings.scaling)
    state = init(jax.random.key(seed))
    n, batch = len(task.train), settings.batch
    steps = n // batch
    # {column: [epochs][n, 2]}, in the order of task.test.
    epochs: dict[str, list[np.ndarray]] = {"as_shipped": [], "as_shipped_shuffled": []}
    losses = np.zeros(len(detector.losses))
    for epoch in range(settings.epochs):
        losses[:] = 0
        for begin in range(epoch * steps, (epoch + 1) * steps, train_step.STEPS_A_CALL):
            count = min(train_step.STEPS_A_CALL, (epoch + 1) * steps - begin)
            index = np.zeros((train_step.STEPS_A_CALL, batch), np.int32)
            index[:count] = task.train[batch_order.batch_indices(seed, n, batch, begin, count)]
            state, history = train(state, images, index, count)
            losses += np.asarray(history)[:count].sum(axis=0) / steps
        if not np.isfinite(losses).all():
            log(f"{task.name} seed {seed}: diverged in epoch {epoch + 1}")
            return Measured({}, {"diverged": epoch + 1})
        epochs["as_shipped"].append(score(distances, state, images, task.test, batch, True))
        shuffled = np.random.default_rng((seed, 3, epoch)).permutation(len(task.test))
        found = np.empty((len(task.test), 2), np.float32)
        found[shuffled] = score(distances, state, images, task.test[shuffled], batch, True)
        epochs["as_shipped_shuffled"].append(found)
        log(f"{task.name} seed {seed}: epoch {epoch + 1} of {settings.epochs}")
    running = score(distances, state, images, task.test, batch, False)
    scores = {"running": _named(running), "batch": _named(epochs["as_shipped_shuffled"][-1])}
    more: dict[str, Any] = {"best_epoch": {}, "auroc_by_epoch": {}}
    for column, each in epochs.items():
        curves = {name: [metrics.auroc(task.labels, one[:, k]) for one in each] for k, name in enumerate(SCORES)}
        best = {name: int(np.argmax(curve)) for name, curve in curves.items()}
        scores[column] = {name: each[best[name]][:, k] for k, name in enumerate(SCORES)}
        more["auroc_by_epoch"][column] = curves
        more["best_epoch"][column] = {name: at + 1 for name, at in best.items()}
    more["losses"] = dict(zip(detector.losses, losses.tolist(), strict=True))
    return Measured(scores, more)


def _named(both: np.ndarray) -> dict[str, np.ndarray]:
    return {name: both[:, k] for k, name in enumerate(SCORES)}
