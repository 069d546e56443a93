"""Configurations of the package under the protocol of `auroc.py`, and each part of their scores alone."""

from __future__ import annotations

import copy
import functools
from typing import Any

import jax
import numpy as np
from jax import Array

from benchmarks.accuracy.auroc_data import Task
from benchmarks.accuracy.auroc_model import Log, Measured, Settings
from ganomaly_jax.core.config import Config, score_parts
from ganomaly_jax.data import batch_order
from ganomaly_jax.data.images import preprocess
from ganomaly_jax.model import registry
from ganomaly_jax.model.protocol import Detector
from ganomaly_jax.scoring import latent_statistics, scores
from ganomaly_jax.training import train_step

HELD_SHARE, HELD_MOST = 0.1, 1000
"""Training images that are not trained on: each part of the score is standardised by how it lies on them."""
_SETTLED = 20
_BATCH = 256


def asked(own: Config, others: tuple[str, ...]) -> tuple[str, ...]:
    """Lists the score of a configuration, its parts, and others from the same models: rows of the ablation."""
    return tuple(dict.fromkeys((own.evaluate.score, *score_parts(own), *others)))


@functools.cache
def _programs(detector: Detector, low: float, high: float) -> tuple[Any, Any, Any]:
    recompute_batch_stats = jax.jit(
        lambda variables, raw: detector.recompute_batch_stats(variables, preprocess.to_unit(raw, low, high))
    )
    train = train_step.make_steps(detector, low, high)
    return jax.jit(detector.init), jax.jit(train, donate_argnums=0), recompute_batch_stats


_parts = functools.partial(jax.jit, static_argnums=(0, 1))(scores.parts)


def _sum(parts: dict[str, np.ndarray], names: list[str], scale: dict[str, Array]) -> np.ndarray:
    """Combines parts as `scores.score` does; a single one is ranked as it is."""
    if len(names) == 1:
        return parts[names[0]]
    return np.asarray(scores.combined(parts, tuple(names), scale))


def measure(
    own: Config,
    asked: tuple[str, ...],
    task: Task,
    images: Array,
    span: tuple[float, float],
    settings: Settings,
    seed: int,
    log: Log = lambda line: None,
) -> Measured:
    """Measures the scores `asked` of models trained as `own` says, with sizes and length of `settings`.

    Other arguments and the result as `auroc_model.measure`; the column `running` alone, of averaged weights.

    Statistics of batch norm are those of training images, nothing is chosen on the test set, and each score follows
    from its own image alone.
    """
    sized = copy.deepcopy(own)
    sized.data.height, sized.data.width, sized.data.channels = images.shape[1:]
    sized.model.latent_size, sized.model.features = settings.latent, settings.features
    detector = registry.from_config(sized)
    init, train, recompute_batch_stats = _programs(detector, *span)
    order = np.random.default_rng((seed, 4)).permutation(task.train)
    held = min(int(HELD_SHARE * len(order)), HELD_MOST)
    held_out, trained = order[:held], np.sort(order[held:])
    state = init(jax.random.key(seed))
    n, batch = len(trained), settings.batch
    total = settings.epochs * (n // batch)
    losses = np.zeros((0, len(detector.losses)))
    for begin in range(0, total, train_step.STEPS_A_CALL):
        count = min(train_step.STEPS_A_CALL, total - begin)
        index = np.zeros((train_step.STEPS_A_CALL, batch), np.int32)
        index[:count] = trained[batch_order.batch_indices(seed, n, batch, begin, count)]
        state, history = train(state, images, index, count)
        losses = np.asarray(history)[:count]
        if not np.isfinite(losses).all():
            return Measured({}, {"diverged": begin // (n // batch) + 1})
    drawn = np.sort(np.random.default_rng((seed, 5)).permutation(trained)[: _SETTLED * batch])
    drawn = drawn[: len(drawn) // batch * batch].reshape(-1, batch)
    variables = {"detector": recompute_batch_stats(detector.variables(state), images[drawn])}
    bank = np.sort(np.random.default_rng((seed, 6)).permutation(trained)[: latent_statistics.BANK])

    def batches(chosen: np.ndarray) -> list[Array]:
        return [preprocess.to_unit(images[chosen[i : i + _BATCH]], *span) for i in range(0, len(chosen), _BATCH)]

    names = tuple(dict.fromkeys(name for text in asked for name in text.split("+")))
    fitted_on, standard = batches(bank), batches(held_out)
    variables["statistics"] = scores.fit(detector, names, variables, fitted_on, len(bank), standard, seed)
    padded = np.append(task.test, np.zeros(-len(task.test) % _BATCH, np.int64))
    each = [jax.device_get(_parts(detector, names, variables, x)) for x in batches(padded)]
    parts = {name: np.concatenate([one[name] for one in each])[: len(task.test)] for name in names}
    whole = {text: _sum(parts, text.split("+"), variables["statistics"]["scale"]) for text in asked}
    log(f"{task.name} seed {seed}: {total} steps")
    return Measured(
        {"running": whole},
        {"losses": dict(zip(detector.losses, map(float, losses[-1]), strict=True)), "held_out": held},
    )
