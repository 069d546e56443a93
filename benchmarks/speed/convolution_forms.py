"""The layers of the networks in each direction, and every form that they can be computed in."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.interpreters import partial_eval

from ganomaly_jax.model import convolution

Form = Callable[[Array, Array], Array]


class Size(NamedTuple):
    """Of a layer: side of its larger map, channels of that, features of the smaller map (or of the output)."""

    side: int
    channels: int
    features: int

    def __str__(self) -> str:
        return "x".join(map(str, self))


def shapes(layer: str, batch: int, size: Size) -> dict[str, tuple[int, ...]]:
    """Of what a layer (strided, extra, head) works on: its two maps, its kernel and that of its twin."""
    side, c, f = size
    taps = {"strided": 4, "extra": 3, "head": side}[layer]
    small = {"strided": (side // 2, side // 2), "extra": (side, side), "head": ()}[layer]
    maps = {"large": (batch, side, side, c), "small": (batch, *small, f)}
    return maps | {"kernel": (taps, taps, c, f), "twin": (taps, taps, f, c)}


@dataclasses.dataclass(frozen=True)
class Role:
    """What a layer computes in one direction: `forms` of the same function of two `arrays`.

    `asked` is the function by way of the layer that the networks call; with `of_twin` the forms are given the twin of
    the second array.
    """

    words: str
    layer: str
    arrays: tuple[str, str]
    asked: Form
    forms: Mapping[str, Form]
    of_twin: bool = False

    def shapes(self, batch: int, size: Size) -> list[tuple[int, ...]]:
        """Returns the shapes of the two arrays."""
        found = shapes(self.layer, batch, size)
        return [found[name] for name in self.arrays]

    def flops(self, batch: int, size: Size) -> int:
        """Counts the additions and multiplications of the definition."""
        found = shapes(self.layer, batch, size)
        return 2 * math.prod(found["small"][:-1]) * math.prod(found["kernel"])


def _few(limit: int, form: Callable[..., Array]) -> Form:
    """A form of the code's own as it is for few channels or for many, whatever it has."""

    def traced(a: Array, b: Array) -> Array:
        with mock.patch.object(convolution, "_FEW_CHANNELS", limit):
            return form(a, b)

    return traced


def _patches(stride: int) -> Form:
    def form(x: Array, k: Array) -> Array:
        return jnp.concatenate(convolution._taps(x, len(k), stride), -1) @ k.reshape(-1, k.shape[-1])

    return form


def _taps(stride: int) -> Form:
    def form(x: Array, k: Array) -> Array:
        taps, parts = convolution._taps(x, len(k), stride), k.reshape(-1, *k.shape[2:])
        return sum((tap @ part for tap, part in zip(taps[1:], parts[1:], strict=True)), taps[0] @ parts[0])

    return form


def _of_twin(form: Form) -> Form:
    return lambda g, k: form(g, convolution._adjoint_kernel(k))


def _unit_lax(x: Array, k: Array) -> Array:
    return lax.conv_general_dilated(x, k, (1, 1), ((1, 1), (1, 1)), dimension_numbers=convolution._LAYOUT)


def _forward(layer: Form) -> Form:
    """Returns the forward pass as it runs when it is differentiated."""
    return lambda x, k: jax.vjp(layer, x, k)[0]


def _in_kernel(layer: Form, shape: Callable[[Array, Array], tuple[int, ...]]) -> Form:
    """Returns the gradient with respect to the kernel, as a function of input and cotangent."""

    def form(x: Array, g: Array) -> Array:
        y, back = jax.vjp(layer, x, jnp.zeros(shape(x, g), x.dtype))
        return back(g.astype(y.dtype))[1]

    return form


def _in_input(layer: Form) -> Form:
    """Returns the gradient with respect to an input as large as the output, from cotangent and kernel."""

    def form(g: Array, k: Array) -> Array:
        y, back = jax.vjp(layer, jnp.zeros((*g.shape[:-1], k.shape[2]), g.dtype), k)
        return back(g.astype(y.dtype))[0]

    return form


def _in_float32(form: Form) -> Form:
    """Returns the form computed in float32, with bfloat16 used only for rounding."""
    return lambda a, b: form(a.astype(jnp.float32), b.astype(jnp.float32)).astype(a.dtype)


def _kernel_dots(size: int, stride: int) -> dict[str, Form]:
    def dots(x: Array, g: Array) -> Array:
        return convolution._kernel_gradient_dots(x, g, size, stride)

    return {"patches": _few(10**9, dots), "taps": _few(0, dots)}


def _collapse_lax(x: Array, k: Array) -> Array:
    return lax.conv_general_dilated(x, k, (1, 1), "VALID", dimension_numbers=convolution._LAYOUT)[:, 0, 0]


def _expand_lax(z: Array, k: Array) -> Array:
    h, w = k.shape[:2]
    full = ((h - 1, h - 1), (w - 1, w - 1))
    return lax.conv_general_dilated(
        z[:, None, None], jnp.flip(k, (0, 1)), (1, 1), full, dimension_numbers=convolution._LAYOUT
    )


def _expand_taps(z: Array, k: Array) -> Array:
    h, w, n, f = k.shape
    return jnp.stack([z @ part for part in k.reshape(-1, n, f)], 1).reshape(-1, h, w, f)


