"""What every benchmark needs: turns of several sides, spread, memory, the device's matmul peak, the machine.

A side is one implementation of some work, ready to run. Sides take turns in strict rotation in one process, so that a
machine that slows down slows all of them; figures are compared as ratios within a round. Nothing here imports jax or
torch before it is needed: a process that measures the memory of one must not hold the other.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import json
import math
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
# What changes speed from outside: allocators, threads, compilers, devices.
_ENVIRONMENT = ("GLIBC_", "MALLOC_", "LD_PRELOAD", "OMP_", "GOMP_", "KMP_", "MKL_", "XLA_", "JAX_", "TORCH", "PYTORCH_")
_ENVIRONMENT += ("CUDA_", "CUDNN_", "NVIDIA_", "TF_ENABLE_", "ONEDNN_", "DNNL_")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "torch", "triton")
# Between two turns: worker threads of the side before may still be spinning.
PAUSE_S = 0.05


@dataclasses.dataclass(frozen=True)
class Side:
    """Work that is set up, compiled and warm.

    `run(n)` does n steps and returns when the device has finished them; `finite()` says whether the numbers of the
    last run were; `device_peak()` is the most memory of the device in bytes that this process has held, None where
    the device is the host. `compile_s` is the time before the first step, or with it where that is what compiles.
    """

    run: Callable[[int], None]
    finite: Callable[[], bool]
    compile_s: float
    device_peak: Callable[[], int] | None = None
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def cores() -> int:
    """Returns the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def seconds(side: Side, steps: int) -> float:
    """Measures the seconds that this many steps take."""
    begin = time.perf_counter()
    side.run(steps)
    return time.perf_counter() - begin


def steps_a_turn(side: Side, turn_s: float, most: int = 20_000) -> tuple[int, float]:
    """Returns (steps that take about `turn_s`, seconds of one) after running some, which warms up."""
    each = seconds(side, 1)
    for part in (5, 1):
        if each < turn_s:  # a slow one needs no second try
            some = min(most, math.ceil(turn_s / part / each))
            each = seconds(side, some) / some
    return min(most, max(1, round(turn_s / each))), each


def rotate(sides: Mapping[str, Side], steps: Mapping[str, int], rounds: int) -> dict[str, list[float]]:
    """Measures seconds per step of each side in each round: one turn each, always in the same order.

    A turn begins with a step that is not timed: the memory and caches of the side before are not its work.
    """
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            time.sleep(PAUSE_S)
            side.run(1)
            taken[name].append(seconds(side, steps[name]) / steps[name])
    return taken


