"""GANomaly in JAX and Flax: train an anomaly detector on normal data alone, score anything, know what a score means.

    import ganomaly_jax as gj
    config = gj.Config()
    config.train.epochs = 5
    scorer = gj.train(config, "runs/mine", arrays=images)   # or config.data.source = "folder"
    scores = scorer(images)                                 # [B], higher is more anomalous

Names are loaded on first use, so that `import ganomaly_jax` and `ganomaly --help` do not wait for JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ganomaly_jax.autoencoder import DenoisingAutoencoder
    from ganomaly_jax.config import Config
    from ganomaly_jax.convert import from_pytorch, read_pytorch
    from ganomaly_jax.detector import Detector, TrainState
    from ganomaly_jax.errors import DamagedError, DivergedError, StoppedError, UserError
    from ganomaly_jax.evaluation import Evaluation, evaluate, evaluate_members
    from ganomaly_jax.exporting import export
    from ganomaly_jax.ganomaly import Ganomaly
    from ganomaly_jax.importing import import_pytorch
    from ganomaly_jax.networks import Decoder, Discriminator, Encoder, Generator
    from ganomaly_jax.scorer import Scorer, load
    from ganomaly_jax.training import train, train_members

_HOME = {
    "autoencoder": ("DenoisingAutoencoder",),
    "config": ("Config",),
    "convert": ("from_pytorch", "read_pytorch"),
    "detector": ("Detector", "TrainState"),
    "errors": ("DamagedError", "DivergedError", "StoppedError", "UserError"),
    "evaluation": ("Evaluation", "evaluate", "evaluate_members"),
    "exporting": ("export",),
    "ganomaly": ("Ganomaly",),
    "importing": ("import_pytorch",),
    "networks": ("Decoder", "Discriminator", "Encoder", "Generator"),
    "scorer": ("Scorer", "load"),
    "training": ("train", "train_members"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
__all__ = [
    "Config",
    "DamagedError",
    "Decoder",
    "DenoisingAutoencoder",
    "Detector",
    "Discriminator",
    "DivergedError",
    "Encoder",
    "Evaluation",
    "Ganomaly",
    "Generator",
    "Scorer",
    "StoppedError",
    "TrainState",
    "UserError",
    "evaluate",
    "evaluate_members",
    "export",
    "from_pytorch",
    "import_pytorch",
    "load",
    "read_pytorch",
    "train",
    "train_members",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'ganomaly_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ganomaly_jax.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
