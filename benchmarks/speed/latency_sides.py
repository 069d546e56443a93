"""The sides of latency.py, each in a process of its own: ours, our two exports, and anomalib's two inferencers.

A side is made by a function of its folder and gives a `Ways`: scores of images of the network's size that lie where
the program takes them, of raw arrays of another size, and of files. Nothing is imported before it is needed: anomalib
lives in an interpreter that need not have JAX.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import timing

MODES = ("device", "arrays", "files")
# Batches that a peer's program is given at once at most, where it has no rule of its own.
BLOCK = 64
# Images that calls of a turn take in turn, so that not each finds the one before it in a cache.
_BATCHES = 4
PACKAGES = ("jax", "onnxruntime", "anomalib", "torch", "torchvision", "openvino", "numpy", "pillow")


@dataclasses.dataclass(frozen=True)
class Ways:
    """What a side can do; each returns scores [n] as an array of NumPy, waited for.

    `place`: uint8 [n, H, W, C] of the network's size as `device` takes it; `arrays` takes uint8 [n, h, w, C] of any
    size, `files` paths.
    """

    place: Callable[[np.ndarray], Any]
    device: Callable[[Any], np.ndarray]
    arrays: Callable[[np.ndarray], np.ndarray]
    files: Callable[[Sequence[str]], np.ndarray]
    note: str = ""


def ours(folder: str) -> Ways:
    """Runs `Scorer` as a Python program calls it; `device` is its compiled program on device arrays."""
    import jax

    from ganomaly_jax.scoring import inference
    from ganomaly_jax.scoring import scorer as scoring_scorer

    scorer = scoring_scorer.load(folder)
    compiled = functools.partial(inference.compiled, scorer.detector, scorer.parts, scorer.pixels, scorer.variables)

    def place(x: np.ndarray) -> tuple[list[Any], int]:
        blocks = _blocks(x, scorer.block)
        return [jax.device_put(inference.pad(block, inference.bucket(len(block)))) for block in blocks], len(x)

    def device(placed: tuple[list[Any], int]) -> np.ndarray:
        begun = [compiled(x)["score"] for x in placed[0]]
        return np.concatenate([np.asarray(score) for score in begun])[: placed[1]]

    return Ways(place, device, scorer, scorer)


def export(folder: str) -> Ways:
    """Runs an export of ours with the `loader.py` in its folder, without our package; Pillow resizes."""
    spec = importlib.util.spec_from_file_location("loader", Path(folder, "loader.py"))
    assert spec is not None and spec.loader is not None
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    manifest = json.loads(Path(folder, "manifest.json").read_bytes())
    size = manifest["input"]["shape"][1:3]
    if manifest["program"].endswith(".onnx"):
        call, put = _onnxruntime(Path(folder, manifest["program"])), lambda x: x
    else:
        import jax

        score, _ = loader.load(folder)
        call, put = (lambda x: score(x)["score"]), jax.device_put

    def device(placed: Sequence[Any]) -> np.ndarray:
        return np.concatenate([np.asarray(score) for score in [call(x) for x in placed]])

    def arrays(x: Sequence[Any]) -> np.ndarray:
        return device(_blocks(np.stack(_threaded(functools.partial(_resized, size=size), x)), BLOCK))

    def files(paths: Sequence[str]) -> np.ndarray:
        return device(_blocks(np.stack(_threaded(functools.partial(_read, size=size), paths)), BLOCK))

    return Ways(lambda x: [put(block) for block in _blocks(x, BLOCK)], device, arrays, files)


def _onnxruntime(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = timing.cores()  # its own choice counts physical cores, which a container hides
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(["score"], {"x": x})[0]


def _read(path: str, size: Sequence[int]) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _resized(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def anomalib_torch(folder: str) -> Ways:
    """Runs anomalib's TorchInferencer in inference mode on all cores, in the faster memory layout."""
    import torch

    _quiet_anomalib()
    from anomalib.data.utils import read_image
    from anomalib.deploy import TorchInferencer

    torch.set_num_threads(timing.cores())
    os.environ["TRUST_REMOTE_CODE"] = "1"  # it unpickles; this process has written the file itself
    inferencer = TorchInferencer(Path(folder, "weights", "torch", "model.pt"), device="cpu")
    layout = torch.contiguous_format

    def score(x: Any) -> np.ndarray:
        with torch.inference_mode():
            parts = [inferencer.predict(part.contiguous(memory_format=layout)).pred_score for part in x.split(BLOCK)]
            return torch.cat(parts).numpy()

    def place(x: np.ndarray) -> Any:
        return torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(memory_format=layout).float() / 255

    def files(paths: Sequence[str]) -> np.ndarray:
        read = _threaded(functools.partial(read_image, as_tensor=True), paths)
        return score(torch.stack(read))

    side = int(inferencer.model.input_size[0])
    trial = place(timing.pictures(8, (side, side, 3)))
    seconds = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        inferencer.model.to(memory_format=layout)
        score(trial)
        seconds[layout] = min(_seconds(score, trial) for _ in range(5))
    layout = min(seconds, key=seconds.__getitem__)
    inferencer.model.to(memory_format=layout)
    return Ways(place, score, lambda x: score(place(x)), files, str(layout).removeprefix("torch."))


