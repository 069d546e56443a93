"""The linear layers of GANomaly for images, with gradients that are fast where XLA's own are not.

Layouts: images [B, H, W, C], kernels [h, w, C_in, C_out]. The form of a layer is chosen here and nowhere else: by the
platform for which the program is lowered (so that an export for GPUs made on a CPU is right) and by the layer's sizes,
on the basis of benchmarks/speed/results/convolution_*.md.

On CPUs, XLA's gradient of a convolution with respect to its kernel is 15 to 160 times slower than the same sums written
as matrix products, most of all inside `lax.scan`; hence the `custom_vjp`s. The layers that do most of the work are
computed there by minimal filtering, with 9 products where the definition has 16. On other platforms the backend's own
convolutions run.

The operands and the result of a layer have one dtype, except that the heads return float32 for bfloat16 operands. On
CPUs bfloat16 only rounds the operands and results; the sums are computed in float32, for want of fast kernels.

References:
  Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray, arXiv 1509.09308.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

# Up to this many channels on the image's side, one product of patches is faster than a convolution on a CPU.
_FEW_CHANNELS = 4
# From this many channels on both sides and this many blocks of 2x2 outputs on, minimal filtering is faster.
_FILTERING_CHANNELS = 32
_FILTERING_BLOCKS = 64
_LAYOUT = ("NHWC", "HWIO", "NHWC")
_platform_independent = contextvars.ContextVar("platform_independent", default=False)


@contextlib.contextmanager
def platform_independent() -> Iterator[None]:
    """Traces one form of each layer for all platforms within this context, as format converters need."""
    token = _platform_independent.set(True)
    try:
        yield
    finally:
        _platform_independent.reset(token)


def _choose(*args: Array, cpu: Callable[..., Array], default: Callable[..., Array]) -> Array:
    """Calls `cpu` or `default`, depending on the platform for which the program is lowered."""
    return default(*args) if _platform_independent.get() else lax.platform_dependent(*args, cpu=cpu, default=default)


def _by_platform(cpu: Callable[..., Array], default: Callable[..., Array], *args: Array) -> Array:
    """Calls `cpu` or `default` by platform; on CPUs bfloat16 operands are computed in float32."""
    if args[0].dtype == jnp.bfloat16:
        return _choose(*args, cpu=lambda *a: _in_float32(cpu, *a).astype(jnp.bfloat16), default=default)
    return _choose(*args, cpu=cpu, default=default)


def _in_float32(form: Callable[..., Array], *args: Array) -> Array:
    """Calls `form` with float32 arguments."""
    return form(*(a.astype(jnp.float32) for a in args))


def _strided(x: Array, kernel: Array) -> Array:
    """Computes the 4x4 stride-2 layer by XLA's convolution."""
    return lax.conv_general_dilated(x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=_LAYOUT)


def _dilated(x: Array, kernel: Array) -> Array:
    """Computes the transposed 4x4 stride-2 layer by XLA's convolution."""
    return lax.conv_general_dilated(x, kernel, (1, 1), ((2, 2), (2, 2)), lhs_dilation=(2, 2), dimension_numbers=_LAYOUT)


def _stride_1_xla(x: Array, kernel: Array) -> Array:
    """Computes the 3x3 stride-1 layer by XLA's convolution."""
    return lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=_LAYOUT)


def _stride_1(x: Array, kernel: Array) -> Array:
    """Computes the 3x3 stride-1 layer by the platform's form."""
    form = _stride_1_xla
    return _by_platform(form, form, x, kernel) if x.dtype == jnp.bfloat16 else form(x, kernel)


def _adjoint_kernel(kernel: Array) -> Array:
    """Returns the kernel with which the transposed layer is the adjoint of the strided one, and the reverse."""
    return jnp.flip(kernel, (0, 1)).swapaxes(2, 3)


def _taps(x: Array, size: int, stride: int) -> list[Array]:
    """Returns the size * size shifted views of x, padded by 1, of the size of the layer's output, row-major."""
    height, width = x.shape[1] // stride, x.shape[2] // stride
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [
        padded[:, i : i + stride * (height - 1) + 1 : stride, j : j + stride * (width - 1) + 1 : stride]
        for i in range(size)
        for j in range(size)
    ]


def _patches(x: Array) -> Array:
    """Returns the patches of the 4x4 stride-2 layer: [B, H/2, W/2, 16 C], last axis (row, column, channel)."""
    return jnp.concatenate(_taps(x, 4, 2), axis=-1)


