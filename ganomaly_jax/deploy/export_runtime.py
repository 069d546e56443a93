"""Loads and calls an export of ganomaly_jax. Needs jax, numpy and flatbuffers (score.onnx: onnxruntime) only.

score, manifest = load()  # by default from the folder of this file
score(x)  # x: raw pixels [b, H, W, C] of manifest["input"] -> {"score": [b], "p_value": [b]}, float32

The type has to be that of manifest["input"], which also says the range. Scores above manifest["threshold"] are
anomalous; images with NaN or infinite pixels have the score NaN.
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
    """Loads an export.

    Args:
      folder: folder of the export, by default that of this file.

    Returns:
      (score, manifest), see above.

    Raises:
      ValueError: a file was altered.
    """
    manifest = json.loads(Path(folder, "manifest.json").read_bytes())
    if manifest.pop("sha256") != _hash(json.dumps(manifest, sort_keys=True).encode()):
        raise ValueError(f"{folder} is damaged: manifest.json was altered")

    def content(name: str) -> bytes:
        data = Path(folder, name).read_bytes()
        if manifest["files"][name]["sha256"] != _hash(data):
            raise ValueError(f"{folder} is damaged: {name} was altered")
        return data

    program = content(manifest["program"])
    call = _onnx(program) if manifest["program"].endswith(".onnx") else _stablehlo(program)
    weights: tuple[Any, ...] = ()
    if manifest["weights"] == "beside":
        with np.load(io.BytesIO(content("weights.npz")), allow_pickle=False) as file:
            weights = (dict(file),)
    return lambda x: call(*weights, _checked(x, manifest["input"])), manifest


def _checked(x: Any, wanted: dict[str, Any]) -> Any:
    """Returns x, or raises a ValueError if its type is not that of the manifest's `input`."""
    found = x.dtype if hasattr(x, "dtype") else np.asarray(x).dtype
    if found != wanted["dtype"]:
        raise ValueError(
            f"x is {found}: this program takes {wanted['dtype']} from {wanted['low']} to {wanted['high']}. Convert it, "
            "or export the detector with a value_range to take floating point"
        )
    return x


def _hash(content: bytes) -> str:
    """Returns the sha256 of bytes."""
    return hashlib.sha256(content).hexdigest()


def _stablehlo(program: bytes) -> Callable[..., Any]:
    """Returns the function of a StableHLO program."""
    import jax
    import jax.export

    return jax.jit(jax.export.deserialize(bytearray(program)).call)


def _onnx(program: bytes) -> Callable[..., Any]:
    """Returns the function of an ONNX program."""
    import onnxruntime

    session = onnxruntime.InferenceSession(program)
    names = [output.name for output in session.get_outputs()]
    (x_name,) = (value.name for value in session.get_inputs())
    return lambda x: dict(zip(names, session.run(names, {x_name: np.asarray(x)}), strict=True))
