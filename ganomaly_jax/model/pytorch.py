"""Conversion of PyTorch weights (the authors' GANomaly, anomalib's Ganomaly), which are read without running code."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ganomaly_jax.core import calls
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.model.ganomaly import Ganomaly
from ganomaly_jax.model.networks import halvings
from ganomaly_jax.model.protocol import TrainState

# Layers as (path in our parameters, PyTorch's name, kind). The kinds `expand` and `up` are transposed convolutions; a
# `norm` has four tensors.
_Layers = Iterator[tuple[tuple[str, ...], str, str]]


def _encoder_layers(detector: Ganomaly, path: str, original: str) -> _Layers:
    """Yields the layers of an encoder: `path` in our parameters, `original` in PyTorch's names."""
    height, width, channels = detector.shape
    wide = detector.features
    yield (path, "pyramid", "initial"), f"{original}.main.initial-conv-{channels}-{wide}", "conv"
    for i in range(detector.extra_layers):
        yield (path, "pyramid", f"extra_{i}"), f"{original}.main.extra-layers-{i}-{wide}-conv", "conv"
        yield (path, "pyramid", f"extra_{i}_norm"), f"{original}.main.extra-layers-{i}-{wide}-batchnorm", "norm"
    for i in range(halvings(height, width) - 1):
        yield (path, "pyramid", f"down_{i}"), f"{original}.main.pyramid-{wide}-{2 * wide}-conv", "conv"
        wide *= 2
        yield (path, "pyramid", f"down_{i}_norm"), f"{original}.main.pyramid-{wide}-batchnorm", "norm"
    yield (path, "head"), f"{original}.main.final-{wide}-1-conv", "conv"


def _decoder_layers(detector: Ganomaly) -> _Layers:
    """Yields the layers of the decoder."""
    height, width, channels = detector.shape
    wide = detector.features * 2 ** (halvings(height, width) - 1)
    yield ("decoder", "head"), f"decoder.main.initial-{detector.latent_size}-{wide}-convt", "expand"
    yield ("decoder", "head_norm"), f"decoder.main.initial-{wide}-batchnorm", "norm"
    for i in range(halvings(height, width) - 1):
        yield ("decoder", f"up_{i}"), f"decoder.main.pyramid-{wide}-{wide // 2}-convt", "up"
        wide //= 2
        yield ("decoder", f"up_{i}_norm"), f"decoder.main.pyramid-{wide}-batchnorm", "norm"
    for i in range(detector.extra_layers):
        yield ("decoder", f"extra_{i}"), f"decoder.main.extra-layers-{i}-{wide}-conv", "conv"
        yield ("decoder", f"extra_{i}_norm"), f"decoder.main.extra-layers-{i}-{wide}-batchnorm", "norm"
    yield ("decoder", "final"), f"decoder.main.final-{wide}-{channels}-convt", "up"


def _discriminator_layers(detector: Ganomaly) -> _Layers:
    """Yields the layers of the discriminator, which are numbered in the original."""
    yield ("pyramid", "initial"), "features.0", "conv"
    names = [f"extra_{i}" for i in range(detector.extra_layers)]
    names += [f"down_{i}" for i in range(halvings(*detector.shape[:2]) - 1)]
    for i, name in enumerate(names):
        yield ("pyramid", name), f"features.{2 + 3 * i}", "conv"
        yield ("pyramid", f"{name}_norm"), f"features.{3 + 3 * i}", "norm"
    yield ("head",), "classifier.0", "conv"


def _generator_layers(detector: Ganomaly) -> _Layers:
    """Yields the layers of the generator."""
    yield from _encoder_layers(detector, "encoder", "encoder1")
    yield from _decoder_layers(detector)
    yield from _encoder_layers(detector, "reencoder", "encoder2")