def _fold(patches: Array) -> Array:
    """Computes the adjoint of `_patches`: sums overlapping 4x4 patches [B, h, w, 4, 4, C] into [B, 2h, 2w, C]."""
    b, h, w, _, _, c = patches.shape
    # Output row 2p takes tap row 1 of patch p and 3 of patch p - 1; row 2p + 1 takes 2 of p and 0 of p + 1.
    up, down = patches[:, :, :, 3], patches[:, :, :, 0]
    rows = patches[:, :, :, 1:3]
    above = jnp.pad(up, ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0)))[:, :-1]
    below = jnp.pad(down, ((0, 0), (0, 1), (0, 0), (0, 0), (0, 0)))[:, 1:]
    rows = rows + jnp.stack((above, below), 3)  # [B, h, w, 2, 4, C]
    left, right = rows[:, :, :, :, 3], rows[:, :, :, :, 0]
    columns = rows[:, :, :, :, 1:3]
    before = jnp.pad(left, ((0, 0), (0, 0), (1, 0), (0, 0), (0, 0)))[:, :, :-1]
    after = jnp.pad(right, ((0, 0), (0, 0), (0, 1), (0, 0), (0, 0)))[:, :, 1:]
    columns = columns + jnp.stack((before, after), 4)  # [B, h, w, 2, 2, C]
    return columns.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, c)


def _strided_dots(x: Array, kernel: Array) -> Array:
    """Computes the 4x4 stride-2 layer as one product of patches."""
    return _patches(x) @ kernel.reshape(-1, kernel.shape[-1])


def _dilated_dots(x: Array, kernel: Array) -> Array:
    """Computes the transposed 4x4 stride-2 layer as one product, folding the patches."""
    twin = _adjoint_kernel(kernel)  # [4, 4, C_out, C_in]
    patches = jnp.einsum("bhwc,ijoc->bhwijo", x, twin)
    return _fold(patches)


def _sums(first: Any, second: Any) -> tuple[Any, Any, Any]:
    """Returns both arguments and their sum, in the order of minimal filtering."""
    return first, first + second, second


def _sums_adjoint(first: Any, both: Any, second: Any) -> tuple[Any, Any]:
    """Computes the adjoint of `_sums`."""
    return first + both, both + second


def _differences(first: Any, middle: Any, last: Any) -> tuple[Any, Any, Any]:
    """Returns the differences of minimal filtering in a window of three."""
    return first - middle, middle, last - middle


def _windows(x: Array, axis: int) -> tuple[Array, Array, Array]:
    """Returns the first, middle and last entries of windows of 3, overlapping by one: n each of 2n + 1 entries."""
    end = x.shape[axis]
    cut = functools.partial(lax.slice_in_dim, x, stride=2, axis=axis)
    return cut(start_index=0, limit_index=end - 1), cut(start_index=1, limit_index=end), cut(2, end)


def _windows_adjoint(parts: Sequence[Array], axis: int) -> Array:
    """Computes the adjoint of the differences of windows: [n] parts of three to 2n + 1 entries along the axis."""
    first, middle, last = parts
    end, begin = ([(0, 0)] * first.ndim for _ in range(2))
    end[axis], begin[axis] = (0, 1), (1, 0)
    even = jnp.pad(first, end) + jnp.pad(last, begin)
    odd = jnp.pad(middle - first - last, end)
    n = 2 * first.shape[axis]
    joined = jnp.stack((even, odd), axis + 1).reshape(*first.shape[:axis], n + 2, *first.shape[axis + 1 :])
    return lax.slice_in_dim(joined, 0, n + 1, axis=axis)


# The 4x4 stride-2 layer is a 2x2 layer over blocks of 2x2 pixels with 4 C channels, row r = 2 a + i, column s = 2 b + j
# of the kernel belonging to tap (a, b) and pixel (i, j) of a block. Along one direction two neighbouring outputs of a
# 2-tap filter, d0 k0 + d1 k1 and d1 k0 + d2 k1, are the sums of adjacent ones among the three products
# (d0 - d1) k0, d1 (k0 + k1), (d2 - d1) k1; in two directions that makes 9 products for 4 outputs of 4 taps each.


