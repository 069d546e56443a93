"""The compiled step of a stream: from raw rows, windows or images to score, p-value, latent and contributions at once.

Everything is compiled ahead of time for two sizes, one item and `BLOCK` of them (for a backlog), so that nothing is
compiled while a stream runs; another shape is an error, never a wait. `Many` is the same for many streams side by side,
their windows kept on the device.
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

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.scoring import inference, modalities
from ganomaly_jax.scoring.scorer import Scorer

BLOCK = 64
"""Items that are judged together where so many wait."""
STEPS = 32
"""Of the integral that contributions are; what they leave unexplained is told with each verdict."""
_FEW = 8
# Up to so many that wait, one after the other is no slower than a padded block.


@dataclasses.dataclass(frozen=True, eq=False)
class Judged:
    """Of n items, in their order."""

    scores: np.ndarray
    """[n] float32, NaN where an item is invalid."""
    p_values: np.ndarray
    """[n] float32."""
    latents: np.ndarray | None
    """[n, L] float32; None where images are cut into tiles, which have a latent each."""
    values: np.ndarray | None
    """[n, D] float32, what each sensor adds to the score over `base`; None: not asked for, or images."""


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """`sizes` {1: compiled, BLOCK: compiled}; `base` the score of all sensors' centres, NaN without contributions."""

    sizes: Mapping[int, Callable[..., dict[str, Array]]]
    variables: Any
    base: float

    def __call__(self, x: np.ndarray) -> Judged:
        """Of items [n, ...] of the scorer's shape and type, any number."""
        few = len(x) <= _FEW
        size = 1 if few else max(self.sizes)
        run = self.sizes[size]
        blocks = [x[i : i + size] for i in range(0, len(x), size)]
        started = [run(self.variables, inference.pad(block, size)) for block in blocks]
        found = [{name: np.asarray(value) for name, value in one.items()} for one in started]
        whole = {name: np.concatenate([one[name] for one in found])[: len(x)] for name in found[0]}
        return Judged(whole["score"], whole["p_value"], whole.get("z"), whole.get("values"))


def outputs(scorer: Scorer, steps: int) -> Callable[[Any, Array], dict[str, Array]]:
    """The pure function that `step` compiles; `steps` of the integral, 0: no contributions."""
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


def step(scorer: Scorer, steps: int = STEPS) -> Step:
    """Compile the step of a detector: seconds, once.

    Args:
      steps: of the integral that contributions are, see `sensors.contributions`; 0: none.

    Raises:
      UserError: steps below 0.
    """
    if steps < 0:
        raise UserError(f"{steps} steps of the integral: wanted 0, for no contributions, or more")
    function, base = jax.jit(outputs(scorer, steps)), float("nan")
    kind = jnp.dtype(scorer.dtype)
    # Large images are held one by one.
    sizes = (1, min(BLOCK, scorer.block))
    shapes = {size: jax.ShapeDtypeStruct((size, *scorer.input_shape), kind) for size in sizes}
    compiled = {size: function.lower(scorer.variables, shape).compile() for size, shape in shapes.items()}
    if steps and modalities.of(scorer).attributed(scorer, steps) is not None:
        centre = np.asarray([scorer.low, scorer.high], np.float64).mean(0).astype(np.float32)
        x = np.broadcast_to(centre, (1, *scorer.input_shape)).astype(kind)
        base = float(np.asarray(compiled[1](scorer.variables, x)["score"])[0])
    return Step(compiled, scorer.variables, base)


@dataclasses.dataclass(frozen=True, eq=False)
class Many:
    """S streams of rows of one detector, a row of each at a time.

    `windows` [S, T, D] on the device, the last T rows of each; [S, D] where rows are judged alone. `seen` rows each.
    """

    run: Callable[..., tuple[Array, dict[str, Array]]]
    variables: Any
    windows: Array
    seen: int
    length: int


def many(scorer: Scorer, streams: int) -> Many:
    """Compile one program for so many streams.

    Raises:
      UserError: a detector of images, or no streams.
    """
    if not scorer.feature_names or streams < 1:
        raise UserError(f"{streams} streams: wanted 1 or more, of a detector of sensors")
    score = functools.partial(inference.scored, scorer.detector, scorer.parts, scorer.pixels)
    shape = scorer.input_shape

    def run(variables: Any, windows: Array, x: Array) -> tuple[Array, dict[str, Array]]:
        held = jnp.concatenate([windows[:, 1:], x[:, None]], axis=1) if len(shape) == 2 else x
        return held, score(variables, held)

    windows = jnp.zeros((streams, *shape), jnp.float32)
    row = jax.ShapeDtypeStruct((streams, shape[-1]), jnp.float32)
    # The windows go in and come out in the same memory.
    compiled = jax.jit(run, donate_argnums=1).lower(scorer.variables, windows, row).compile()
    return Many(compiled, scorer.variables, windows, 0, shape[0] if len(shape) == 2 else 1)


def advance(streams: Many, x: np.ndarray) -> tuple[Many, dict[str, np.ndarray]]:
    """One more row of every stream, x [S, D] float32; `score` and `p_value` [S], NaN until the windows are full.

    A row with a value that is not finite makes its stream's windows invalid while it is in them. The `Many` that went
    in must not be used again: its memory is taken over.
    """
    windows, found = streams.run(streams.variables, streams.windows, jnp.asarray(x, jnp.float32))
    seen = streams.seen + 1
    after = dataclasses.replace(streams, windows=windows, seen=seen)
    result = {name: np.array(value) for name, value in found.items()}
    if seen < streams.length:
        for value in result.values():
            value[:] = np.nan
    return after, result
