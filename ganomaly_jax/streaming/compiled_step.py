"""Compiled scoring of a stream: from raw rows, windows or images to scores, p-values, latents and contributions.

The step is compiled ahead of time for one item and for `BLOCK` items (a backlog), so that nothing is compiled while a
stream runs. `Streams` does the same for many streams side by side, whose windows stay on the device.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ganomaly_jax.core import calls
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.scoring import inference, modalities
from ganomaly_jax.scoring.scorer import Scorer

BLOCK = 64
"""Items that are scored together when as many are waiting."""
STEPS = 32
"""Default number of integration steps of the contributions; each verdict states the error that they leave."""
_MAX_SINGLE = 8
# Up to this many items, scoring one by one is no slower than a padded block.


@dataclasses.dataclass(frozen=True, eq=False)
class StepOutput:
    """Results for n items, in their order.

    Attributes:
      scores: [n] float32, NaN for invalid items.
      p_values: [n] float32.
      latents: [n, L] float32; None for tiled images, which have one latent per tile.
      values: contributions [n, D] float32 of the sensors to the score, relative to `base`; None if not computed.
    """

    scores: np.ndarray
    p_values: np.ndarray
    latents: np.ndarray | None
    values: np.ndarray | None


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """The compiled scoring step of a detector.

    Attributes:
      sizes: compiled functions by batch size.
      variables: variables of the detector.
      base: score of an input with all sensors at their centres; NaN without contributions.
    """

    sizes: Mapping[int, Callable[..., dict[str, Array]]]
    variables: Any
    base: float

    def __call__(self, x: np.ndarray) -> StepOutput:
        """Scores any number of items [n, ...], in the shape and dtype of the detector's inputs."""
        few = len(x) <= _MAX_SINGLE
        size = 1 if few else max(self.sizes)
        run = self.sizes[size]
        blocks = [x[i : i + size] for i in range(0, len(x), size)]
        started = [run(self.variables, inference.pad(block, size)) for block in blocks]
        found = [{name: np.asarray(value) for name, value in block.items()} for block in started]
        results = {name: np.concatenate([block[name] for block in found])[: len(x)] for name in found[0]}
        return StepOutput(results["score"], results["p_value"], results.get("z"), results.get("values"))


def outputs(scorer: Scorer, steps: int) -> Callable[[Any, Array], dict[str, Array]]:
    """Returns the pure function that `compile_step` compiles; with `steps` 0 it computes no contributions."""
    network = scorer.detector.network if scorer.detector.has_latent else None
    attribute = modalities.of(scorer).attributed(scorer, steps) if steps else None

    def run(variables: Any, x: Array) -> dict[str, Array]:
        found = dict(scorer.outputs(variables, x))
        if network is not None:
            found["z"] = network.outputs(variables["detector"], scorer.unit(x))["z"]
        if attribute is not None:
            found["values"] = attribute(variables, x)[0]
        return found

    return run


def compile_step(scorer: Scorer, steps: int = STEPS) -> Step:
    """Compiles the scoring step of a detector, which takes seconds.

    Args:
      scorer: the detector.
      steps: integration steps of the contributions (see `sensors.contributions`); 0 for none.

    Raises:
      UserError: steps is negative.
    """
    if steps < 0:
        raise UserError(f"{steps} integration steps: expected at least 0 (no contributions)")
    function, base = jax.jit(outputs(scorer, steps)), float("nan")
    kind = jnp.dtype(scorer.dtype)
    # Large images are scored in smaller blocks.
    sizes = (1, min(BLOCK, scorer.block))
    shapes = {size: jax.ShapeDtypeStruct((size, *scorer.input_shape), kind) for size in sizes}
    compiled = {size: function.lower(scorer.variables, shape).compile() for size, shape in shapes.items()}
    if steps and modalities.of(scorer).attributed(scorer, steps) is not None:
        centre = np.asarray([scorer.low, scorer.high], np.float64).mean(0).astype(np.float32)
        x = np.broadcast_to(centre, (1, *scorer.input_shape)).astype(kind)
        base = float(np.asarray(compiled[1](scorer.variables, x)["score"])[0])
    return Step(compiled, scorer.variables, base)


@dataclasses.dataclass(frozen=True, eq=False)
class Streams:
    """State of S streams of one detector that advance together, one row at a time.

    Attributes:
      run: the compiled function.
      variables: variables of the detector.
      windows: last T rows of each stream, [S, T, D], on the device; [S, D] for detectors of single rows.
      seen: rows so far.
      length: rows in a window, T.
    """

    run: Callable[..., tuple[Array, dict[str, Array]]]
    variables: Any
    windows: Array
    seen: int
    length: int


def compile_streams(scorer: Scorer, streams: int) -> Streams:
    """Compiles the function that advances `streams` streams.

    Raises:
      UserError: the detector is not one of sensors, or `streams` is below 1.
    """
    call = "gj.compile_streams(gj.load('runs/mine'), 1000)"
    calls.expect(Scorer, f"a gj.Scorer, as in {call}", scorer=scorer)
    calls.expect(int, f"a number of streams, as in {call}", streams=streams)
    if not scorer.feature_names or streams < 1:
        raise UserError(f"{streams} streams: expected at least 1, and a detector of sensors")
    score = functools.partial(inference.scored, scorer.detector, scorer.parts, scorer.pixels)
    shape = scorer.input_shape

    def run(variables: Any, windows: Array, x: Array) -> tuple[Array, dict[str, Array]]:
        updated = jnp.concatenate([windows[:, 1:], x[:, None]], axis=1) if len(shape) == 2 else x
        return updated, score(variables, updated)

    windows = jnp.zeros((streams, *shape), jnp.float32)
    row = jax.ShapeDtypeStruct((streams, shape[-1]), jnp.float32)
    # The windows are updated in place.
    compiled = jax.jit(run, donate_argnums=1).lower(scorer.variables, windows, row).compile()
    return Streams(compiled, scorer.variables, windows, 0, shape[0] if len(shape) == 2 else 1)


def advance(streams: Streams, x: np.ndarray) -> tuple[Streams, dict[str, np.ndarray]]:
    """Adds one row to every stream.

    A row with a value that is not finite makes the windows that contain it invalid. The buffers of `streams` are
    donated, so it must not be used again.

    Args:
      streams: the state so far.
      x: rows [S, D], float32.

    Returns:
      The new state, and `score` and `p_value` [S], NaN until the windows are full.
    """
    calls.expect(Streams, "what gj.compile_streams returned, as in gj.advance(streams, rows)", streams=streams)
    windows, found = streams.run(streams.variables, streams.windows, jnp.asarray(x, jnp.float32))
    seen = streams.seen + 1
    after = dataclasses.replace(streams, windows=windows, seen=seen)
    result = {name: np.array(value) for name, value in found.items()}
    if seen < streams.length:
        for value in result.values():
            value[:] = np.nan
    return after, result