def anomalib_openvino(folder: str) -> Ways:
    """Runs anomalib's OpenVINOInferencer in float32 on all cores."""
    _quiet_anomalib()
    from anomalib.data.utils import read_image
    from anomalib.deploy import OpenVINOInferencer

    # Where a processor multiplies in bfloat16, OpenVINO takes that by itself: another rounding than the other sides'.
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": timing.cores(),
    }
    inferencer = OpenVINOInferencer(Path(folder, "weights", "openvino", "model.xml"), device="CPU", config=settings)

    def score(x: np.ndarray) -> np.ndarray:
        return np.concatenate([np.ravel(inferencer.predict(part).pred_score) for part in _blocks(x, BLOCK)])

    def place(x: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2), np.float32) / 255

    def files(paths: Sequence[str]) -> np.ndarray:
        return score(np.stack(_threaded(functools.partial(read_image, as_tensor=False), paths)))

    return Ways(place, score, score, files)


def _quiet_anomalib() -> None:
    import logging
    import warnings

    warnings.simplefilter("ignore")
    logging.getLogger("anomalib").setLevel(logging.ERROR)


SIDES: Mapping[str, tuple[Callable[[str], Ways], str]] = {
    "ours": (ours, "detector"),
    "StableHLO": (export, "stablehlo"),
    "onnxruntime": (export, "onnx"),
    "anomalib, PyTorch": (anomalib_torch, "anomalib"),
    "anomalib, OpenVINO": (anomalib_openvino, "anomalib"),
    "ours, anomalib's weights": (ours, "imported"),
}
"""Of each side: what makes it, and of which folder among those of `latency_make`."""


def _blocks(x: np.ndarray, size: int) -> list[np.ndarray]:
    return [x[i : i + size] for i in range(0, len(x), size)]


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(timing.cores())


def _threaded(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Applies `function` to each item in threads; a single item without a thread."""
    return [function(items[0])] if len(items) == 1 else list(_pool().map(function, items))


def _seconds(function: Callable[[Any], Any], given: Any) -> float:
    begin = time.perf_counter()
    function(given)
    return time.perf_counter() - begin


def serve(side: str, artefacts: str, images: str) -> None:
    """Answers calls, one JSON line each, until standard input ends; output of libraries goes to standard error.

    A call names `mode`, `batch`, `calls` and `warm`: whether one that is not timed comes first, whose scores of the
    first images are then in the answer, beside the seconds of each of the others.
    The side is made at the first call. `images` is a folder with `device.npy`, `arrays.npy` and `files/`.
    """
    make, folder = SIDES[side]
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    ways: list[Ways] = []

    @functools.cache
    def batches(mode: str, batch: int) -> list[Any]:
        if mode == "files":
            given: Any = [str(path) for path in sorted(Path(images, "files").iterdir())]
        else:
            given = np.load(Path(images, f"{mode}.npy"), mmap_mode="r")
        taken = [given[i : i + batch] for i in range(0, min(len(given), batch * _BATCHES) - batch + 1, batch)]
        if mode == "files":
            return taken
        return [ways[0].place(np.array(x)) if mode == "device" else np.array(x) for x in taken]

    for line in sys.stdin:
        call = json.loads(line)
        try:
            if not ways:
                ways.append(make(str(Path(artefacts, folder))))
            score = getattr(ways[0], call["mode"])
            given = batches(call["mode"], call["batch"])
            first = score(given[0]) if call["warm"] else None  # caches of the side before are not its work
            turns = itertools.islice(itertools.cycle(given), call["calls"])
            answer = {"seconds": [_seconds(score, x) for x in turns]}
            answer |= {"scores": None if first is None else first[:8].tolist()}
            answer |= {"note": ways[0].note, "versions": timing.versions(PACKAGES)}
        except Exception as error:
            answer = {"error": timing.one_line(error)}
        with contextlib.suppress(BrokenPipeError):
            out.write(json.dumps(answer) + "\n")
            out.flush()
