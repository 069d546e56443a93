"""Detectors from PyTorch: the original's netG.pth and anomalib's Ganomaly checkpoint, calibrated here on normals."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ganomaly_jax.core import config, validation
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import lazy, sources, splits
from ganomaly_jax.data.images.modality import Images
from ganomaly_jax.model import ganomaly, pytorch
from ganomaly_jax.runs import layout
from ganomaly_jax.scoring import build, scorer
from ganomaly_jax.scoring.adapters import WholeDetector

_PREPROCESSOR = "anomalib_pre_processor_config"


def import_pytorch(
    path: str | os.PathLike[str],
    normals: Any,
    workdir: str | os.PathLike[str],
    false_positive_rate: float | None = None,
    progress: bool = False,
) -> scorer.Scorer:
    """A detector with the weights of a PyTorch GANomaly, its threshold and p-values from `normals`, in a run's folder.

    The sizes of the network come from the file. Scores are those of the PyTorch network in `eval` mode: the mean over
    the latent of the squared difference. The discriminator, optimisers and any threshold in the file are left out.

    Args:
      path: `netG.pth` of the original code, or a `.ckpt` of anomalib's Ganomaly; read without running code from it
        (`weights_only`).
      normals: normal images that these weights were not trained on, at least a few hundred: a folder or file as in
        `Config.data.source`, or an array [N, H, W, C] uint8 or uint16. Images called anomalous are left out.
      workdir: a folder to make; the detector is written into its `detector/`, for `load` and the command line.
      false_positive_rate: share of normal images that may be flagged; None: the default of `config.Evaluate`.
      progress: show a bar while files are read.

    Raises:
      UserError: torch is absent; the file is no GANomaly, or one that cannot be scored; no normal images, or of a
        floating-point type; `workdir` is taken.
    """
    folder = Path(workdir)
    if (folder / layout.CONFIG).exists() or (folder / layout.DETECTOR).exists():
        raise UserError(f"{folder} holds a run already; wanted another --workdir")
    settings, tensors = _read(Path(path))
    detector = ganomaly.from_config(settings)
    variables = pytorch.generator_from_pytorch(detector, tensors)
    if isinstance(normals, (str, os.PathLike)):
        settings.data.source = str(normals)
        normals = None
    if false_positive_rate is not None:
        settings.evaluate.false_positive_rate = false_positive_rate
    validation.check(dataclasses.replace(settings, model=config.Model()))  # the rest of it
    dataset = sources.load(settings.data, normals, progress)
    normal = splits.normal_classes(dataset, settings.data.abnormal)
    chosen = np.flatnonzero([dataset.classes[label] in normal for label in dataset.labels])
    if not len(chosen) or dataset.low is None or dataset.high is None:
        raise UserError(
            f"{dataset.name}: {len(chosen)} normal images of type {dataset.images.dtype}; wanted at least one, uint8 "
            "or uint16: what the values of floating point mean to these weights is not known"
        )
    settings.data.low, settings.data.high = dataset.low, dataset.high
    normals = lazy.select(dataset.images, chosen)
    made = build.make(
        WholeDetector(detector, Images().preprocessing(settings.data)),
        jax.device_put(variables),
        settings,
        (str(dataset.images.dtype), dataset.low, dataset.high),
        training=normals,
        normals=normals,
        trained_on=False,
        provenance={"imported": Path(path).name, "sha256": _digest(Path(path)), "network": settings.model.network},
    )
    made.save(folder / layout.DETECTOR)
    return made


def _read(path: Path) -> tuple[config.Config, dict[str, np.ndarray]]:
    """The configuration that the file describes, and the generator under the original's names."""
    tensors = pytorch.read_pytorch(path)
    settings = config.Config()
    if (renamed := pytorch.rename_anomalib(tensors)) is not None:
        settings.model.network = "anomalib"
        tensors = renamed
    found = pytorch.infer_sizes(tensors)
    settings.data.height = settings.data.width = found["side"]
    settings.data.channels = found["channels"]
    for name in ("latent_size", "features", "extra_layers"):
        setattr(settings.model, name, found[name])
    if renamed is not None:
        _refuse_other_preprocessing(path, found["side"])
    return settings, tensors


def _refuse_other_preprocessing(path: Path, side: int) -> None:
    """Of a checkpoint of anomalib 2.7 and later, which tells it; before, and by default, it is what stands here."""
    for arguments in _dicts(pytorch.read_checkpoint(path).get(_PREPROCESSOR)):
        size, mean, deviation = (arguments.get(name) for name in ("size", "mean", "std"))
        if size is not None and list(np.ravel(size)) not in ([side], [side, side]):
            raise UserError(
                f"{path} was trained at {size} pixels, where its network is one for {side}: wanted a square, its side "
                "a power of 2"
            )
        if mean is not None and [tuple(mean), tuple(deviation or ())] != list(ganomaly.IMAGENET):
            raise UserError(
                f"{path} scales by mean {mean} and deviation {deviation}: wanted anomalib's own, {ganomaly.IMAGENET}"
            )


def _dicts(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
    if isinstance(tree, (dict, list, tuple)):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from _dicts(part)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
