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

__version__ = "0.2.0"

if TYPE_CHECKING:
    from ganomaly_jax.core.config import Config as Config
    from ganomaly_jax.core.errors import DamagedError as DamagedError
    from ganomaly_jax.core.errors import DivergedError as DivergedError
    from ganomaly_jax.core.errors import StoppedError as StoppedError
    from ganomaly_jax.core.errors import UserError as UserError
    from ganomaly_jax.core.features import register_features as register_features
    from ganomaly_jax.deploy.export import export as export
    from ganomaly_jax.deploy.import_pytorch import import_pytorch as import_pytorch
    from ganomaly_jax.evaluation.comparison import Comparison as Comparison
    from ganomaly_jax.evaluation.comparison import compare as compare
    from ganomaly_jax.evaluation.evaluate import Evaluation as Evaluation
    from ganomaly_jax.evaluation.evaluate import evaluate as evaluate
    from ganomaly_jax.evaluation.evaluate import evaluate_members as evaluate_members
    from ganomaly_jax.model.autoencoder import DenoisingAutoencoder as DenoisingAutoencoder
    from ganomaly_jax.model.ganomaly import Ganomaly as Ganomaly
    from ganomaly_jax.model.networks import Decoder as Decoder
    from ganomaly_jax.model.networks import Discriminator as Discriminator
    from ganomaly_jax.model.networks import Encoder as Encoder
    from ganomaly_jax.model.networks import Generator as Generator
    from ganomaly_jax.model.protocol import Detector as Detector
    from ganomaly_jax.model.protocol import TrainState as TrainState
    from ganomaly_jax.model.pytorch import from_pytorch as from_pytorch
    from ganomaly_jax.model.pytorch import read_pytorch as read_pytorch
    from ganomaly_jax.report.explanation import explain as explain
    from ganomaly_jax.report.explanation import picture as picture
    from ganomaly_jax.scoring.attribution import gradient as gradient
    from ganomaly_jax.scoring.attribution import integrated_gradients as integrated_gradients
    from ganomaly_jax.scoring.attribution import residual_maps as residual_maps
    from ganomaly_jax.scoring.judgement import Judgement as Judgement
    from ganomaly_jax.scoring.recalibration import recalibrate as recalibrate
    from ganomaly_jax.scoring.scorer import Scorer as Scorer
    from ganomaly_jax.scoring.scorer import load as load
    from ganomaly_jax.scoring.sensors import contributions as contributions
    from ganomaly_jax.streaming.compiled_step import Streams as Streams
    from ganomaly_jax.streaming.compiled_step import advance as advance
    from ganomaly_jax.streaming.compiled_step import compile_streams as compile_streams
    from ganomaly_jax.training.cost import Plan as Plan
    from ganomaly_jax.training.cost import plan as plan
    from ganomaly_jax.training.data_check import Check as Check
    from ganomaly_jax.training.data_check import check as check
    from ganomaly_jax.training.trainer import train as train
    from ganomaly_jax.training.trainer import train_members as train_members
    from ganomaly_jax.training.update import Update as Update
    from ganomaly_jax.training.update import update as update

# The room and module of each public name; a test holds it to what the type checker reads above.
_HOME = {
    "core.config": ("Config",),
    "core.errors": ("DamagedError", "DivergedError", "StoppedError", "UserError"),
    "core.features": ("register_features",),
    "deploy.export": ("export",),
    "deploy.import_pytorch": ("import_pytorch",),
    "evaluation.comparison": ("Comparison", "compare"),
    "evaluation.evaluate": ("Evaluation", "evaluate", "evaluate_members"),
    "model.autoencoder": ("DenoisingAutoencoder",),
    "model.ganomaly": ("Ganomaly",),
    "model.networks": ("Decoder", "Discriminator", "Encoder", "Generator"),
    "model.protocol": ("Detector", "TrainState"),
    "model.pytorch": ("from_pytorch", "read_pytorch"),
    "report.explanation": ("explain", "picture"),
    "scoring.attribution": ("gradient", "integrated_gradients", "residual_maps"),
    "scoring.judgement": ("Judgement",),
    "scoring.recalibration": ("recalibrate",),
    "scoring.scorer": ("Scorer", "load"),
    "scoring.sensors": ("contributions",),
    "streaming.compiled_step": ("Streams", "advance", "compile_streams"),
    "training.cost": ("Plan", "plan"),
    "training.data_check": ("Check", "check"),
    "training.trainer": ("train", "train_members"),
    "training.update": ("Update", "update"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'ganomaly_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ganomaly_jax.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