def spread(values: Sequence[float]) -> dict[str, float]:
    """Computes median, quartiles and extremes of some numbers."""
    low, q1, median, q3, high = np.quantile(np.asarray(values, np.float64), (0, 0.25, 0.5, 0.75, 1)).tolist()
    return {"median": median, "min": low, "q1": q1, "q3": q3, "max": high}


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Computes how many times as fast ours is: the spread of theirs / ours, round by round."""
    return spread([b / a for a, b in zip(ours, theirs, strict=True)])


def pictures(count: int, shape: Sequence[int]) -> np.ndarray:
    """Draws images [count, H, W, C] uint8 that a GAN can learn: a soft spot on a noisy ground.

    On plain noise the discriminator wins at once and its vanishing gradients become denormal numbers, which are slow.
    """
    height, width, channels = shape
    random = np.random.default_rng(0)
    # Drawn for a few and repeated, the time to make them would be longer than what is measured.
    few = min(count, 256)
    at = random.uniform(0.3, 0.7, (2, few, channels, 1))
    row, column = (
        np.exp(-0.5 * ((np.arange(side) / side - centre) / 0.12) ** 2)
        for side, centre in zip((height, width), at, strict=True)
    )
    spots = 200 * np.einsum("bch,bcw->bhwc", row, column)
    spots += random.normal(20, 6, spots.shape)
    made = np.clip(spots, 0, 255).astype(np.uint8)
    return np.resize(made, (count, *made.shape[1:]))


def host_peak() -> int:
    """Returns the peak host memory of this process in bytes."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        # Not ru_maxrss where it can be helped: Linux starts that of a child at what its parent held.
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def available() -> int | None:
    """Returns the available host memory in bytes, or None if it is unknown."""
    try:
        return int(Path("/proc/meminfo").read_text(encoding="ascii").split("MemAvailable:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return None


def environment() -> dict[str, str]:
    """Returns this process's environment for a child that imports this checkout."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path}


def peak_memory(module: str, arguments: Mapping[str, Any], steps: int) -> dict[str, int]:
    """Returns peak bytes after some steps of `module.side(**arguments)`; meant to run in its own process.

    `imported` is the host's peak before the side was made, `host` the one at the end, compilation included, `device`
    that of the device's allocator where there is one.
    """
    make = importlib.import_module(module).side
    imported = host_peak()
    side = make(**arguments)
    side.run(steps)
    found = {"imported": imported, "host": host_peak()}
    return found | ({"device": side.device_peak()} if side.device_peak else {})


def in_own_process(
    function: str, arguments: Mapping[str, Any], timeout_s: float = 900, python: str = sys.executable
) -> Any:
    """Calls our `package.module:function` with keyword arguments in a new process; the result travels as JSON.

    `python` may be another interpreter, which has what that module imports.

    Raises:
      RuntimeError: it failed or was killed; the message is its error in one line.
    """
    script = (
        "import importlib, json, sys; module, name = sys.argv[1].split(':'); "
        "print(json.dumps(getattr(importlib.import_module(module), name)(**json.loads(sys.argv[2]))))"
    )
    call = [python, "-W", "ignore", "-c", script, function, json.dumps(arguments)]
    try:
        ran = subprocess.run(call, env=environment(), capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"it took longer than {timeout_s:.0f} s") from None
    if ran.returncode:
        lines = ran.stderr.strip().splitlines() or [f"exit code {ran.returncode}"]
        errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)] or lines
        raise RuntimeError("out of memory: the system ended it" if ran.returncode == -9 else errors[-1])
    return json.loads(ran.stdout.splitlines()[-1])


def out_of_memory(error: BaseException) -> bool:
    """Returns whether an error of JAX, PyTorch or Python means that memory ran out."""
    words = ("resource_exhausted", "out of memory", "outofmemory", "can't allocate memory", "not enough memory")
    text = f"{type(error).__name__} {error}".lower()
    return isinstance(error, MemoryError) or any(word in text for word in words)


def one_line(error: BaseException) -> str:
    """Formats an error as one line of at most 200 characters."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 200 else text[:197] + "..."


def _best_rate(multiply: Callable[[int], None], size: int, repeats: int = 5) -> float:
    """Returns the best FLOP/s of chains of size x size matrix products; `multiply(n)` computes n and waits."""
    multiply(1)
    count = 4
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        multiply(count)
        times.append(time.perf_counter() - begin)
    return 2 * size**3 * count / min(times)


def jax_matmul_peak(dtype: str, size: int) -> float:
    """Measures FLOP/s of a square matrix product in JAX on its default device, in its default precision."""
    import jax
    import jax.numpy as jnp

    left, right = (jax.random.normal(jax.random.key(i), (size, size)) / size**0.5 for i in range(2))
    left, right = left.astype(dtype), right.astype(dtype)
    product = jax.jit(jnp.matmul)

    def multiply(count: int) -> None:
        x = left
        for _ in range(count):
            x = product(x, right)
        x.block_until_ready()

    return _best_rate(multiply, size)


def torch_matmul_peak(dtype: str, size: int, device: str) -> float:
    """Measures the same in PyTorch on `device`; float32 with TF32 allowed, as JAX does by default."""
    import torch

    allow_tf32(device)
    torch.set_num_threads(cores())
    draw = torch.Generator().manual_seed(0)
    left, right = (
        (torch.randn(size, size, generator=draw) / size**0.5).to(device, getattr(torch, dtype)) for _ in range(2)
    )

    def multiply(count: int) -> None:
        x = left
        for _ in range(count):
            x = x @ right
        if device == "cuda":
            torch.cuda.synchronize()

    return _best_rate(multiply, size)


def allow_tf32(device: str) -> None:
    """Lets float32 products of PyTorch use TF32 on a GPU, as JAX's and PyTorch's convolutions do by default."""
    import torch

    if device == "cuda":
        torch.set_float32_matmul_precision("high")


def load_average() -> list[float]:
    """Returns the load average over 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def machine() -> dict[str, Any]:
    """Describes what figures depend on: processor, memory, devices, versions, threads and environment."""
    jax, torch = sys.modules.get("jax"), sys.modules.get("torch")
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions(_PACKAGES),
        "commit": _commit(),
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(_ENVIRONMENT) and not name.endswith("_DIR")
        },
        "huge_pages": _read("/sys/kernel/mm/transparent_hugepage/enabled"),
    }
    if jax:
        device = jax.local_devices()[0]
        found["jax"] = {"platform": device.platform, "device": device.device_kind, "devices": jax.local_device_count()}
    if torch:
        found["torch"] = {"threads": torch.get_num_threads(), "interop_threads": torch.get_num_interop_threads()}
        if torch.cuda.is_available():
            found["torch"] |= {
                "device": torch.cuda.get_device_name(),
                "cuda": torch.version.cuda,
                "cudnn": torch.backends.cudnn.version(),
                "device_memory_bytes": torch.cuda.get_device_properties(0).total_memory,
            }
    return found


def _processor() -> str:
    lines = (_read("/proc/cpuinfo") or "").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Returns the versions of these packages, as far as they are installed."""
    return {name: version for name in packages if (version := _version(name))}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _commit() -> str | None:
    """Returns the checkout's commit, with `+` if there are changes; None outside a repository."""
    try:
        call = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        ran = subprocess.run(call, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ran.stdout.strip() or None
