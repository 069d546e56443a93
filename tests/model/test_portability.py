"""Portability without the hardware: what a GPU and a TPU would get, lowered on this CPU and read.

Every configuration in `configs/` and what none of them sets: the training step on one device and over eight, exactly
as `train` hands it to the compiler, and the scorer with a symbolic batch. No compilation, and no data but zeros.
"""

import dataclasses
import functools
import re
import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ganomaly_jax.core import config, config_values, members
from ganomaly_jax.core.config import Model, score_parts
from ganomaly_jax.model.autoencoder import DenoisingAutoencoder
from ganomaly_jax.model.ganomaly import Ganomaly
from ganomaly_jax.scoring import adapters, patch_distance, scorer, scores
from ganomaly_jax.scoring.calibration import Calibration
from ganomaly_jax.scoring.latent_statistics import fit
from ganomaly_jax.training import step_programs, trainer

BANK = 20
# Hz and seconds of a configuration of sound.
RATE, FRAME = 8000, 0.032
FREQUENCIES = int(RATE * FRAME) // 2 + 1

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# What no configuration sets, set in that of `smoke.py`, with enough features for every form that a CPU has.
VARIANTS = {
    "bfloat16": {"model.dtype": "bfloat16", "model.extra_layers": 1, "train.shift": 2, "train.flip": True},
    "members": {"members.seeds": "0,1,2,3,4,5,6,7", "train.shift": 1},
    # Other ways of spreading a step, of the smallest networks.
    "pmap": {"mesh.transform": "pmap", "train.shift": 1},
    "groups": {"mesh.batch_norm_group": 2},
    "divided": {"mesh.shard_from": 64, "train.flip": True},
}
# Training on one device, over several, and the scorer.
STEP, SHARDED, SCORER = PROGRAMS = ("step", "sharded", "scorer")
DEVICES = {STEP: 1, SHARDED: 8}
CASES = [(path.stem, name) for path in sorted(CONFIGS.glob("*.py")) for name in PROGRAMS]
CASES += [("bfloat16", SHARDED), ("bfloat16", SCORER), ("members", SHARDED)]
CASES += [("pmap", SHARDED), ("groups", SHARDED), ("divided", SHARDED)]
PLATFORMS = ("cuda", "tpu")
# Where a configuration leaves the channels to its data and those are not grey.
CHANNELS = {"tfds:cifar10": 3}
# Of rows of sensors, whose networks have products where those of images have convolutions.
SENSORS = 5
# With more features than this every layer still takes the same form; only the states, which `train` makes, grow.
ENOUGH_FEATURES = 32
# Of XLA itself, for every backend: where an array lies, and what a symbolic size must satisfy. All else is code that
# a backend has or has not.
PORTABLE_CALLS = {"Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape", "shape_assertion"}
TYPE = r"tensor<([^>]*)>"


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """What is to be lowered."""

    function: Any
    arguments: tuple[Any, ...]
    settings: config.Config
    params: Any
    """Shapes of the weights that it uses, of one model."""
    devices: int = 1


@dataclasses.dataclass(frozen=True)
class Type:
    """Of an array in StableHLO; a dimension that is not known is -1."""

    dims: tuple[int, ...]
    element: str


class Handed(Exception):  # noqa: N818
    """What `train` handed to the compiler, in place of what would follow."""


def settings_of(case):
    settings = runpy.run_path(str(CONFIGS / f"{'smoke' if case in VARIANTS else case}.py"))["get_config"]()
    for path, value in VARIANTS.get(case, {}).items():
        config_values.set_value(settings, path, value)
    data, model = settings.data, settings.model
    if data.kind == "rows":
        data.channels = SENSORS
    elif data.kind == "sound":
        data.height = data.width = 16
        data.sound.rate, data.sound.frame, data.sound.hop = RATE, FRAME, FRAME / 2
        data.channels = 1
    else:
        data.height, data.width = data.height or 32, data.width or 32
        data.channels = data.channels or CHANNELS.get(data.source, 1)
    model.features = ENOUGH_FEATURES if case in VARIANTS else min(model.features, ENOUGH_FEATURES)
    return settings