def _image_parts(x: Array) -> list[tuple[Array, Array]]:
    """Returns 9 pairs of arrays [blocks, 2 C], of upper and lower pixels (i), which saves a transposition."""
    b, height, width, c = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    blocks = padded.reshape(b, height // 2 + 1, 2, width // 2 + 1, 2 * c)
    parts = [d for rows in _differences(*_windows(blocks, 1)) for d in _differences(*_windows(rows, 3))]
    return [(d[:, :, 0].reshape(-1, 2 * c), d[:, :, 1].reshape(-1, 2 * c)) for d in parts]


def _kernel_parts(kernel: Array) -> list[Array]:
    """Returns 9 arrays [2, 2 C, F]: pixel row i, pixel column and channel, feature."""
    c, f = kernel.shape[2:]
    k = kernel.reshape(2, 2, 2, 2, c, f)
    return [p.reshape(2, 2 * c, f) for rows in _sums(k[0], k[1]) for p in _sums(rows[:, 0], rows[:, 1])]


def _output_parts(g: Array) -> list[Array]:
    """Returns 9 arrays [blocks, F] of a cotangent [B, h, w, F]: the adjoint of combining products into outputs."""
    b, h, w, f = g.shape
    g = g.reshape(b, h // 2, 2, w // 2, 2, f)
    return [
        p.reshape(-1, f) for rows in _sums(g[:, :, 0], g[:, :, 1]) for p in _sums(rows[:, :, :, 0], rows[:, :, :, 1])
    ]


def _in_threes(parts: list[Array], shape: tuple[int, ...]) -> list[list[Array]]:
    """Reshapes nine parts and groups them in rows of three."""
    return [[part.reshape(shape) for part in parts[i : i + 3]] for i in (0, 3, 6)]


def _strided_filtered(x: Array, kernel: Array) -> Array:
    """Computes the 4x4 stride-2 layer by minimal filtering."""
    b, height, width, _ = x.shape
    h, w, f = height // 2, width // 2, kernel.shape[-1]
    products = [
        upper @ k[0] + lower @ k[1] for (upper, lower), k in zip(_image_parts(x), _kernel_parts(kernel), strict=True)
    ]
    columns = [_sums_adjoint(*row) for row in _in_threes(products, (b, h // 2, w // 2, f))]
    rows = zip(*(_sums_adjoint(*column) for column in zip(*columns, strict=True)), strict=True)
    return jnp.stack([jnp.stack(row, 3) for row in rows], 2).reshape(b, h, w, f)


def _dilated_filtered(g: Array, kernel: Array) -> Array:
    """Computes the transposed 4x4 stride-2 layer by minimal filtering, as the adjoint of `_strided_filtered` in x."""
    b, h, w, f = g.shape
    c = kernel.shape[-1]
    products = [
        part @ k.reshape(4 * c, f).T
        for part, k in zip(_output_parts(g), _kernel_parts(_adjoint_kernel(kernel)), strict=True)
    ]
    rows = [_windows_adjoint(row, 2) for row in _in_threes(products, (b, h // 2, w // 2, 2, 2, c))]
    blocks = _windows_adjoint(rows, 1)
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h + 2, 2 * w + 2, c)[:, 1:-1, 1:-1]


def _kernel_gradient_filtered(x: Array, cotangent: Array) -> Array:
    """Computes the kernel's gradient of the 4x4 stride-2 layer by minimal filtering."""
    c, f = x.shape[-1], cotangent.shape[-1]
    products = [
        jnp.stack((upper.T @ g, lower.T @ g))
        for (upper, lower), g in zip(_image_parts(x), _output_parts(cotangent), strict=True)
    ]
    columns = [jnp.stack(_sums_adjoint(*row), 1) for row in _in_threes(products, (2, 2, c, f))]
    return jnp.stack(_sums_adjoint(*columns)).reshape(4, 4, c, f)


def _strided_kernel_gradient(x: Array, cotangent: Array) -> Array:
    """Computes the kernel's gradient of the 4x4 stride-2 layer by XLA."""
    shape = (4, 4, x.shape[-1], cotangent.shape[-1])
    (gradient,) = jax.linear_transpose(lambda k: _strided(x, k), jax.ShapeDtypeStruct(shape, x.dtype))(cotangent)
    return gradient


def _stride_1_kernel_gradient(x: Array, cotangent: Array) -> Array:
    """Computes the kernel's gradient of the 3x3 stride-1 layer by XLA."""
    shape = (3, 3, x.shape[-1], cotangent.shape[-1])
    (gradient,) = jax.linear_transpose(lambda k: _stride_1_xla(x, k), jax.ShapeDtypeStruct(shape, x.dtype))(cotangent)
    return gradient


def _kernel_gradient_dots(x: Array, cotangent: Array, size: int, stride: int) -> Array:
    """Computes a kernel's gradient by one product per tap, or for few channels by one product of patches."""
    c, f = x.shape[-1], cotangent.shape[-1]
    g = cotangent.reshape(-1, f)
    if c <= _FEW_CHANNELS:
        patches = jnp.concatenate(_taps(x, size, stride), axis=-1).reshape(-1, size * size * c)
        return (patches.T @ g).reshape(size, size, c, f)
    return jnp.stack([tap.reshape(-1, c).T @ g for tap in _taps(x, size, stride)]).reshape(size, size, c, f)


def _is_filtered(small: tuple[int, ...], *channels: int) -> bool:
    """Returns True if minimal filtering is the fastest form, given the shape of the smaller map."""
    b, h, w, *_ = small
    least = b if isinstance(b, int) else 1  # all that is known of a symbolic batch, as in an export
    return (
        h % 2 == 0 and w % 2 == 0 and least * h * w // 4 >= _FILTERING_BLOCKS and min(channels) >= _FILTERING_CHANNELS
    )


def _strided_kernel(x: Array, cotangent: Array) -> Array:
    """Computes the kernel's gradient of the 4x4 stride-2 layer by the platform's form."""
    filtered = _is_filtered(cotangent.shape, x.shape[-1], cotangent.shape[-1])
    by_dots = functools.partial(_kernel_gradient_dots, size=4, stride=2)
    return _by_platform(_kernel_gradient_filtered if filtered else by_dots, _strided_kernel_gradient, x, cotangent)


def _strided_forward(x: Array, kernel: Array) -> Array:
    """Computes the 4x4 stride-2 layer by the platform's form."""
    c, f = kernel.shape[2:]
    b, height, width, _ = x.shape
    filtered = _is_filtered((b, height // 2, width // 2), c, f)
    form = _strided_dots if c <= _FEW_CHANNELS else _strided_filtered if filtered else _strided
    return _by_platform(form, _strided, x, kernel)


def _dilated_forward(x: Array, kernel: Array) -> Array:
    """Computes the transposed 4x4 stride-2 layer by the platform's form."""
    c, f = kernel.shape[2:]
    form = _dilated_dots if f <= _FEW_CHANNELS else _dilated_filtered if _is_filtered(x.shape, c, f) else _dilated
    # jax2onnx 0.13 drops the dilation of the input.
    return _by_platform(form, _dilated_dots if _platform_independent.get() else _dilated, x, kernel)


@jax.custom_vjp
def downsample(x: Array, kernel: Array) -> Array:
    """Convolves with a 4x4 kernel, stride 2, padding 1.

    Args:
      x: [B, H, W, C], H and W even.
      kernel: [4, 4, C, F].

    Returns:
      [B, H/2, W/2, F].
    """
    return _strided_forward(x, kernel)


@jax.custom_vjp
def upsample(x: Array, kernel: Array) -> Array:
    """Applies the transposed 4x4 convolution, stride 2, padding 1.

    Args:
      x: [B, H, W, C].
      kernel: [4, 4, C, F], that of the convolution over x dilated by 2 (PyTorch's, flipped in space).

    Returns:
      [B, 2H, 2W, F].
    """
    return _dilated_forward(x, kernel)


def _downsample_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    """Returns the cotangents of x and kernel of `downsample`."""
    x, kernel = saved
    return _dilated_forward(g, _adjoint_kernel(kernel)), _strided_kernel(x, g)


def _upsample_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    """Returns the cotangents of x and kernel of `upsample`."""
    x, kernel = saved
    # The kernel's gradient of the strided layer, with input and cotangent swapped.
    return _strided_forward(g, _adjoint_kernel(kernel)), _adjoint_kernel(_strided_kernel(g, x))


downsample.defvjp(lambda x, k: (_strided_forward(x, k), (x, k)), _downsample_backward)
upsample.defvjp(lambda x, k: (_dilated_forward(x, k), (x, k)), _upsample_backward)


@jax.custom_vjp
def convolve(x: Array, kernel: Array) -> Array:
    """Convolves with a 3x3 kernel, stride 1, padding 1: [B, H, W, C] and [3, 3, C, F] to [B, H, W, F]."""
    return _stride_1(x, kernel)


def _convolve_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    """Returns the cotangents of x and kernel of `convolve`."""
    x, kernel = saved
    by_dots = lambda a, b: _kernel_gradient_dots(a, b, 3, 1)  # noqa: E731
    return _stride_1(g, _adjoint_kernel(kernel)), _by_platform(by_dots, _stride_1_kernel_gradient, x, g)


convolve.defvjp(lambda x, k: (_stride_1(x, k), (x, k)), _convolve_backward)


def _product(a: Array, b: Array) -> Array:
    """Multiplies [n, k] by [k, m]; of bfloat16 in float32, since scores are differences of nearly equal latents."""
    if a.dtype != jnp.bfloat16:
        return a @ b
    narrow = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
    return _choose(a, b, cpu=functools.partial(_in_float32, jnp.matmul), default=narrow)


def collapse(x: Array, kernel: Array) -> Array:
    """Applies the encoder's head, a kernel as large as the map: [B, h, w, C] and [h, w, C, F] to [B, F]."""
    return _product(x.reshape(x.shape[0], -1), kernel.reshape(-1, kernel.shape[-1]))


def expand(z: Array, kernel: Array) -> Array:
    """Applies the decoder's head, the transpose of `collapse`: [B, N] and [h, w, N, F] to [B, h, w, F]."""
    h, w, n, f = kernel.shape
    return _product(z, kernel.transpose(2, 0, 1, 3).reshape(n, -1)).reshape(-1, h, w, f)
