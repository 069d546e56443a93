"""Import of PyTorch detectors (the original's netG.pth, anomalib's Ganomaly), calibrated on normal images."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ganomaly_jax.core import calls, config, validation
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import lazy, sources, splits
from ganomaly_jax.data.images.modality import Images
from ganomaly_jax.model import ganomaly, pytorch
from ganomaly_jax.runs import layout, lock
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
    """Creates a detector with the weights of a PyTorch GANomaly, with threshold and p-values from normal images.

    The sizes of the network are inferred from the file. Scores are those of the PyTorch network in `eval` mode: the
    mean squared difference over the latent. Discriminator, optimizers and any threshold in the file are ignored.

    Args:
      path: `netG.pth` of the original code, or a `.ckpt` of anomalib's Ganomaly; read without running code from it
        (`weights_only`).
      normals: normal images that the weights were not trained on, at least a few hundred: a folder or file as in
        `Config.data.source`, or an array [N, H, W, C] of uint8 or uint16. Images labelled anomalous are ignored.
      workdir: folder to create; the detector is written to its `detector/`, for `load` and the command line.
      false_positive_rate: share of normal images that may be flagged; None for the default of `config.Evaluate`.
      progress: show a progress bar while files are read.

    Returns:
      The detector.

    Raises:
      UserError: PyTorch is not installed; the file is not a GANomaly, or one that cannot be scored; there are no normal
        images, or they are floating point; `workdir` is in use.
    """
    call = "gj.import_pytorch('netG.pth', 'NORMALS', 'runs/theirs')"
    calls.expect(calls.PATH, f"a path, as in {call}", path=path, workdir=workdir)
    folder = Path(workdir)
    if (folder / layout.CONFIG).exists() or (folder / layout.DETECTOR).exists():
        raise UserError(f"{folder} already holds a run; choose another --workdir")
    with lock.held("import", folder, create=True):
        return _import(Path(path), normals, folder, false_positive_rate, progress)


def _import(path: Path, normals: Any, folder: Path, false_positive_rate: float | None, progress: bool) -> scorer.Scorer:
    settings, tensors = _read(path)
    detector = ganomaly.from_config(settings)
    variables = pytorch.generator_from_pytorch(detector, tensors)
    if isinstance(normals, (str, os.PathLike)):
        settings.data.source = str(normals)
        normals = None
    if false_positive_rate is not None:
        settings.evaluate.false_positive_rate = false_positive_rate
    validation.check(
        dataclasses.replace(settings, model=config.Model())
    )  # everything but the model, which the file defines
    dataset = sources.load(settings.data, normals, progress)
    normal = splits.normal_classes(dataset, settings.data.abnormal)
    chosen = np.flatnonzero([dataset.classes[label] in normal for label in dataset.labels])
    if not len(chosen) or dataset.low is None or dataset.high is None:
        raise UserError(
            f"{dataset.name}: {len(chosen)} normal images of dtype {dataset.images.dtype}; expected at least one, of "
            "uint8 or uint16, since the range of floating-point values is unknown"
        )
    settings.data.low, settings.data.high = dataset.low, dataset.high
    normals = lazy.select(dataset.images, chosen)
    imported = build.make(
        WholeDetector(detector, Images().preprocessing(settings.data)),
        jax.device_put(variables),
        settings,
        (str(dataset.images.dtype), dataset.low, dataset.high),
        training=normals,
        normals=normals,
        trained_on=False,
        provenance={"imported": path.name, "sha256": _digest(path), "network": settings.model.network},
    )
    imported.save(folder / layout.DETECTOR)
    return imported


def _read(path: Path) -> tuple[config.Config, dict[str, np.ndarray]]:
    """Returns the configuration that the file describes, and the generator's tensors in the original's names."""
    tensors = pytorch.read_pytorch(path)
    settings = config.Config()
    if (renamed := pytorch.rename_anomalib(tensors)) is not None:
        settings.model.network = "anomalib"
        tensors = renamed
    sizes = pytorch.infer_sizes(tensors)
    settings.data.height = settings.data.width = sizes["side"]
    settings.data.channels = sizes["channels"]
    for name in ("latent_size", "features", "extra_layers"):
        setattr(settings.model, name, sizes[name])
    if renamed is not None:
        _refuse_other_preprocessing(path, sizes["side"])
    return settings, tensors


def _refuse_other_preprocessing(path: Path, side: int) -> None:
    """Raises a UserError if a checkpoint of anomalib states another preprocessing than the default."""
    for arguments in _dicts(pytorch.read_checkpoint(path).get(_PREPROCESSOR)):
        size, mean, deviation = (arguments.get(name) for name in ("size", "mean", "std"))
        if size is not None and list(np.ravel(size)) not in ([side], [side, side]):
            raise UserError(
                f"{path} was trained with images of {size} pixels, but its network is for {side}: expected a square "
                "whose side is a power of 2"
            )
        if mean is not None and [tuple(mean), tuple(deviation or ())] != list(ganomaly.IMAGENET):
            raise UserError(
                f"{path} normalises by mean {mean} and std {deviation}: expected the default, {ganomaly.IMAGENET}"
            )


def _dicts(tree: Any) -> Iterator[dict[str, Any]]:
    """Yields all dicts in a tree of containers."""
    if isinstance(tree, dict):
        yield tree
    if isinstance(tree, (dict, list, tuple)):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from _dicts(part)


def _digest(path: Path) -> str:
    """Returns the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
