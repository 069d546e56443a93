"""Scores from an export of ganomaly_jax. Needs jax, numpy and flatbuffers (score.onnx: onnxruntime), nothing else.

score, manifest = load()  # of the folder that this file is in
score(x)  # x: raw pixels [b, H, W, C] of manifest["input"] -> {"score": [b], "p_value": [b]}, float32

A score above manifest["threshold"] is anomalous; NaN is that of an image with a NaN or infinite pixel.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def load(folder: str | Path = Path(__file__).parent) -> tuple[Callable[[Any], dict[str, Any]], dict[str, Any]]:
    """(score, manifest) of an export. `ValueError` where a file was altered."""
    manifest = json.loads(Path(folder, "manifest.json").read_bytes())
    if manifest.pop("sha256") != _hash(json.dumps(manifest, sort_keys=True).encode()):
        raise ValueError(f"{folder} is damaged: manifest.json was altered")

    def content(name: str) -> bytes:
        read = Path(folder, name).read_bytes()
        if manifest["files"][name]["sha256"] != _hash(read):
            raise ValueError(f"{folder} is damaged: {name} was altered")
        return read

    program = content(manifest["program"])
    call = _onnx(program) if manifest["program"].endswith(".onnx") else _stablehlo(program)
    if manifest["weights"] == "beside":
        with np.load(io.BytesIO(content("weights.npz")), allow_pickle=False) as file:
            weights = dict(file)
        return lambda x: call(weights, x), manifest
    return call, manifest


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _stablehlo(program: bytes) -> Callable[..., Any]:
    import jax
    import jax.export

    return jax.jit(jax.export.deserialize(bytearray(program)).call)


def _onnx(program: bytes) -> Callable[..., Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(program)
    names = [output.name for output in session.get_outputs()]
    (x_name,) = (given.name for given in session.get_inputs())
    return lambda x: dict(zip(names, session.run(names, {x_name: np.asarray(x)}), strict=True))