def kernel_from_pytorch(weight: np.ndarray, kind: str) -> np.ndarray:
    """Converts a PyTorch kernel to our layout.

    Args:
      weight: kernel in OIHW (`conv`) or IOHW (`up`, `expand`).
      kind: `conv`, `up` (transposed convolution) or `expand` (the decoder's head).

    Returns:
      Kernel [h, w, C_in, C_out].
    """
    if kind == "conv":
        return weight.transpose(2, 3, 1, 0)
    kernel = weight.transpose(2, 3, 0, 1)
    # Our `upsample` is a convolution over the dilated input, hence the flip; `expand` is a matrix product.
    return kernel[::-1, ::-1] if kind == "up" else kernel


def _convert(
    layers: _Layers, weights: Mapping[str, np.ndarray], like: tuple[Any, Any], network: str
) -> tuple[Any, Any]:
    # DataParallel prefixes every name with `module.`.
    """Converts the weights of one network to parameters and running statistics of the structure of `like`."""
    weights = {name.removeprefix("module."): np.asarray(value) for name, value in weights.items()}
    params: dict[str, Any] = {}
    stats: dict[str, Any] = {}

    def take(name: str, path: tuple[str, ...], expected: Any, kind: str = "") -> Any:
        if name not in weights:
            raise UserError(
                f"{network}: no tensor {name!r} among the {len(weights)} left; expected the state dict of the original "
                "network with the detector's shape, latent_size, features and extra_layers"
            )
        value = kernel_from_pytorch(weights.pop(name), kind) if kind else weights.pop(name)
        for part in path:
            expected = expected[part]
        if value.shape != expected.shape:
            raise UserError(f"{network}: {name!r} has shape {value.shape} in our layout, expected {expected.shape}")
        # A copy: on a CPU jnp.asarray may share memory with the caller, who may go on training the tensor.
        return jnp.array(value, expected.dtype)

    def insert(tree: dict[str, Any], path: tuple[str, ...], leaves: dict[str, Any]) -> None:
        for part in path:
            tree = tree.setdefault(part, {})
        tree.update(leaves)

    for path, name, kind in layers:
        if kind == "norm":
            names = {"scale": "weight", "bias": "bias"}
            insert(params, path, {k: take(f"{name}.{v}", (*path, k), like[0]) for k, v in names.items()})
            names = {"mean": "running_mean", "var": "running_var"}
            insert(stats, path, {k: take(f"{name}.{v}", (*path, k), like[1]) for k, v in names.items()})
            weights.pop(f"{name}.num_batches_tracked", None)
        else:
            insert(params, path, {"kernel": take(f"{name}.weight", (*path, "kernel"), like[0], kind)})
    if weights:
        raise UserError(f"{network}: {len(weights)} tensors do not belong there, such as {next(iter(weights))!r}")
    return params, stats


def from_pytorch(
    detector: Ganomaly, generator: Mapping[str, np.ndarray], discriminator: Mapping[str, np.ndarray]
) -> TrainState:
    """Converts the state dicts of the original's `netG` and `netD` to a training state at step 0 with fresh optimizers.

    Args:
      detector: a detector of the same sizes.
      generator: tensors of `netG` by PyTorch name.
      discriminator: tensors of `netD` by PyTorch name.

    Raises:
      UserError: a tensor is missing, left over or of another shape; the message names it.
    """
    call = "gj.from_pytorch(gj.Ganomaly(shape), gj.read_pytorch('netG.pth'), gj.read_pytorch('netD.pth'))"
    calls.expect(Ganomaly, f"a gj.Ganomaly, as in {call}", detector=detector)
    calls.expect(Mapping, f"tensors by name, as in {call}", generator=generator, discriminator=discriminator)
    like = jax.eval_shape(detector.init, jax.random.key(0))
    pairs = {
        "generator": (_generator_layers(detector), generator),
        "discriminator": (_discriminator_layers(detector), discriminator),
    }
    params, stats = {}, {}
    for name, (layers, weights) in pairs.items():
        params[name], stats[name] = _convert(layers, weights, (like.params[name], like.batch_stats[name]), name)
    return detector.state(params, stats)


