"""Our side of the benchmarks: the programs that training and scoring compile, on the first device."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks.common import timing
from ganomaly_jax.core.config import Config
from ganomaly_jax.data.images.modality import Pixels
from ganomaly_jax.model import ganomaly
from ganomaly_jax.parallel import sharding
from ganomaly_jax.scoring.adapters import WholeDetector
from ganomaly_jax.scoring.calibration import Calibration
from ganomaly_jax.scoring.scorer import Scorer
from ganomaly_jax.training import train_step

STEPS_A_CALL = train_step.STEPS_A_CALL
IMAGES = 4096
_BATCHES = 4
_CALIBRATION_IMAGES = 1000
_GIB = 2**30


def side(
    work: str,
    shape: Sequence[int],
    batch: int,
    images: int = IMAGES,
    latent: int = 100,
    features: int = 64,
    bfloat16: bool = False,
) -> timing.Side:
    """Compiles our `work` ("train" or "score") for measurement.

    Images lie on the device as uint8; a step of training gathers its batch and scales it, up to 128 steps a call. A
    batch of scores (and p-values) is waited for before the next is begun.

    Raises:
      UserError: a shape that the networks do not take.
      MemoryError: the program would not fit into the host's memory.
    """
    dtype = "bfloat16" if bfloat16 else "float32"
    detector = ganomaly.Ganomaly(tuple(shape), latent, features, compute_dtype=dtype)
    made = (_training if work == "train" else _scoring)(detector, batch, images)
    free = timing.available()
    if jax.default_backend() == "cpu" and free and made.facts["memory"]["total"] > 0.7 * free:
        needed = made.facts["memory"]["total"] / _GIB
        raise MemoryError(f"out of memory: the program needs {needed:.1f} GiB of the {free / _GIB:.1f} GiB left")
    return made


def _training(detector: ganomaly.Ganomaly, batch: int, images: int) -> timing.Side:
    mesh = sharding.local_mesh(1)
    program = sharding.data_parallel(train_step.make_steps(detector, 0, 255), mesh, (None, None, 1, None), donate=0)
    state = sharding.replicate(jax.jit(detector.init)(jax.random.key(0)), mesh)
    pixels = sharding.replicate(timing.pictures(images, detector.shape), mesh)
    rows = np.random.default_rng(1).integers(0, images, (STEPS_A_CALL, batch), np.int32)
    index = sharding.shard_batch(rows, mesh, 1)
    made, lowered, compiled, _ = stepping(program, state, pixels, index, mesh)
    return dataclasses.replace(made, device_peak=_device_peak(), facts=counted(lowered, compiled))


def stepping(
    program: Any, state: Any, pixels: Array, index: Array, mesh: Any
) -> tuple[timing.Side, Any, Any, list[Any]]:
    """Compiles a program of many steps per call (`train_step.make_steps`): (side, lowered, compiled, last).

    `last` holds the present state, the losses and the number of steps of the last call.
    """
    counts = {1: sharding.replicate(np.int32(1), mesh)}
    begin = time.perf_counter()
    lowered = program.lower(state, pixels, index, counts[1])
    compiled = lowered.compile()
    compile_s = time.perf_counter() - begin
    last: list[Any] = [state, None, 0]

    def run(steps: int) -> None:
        while steps:
            count = min(steps, STEPS_A_CALL)
            if count not in counts:
                counts[count] = sharding.replicate(np.int32(count), mesh)
            last[:] = *compiled(last[0], pixels, index, counts[count]), count
            steps -= count
        jax.block_until_ready(last[:2])

    def finite() -> bool:
        return bool(np.isfinite(np.asarray(last[1])[: last[2]]).all())

    return timing.Side(run, finite, compile_s), lowered, compiled, last


def untrained(detector: ganomaly.Ganomaly) -> Scorer:
    """Makes a scorer of uint8 images with initial weights: its cost does not depend on their values."""
    settings = Config()
    settings.data.height, settings.data.width, settings.data.channels = detector.shape
    settings.model.latent_size, settings.model.features = detector.latent_size, detector.features
    settings.model.dtype = detector.compute_dtype
    return Scorer(
        WholeDetector(detector, Pixels(detector.shape)),
        {
            "detector": detector.variables(jax.jit(detector.init)(jax.random.key(0))),
            "calibration": jnp.linspace(0, 1, _CALIBRATION_IMAGES),
            "statistics": {},
        },
        settings,
        "uint8",
        0,
        255,
        calibration=Calibration(0.99, 0.01, "none: only its cost counts here"),
        residual_max=1.0,
        map_threshold=1.0,
        provenance={},
    )


def _scoring(detector: ganomaly.Ganomaly, batch: int, images: int) -> timing.Side:
    scorer = untrained(detector)
    batches = [jax.device_put(x) for x in np.split(timing.pictures(_BATCHES * batch, detector.shape), _BATCHES)]
    begin = time.perf_counter()
    lowered = jax.jit(scorer.outputs).lower(scorer.variables, batches[0])
    compiled = lowered.compile()
    compile_s = time.perf_counter() - begin
    last: list[Any] = [None]

    def run(steps: int) -> None:
        for i in range(steps):
            last[0] = jax.block_until_ready(compiled(scorer.variables, batches[i % _BATCHES]))

    def finite() -> bool:
        return bool(np.isfinite(np.asarray(last[0]["score"])).all())

    return timing.Side(run, finite, compile_s, _device_peak(), counted(lowered, compiled))


def _device_peak() -> Callable[[], int] | None:
    device = jax.local_devices()[0]
    return (lambda: int(device.memory_stats()["peak_bytes_in_use"])) if device.memory_stats() else None


def operations(work: str, shape: Sequence[int], batch: int, latent: int, features: int) -> float:
    """Counts FLOPs of a batch by the definition of the layers: each pass once, products only.

    What a device at its matmul peak would have to do without algorithms that need fewer products.
    """
    height, width, channels = shape
    blocks = []  # 4x4 products of each strided layer, from the image inwards
    c, f = channels, features
    while min(height, width) > 4:
        height, width = height // 2, width // 2
        blocks.append(height * width * 16 * c * f)
        c, f = f, 2 * f
    pyramid, first, head = sum(blocks), blocks[0], height * width * c
    coder = pyramid + head * latent
    if work == "score":
        return 2.0 * batch * 3 * coder
    scorer = pyramid + head
    forward = 3 * coder + 2 * scorer
    # The input of the first encoder needs no gradient; of the discriminator the generator's loss needs the gradient of
    # its input through the features, and its own loss those of its weights for two batches.
    generator = 3 * 2 * coder - first + pyramid
    discriminator = 2 * (2 * scorer - first)
    return 2.0 * batch * (forward + generator + discriminator)


def counted(lowered: Any, compiled: Any) -> dict[str, Any]:
    """Returns XLA's FLOPs of one step, as compiled (`flops`) and before optimisation, and its bytes.

    The loop over steps counts once, its length being an argument.
    """
    counts = {}
    for name, program in (("flops", compiled), ("flops_before", lowered)):
        cost = program.cost_analysis() or {}
        counts[name] = float((cost[0] if isinstance(cost, list) else cost).get("flops", 0))
    found = compiled.memory_analysis()
    names = ("argument", "output", "alias", "temp", "generated_code")
    memory = {name: int(getattr(found, f"{name}_size_in_bytes", 0)) for name in names}
    memory["total"] = memory["argument"] + memory["output"] - memory["alias"] + memory["temp"]
    return counts | {"memory": memory}
