"""GANomaly in PyTorch: the peer of the benchmarks, as the authors' code computes it, and tuned.

Written from the facts of the paper and the names in the authors' state dicts, so that their weights load with
`load_state_dict`; tests/test_benchmarks.py holds it against the values recorded from their code. Images are
[B, C, H, W] in [-1, 1], square, the side a power of two from 16. This module needs torch and numpy only, so that the
memory of a process that runs it is PyTorch's alone.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from benchmarks.common import timing

_DISCRIMINATOR_HAS_WON = 1e-5
_INDEX_ROWS = 128
_BATCHES = 4
_WARM_UP = 3


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to run the same work; `words` say which."""

    words: str
    channels_last: bool = True
    compiled: bool = False
    graph: bool = False


EAGER = "eager"
VARIANTS = {
    EAGER: Variant("eager as the original: each discriminator pass twice, plain Adam, L_D read every step", False),
    "contiguous": Variant("eager, discriminator passes shared, fused Adam, batch norm folded for scoring", False),
    "channels_last": Variant("the same, channels_last"),
    "compile": Variant(
        "channels_last, the step by torch.compile (on a GPU reduce-overhead: CUDA graphs)", compiled=True
    ),
    "graph": Variant("channels_last, the step with Adam as one CUDA graph", graph=True),
    "compile_graph": Variant("the step by torch.compile and with Adam as one CUDA graph", compiled=True, graph=True),
}


def tuned(device: str, compiled: bool = True) -> list[str]:
    """Returns the variants that may be strongest on `device` ("cpu", "cuda"); without torch.compile if so asked."""
    on_device = [n for n, how in VARIANTS.items() if n != EAGER and (device == "cuda" or not how.graph)]
    return [n for n in on_device if compiled or not VARIANTS[n].compiled]


def _encoder_layers(side: int, channels: int, out: int, features: int, extra: int) -> Iterator[tuple[str, nn.Module]]:
    """Lists (name in the authors' state dict, layer); the head comes last."""
    wide = features
    yield f"initial-conv-{channels}-{wide}", nn.Conv2d(channels, wide, 4, 2, 1, bias=False)
    yield f"initial-relu-{wide}", nn.LeakyReLU(0.2, inplace=True)
    for i in range(extra):
        yield f"extra-layers-{i}-{wide}-conv", nn.Conv2d(wide, wide, 3, 1, 1, bias=False)
        yield f"extra-layers-{i}-{wide}-batchnorm", nn.BatchNorm2d(wide)
        yield f"extra-layers-{i}-{wide}-relu", nn.LeakyReLU(0.2, inplace=True)
    side //= 2
    while side > 4:
        yield f"pyramid-{wide}-{2 * wide}-conv", nn.Conv2d(wide, 2 * wide, 4, 2, 1, bias=False)
        side, wide = side // 2, 2 * wide
        yield f"pyramid-{wide}-batchnorm", nn.BatchNorm2d(wide)
        yield f"pyramid-{wide}-relu", nn.LeakyReLU(0.2, inplace=True)
    yield f"final-{wide}-1-conv", nn.Conv2d(wide, out, 4, 1, 0, bias=False)