def zeros(settings):
    """What stands for the data: images, with labels where the configuration speaks of classes; rows that are none."""
    if settings.data.kind == "rows":
        return np.random.default_rng(0).normal(size=(40 * settings.train.batch_size, SENSORS)).astype(np.float32)
    if settings.data.kind == "sound":
        return np.random.default_rng(0).normal(size=(4 * settings.train.batch_size, RATE)).astype(np.float32) / 9
    named = {*members.classes(settings), settings.data.abnormal} - {"", "all"}
    classes = [*sorted(named), "other", "another"]
    n = 2 * len(classes) * settings.train.batch_size
    images = np.zeros((n, settings.data.height, settings.data.width, settings.data.channels), np.uint8)
    return (images, np.resize(classes, n)) if named or settings.members.classes else images


def shape_of(leaf):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))


def blank(init):
    """`init` of a detector with nothing drawn: only shapes matter here, and to draw is to compile."""

    def zeroed(detector, key):
        shapes = jax.eval_shape(functools.partial(init, detector), key)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    return zeroed


def training_program(settings, devices, workdir):
    """The program of a call of many steps, as `train` and `train_members` make it."""

    def hand_over(chunk, state, arguments, log):
        raise Handed(chunk, jax.tree.map(shape_of, (state, *arguments)))

    settings.mesh.devices = devices
    several = members.requested(settings)
    run = trainer.train_members if several else trainer.train
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Handed) as handed:
        patch.setattr(step_programs, "_compile", hand_over)
        for kind in (Ganomaly, DenoisingAutoencoder):
            patch.setattr(kind, "init", blank(kind.init))
        run(settings, workdir, zeros(settings), log=lambda line: None)
    chunk, arguments = handed.value.args
    of_one = functools.partial(jax.tree.map, lambda leaf: jax.ShapeDtypeStruct(leaf.shape[several:], leaf.dtype))
    if several:  # no more devices than members
        devices = min(devices, *arguments[0].step.shape)
    return Program(chunk, arguments, settings, of_one(arguments[0].params), devices)


def random(*size):
    return np.random.default_rng(0).normal(size=(BANK, *size)).astype(np.float32)


def scorer_program(settings):
    """The pure function of a scorer, raw pixels and a batch of any size to scores and p-values."""
    detector = adapters.from_config(settings)
    network = detector.network
    state = jax.eval_shape(network.init, jax.random.key(0))
    variables = {"detector": network.variables(state), "calibration": jax.ShapeDtypeStruct((50,), jnp.float32)}
    shown = {name: params for name, params in state.params.items() if name != "discriminator" or settings.loss.contrast}
    names = score_parts(settings)
    found = {}
    if settings.loss.contrast or any(name.startswith("latent") for name in names):
        found["z"] = fit(random(settings.model.latent_size), 0)
    if settings.loss.contrast:
        found["embedding"] = fit(random(settings.model.embedding_size), 0)
    shape = config.input_shape(settings.data)
    for size, share in patch_distance.SHARES.items():
        if f"patches_{size}" in names:
            cut = patch_distance.described(random(*shape), np.zeros((BANK, 1), int), share)
            found[size] = patch_distance.fit(np.concatenate(cut), 0)
    if "components" in names:
        found["components"] = patch_distance.fit_components(np.asarray(patch_distance.exposed(random(*shape))))
    if "residual_mahalanobis" in names:
        numbers = int(np.prod(shape)) // config.residual_down(shape) ** 2
        found["residual"] = {"mean": np.zeros(numbers, np.float32), "whitening": np.eye(numbers, dtype=np.float32)}
    fitted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), found)
    if not scores.is_plain(names):
        scale = {one: jax.ShapeDtypeStruct((2,), jnp.float32) for one in names}
        variables["statistics"] = fitted | {"scale": scale}
    calibration = Calibration(0.0, 1.0, "none")
    each = {"rows": SENSORS, "sound": settings.data.height}.get(settings.data.kind)
    pixels = ("float32", (0.0,) * each, (1.0,) * each) if each else ("uint8", 0.0, 255.0)
    one = scorer.Scorer(detector, variables, settings, *pixels, calibration, 1.0, {})
    (size,) = jax.export.symbolic_shape("b")
    x = jax.ShapeDtypeStruct((size, *one.input_shape), jnp.dtype(pixels[0]))
    return Program(jax.jit(one.outputs), (variables, x), settings, shown)


