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
    from ganomaly_jax.core.config import Config
    from ganomaly_jax.core.errors import DamagedError, DivergedError, StoppedError, UserError
    from ganomaly_jax.deploy.export import export
    from ganomaly_jax.deploy.import_pytorch import import_pytorch
    from ganomaly_jax.evaluation.evaluate import Evaluation, evaluate, evaluate_members
    from ganomaly_jax.model.autoencoder import DenoisingAutoencoder
    from ganomaly_jax.model.ganomaly import Ganomaly
    from ganomaly_jax.model.networks import Decoder, Discriminator, Encoder, Generator
    from ganomaly_jax.model.protocol import Detector, TrainState
    from ganomaly_jax.model.pytorch import from_pytorch, read_pytorch
    from ganomaly_jax.scoring.scorer import Scorer, load
    from ganomaly_jax.training.trainer import train, train_members

_HOME = {
    "model.autoencoder": ("DenoisingAutoencoder",),
    "core.config": ("Config",),
    "model.pytorch": ("from_pytorch", "read_pytorch"),
    "model.protocol": ("Detector", "TrainState"),
    "core.errors": ("DamagedError", "DivergedError", "StoppedError", "UserError"),
    "evaluation.evaluate": ("Evaluation", "evaluate", "evaluate_members"),
    "deploy.export": ("export",),
    "model.ganomaly": ("Ganomaly",),
    "deploy.import_pytorch": ("import_pytorch",),
    "model.networks": ("Decoder", "Discriminator", "Encoder", "Generator"),
    "scoring.scorer": ("Scorer", "load"),
    "training.trainer": ("train", "train_members"),
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
