"""The detector in use: from raw pixels to a score, a p-value and a verdict, one compiled program for everything."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ganomaly_jax.core import config as config_module
from ganomaly_jax.core import config_values, sealed_folder
from ganomaly_jax.core.config import Data
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.progress import track
from ganomaly_jax.data import modalities
from ganomaly_jax.data.images import files as image_files
from ganomaly_jax.data.images import modality as images_modality
from ganomaly_jax.data.modality import InputSpec, Modality
from ganomaly_jax.data.rows.tables import as_text
from ganomaly_jax.data.words import Words
from ganomaly_jax.parallel import sharding
from ganomaly_jax.runs import layout, sealed_pytree, sweep
from ganomaly_jax.scoring import adapters, inference
from ganomaly_jax.scoring import calibration as scoring_calibration
from ganomaly_jax.scoring.adapters import Adapter
from ganomaly_jax.scoring.calibration import Calibration

# Of raw pixels of large images that are held at once.
_BLOCK_BYTES = 2**26
# In `Scorer.provenance`: the threshold was set after the training.
RECALIBRATED = "recalibrated"


@dataclasses.dataclass(frozen=True, eq=False)
class Judgement:
    """What is said of n images: `scores` [n] and `p_values` [n] float32 (NaN where invalid), `verdicts` n words."""

    scores: np.ndarray
    p_values: np.ndarray
    verdicts: list[str]


@dataclasses.dataclass(frozen=True, eq=False)
class JudgedPaths:
    """What is said of the items in some files, one after the other."""

    names: list[str]
    """What each item is called: a file, or a place in one."""
    judged: Judgement
    reasons: list[str]
    """Why a verdict is `invalid`, otherwise empty."""
    notes: list[str] = dataclasses.field(default_factory=list)
    """What the user should know, a sentence each."""
    detail: Any = None
    """What only the modality's own entry in the report's table reads."""


@dataclasses.dataclass(frozen=True, eq=False)
class Scorer:
    """A trained detector, its preprocessing and its calibration. Made by `load`; call it with images.

    `dtype`, `low` and `high` are those of the training images: the type of the pixels and the values that become -1
    and +1.
    """

    detector: Adapter
    variables: dict[str, Any]
    """`detector`: what `detector.outputs` takes; `statistics`: what `scores.fit` found, empty where the score needs
    none; `calibration`: the sorted scores [n] of the calibration images."""
    config: config_module.Config
    dtype: str
    low: Any
    high: Any
    calibration: Calibration
    residual_max: float
    """End of the colour scale of residual maps: 99.9 % of the calibration pixels have a smaller |x - x_hat|."""
    provenance: dict[str, Any]
    map_threshold: float = math.inf
    """`maps.SHARE` of the pixels of the calibration images have less than this in `maps.residual_map`."""
    feature_names: tuple[str, ...] = ()
    """Names of the last axis of what goes in, where it has any: of rows the sensors; `low` and `high` have a value for
    each."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Returns the shape of one input: (H, W, C), (D,) of a row, (T, D) of a window, or (T,) of a waveform."""
        return self.detector.shape

    @property
    def modality(self) -> Modality:
        """Returns the modality: images, rows of sensors, or sound."""
        return modalities.of(self.config.data)

    @property
    def words(self) -> Words:
        """Returns the modality's words for its items."""
        return self.modality.words(self.config.data)

    @property
    def spec(self) -> InputSpec:
        """Returns what it accepts as input."""
        return InputSpec(self.input_shape, *self.pixels, self.config.data, self.feature_names)

    @property
    def block(self) -> int:
        """Images that are held at once at most, a size of `program.BUCKETS`: fewer where they are large."""
        if not self.detector.preprocessing.bounded:
            return inference.BUCKETS[-1]
        size = math.prod(self.input_shape) * np.dtype(self.dtype).itemsize
        return max((size_of for size_of in inference.BUCKETS if size_of * size <= _BLOCK_BYTES), default=1)

    @property
    def threshold(self) -> float:
        """Scores above it are anomalous."""
        return self.calibration.threshold

    @property
    def pixels(self) -> tuple[str, Any, Any]:
        """Returns (dtype, low, high) of the training images."""
        return self.dtype, self.low, self.high

    def unit(self, x: Array) -> Array:
        """Converts raw pixels [B, H, W, C] to the networks' inputs, float32 in [-1, 1]. Pure.

        The type says what the values mean: that of the training images is scaled as they were; uint8 and uint16
        otherwise span their type; other floating point is taken as being in [-1, 1] already.

        Waveforms [B, T] become [B, bands, frames, 1], see `spectrogram.patches`.
        """
        return self.detector.preprocessing.unit(self.pixels, x)

    def outputs(self, variables: dict[str, Any], x: Array) -> dict[str, Array]:
        """Computes `score` and `p_value` [B] of raw images x [B, H, W, C]; NaN if a pixel is not finite. Pure."""
        return inference.scored(self.detector, self.parts, self.pixels, variables, x)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of what the score is made of, see `scores.PARTS`."""
        return config_module.score_parts(self.config)

    def reading(self, source: str) -> Data:
        """Returns the data settings to read another source like the training data; of tables by the sensors' names."""
        found = dataclasses.replace(self.config.data, source=source)
        return dataclasses.replace(found, columns=as_text(self.feature_names)) if self.feature_names else found

    @functools.cached_property
    def _outputs(self) -> Callable[..., Any]:
        return functools.partial(inference.compiled, self.detector, self.parts, self.pixels)

    @functools.cached_property
    def _mesh(self) -> Any:
        """Returns the devices of this process, at most as many as the training used."""
        return sharding.local_mesh(min(self.config.mesh.devices, len(sharding.local_devices())))

    @functools.cached_property
    def _everywhere(self) -> dict[str, Any]:
        return jax.device_put(self.variables, sharding.replicated(self._mesh))

    def function(self) -> tuple[Callable[[dict[str, Any], Array], Array], dict[str, Any]]:
        """Returns (fn, variables): `fn(variables, x)` is the pure scoring function, x as `unit` takes it, scores [B].

        It works under jit, vmap, grad, scan and shard_map of another program. It checks shape and type only.
        """
        return (lambda variables, x: self.outputs(variables, x)["score"]), self.variables

    def __call__(self, images: Any) -> np.ndarray:
        """Scores [B] float32, higher is more anomalous, NaN for an image that is invalid.

        `images`: an array [B, H, W, C] or [B, H, W] (see `unit` for what its values mean; other sizes are resized as
        in training) or a sequence of image files. Of sound: waveforms [B, T] or recordings, see `audio.as_input`.

        Raises:
          UserError: another number of channels or type, floating point outside [-1, 1], no images.
        """
        return self.judge(images).scores

    def judge(self, images: Any, progress: bool = False) -> Judgement:
        """Scores, p-values and verdicts; `images` as in a call, or read on demand. `progress` is shown of long work."""
        blocks, total = self.modality.blocks(images, self.spec, self.block)
        return self._judged(self._shown(blocks, total, progress))

    def _shown(self, blocks: Iterable[np.ndarray], total: int, progress: bool) -> Iterable[np.ndarray]:
        return track(blocks, total, self.words.item, not progress, "scored")

    def judge_files(
        self, paths: Sequence[Any], workers: int = image_files.WORKERS, progress: bool = False
    ) -> tuple[Judgement, list[tuple[str, str]]]:
        """Scores any number of image files: scores, p-values and verdicts, and (path, reason) of unreadable ones.

        While the device scores a block of files, `workers` threads decode the next ones. `progress`: as in `judge`.

        Raises:
          UserError: no files.
        """
        if not len(paths):
            raise UserError("no image files: expected at least one")
        problems: list[tuple[str, str]] = []
        blocks = images_modality.file_blocks(paths, self.spec, self.block, problems, workers)
        with contextlib.closing(blocks):
            return self._judged(self._shown(blocks, len(paths), progress)), problems

    def reconstruct(self, images: Any) -> tuple[np.ndarray, np.ndarray]:
        """Returns (x, x_hat), each [B, H, W, C] float32 in [-1, 1], computed in one batch."""
        return self.explained(images)[:2]

    def explained(self, images: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns (x, x_hat, map): as `reconstruct`, and their residual map [B, H, W] float32 in 0..2."""
        raw = self.as_input(images)
        found = inference.explained(
            self.detector, self.pixels, self.variables, inference.pad(raw, inference.bucket(len(raw)))
        )
        x, x_hat, values = (np.asarray(leaf)[: len(raw)] for leaf in found)
        return x, x_hat, values

    def _judged(self, blocks: Iterable[np.ndarray]) -> Judgement:
        """Scores inputs in blocks no larger than a bucket, full ones one per device."""
        parts: list[dict[str, np.ndarray]] = []
        pending: tuple[dict[str, Array], np.ndarray] | None = None
        for group in itertools.chain(inference.groups(blocks, self._mesh.size), (None,)):
            started = None if group is None else (self._started(*group), inference.rows(group))
            if pending is not None:  # one group late: the device has its next work before the host waits for anything
                parts.append({name: np.asarray(value)[pending[1]] for name, value in pending[0].items()})
            pending = started
        scores, p_values = (np.concatenate([part[name] for part in parts]) for name in ("score", "p_value"))
        return Judgement(
            scores, p_values, scoring_calibration.verdicts(scores, self.threshold, self.calibration.review)
        )

    def _started(self, *blocks: np.ndarray) -> dict[str, Array]:
        """Starts `outputs` of one block, or of full ones side by side, without waiting for the results.

        Each device then runs the very program that one device runs alone, so that the scores are the same to the bit.
        """
        if len(blocks) == 1:
            return self._outputs(self.variables, inference.pad(blocks[0], inference.bucket(len(blocks[0]))))
        size, devices = inference.BUCKETS[-1], self._mesh.size
        own = {i: inference.pad(blocks[min(i, len(blocks) - 1)], size) for i in range(devices)}
        x = sharding.from_local_shards(own, (devices * size, *blocks[0].shape[1:]), self._mesh)
        return inference.compiled_side_by_side(self._mesh, self.detector, self.parts, self.pixels, self._everywhere, x)

    def as_input(self, given: Any) -> np.ndarray:
        """Returns what a call takes as the compiled program takes it, raw items `[n, *input_shape]`.

        Raises:
          UserError: as a call.
        """
        return self.modality.as_input(given, self.spec)

    def read(self, paths: Sequence[Any], progress: bool = False) -> tuple[np.ndarray, list[tuple[str, str]]]:
        """Reads image files as [n, H, W, C] of the training dtype, and (path, reason) of unreadable ones.

        An unreadable one is there as NaN (float32 then), so that it is scored as invalid and keeps its place.
        """
        return images_modality.read_files(paths, self.spec, progress)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Scorer:
        """Loads a detector, as `ganomaly_jax.load`."""
        return load(directory)

    def save(self, directory: Path) -> None:
        """Writes a self-contained folder that `load` reads: weights, configuration, calibration.

        Arrays (Orbax), JSON and a manifest with the sha256 of each file; no pickle, no code.

        Raises:
          UserError: it cannot be written.
        """
        meta = {
            "format": 1,
            "config": config_values.to_dict(self.config),
            "dtype": self.dtype,
            "low": self.low,
            "high": self.high,
            "calibration": dataclasses.asdict(self.calibration),
            "residual_max": self.residual_max,
            "map_threshold": self.map_threshold,
            "provenance": self.provenance,
            **({"columns": self.feature_names} if self.feature_names else {}),
        }
        sealed_pytree.write(directory, self.variables, meta)


def load(directory: str | os.PathLike[str]) -> Scorer:
    """Loads the detector of a run's folder, or a detector folder.

    A folder from somebody else cannot run code here: what is read are hashes, JSON values that become numbers and words
    of the configuration, and arrays; nothing in it is unpickled, imported or evaluated. The hashes show damage, not who
    wrote it: a stranger's detector may still have any weights and any threshold.

    Raises:
      UserError: there is none, or one whose parts do not fit together.
      DamagedError: it is incomplete or was altered.
    """
    folder = Path(directory)
    if (folder / layout.DETECTOR).is_dir():
        folder = folder / layout.DETECTOR
    elif team := sweep.read_members(folder):
        raise UserError(
            f"{directory} holds {len(team)} members: name one of them, such as {sweep.member_folder(folder, team[0])}"
        )
    elif not (folder / sealed_folder.MANIFEST).exists():
        where = "is no run's folder" if folder.is_dir() else "does not exist"
        raise UserError(
            f"{directory} {where}: expected the --workdir of a finished `ganomaly train`, or its {layout.DETECTOR}/"
        )
    sharding.local_devices()  # a backend that is not there is told before anything is put on it
    variables, meta = sealed_pytree.read(folder)
    variables.setdefault("statistics", {})  # an empty dict leaves no trace in a checkpoint
    try:
        settings = config_values.from_dict(meta["config"])
        if np.dtype(meta["dtype"]).kind not in "uf":
            raise ValueError(f"pixels of type {meta['dtype']}")
        scorer = Scorer(
            detector=adapters.from_config(settings),
            variables=jax.device_put(variables),
            config=settings,
            dtype=str(np.dtype(meta["dtype"])),
            low=_range(meta["low"]),
            high=_range(meta["high"]),
            calibration=Calibration(**meta["calibration"]),
            residual_max=meta["residual_max"],
            # A detector of before has the quantile of the differences on one scale, which is seldom less.
            map_threshold=meta.get("map_threshold", meta["residual_max"]),
            provenance=meta["provenance"],
            feature_names=tuple(map(str, meta.get("columns", ()))),
        )
        if len(scorer.feature_names) not in (0, scorer.input_shape[-1]):
            raise ValueError(f"{len(scorer.feature_names)} names of features for {scorer.input_shape}")
        # Sizes that do not fit would show only at the first image; nothing is computed here, and that one finds the
        # program traced.
        one = jax.ShapeDtypeStruct((1, *scorer.input_shape), jnp.dtype(scorer.dtype))
        jax.eval_shape(scorer._outputs, scorer.variables, one)
    except Exception as error:  # whatever a folder that was sealed like ours can hold
        what = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise UserError(f"{folder} is no detector that this version can use ({what}); write it again") from error
    return scorer


def _range(stored: Any) -> float | tuple[float, ...]:
    """Returns a stored `low` or `high`: a number, or one per feature or band."""
    return tuple(map(float, stored)) if isinstance(stored, list) else float(stored)