def lower(program, platform):
    return jax.export.export(program.function, platforms=[platform])(*program.arguments)


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def lowered(request, tmp_path_factory):
    """(its name, a program, {platform: (exported, its text)})."""
    case, name = request.param
    settings = settings_of(case)
    workdir = tmp_path_factory.mktemp("run")
    program = scorer_program(settings) if name == SCORER else training_program(settings, DEVICES[name], workdir)
    exported = {platform: lower(program, platform) for platform in PLATFORMS}
    return name, program, {platform: (one, one.mlir_module()) for platform, one in exported.items()}


def types(text):
    """The arrays in a piece of StableHLO."""
    return [
        Type(tuple(-1 if size == "?" else int(size) for size in sizes), element)
        for *sizes, element in (found.split(",")[0].split("x") for found in re.findall(TYPE, text))
    ]


def operations(text, name):
    """Of every operation of one line so called: the types of its operands and result."""
    return [types(signature) for signature in re.findall(rf"stablehlo\.{name}\b.* : (\(.*)", text)]


def reduced(text):
    """The types of all arrays that are summed over devices."""
    found = re.findall(r'"stablehlo\.all_reduce".*?\n\s*\}\) : \((.*?)\) ->', text, re.DOTALL)
    return [one for operands in found for one in types(operands)]


def custom_calls(text):
    return set(re.findall(r"custom_call @([\w.$]+)", text)) | set(re.findall(r'call_target_name = "([^"]+)"', text))


def kernels(params):
    """([shape of each convolution's kernel], [that of each head's])."""
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    found = [
        (bool({"head", "embedding"} & {key.key for key in path}), leaf.shape)
        for path, leaf in flat
        if path[-1].key == "kernel"
    ]
    return [shape for head, shape in found if not head], [shape for head, shape in found if head]


def foreign_products(text, params):
    """Matrix products that are no head's, nor its gradient's: one of its three matrices has the sides of a head.

    Minimal filtering and products of patches, which a CPU gets in place of convolutions, are such.
    """
    heads = [sides for h, w, c, f in kernels(params)[1] for sides in ({h * w * c, f}, {c, h * w * f})]

    def of_a_head(product):
        return all(len(one.dims) == 2 for one in product) and any(set(one.dims) in heads for one in product)

    def of_latents(product):
        """Of embeddings or latents, with each other, with those in the bank, or whitened: no patch is so short."""
        sizes = {Model.embedding_size, Model.latent_size}
        return all(set(one.dims) & sizes for one in product[:2]) and all(
            max(d or 0 for d in one.dims) <= 100 for one in product
        )

    def of_components(product):
        """Along principal components, of which `BANK` images have one less."""
        return sum(BANK - 1 in one.dims for one in product) >= 2

    def of_residuals(product):
        """By the covariance of a residual: a square of a side that no kernel has."""
        channels = {size for shapes in kernels(params) for shape in shapes for size in shape}
        squares = [one.dims[0] for one in product[:2] if len(one.dims) == 2 and one.dims[0] == one.dims[1]]
        return any(side >= 256 and side not in channels for side in squares)

    def of_bands(product):
        """The power at each frequency of a spectrogram, as a mean of each band."""
        return all(FREQUENCIES in one.dims for one in product[:2])

    others = (of_a_head, of_latents, of_components, of_residuals, of_bands)
    return [product for product in operations(text, "dot_general") if not any(known(product) for known in others)]