SIZES = {
    "strided": "32x1x64,32x3x64,64x3x64,32x64x128,16x64x128,8x128x256,16x16x32,16x32x64",
    "extra": "32x64x64,16x64x64,8x32x32",
    "head": "4x256x100,4x512x100,4x64x100,4x256x1",
}
_dots = {"lax": convolution._strided, "patches": convolution._strided_dots, "taps": _taps(2)}
_unit = {"lax": _unit_lax, "patches": _patches(1), "taps": _taps(1)}
_kernel_of = {
    "strided": lambda x, g: (4, 4, x.shape[-1], g.shape[-1]),
    "extra": lambda x, g: (3, 3, x.shape[-1], g.shape[-1]),
    "head": lambda x, g: (*x.shape[1:], g.shape[-1]),
}
ROLES = {
    "downsample": Role(
        "4x4 stride-2 convolution: forward, and the input gradient of its twin",
        *("strided", ("large", "kernel"), _forward(convolution.downsample)),
        _dots | {"filtered": convolution._strided_filtered},
    ),
    "upsample": Role(
        "4x4 transposed convolution: forward, and the input gradient of its twin",
        *("strided", ("small", "twin"), _forward(convolution.upsample)),
        {"lax": convolution._dilated, "fold": convolution._dilated_dots, "filtered": convolution._dilated_filtered},
    ),
    "kernel-gradient": Role(
        "Kernel gradient of both 4x4 layers",
        *("strided", ("large", "small"), _in_kernel(convolution.downsample, _kernel_of["strided"])),
        {
            "lax": convolution._strided_kernel_gradient,
            **_kernel_dots(4, 2),
            "filtered": convolution._kernel_gradient_filtered,
        },
    ),
    "extra": Role(
        "3x3 extra layer: forward",
        *("extra", ("large", "kernel"), _forward(convolution.convolve)),
        _unit,
    ),
    "extra-input-gradient": Role(
        "3x3 extra layer: input gradient",
        *("extra", ("small", "kernel"), _in_input(convolution.convolve)),
        _unit | {"transposed lax": _of_twin(_in_input(_unit_lax))},
        of_twin=True,
    ),
    "extra-kernel-gradient": Role(
        "3x3 extra layer: kernel gradient",
        *("extra", ("large", "small"), _in_kernel(convolution.convolve, _kernel_of["extra"])),
        {"lax": convolution._stride_1_kernel_gradient, **_kernel_dots(3, 1)},
    ),
    "collapse": Role(
        "Head of the encoder and of the discriminator, a kernel as large as the map: forward",
        *("head", ("large", "kernel"), _forward(convolution.collapse)),
        {"lax": _collapse_lax, "dot": convolution.collapse},
    ),
    "expand": Role(
        "Head of the decoder, twin of the encoder's: forward",
        *("head", ("small", "twin"), _forward(convolution.expand)),
        {"lax": _expand_lax, "dot": convolution.expand, "taps": _expand_taps},
    ),
    "head-kernel-gradient": Role(
        "Head of the encoder and of the discriminator: kernel gradient",
        *("head", ("large", "small"), _in_kernel(convolution.collapse, _kernel_of["head"])),
        {
            name: _in_kernel(form, _kernel_of["head"])
            for name, form in (("lax", _collapse_lax), ("dot", convolution.collapse))
        },
    ),
}
FORMS = {
    "lax": "XLA's convolution, for gradients what XLA makes of its transposition",
    "patches": "the patches of every output side by side, and one product",
    "taps": "a product for each element of the kernel's window",
    "fold": "one product to overlapping patches, and their sum",
    "filtered": "minimal filtering (Winograd)",
    "dot": "the map as one vector, and one product",
    "transposed lax": "XLA's transposition of the convolution, instead of a convolution with the kernel's twin",
}


def available(name: str, size: Size, dtype: str = "float32") -> dict[str, Form]:
    """Returns the forms of a role that can compute this size; for bfloat16 also in float32."""
    blocks = size.side % 4 == 0
    forms = {form: function for form, function in ROLES[name].forms.items() if blocks or form != "filtered"}
    if dtype == "bfloat16":
        forms |= {f"{form} in float32": _in_float32(function) for form, function in forms.items()}
    return {form: _of_twin(function) for form, function in forms.items()} if ROLES[name].of_twin else forms


def chosen(name: str, size: Size, batch: int, platform: str, dtype: str = "float32") -> str | None:
    """Returns the form that ganomaly_jax.model.convolution uses on a platform; None if it is not among these.

    Its own program, traced with the platform given and freed of what the result does not need, is compared with that
    of each form.
    """
    arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape in ROLES[name].shapes(batch, size)]

    def program(form: Form) -> str:
        jaxpr = jax.make_jaxpr(lambda a, b: form(a, b))(*arrays).jaxpr  # a new function: nothing traced earlier counts
        return str(partial_eval.dce_jaxpr(jaxpr, [True], instantiate=True)[0])

    def dispatch(*args: Array, default: Callable[..., Array], **forms: Callable[..., Array]) -> Array:
        return forms.get(platform, default)(*args)

    with mock.patch.object(lax, "platform_dependent", dispatch):
        ours = program(ROLES[name].asked)
        forms = available(name, size, dtype).items()
        return next((form for form, function in forms if program(function) == ours), None)
