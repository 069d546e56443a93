"""GANomaly in PyTorch: the peer of the benchmarks, as the authors' code computes it, and tuned.

Written from the facts of the paper and the names in the authors' state dicts, so that their weights load with
`load_state_dict`; tests/test_benchmarks.py holds it against the values recorded from their code. Images are
[B, C, H, W] in [-1, 1], square, the side a power of two from 16. This module needs torch and numpy only, so that the
memory of a process that runs it is PyTorch's alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from benchmarks import timing

_DISCRIMINATOR_HAS_WON = 1e-5
_INDEX_ROWS = 128
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
    EAGER: Variant("eager as the original runs: contiguous, each discriminator pass twice, Adam, L_D read every step", False),
    "contiguous": Variant("contiguous, shared discriminator passes, fused Adam, no reading on the host", False),
    "channels_last": Variant("the same, channels_last"),
    "compile": Variant("the same, torch.compile of the whole step (reduce-overhead on a GPU)", compiled=True),
    "graph": Variant("channels_last, the whole step with Adam in one CUDA graph", graph=True),
    "compile_graph": Variant("torch.compile, the whole step with Adam in one CUDA graph", compiled=True, graph=True),
}


def tuned(device: str, compiled: bool = True) -> list[str]:
    """The variants that can be strongest on `device` ("cpu" or "cuda"), without those that compile if so asked."""
    names = [name for name in VARIANTS if name != EAGER]
    return [n for n in names if (device == "cuda" or not VARIANTS[n].graph) and (compiled or not VARIANTS[n].compiled)]


def _norm(features: int) -> nn.Module:
    return nn.BatchNorm2d(features)


def _encoder_layers(side: int, channels: int, out: int, features: int, extra: int) -> Iterator[tuple[str, nn.Module]]:
    """(name in the authors' state dict, layer); the head comes last."""
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


def _decoder_layers(side: int, channels: int, latent: int, features: int, extra: int) -> Iterator[tuple[str, nn.Module]]:
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
def redraw(network: nn.Module) -> None:
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
    variant: Variant = VARIANTS[EAGER],
) -> Peer:
    """A peer for images of `shape` (H, W, C), its weights drawn as the paper does."""
    generator, discriminator = Generator(shape, latent, features, extra), Discriminator(shape, features, extra)
    options: dict[str, Any] = {} if variant is VARIANTS[EAGER] else {"fused": True, "capturable": variant.graph}
    optimizers = []
    for network in (generator, discriminator):
        redraw(network)
        network.to(device)
        if variant.channels_last:
            network.to(memory_format=torch.channels_last)
        optimizers.append(torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999), **options))
    return Peer(generator, discriminator, *optimizers)


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
    """One step as the original computes it; returns the losses before it.

    Each discriminator pass runs twice, once for each loss; the generator's loss also computes gradients of the
    discriminator's weights, which are thrown away; and the host reads L_D, for a discriminator that has won.
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
        redraw(discriminator)
    return {name: loss.detach() for name, loss in losses.items()}


def shared_gradients(peer: Peer, x: Tensor, autocast: Any) -> tuple[dict[str, Tensor], Any, Any]:
    """(losses, gradients of the generator, of the discriminator): every pass once, no gradient that is thrown away.

    The discriminator's running statistics, which nothing reads, move twice a step in place of four times.
    """
    generator, discriminator = peer.generator, peer.discriminator
    with autocast:
        made = generator(x)
        p_real, real = discriminator(x)
        p_fake, fake = discriminator(made[0])
    # Losses in float32, as ours.
    losses = _generator_losses(x, [t.float() for t in made], real.float(), fake.float())
    losses["discriminator"] = _discriminator_loss(p_real.float(), p_fake.float())
    g_grads = torch.autograd.grad(losses["generator"], list(generator.parameters()), retain_graph=True)
    d_grads = torch.autograd.grad(losses["discriminator"], list(discriminator.parameters()))
    return {name: loss.detach() for name, loss in losses.items()}, g_grads, d_grads


def shared_step(
    peer: Peer, x: Tensor, autocast: Any = None, gradients: Callable[..., Any] = shared_gradients
) -> dict[str, Tensor]:
    """One step with shared passes; returns the losses before it.

    L_D is not read: whoever trains so looks at it now and then, which costs nothing that could be measured.
    """
    losses, *grads = gradients(peer, x, autocast or contextlib.nullcontext())
    for network, network_grads in zip((peer.generator, peer.discriminator), grads, strict=True):
        for parameter, gradient in zip(network.parameters(), network_grads, strict=True):
            parameter.grad = gradient
    peer.g_optimizer.step()
    peer.d_optimizer.step()
    return losses


def score(generator: nn.Module, x: Tensor) -> Tensor:
    """A(x) [B]: the mean over the latent of (z - z_hat)^2; the generator in eval mode, so with running statistics."""
    _, z, z_hat = generator(x)
    return torch.mean((z.float() - z_hat.float()) ** 2, dim=1).flatten()


def folded(generator: Generator) -> Generator:
    """The generator in eval mode, its batch norms folded into the convolutions before them."""
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    for part in (generator.encoder1, generator.decoder, generator.encoder2):
        main = part.main
        for before, name in list(zip(main._modules, list(main._modules)[1:], strict=False)):
            if isinstance(main._modules[name], nn.BatchNorm2d):
                conv = main._modules[before]
                fused = fuse_conv_bn_eval(conv, main._modules[name], isinstance(conv, nn.ConvTranspose2d))
                main._modules[before], main._modules[name] = fused, nn.Identity()
    return generator


def _compiled(function: Callable[..., Any], device: str, graph: bool) -> Callable[..., Any]:
    # A CUDA graph of the whole step takes the place of torch.compile's own graphs.
    mode = "reduce-overhead" if device == "cuda" and not graph else "default"
    return torch.compile(function, dynamic=False, fullgraph=True, mode=mode)


def _compiled_gradients(device: str, graph: bool) -> Callable[..., Any]:
    import torch._dynamo

    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        raise RuntimeError(f"torch {torch.__version__} cannot compile a step with two gradients in it; 2.11 can")
    torch._dynamo.config.trace_autograd_ops = True
    return _compiled(shared_gradients, device, graph)


def _captured(step: Callable[[Tensor], Any], index: Tensor) -> Callable[[Tensor], Any]:
    """`step` recorded once as a CUDA graph, whose replay takes another index."""
    static = index.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            step(static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step(static)

    def replay(index: Tensor) -> Any:
        static.copy_(index)
        graph.replay()
        return result

    return replay


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
    """`work` ("train" or "score") of this variant, ready to be measured: warm and, where it is so, compiled.

    The data set lies on the device as uint8; each step gathers its batch from it and scales it, as ours does.
    """
    how = VARIANTS[variant]
    torch.set_num_threads(timing.cores())
    torch.set_float32_matmul_precision("high")
    layout = torch.channels_last if how.channels_last else torch.contiguous_format
    pixels = torch.from_numpy(timing.pictures(images, shape).transpose(0, 3, 1, 2)).to(device, memory_format=layout)
    rows = np.random.default_rng(1).integers(0, images, (_INDEX_ROWS, batch))
    index = torch.from_numpy(rows).to(device)
    autocast = torch.autocast(device, torch.bfloat16, enabled=bfloat16 and variant != EAGER)
    peer = make(shape, latent, features, 0, device, how)
    begin = time.monotonic()

    def unit(rows: Tensor) -> Tensor:
        return pixels.index_select(0, rows).to(torch.float32, memory_format=layout).mul_(2 / 255).sub_(1)

    if work == "train":
        if variant == EAGER:
            step = lambda rows: original_step(peer, unit(rows))  # noqa: E731
        else:
            gradients = _compiled_gradients(device, how.graph) if how.compiled else shared_gradients
            step = lambda rows: shared_step(peer, unit(rows), autocast, gradients)  # noqa: E731
    else:
        generator = peer.generator.eval()
        if variant != EAGER:
            generator = folded(generator)
        function = _compiled(score, device, how.graph) if how.compiled else score

        @torch.no_grad()
        def step(rows: Tensor) -> Tensor:
            with autocast:
                return function(generator, unit(rows))

    synchronise = torch.cuda.synchronize if device == "cuda" else lambda: None
    with torch.backends.cudnn.flags(benchmark=variant != EAGER):
        if how.graph:
            step = _captured(step, index[0])
        step(index[0])
        synchronise()
    compile_s = time.monotonic() - begin

    def run(steps: int) -> None:
        # The flag is global; the original leaves cuDNN's search off.
        with torch.backends.cudnn.flags(benchmark=variant != EAGER):
            for i in range(steps):
                if how.compiled and device == "cuda":
                    torch.compiler.cudagraph_mark_step_begin()
                result = step(index[i % _INDEX_ROWS])
                if work == "score":
                    synchronise()
            synchronise()
        check(result)

    ...
