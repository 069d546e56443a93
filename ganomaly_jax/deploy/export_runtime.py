"""Loads and calls an export of ganomaly_jax. Needs jax, numpy and flatbuffers (score.onnx: onnxruntime) only.

score, manifest = load()  # by default from the folder of this file
score(x)  # x: raw pixels [b, H, W, C] of manifest["input"] -> {"score": [b], "p_value": [b]}, float32

The type must be that of manifest["input"], which also states the range. Scores above manifest["threshold"] are
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

_LARGEST_MANIFEST, _LARGEST_FILE = 2**24, 2**36


def load(folder: str | Path = Path(__file__).parent) -> tuple[Callable[[Any], dict[str, Any]], dict[str, Any]]:
    """Loads an export in a single version, even if it is replaced while it is read.

    Args:
      folder: folder of the export, by default that of this file.

    Returns:
      (score, manifest), see above.

    Raises:
      ValueError: a file was altered, or the manifest is not supported by this loader.
      OSError: a file is missing or cannot be read.
    """
    manifest, content = _contents(folder)
    program = content[manifest["program"]]
    call = _onnx(program) if manifest["program"].endswith(".onnx") else _stablehlo(program)
    weights: tuple[Any, ...] = ()
    if manifest["weights"] == "beside":
        weights = (_weights(content["weights.npz"], manifest["arrays"], folder),)
    return lambda x: call(*weights, _checked(x, manifest["input"])), manifest


def _checked(x: Any, wanted: dict[str, Any]) -> Any:
    """Returns x, or raises a ValueError if its type is not that of the manifest's `input`."""
    found = x.dtype if hasattr(x, "dtype") else np.asarray(x).dtype
    if found != wanted["dtype"]:
        raise ValueError(
            f"x is {found}: this program expects {wanted['dtype']} from {wanted['low']} to {wanted['high']}. Convert "
            "x, or export the detector with value_range to use floating point"
        )
    return x


def _contents(folder: str | Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Returns the manifest and the verified contents of the files that it names."""
    for _ in range(10):
        raw = _read(folder, "manifest.json", _LARGEST_MANIFEST)
        try:
            manifest = _manifest(raw)
            names = [manifest["program"], *(["weights.npz"] if manifest["weights"] == "beside" else [])]
            content = {name: _read(folder, name, manifest["files"][name]["size"]) for name in names}
            for name in names:
                if manifest["files"][name]["sha256"] != _hash(content[name]):
                    raise ValueError(f"{name} was altered")
            return manifest, content
        except (ValueError, TypeError, LookupError, AttributeError, FileNotFoundError) as error:
            if _read(folder, "manifest.json", _LARGEST_MANIFEST) == raw:
                what = error if isinstance(error, (ValueError, OSError)) else f"manifest.json: {error!r}"
                raise ValueError(f"{folder} is damaged: {what}") from None
    raise ValueError(f"{folder} changed while it was read, 10 times in a row; try again later")


def _read(folder: str | Path, name: str, most: int) -> bytes:
    """Returns the content of a file of at most `most` bytes."""
    with Path(folder, name).open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{name} has more than {most:,} bytes")
    return content


def _manifest(raw: bytes) -> dict[str, Any]:
    """Returns the manifest; raises a ValueError unless its entries are of the right types and make sense."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            raise ValueError("manifest.json has a duplicate key")
        return values

    try:
        manifest = json.loads(raw, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError("manifest.json is nested too deeply") from None
    if manifest.pop("sha256") != _hash(json.dumps(manifest, sort_keys=True).encode()):
        raise ValueError("manifest.json was altered")
    expected, shape = manifest["input"], manifest["input"]["shape"]
    sizes = [entry["size"] for entry in manifest["files"].values()]
    low, high = np.atleast_1d(expected["low"]), np.atleast_1d(expected["high"])
    dims = [n for array in manifest["arrays"].values() for n in array["shape"]]
    checks = {
        "kind": manifest["kind"] == "ganomaly_jax export",
        "format": manifest["format"] == 1,
        "program": manifest["program"] in ("score.stablehlo", "score.onnx"),
        "weights": manifest["weights"] in ("inside", "beside"),
        "files": all(type(size) is int and 0 <= size <= _LARGEST_FILE for size in sizes),
        "input": shape[0] == "b" and all(type(n) is int and 0 < n < 2**31 for n in shape[1:]),
        "range": {low.dtype.kind, high.dtype.kind} <= {"i", "f"}
        and low.shape == high.shape
        and bool(np.all(low < high)),
        "arrays": all(type(n) is int and 0 < n < 2**40 for n in dims),
        "threshold": type(manifest["threshold"]) in (int, float) and abs(manifest["threshold"]) < float("inf"),
    }
    for name, valid in checks.items():
        if not valid:
            raise ValueError(f"manifest.json: {name} is not supported by this loader")
    return manifest


def _weights(content: bytes, declared: dict[str, Any], folder: str | Path) -> dict[str, np.ndarray]:
    """Returns the arrays of weights.npz, which must be those that the manifest declares, uncompressed."""
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        members = file.zip.infolist()
        if sum(member.file_size for member in members) > len(content):
            raise ValueError(f"{folder} is damaged: weights.npz claims more bytes than it contains")
        weights = dict(file)
    found = {name: {"shape": list(array.shape), "dtype": str(array.dtype)} for name, array in weights.items()}
    if found != declared:
        raise ValueError(f"{folder} is damaged: weights.npz does not hold the arrays of manifest.json")
    return weights


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