def _decoder_layers(
    side: int, channels: int, latent: int, features: int, extra: int
) -> Iterator[tuple[str, nn.Module]]:
    wide = features * side // 8
    yield f"initial-{latent}-{wide}-convt", nn.ConvTranspose2d(latent, wide, 4, 1, 0, bias=False)
    yield f"initial-{wide}-batchnorm", nn.BatchNorm2d(wide)
    yield f"initial-{wide}-relu", nn.ReLU(inplace=True)
    while wide > features:
        yield f"pyramid-{wide}-{wide // 2}-convt", nn.ConvTranspose2d(wide, wide // 2, 4, 2, 1, bias=False)
        wide //= 2
        yield f"pyramid-{wide}-batchnorm", nn.BatchNorm2d(wide)
        yield f"pyramid-{wide}-relu", nn.ReLU(inplace=True)
    for i in range(extra):
        yield f"extra-layers-{i}-{wide}-conv", nn.Conv2d(wide, wide, 3, 1, 1, bias=False)
        yield f"extra-layers-{i}-{wide}-batchnorm", nn.BatchNorm2d(wide)
        yield f"extra-layers-{i}-{wide}-relu", nn.ReLU(inplace=True)
    yield f"final-{wide}-{channels}-convt", nn.ConvTranspose2d(wide, channels, 4, 2, 1, bias=False)
    yield f"final-{channels}-tanh", nn.Tanh()


def _main(layers: Iterator[tuple[str, nn.Module]]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(main=nn.Sequential(OrderedDict(layers))))


class Generator(nn.Module):
    """x [B, C, H, W] to (x_hat of x's shape, z [B, N, 1, 1], z_hat [B, N, 1, 1])."""

    def __init__(self, shape: Sequence[int], latent: int, features: int, extra: int = 0) -> None:
        super().__init__()
        side, _, channels = shape
        self.encoder1 = _main(_encoder_layers(side, channels, latent, features, extra))
        self.decoder = _main(_decoder_layers(side, channels, latent, features, extra))
        self.encoder2 = _main(_encoder_layers(side, channels, latent, features, extra))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = self.encoder1(x)
        x_hat = self.decoder(z)
        return x_hat, z, self.encoder2(x_hat)


class Discriminator(nn.Module):
    """x [B, C, H, W] to (probability of being real [B], features [B, F, 4, 4])."""

    def __init__(self, shape: Sequence[int], features: int, extra: int = 0) -> None:
        super().__init__()
        side, _, channels = shape
        *body, head = (layer for _, layer in _encoder_layers(side, channels, 1, features, extra))
        self.features = nn.Sequential(*body)
        self.classifier = nn.Sequential(head, nn.Sigmoid())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(x)
        return self.classifier(features).flatten(), features


@torch.no_grad()
def reinitialize(network: nn.Module) -> None:
    """Kernels N(0, 0.02), batch-norm scales N(1, 0.02), biases 0; running statistics stay."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            layer.weight.normal_(0, 0.02)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.weight.normal_(1, 0.02)
            layer.bias.zero_()


@dataclasses.dataclass(frozen=True)
class Peer:
    """Both networks and their optimisers."""

    generator: Generator
    discriminator: Discriminator
    g_optimizer: torch.optim.Optimizer
    d_optimizer: torch.optim.Optimizer


def make(
    shape: Sequence[int],
    latent: int = 100,
    features: int = 64,
    extra: int = 0,
    device: str = "cpu",
    variant: str = EAGER,
) -> Peer:
    """Makes a peer for images of `shape` (H, W, C), its weights drawn as the paper does."""
    how = VARIANTS[variant]
    networks = Generator(shape, latent, features, extra), Discriminator(shape, features, extra)
    adam = {} if variant == EAGER else {"fused": True, "capturable": how.graph}
    optimizers = []
    for network in networks:
        reinitialize(network)
        network.to(device)
        if how.channels_last:
            network.to(memory_format=torch.channels_last)
        optimizers.append(torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999), **adam))
    return Peer(*networks, *optimizers)


def _wide(t: Tensor) -> Tensor:
    """Losses and scores are float32 also where the networks compute in bfloat16."""
    return t.float() if t.dtype == torch.bfloat16 else t


def _generator_losses(x: Tensor, made: Sequence[Tensor], real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    x_hat, z, z_hat = made
    losses = {
        "adversarial": torch.mean((real - fake) ** 2),
        "contextual": torch.mean(torch.abs(x - x_hat)),
        "encoder": torch.mean((z - z_hat) ** 2),
    }
    return losses | {"generator": losses["adversarial"] + 50 * losses["contextual"] + losses["encoder"]}


def _discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    as_real = F.binary_cross_entropy(real, torch.ones_like(real))
    return 0.5 * (as_real + F.binary_cross_entropy(fake, torch.zeros_like(fake)))


def original_step(peer: Peer, x: Tensor) -> dict[str, Tensor]:
    """Computes one step as the original computes it; returns the losses before it.

    Each discriminator pass runs twice, once for each loss; the generator's loss also computes gradients of the
    discriminator's weights, which are thrown away; and the host reads L_D, in case the discriminator has won.
    """
    generator, discriminator = peer.generator, peer.discriminator
    made = generator(x)
    x_hat = made[0]
    p_real, _ = discriminator(x)
    p_fake, _ = discriminator(x_hat.detach())
    peer.g_optimizer.zero_grad()
    _, real = discriminator(x)
    _, fake = discriminator(x_hat)
    losses = _generator_losses(x, made, real, fake)
    losses["generator"].backward(retain_graph=True)
    peer.d_optimizer.zero_grad()
    losses["discriminator"] = _discriminator_loss(p_real, p_fake)
    losses["discriminator"].backward()
    peer.g_optimizer.step()
    peer.d_optimizer.step()
    if losses["discriminator"].item() < _DISCRIMINATOR_HAS_WON:
        reinitialize(discriminator)
    return {name: loss.detach() for name, loss in losses.items()}


def shared_gradients(peer: Peer, x: Tensor, bfloat16: bool = False) -> tuple[dict[str, Tensor], Any, Any]:
    """Computes (losses, gradients of the generator, of the discriminator): every pass once, no gradient for nothing.

    The discriminator's running statistics, which nothing reads, move twice a step in place of four times.
    """
    generator, discriminator = peer.generator, peer.discriminator
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
        made = generator(x)
        p_real, real = discriminator(x)
        p_fake, fake = discriminator(made[0])
    losses = _generator_losses(x, [_wide(t) for t in made], _wide(real), _wide(fake))
    losses["discriminator"] = _discriminator_loss(_wide(p_real), _wide(p_fake))
    g_grads = torch.autograd.grad(losses["generator"], list(generator.parameters()), retain_graph=True)
    d_grads = torch.autograd.grad(losses["discriminator"], list(discriminator.parameters()))
    return {name: loss.detach() for name, loss in losses.items()}, g_grads, d_grads


def shared_step(
    peer: Peer, x: Tensor, bfloat16: bool = False, gradients: Callable[..., Any] = shared_gradients
) -> dict[str, Tensor]:
    """Computes one step with shared passes; returns the losses before it.

    L_D is not read: to look at it once in a while costs nothing, and a device that never waits is the peer's best.
    """
    losses, *grads = gradients(peer, x, bfloat16)
    for network, network_grads in zip((peer.generator, peer.discriminator), grads, strict=True):
        for parameter, gradient in zip(network.parameters(), network_grads, strict=True):
            parameter.grad = gradient
    peer.g_optimizer.step()
    peer.d_optimizer.step()
    return losses


def score(generator: nn.Module, x: Tensor) -> Tensor:
    """Computes A(x) [B]: the mean over the latent of (z - z_hat)^2; the generator in eval mode (running statistics)."""
    _, z, z_hat = generator(x)
    return torch.mean((_wide(z) - _wide(z_hat)) ** 2, dim=1).flatten()


def folded(generator: Generator) -> Generator:
    """Returns the same generator in eval mode, its batch norms folded into the convolutions before them."""
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    generator.eval()
    for part in (generator.encoder1, generator.decoder, generator.encoder2):
        for (name, conv), (norm_name, norm) in itertools.pairwise(part.main.named_children()):
            if isinstance(norm, nn.BatchNorm2d):
                part.main.add_module(name, fuse_conv_bn_eval(conv, norm, isinstance(conv, nn.ConvTranspose2d)))
                part.main.add_module(norm_name, nn.Identity())
    return generator


def _compiled(function: Callable[..., Any], device: str, how: Variant) -> Callable[..., Any]:
    import torch._dynamo

    if function is shared_gradients:
        if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
            raise RuntimeError(f"torch {torch.__version__} cannot compile a step with its gradients; 2.11 can")
        torch._dynamo.config.trace_autograd_ops = True
    # A graph of the whole step with Adam takes the place of torch.compile's own graphs.
    mode = "reduce-overhead" if device == "cuda" and not how.graph else "default"
    return torch.compile(function, dynamic=False, fullgraph=True, mode=mode)


def _captured(step: Callable[[Tensor], Any], given: Tensor) -> Callable[[Tensor], Any]:
    """Records `step` once as a CUDA graph, whose replay takes another argument of the same shape."""
    static = given.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            step(static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step(static)

    def replay(given: Tensor) -> Any:
        static.copy_(given)
        graph.replay()
        return result

    return replay


def _training(
    shape: Sequence[int], batch: int, variant: str, device: str, images: int, sizes: Sequence[int], bfloat16: bool
) -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
    """Makes (step of an index [B] that returns L_G, the indices that it takes turn by turn)."""
    how = VARIANTS[variant]
    layout = torch.channels_last if how.channels_last else torch.contiguous_format
    pixels = torch.from_numpy(timing.pictures(images, shape)).permute(0, 3, 1, 2).to(device).to(memory_format=layout)
    rows = np.random.default_rng(1).integers(0, images, (_INDEX_ROWS, batch))
    peer = make(shape, *sizes, device=device, variant=variant)
    gradients = _compiled(shared_gradients, device, how) if how.compiled else shared_gradients

    def step(index: Tensor) -> Tensor:
        x = _unit(pixels.index_select(0, index), layout)
        losses = original_step(peer, x) if variant == EAGER else shared_step(peer, x, bfloat16, gradients)
        return losses["generator"]

    return step, list(torch.from_numpy(rows).to(device))


def _scoring(
    shape: Sequence[int], batch: int, variant: str, device: str, sizes: Sequence[int], bfloat16: bool
) -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
    """Makes (step of a batch [B, C, H, W] uint8 that returns its scores, the batches)."""
    how = VARIANTS[variant]
    layout = torch.channels_last if how.channels_last else torch.contiguous_format
    pixels = torch.from_numpy(timing.pictures(_BATCHES * batch, shape)).permute(0, 3, 1, 2).to(device)
    generator = Generator(shape, *sizes)
    reinitialize(generator)
    generator = generator.to(device).eval() if variant == EAGER else folded(generator).to(device)
    if how.channels_last:
        generator.to(memory_format=torch.channels_last)
    function = _compiled(score, device, how) if how.compiled else score

    @torch.no_grad()
    def step(raw: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16 and variant != EAGER):
            return function(generator, _unit(raw, layout))

    return step, [chunk.contiguous(memory_format=layout) for chunk in pixels.chunk(_BATCHES)]


def _unit(raw: Tensor, layout: torch.memory_format) -> Tensor:
    return raw.to(torch.float32, memory_format=layout).mul_(2 / 255).sub_(1)


def side(
    work: str,
    shape: Sequence[int],
    batch: int,
    variant: str,
    device: str = "cpu",
    images: int = 4096,
    latent: int = 100,
    features: int = 64,
    bfloat16: bool = False,
) -> timing.Side:
    """Prepares `work` ("train" or "score") as this variant does it, ready to be measured.

    As with ours, images lie on the device as uint8; a step of training gathers its batch, and both scale. A batch of
    scores is waited for before the next is begun; training waits where it has to, the original at every step.
    """
    how = VARIANTS[variant]
    torch.set_num_threads(timing.cores())
    timing.allow_tf32(device)
    sizes = latent, features
    if work == "train":
        step, arguments = _training(shape, batch, variant, device, images, sizes, bfloat16)
    else:
        step, arguments = _scoring(shape, batch, variant, device, sizes, bfloat16)
    synchronise = torch.cuda.synchronize if device == "cuda" else lambda: None
    last = []

    def run(steps: int) -> None:
        # The setting is global; the original leaves cuDNN's search for the fastest kernel off.
        torch.backends.cudnn.benchmark = variant != EAGER
        for i in range(steps):
            if how.compiled and device == "cuda":
                torch.compiler.cudagraph_mark_step_begin()
            result = step(arguments[i % len(arguments)])
            if work == "score":
                synchronise()
        synchronise()
        last[:] = [result]

    begin = time.perf_counter()
    if how.graph:
        torch.backends.cudnn.benchmark = True
        step = _captured(step, arguments[0])
    run(1)
    return timing.Side(
        run,
        finite=lambda: bool(torch.isfinite(last[0]).all()),
        compile_s=time.perf_counter() - begin,
        device_peak=torch.cuda.max_memory_allocated if device == "cuda" else None,
        facts={"words": how.words},
    )