def spatially(shapes):
    """How many there are of each kernel, whichever of its channels come first."""
    return Counter((*shape[:2], *sorted(shape[2:])) for shape in shapes if len(shape) == 4)


def test_it_lowers_for_every_platform(lowered):
    """With the shapes that go in and come out here: a state as it was, or a score and a p-value for each image."""
    name, program, exported = lowered
    for platform, (one, text) in exported.items():
        assert one.platforms == (platform,)
        assert one.nr_devices == program.devices
        assert "stablehlo." in text
        outputs = jax.tree.unflatten(one.out_tree, [(str(leaf.shape), leaf.dtype) for leaf in one.out_avals])
        if name == SCORER:
            assert outputs == dict.fromkeys(("score", "p_value"), ("(b,)", jnp.float32))
        else:
            assert outputs[0] == jax.tree.map(lambda leaf: (str(leaf.shape), leaf.dtype), program.arguments[0])


def test_no_call_leaves_the_compiler(lowered):
    """To LAPACK, to a library of one backend, or to Python on the host."""
    for platform, (_, text) in lowered[2].items():
        assert custom_calls(text) <= PORTABLE_CALLS, platform


def test_convolutions_are_the_backends_own(lowered):
    """Every kernel but the heads' is convolved, and in training has a gradient that is a convolution too."""
    name, program, exported = lowered
    for platform, (_, text) in exported.items():
        if program.settings.data.kind == "rows":
            assert operations(text, "dot_general") and not operations(text, "convolution"), platform
            continue
        wanted = spatially(kernels(program.params)[0])
        convolutions = operations(text, "convolution")
        forward = spatially(kernel.dims for _, kernel, _ in convolutions)
        gradients = spatially(result.dims for *_, result in convolutions)
        if name == SCORER:
            statistics = program.arguments[0].get("statistics", {})
            wanted += spatially(one["kernel"].shape for one in statistics.values() if "kernel" in one)  # patches
            if jax.__version_info__ < (0, 11):
                assert forward == wanted, platform
            else:  # What no output needs, such as the second encoder of a score that reads z alone, is left out.
                assert forward <= wanted and set(forward) == set(wanted), platform
        else:
            assert forward >= wanted, platform
            assert gradients >= wanted, platform
        assert not foreign_products(text, program.params), platform


def test_convolutions_have_the_type_that_is_asked_for(lowered):
    _, program, exported = lowered
    wanted = {"float32": "f32", "bfloat16": "bf16"}[program.settings.model.dtype]
    for platform, (_, text) in exported.items():
        what = "dot_general" if program.settings.data.kind == "rows" else "convolution"
        found = {one.element for operation in operations(text, what) for one in operation}
        assert found == {wanted}, platform


def test_gradients_are_summed_over_the_devices(lowered):
    """Those of all weights; and nothing where there is one device, or each has members of its own.

    Where states are divided the compiler puts the sums in later; that some are divided is said to it.
    """
    name, program, exported = lowered
    for platform, (_, text) in exported.items():
        sizes = [int(np.prod(one.dims)) for one in reduced(text)]
        assert len(sizes) >= text.count("stablehlo.all_reduce")
        if program.settings.mesh.shard_from:
            assert '[{}, {}, {}, {"data"}]' in text, platform  # a kernel, by its last axis
            assert not sizes, platform
        elif name == SHARDED and not members.requested(program.settings):
            assert sum(sizes) > sum(leaf.size for leaf in jax.tree.leaves(program.params)), platform
        else:
            assert not sizes, platform


def test_a_cpu_gets_something_else():
    """So that what is not to be found above would be seen."""
    program = scorer_program(settings_of("bfloat16"))
    text = lower(program, "cpu").mlir_module()
    assert foreign_products(text, program.params)
    assert spatially(kernel.dims for _, kernel, _ in operations(text, "convolution")) != spatially(
        kernels(program.params)[0]
    )
