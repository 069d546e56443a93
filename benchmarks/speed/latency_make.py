"""What the sides of latency.py load: one untrained detector in each of its forms, and anomalib's at the same size.

Each function runs in a process of its own, that for anomalib in anomalib's interpreter.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import timing


def ours(folder: str, shape: Sequence[int], features: int, latent: int) -> dict[str, str]:
    """Writes `detector`, `stablehlo` and `onnx` into this folder; returns {what could not be made: reason}."""
    from benchmarks.common import ours as measured
    from ganomaly_jax.core.errors import UserError
    from ganomaly_jax.deploy import export
    from ganomaly_jax.model import ganomaly

    scorer = measured.untrained(ganomaly.Ganomaly(tuple(shape), latent, features))
    scorer.save(Path(folder, "detector"))
    failed = {}
    for form in export.PROGRAMS:
        try:
            export.export(scorer, Path(folder, form), form=form)
        except UserError as error:
            failed[form] = str(error)
    return failed


def anomalib(folder: str, side: int, features: int, latent: int) -> dict[str, str]:
    """Writes both exports and `model.ckpt` of anomalib's Ganomaly; returns {side that could not be made: reason}."""
    import torch

    logging.disable(logging.WARNING)
    from anomalib.models import Ganomaly

    torch.manual_seed(0)
    at = Path(folder, "anomalib")
    scale = Ganomaly.configure_pre_processor((side, side))
    model = Ganomaly(n_features=features, latent_vec_size=latent, pre_processor=scale).eval()
    model.to_torch(at)
    torch.save({"state_dict": model.state_dict()}, at / "model.ckpt")
    try:
        model.to_openvino(at)
    except Exception as error:  # of a converter
        return {"anomalib, OpenVINO": timing.one_line(error)}
    return {}


def imported(folder: str, side: int) -> None:
    """Imports the weights of `anomalib`'s `model.ckpt` as a detector of ours, `imported`."""
    import ganomaly_jax

    checkpoint = Path(folder, "anomalib", "model.ckpt")
    ganomaly_jax.import_pytorch(checkpoint, timing.pictures(100, (side, side, 3)), Path(folder, "imported"))


def images(folder: str, count: int, side: int, shape: Sequence[int]) -> int:
    """Writes `files/` (JPEG and PNG in turn), `arrays.npy` of that size and `device.npy` of the network's size.

    Returns:
      Bytes of a file, in the mean.
    """
    from benchmarks.common import prediction
    from ganomaly_jax.data.images import preprocess

    made = prediction.write_pictures(Path(folder, "files"), count, side, ("JPEG", "PNG"))
    large = timing.pictures(count, (side, side, shape[2]))
    np.save(Path(folder, "arrays.npy"), large)
    np.save(Path(folder, "device.npy"), np.stack([preprocess.fit_image(x, *shape) for x in large]))
    return made // count


def sizes(folder: str) -> dict[str, Any]:
    """Returns the bytes that each side needs to be deployed."""
    at = Path(folder)
    found = {
        "detector folder": at / "detector",
        "StableHLO export": at / "stablehlo",
        "ONNX export": at / "onnx",
        "anomalib, PyTorch export": at / "anomalib" / "weights" / "torch",
        "anomalib, OpenVINO export": at / "anomalib" / "weights" / "openvino",
        "anomalib, checkpoint": at / "anomalib" / "model.ckpt",
    }
    return {name: _bytes(path) for name, path in found.items() if path.exists()}


def _bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(os.path.getsize(file) for file in path.rglob("*") if file.is_file())