def generator_from_pytorch(detector: Ganomaly, generator: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Converts a generator's state dict, in the original's names, to the variables of `detector.score`.

    Raises:
      UserError: a tensor is missing, left over or of another shape; the message names it.
    """
    like = jax.eval_shape(detector.init, jax.random.key(0))
    likes = like.params["generator"], like.batch_stats["generator"]
    params, stats = _convert(_generator_layers(detector), generator, likes, "generator")
    return {"params": params, "batch_stats": stats}


# anomalib splits the layers into `input_layers`, `pyramid_features` and so on; in the original all are in `main`.
_ANOMALIB = re.compile(r"^model\.generator\.(encoder1|encoder2|decoder)\.(\w+)\.(.*)$")


def rename_anomalib(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """Renames the generator's tensors of anomalib's Ganomaly to the original's names; None if there are none."""
    matches = {name: match for name in tensors if (match := _ANOMALIB.match(name))}
    renamed = {}
    for name, match in matches.items():
        network, part, rest = match.groups()
        if part == "final_conv_layer":
            rest = f"final-{tensors[name].shape[1]}-1-conv.{rest}"
        renamed[f"{network}.main.{rest}"] = tensors[name]
    return renamed or None


def infer_sizes(generator: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Infers the sizes of a generator from its tensors, in the original's names.

    Returns:
      `side`, `channels`, `latent_size`, `features` and `extra_layers`.

    Raises:
      UserError: the tensors are not those of a GANomaly.
    """
    names = [name.removeprefix("module.") for name in generator]

    def matches(pattern: str) -> list[re.Match[str]]:
        return [match for name in names if (match := re.fullmatch(rf"encoder1\.main\.{pattern}\.weight", name))]

    first = matches(r"initial-conv-(\d+)-(\d+)")
    head = re.compile(r"(module\.)?encoder1\.main\.final-\d+-1-conv\.weight")
    heads = [value for name, value in generator.items() if head.fullmatch(name)]
    if len(first) != 1 or len(heads) != 1 or heads[0].ndim != 4:
        raise UserError(
            f"no generator of a GANomaly among {len(names)} tensors, such as {next(iter(names), '')!r}: expected "
            "netG.pth of the original code, or a checkpoint of anomalib's Ganomaly"
        )
    downsamplings = 1 + len(matches(r"pyramid-\d+-\d+-conv"))
    return {
        "side": 4 * 2**downsamplings,
        "channels": int(first[0][1]),
        "latent_size": int(heads[0].shape[0]),
        "features": int(first[0][2]),
        "extra_layers": len(matches(r"extra-layers-\d+-\d+-conv")),
    }


def read_pytorch(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the tensors of a `.pth` file by name, without running code from it (torch's `weights_only`).

    Args:
      path: file with a plain state dict, or the original's `{"epoch": ..., "state_dict": ...}`.

    Raises:
      UserError: PyTorch is not installed, or the file is missing, damaged or holds anything but tensors.
    """
    content = read_checkpoint(path)
    state = content.get("state_dict", content)
    if not isinstance(state, dict) or not all(hasattr(value, "numpy") for value in state.values()):
        raise UserError(f"{path}: expected a state dict of tensors, or one under 'state_dict'")
    return {str(name): value.numpy() for name, value in state.items()}


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a PyTorch file of tensors, numbers, strings and containers of these, without running code from it.

    Raises:
      UserError: PyTorch is not installed, or the file is missing, damaged or holds anything else.
    """
    try:
        import torch
    except ImportError:
        raise UserError("reading a .pth file needs PyTorch: pip install 'ganomaly-jax[torch]'") from None
    try:
        content = torch.load(Path(path), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a bad file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} cannot be read as a PyTorch file of weights only: {reason}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a state dict of tensors, or one under 'state_dict'")
    return content
