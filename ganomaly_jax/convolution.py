"""The five linear layers of GANomaly, with gradients that are fast where XLA's own are not.

Layouts: images [B, H, W, C], kernels [h, w, C_in, C_out]. Which form runs is chosen here and nowhere else: by the
platform the program is lowered for (so an export for a GPU made on a CPU is right) and by the number of channels.

On a CPU, XLA's gradient of a convolution with respect to its kernel is 15 to 160 times slower than the same sums
written as matrix products, most of all inside `lax.scan`; hence the `custom_vjp`s. Elsewhere the plain convolutions
of the backend run, in the roles it has kernels for.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

# Up to this many channels on the image side, patches and one product beat a convolution on a CPU.
_FEW_CHANNELS = 4
_LAYOUT = ("NHWC", "HWIO", "NHWC")


def _by_platform(cpu: Callable[..., Array], default: Callable[..., Array], *args: Array) -> Array:
    return lax.platform_dependent(*args, cpu=cpu, default=default)


def _strided(x: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=_LAYOUT)


def _dilated(x: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), ((2, 2), (2, 2)), lhs_dilation=(2, 2), dimension_numbers=_LAYOUT)


def _unit(x: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=_LAYOUT)


def _twin(kernel: Array) -> Array:
    """The kernel with which the twin layer (strided and transposed) is the adjoint of this one."""
    return jnp.flip(kernel, (0, 1)).swapaxes(2, 3)


def _taps(x: Array, size: int, stride: int) -> list[Array]:
    """The size*size shifted views of x padded by 1, each as large as the layer's output, in row-major order."""
    height, width = x.shape[1] // stride, x.shape[2] // stride
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [
        padded[:, i : i + stride * (height - 1) + 1 : stride, j : j + stride * (width - 1) + 1 : stride]
        for i in range(size)
        for j in range(size)
    ]


def _patches(x: Array) -> Array:
    """Patches of the 4x4 stride-2 layer: [B, H/2, W/2, 16 C], last axis (row, column, channel)."""
    return jnp.concatenate(_taps(x, 4, 2), axis=-1)


def _fold(patches: Array) -> Array:
    """The adjoint of `_patches`: overlapping 4x4 patches [B, h, w, 4, 4, C] summed into [B, 2h, 2w, C]."""
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
    return _patches(x) @ kernel.reshape(-1, kernel.shape[-1])


def _dilated_dots(x: Array, kernel: Array) -> Array:
    twin = _twin(kernel)  # [4, 4, C_out, C_in]
    patches = jnp.einsum("bhwc,ijoc->bhwijo", x, twin)
    return _fold(patches)


def _strided_kernel_gradient(x: Array, cotangent: Array) -> Array:
    """d/d kernel of sum(cotangent * strided(x, kernel)), by XLA."""
    shape = (4, 4, x.shape[-1], cotangent.shape[-1])
    (gradient,) = jax.linear_transpose(lambda k: _strided(x, k), jax.ShapeDtypeStruct(shape, x.dtype))(cotangent)
    return gradient


def _unit_kernel_gradient(x: Array, cotangent: Array) -> Array:
    shape = (3, 3, x.shape[-1], cotangent.shape[-1])
    (gradient,) = jax.linear_transpose(lambda k: _unit(x, k), jax.ShapeDtypeStruct(shape, x.dtype))(cotangent)
    return gradient


def _kernel_gradient_dots(x: Array, cotangent: Array, size: int, stride: int) -> Array:
    """The same by one product a tap."""
    c, f = x.shape[-1], cotangent.shape[-1]
    g = cotangent.reshape(-1, f)
    if c <= _FEW_CHANNELS:
        patches = jnp.concatenate(_taps(x, size, stride), axis=-1).reshape(-1, size * size * c)
        return (patches.T @ g).reshape(size, size, c, f)
    return jnp.stack([tap.reshape(-1, c).T @ g for tap in _taps(x, size, stride)]).reshape(size, size, c, f)


def _strided_kernel(x: Array, cotangent: Array) -> Array:
    return _by_platform(lambda a, g: _kernel_gradient_dots(a, g, 4, 2), _strided_kernel_gradient, x, cotangent)


def _strided_forward(x: Array, kernel: Array) -> Array:
    few = x.shape[-1] <= _FEW_CHANNELS
    return _by_platform(_strided_dots if few else _strided, _strided, x, kernel)


def _dilated_forward(x: Array, kernel: Array) -> Array:
    few = kernel.shape[-1] <= _FEW_CHANNELS
    return _by_platform(_dilated_dots if few else _dilated, _dilated, x, kernel)


@jax.custom_vjp
def downsample(x: Array, kernel: Array) -> Array:
    """4x4 convolution, stride 2, padding 1: [B, H, W, C] and [4, 4, C, F] to [B, H/2, W/2, F]; H and W even."""
    return _strided_forward(x, kernel)


@jax.custom_vjp
def upsample(x: Array, kernel: Array) -> Array:
    """4x4 transposed convolution, stride 2, padding 1: [B, H, W, C] and [4, 4, C, F] to [B, 2H, 2W, F].

    The kernel is that of the convolution over the input dilated by 2 (PyTorch's, flipped in space).
    """
    return _dilated_forward(x, kernel)


def _downsample_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    return _dilated_forward(g, _twin(kernel)), _strided_kernel(x, g)


def _upsample_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    # The kernel gradient of the strided twin, input and cotangent having changed places.
    return _strided_forward(g, _twin(kernel)), _twin(_strided_kernel(g, x))


downsample.defvjp(lambda x, k: (_strided_forward(x, k), (x, k)), _downsample_backward)
upsample.defvjp(lambda x, k: (_dilated_forward(x, k), (x, k)), _upsample_backward)


@jax.custom_vjp
def convolve(x: Array, kernel: Array) -> Array:
    """3x3 convolution, stride 1, padding 1: [B, H, W, C] and [3, 3, C, F] to [B, H, W, F]."""
    return _unit(x, kernel)


def _convolve_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    by_dots = lambda a, b: _kernel_gradient_dots(a, b, 3, 1)  # noqa: E731
    return _unit(g, _twin(kernel)), _by_platform(by_dots, _unit_kernel_gradient, x, g)


convolve.defvjp(lambda x, k: (_unit(x, k), (x, k)), _convolve_backward)


def collapse(x: Array, kernel: Array) -> Array:
    """The encoder's head, a kernel as large as the map: [B, h, w, C] and [h, w, C, F] to [B, F]."""
    return x.reshape(x.shape[0], -1) @ kernel.reshape(-1, kernel.shape[-1])


def expand(z: Array, kernel: Array) -> Array:
    """The decoder's head, twin of `collapse`: [B, N] and [h, w, N, F] to [B, h, w, F]."""
    h, w, n, f = kernel.shape
    return (z @ kernel.transpose(2, 0, 1, 3).reshape(n, -1)).reshape(-1, h, w, f)
