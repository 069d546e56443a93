"""The layers against plain loops and against XLA's own gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ganomaly_jax.model import convolution, layers

LAYOUT = ("NHWC", "HWIO", "NHWC")


def strided_by_hand(x, kernel, stride, size):
    """Convolution with padding 1, by the definition."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1] // stride, x.shape[2] // stride
    out = np.zeros((len(x), height, width, kernel.shape[-1]))
    for p in range(height):
        for q in range(width):
            patch = padded[:, p * stride : p * stride + size, q * stride : q * stride + size]
            out[:, p, q] = np.tensordot(patch, kernel, 3)
    return out


def transposed_by_hand(x, torch_kernel):
    """PyTorch's ConvTranspose2d(4, stride 2, padding 1), kernel [C_in, C_out, 4, 4]: each input pixel stamps 4x4."""
    b, height, width, _ = x.shape
    out = np.zeros((b, 2 * height + 2, 2 * width + 2, torch_kernel.shape[1]))
    for p in range(height):
        for q in range(width):
            stamp = np.einsum("bc,coij->bijo", x[:, p, q], torch_kernel)
            out[:, 2 * p : 2 * p + 4, 2 * q : 2 * q + 4] += stamp
    return out[:, 1:-1, 1:-1]


def plain(name):
    """The layer as one `lax` convolution."""
    if name == "downsample":
        return lambda x, k: lax.conv_general_dilated(x, k, (2, 2), ((1, 1), (1, 1)), dimension_numbers=LAYOUT)
    if name == "upsample":
        return lambda x, k: lax.conv_general_dilated(
            x, k, (1, 1), ((2, 2), (2, 2)), lhs_dilation=(2, 2), dimension_numbers=LAYOUT
        )
    return lambda x, k: lax.conv_general_dilated(x, k, (1, 1), ((1, 1), (1, 1)), dimension_numbers=LAYOUT)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("shape", "f"),
    [((2, 8, 4, c), f) for c, f in ((1, 6), (3, 6), (6, 1), (6, 3), (6, 8))]
    # Enough channels and blocks for minimal filtering, on maps of both orientations, and one block short of it.
    + [((8, 16, 8, 32), 32), ((32, 4, 8, 32), 32), ((7, 16, 8, 32), 32)],
)
@pytest.mark.parametrize(("name", "size"), [("downsample", 4), ("upsample", 4), ("convolve", 3)])
def test_value_and_gradients_are_those_of_the_plain_convolution(name, size, shape, f, dtype):
    with jax.enable_x64(dtype is np.float64):
        random = np.random.default_rng(0)
        x = jnp.asarray(random.normal(size=shape), dtype)
        c = shape[-1]
        kernel = jnp.asarray(random.normal(size=(size, size, c, f)), dtype)
        theirs = plain(name)
        cotangent = jnp.asarray(random.normal(size=jax.eval_shape(theirs, x, kernel).shape), dtype)

        def both_ways(layer):
            def run(x, kernel, cotangent):
                value, back = jax.vjp(layer, x, kernel)
                return value, *back(cotangent)

            return jax.jit(run)(x, kernel, cotangent)

        tolerance = 1e-5 if dtype is np.float32 else 1e-13
        pairs = zip(both_ways(getattr(convolution, name)), both_ways(theirs), strict=True)
        for a, b in pairs:
            assert a.dtype == dtype
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * float(jnp.abs(b).max()))


@pytest.mark.parametrize("name", ["downsample", "upsample"])
def test_large_layers_are_filtered_on_a_cpu_alone(name):
    """9 products where the definition has 16, each in two halves for the strided layer; elsewhere one convolution."""
    small = jax.ShapeDtypeStruct((16, 4, 4, 32), jnp.float32)
    large = jax.ShapeDtypeStruct((16, 16, 16, 32), jnp.float32)
    kernel = jax.ShapeDtypeStruct((4, 4, 32, 32), jnp.float32)

    def operations(x, platform):
        exported = jax.export.export(jax.jit(getattr(convolution, name)), platforms=[platform])(x, kernel)
        text = exported.mlir_module()
        return text.count("stablehlo.dot_general"), text.count("stablehlo.convolution")

    assert operations(large, "cpu") == ({"downsample": 18, "upsample": 9}[name], 0)
    assert operations(large, "cuda") == operations(large, "tpu") == (0, 1)
    assert operations(small, "cpu") == ((0, 1) if name == "downsample" else (9, 0))


@pytest.mark.parametrize(("name", "size"), [("downsample", 4), ("upsample", 4), ("convolve", 3)])
def test_bfloat16_on_a_cpu_is_float32_rounded_once(name, size):
    random = np.random.default_rng(0)
    layer = getattr(convolution, name)
    x = jnp.asarray(random.normal(size=(8, 16, 8, 32)), jnp.bfloat16)  # enough for minimal filtering
    kernel = jnp.asarray(random.normal(size=(size, size, 32, 32)), jnp.bfloat16)
    cotangent = jnp.asarray(random.normal(size=jax.eval_shape(layer, x, kernel).shape), jnp.bfloat16)

    @jax.jit
    def both_ways(*args):
        value, back = jax.vjp(layer, *args[:2])
        return value, *back(args[2])

    wide = both_ways(*(a.astype(jnp.float32) for a in (x, kernel, cotangent)))
    for a, b in zip(both_ways(x, kernel, cotangent), wide, strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize(("name", "shape"), [("collapse", (2, 4, 8, 3)), ("expand", (2, 3))])
def test_heads_of_bfloat16_are_products_in_float32(name, shape):
    random = np.random.default_rng(2)
    head = getattr(convolution, name)
    args = [jnp.asarray(random.normal(size=size), jnp.bfloat16) for size in (shape, (4, 8, 3, 5))]
    found, back = jax.vjp(head, *args)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, head(*(a.astype(jnp.float32) for a in args)), rtol=1e-5, atol=1e-5)
    assert [gradient.dtype for gradient in back(found)] == [jnp.bfloat16] * 2


def test_layers_by_hand_in_float64():
    with jax.enable_x64(True):
        random = np.random.default_rng(1)
        x = random.normal(size=(2, 8, 6, 3))
        kernel = random.normal(size=(4, 4, 3, 5))
        np.testing.assert_allclose(convolution.downsample(x, kernel), strided_by_hand(x, kernel, 2, 4), atol=1e-12)
        small = random.normal(size=(3, 3, 3, 5))
        np.testing.assert_allclose(convolution.convolve(x, small), strided_by_hand(x, small, 1, 3), atol=1e-12)
        torch_kernel = random.normal(size=(3, 5, 4, 4))
        flipped = torch_kernel.transpose(2, 3, 0, 1)[::-1, ::-1]
        expected = transposed_by_hand(x, torch_kernel)
        np.testing.assert_allclose(convolution.upsample(x, jnp.asarray(flipped)), expected, atol=1e-12)


def test_heads_by_hand():
    random = np.random.default_rng(2)
    maps, kernel = random.normal(size=(2, 4, 8, 3)), random.normal(size=(4, 8, 3, 5))
    with jax.enable_x64(True):
        expected = np.einsum("bhwc,hwcf->bf", maps, kernel)
        np.testing.assert_allclose(convolution.collapse(maps, kernel), expected, atol=1e-12)
        z, kernel = random.normal(size=(2, 5)), random.normal(size=(4, 8, 5, 3))
        expected = np.einsum("bn,hwnf->bhwf", z, kernel)
        np.testing.assert_allclose(convolution.expand(z, kernel), expected, atol=1e-12)


def test_batch_norm_by_hand_in_float64():
    with jax.enable_x64(True):
        random = np.random.default_rng(3)
        x = random.normal(2.0, 3.0, size=(4, 3, 5, 2))
        norm = layers.BatchNorm(param_dtype=jnp.float64)
        variables = norm.init(jax.random.key(0), x, train=False)
        scale, bias = variables["params"]["scale"], variables["params"]["bias"]
        y, moved = norm.apply(variables, x, train=True, mutable=["batch_stats"])
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5) * scale + bias, atol=1e-12)
        n = 4 * 3 * 5
        np.testing.assert_allclose(moved["batch_stats"]["mean"], 0.1 * mean, atol=1e-12)
        np.testing.assert_allclose(moved["batch_stats"]["var"], 0.9 + 0.1 * var * n / (n - 1), atol=1e-12)
