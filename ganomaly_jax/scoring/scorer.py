"""The scorer: one compiled program from raw items to scores and p-values, and the verdicts that follow from them."""

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

from ganomaly_jax.core import calls, sealed_folder, validation
from ganomaly_jax.core import config as config_module
from ganomaly_jax.core.config import Data
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.progress import track
from ganomaly_jax.data import modalities
from ganomaly_jax.data.images import files as image_files
from ganomaly_jax.data.images import modality as images_modality
from ganomaly_jax.data.images import value_range as value_range_module
from ganomaly_jax.data.images.value_range import Range
from ganomaly_jax.data.modality import InputSpec, Modality
from ganomaly_jax.data.rows.tables import as_text
from ganomaly_jax.data.words import Words
from ganomaly_jax.parallel import sharding
from ganomaly_jax.runs import layout, sealed_pytree, sweep
from ganomaly_jax.scoring import adapters, detector_meta, inference
from ganomaly_jax.scoring import calibration as scoring_calibration
from ganomaly_jax.scoring.adapters import Adapter
from ganomaly_jax.scoring.calibration import Calibration
from ganomaly_jax.scoring.judgement import Judgement

# The largest amount of raw pixels held at once for large images.
_BLOCK_BYTES = 2**26
# Key of `Scorer.provenance`: the threshold was set again after the training.
RECALIBRATED = "recalibrated"


@dataclasses.dataclass(frozen=True, eq=False)
class Scorer:
    """Scores items with a trained detector, its preprocessing and its calibration.

    Load one with `ganomaly_jax.load` and call it with images, rows or waveforms.
    """

    detector: Adapter
    """The adapter of the trained detector."""
    variables: dict[str, Any]
    """`detector`: the variables of the network; `statistics`: the result of `scores.fit`, empty if the score needs
    none; `calibration`: the sorted scores [n] of the calibration items."""
    config: config_module.Config
    """The resolved configuration of the training."""
    dtype: str
    """The dtype of the training items."""
    low: Any
    """The value of the training items that becomes -1; for rows one per sensor."""
    high: Any
    """The value that becomes +1, likewise."""
    calibration: Calibration
    """The threshold and how it was set."""
    residual_max: float
    """The end of the colour scale of residuals, their 99.9 % quantile over the pixels of the calibration images."""
    provenance: dict[str, Any]
    """Where the detector comes from, in plain values."""
    map_threshold: float = math.inf
    """The threshold of residual maps, see `residual_map.threshold`."""
    feature_names: tuple[str, ...] = ()
    """The names of the last axis of the inputs if it has any, such as the sensors of rows."""
    value_range: Range | None = None
    """Default range of floating-point images for a detector of integer pixels; not stored."""

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
        """Returns the specification of the inputs that a call accepts."""
        return InputSpec(self.input_shape, *self.pixels, self.config.data, self.feature_names, self.value_range)

    @property
    def block(self) -> int:
        """Returns the largest number of items held at once, one of `inference.BUCKETS`; fewer for large images."""
        if not self.detector.preprocessing.bounded:
            return inference.BUCKETS[-1]
        size = math.prod(self.input_shape) * np.dtype(self.dtype).itemsize
        return max((size_of for size_of in inference.BUCKETS if size_of * size <= _BLOCK_BYTES), default=1)

    @property
    def threshold(self) -> float:
        """Returns the threshold; scores above it are anomalous."""
        return self.calibration.threshold

    @property
    def pixels(self) -> tuple[str, Any, Any]:
        """Returns (dtype, low, high) of the training images."""
        return self.dtype, self.low, self.high

    def unit(self, x: Array) -> Array:
        """Converts raw items to inputs of the network. Pure.

        The dtype determines the scaling: items of the training dtype are scaled as in training, other uint8 and uint16
        images by the range of their dtype, and other floating-point images are expected in [-1, 1]; values are
        not checked here.

        Args:
          x: [B, *input_shape].

        Returns:
          float32 in [-1, 1], shaped as x; waveforms [B, T] become spectrograms [B, bands, frames, 1].
        """
        return self.detector.preprocessing.unit(self.pixels, x)

    def outputs(self, variables: dict[str, Any], x: Array) -> dict[str, Array]:
        """Computes `score` and `p_value` [B] float32 of raw items [B, *input_shape], see `unit`. Pure.

        Both are NaN for an item with a value that is not finite; `variables` are those of the scorer.
        """
        return inference.scored(self.detector, self.parts, self.pixels, variables, x)

    @property
    def parts(self) -> tuple[str, ...]:
        """Returns the names of the parts of the score, see `scores.PARTS`."""
        return config_module.score_parts(self.config)

    def reading(self, source: str) -> Data:
        """Returns the data settings for reading another source like the training data; sensors are read by name."""
        data = dataclasses.replace(self.config.data, source=source)
        return dataclasses.replace(data, columns=as_text(self.feature_names)) if self.feature_names else data

    @functools.cached_property
    def _outputs(self) -> Callable[..., Any]:
        return functools.partial(inference.compiled, self.detector, self.parts, self.pixels)

    @functools.cached_property
    def _mesh(self) -> Any:
        """Returns a mesh of this process's devices, at most as many as the training used."""
        return sharding.local_mesh(min(self.config.mesh.devices, len(sharding.local_devices())))

    @functools.cached_property
    def _everywhere(self) -> dict[str, Any]:
        return jax.device_put(self.variables, sharding.replicated(self._mesh))

    def function(
        self, value_range: Range | None = None
    ) -> tuple[Callable[[dict[str, Any], Array], Array], dict[str, Any]]:
        """Returns the pure scoring function and its variables.

        The function works under jit, vmap, grad, scan and shard_map. It does not validate values.

        Args:
          value_range: range of floating-point images for a detector of integer pixels, such as (0, 1); None: (-1, 1).

        Returns:
          (fn, variables), where `fn(variables, x)` returns the scores [B] float32 of raw items x [B, *input_shape].
        """
        span = value_range_module.checked(value_range, self.dtype) or value_range_module.UNIT

        def score(variables: dict[str, Any], x: Array) -> Array:
            floating = jnp.issubdtype(x.dtype, jnp.floating)
            return self.outputs(variables, value_range_module.scaled(x, span) if floating else x)["score"]

        return score, self.variables

    def with_range(self, value_range: Range | None) -> Scorer:
        """Returns a scorer that takes floating-point images to be in `value_range`; itself for None.

        Raises:
          UserError: it is not a range, or the detector was not trained on integer pixels.
        """
        found = value_range_module.checked(value_range, self.dtype)
        return self if found is None else dataclasses.replace(self, value_range=found)

    def __call__(self, images: Any, value_range: Range | None = None) -> np.ndarray:
        """Scores images, rows, windows or waveforms.

        Args:
          images: an array [B, H, W, C] or [B, H, W] of images, see `unit` for its values, or a sequence of image files;
            other sizes are resized as in training. For sensors rows [B, D] or windows [B, T, D]; for sound waveforms
            [B, T] or recordings.
          value_range: range of floating-point images for a detector of integer pixels, such as (0, 1) or (-1, 1).
            None: an image with a negative value is in [-1, 1]; one in [0, 1] is ambiguous and refused.

        Returns:
          [B] float32, higher is more anomalous; NaN for an invalid item.

        Raises:
          UserError: the number of channels or the dtype does not fit, floating-point images are out of range or
            ambiguous, or there are no items.
        """
        return self.judge(images, value_range=value_range).scores

    def judge(self, images: Any, progress: bool = False, value_range: Range | None = None) -> Judgement:
        """Computes scores, p-values and verdicts of items as in a call, or read on demand; may show progress.

        Raises:
          UserError: as in a call.
        """
        blocks, total = self.modality.blocks(images, self.with_range(value_range).spec, self.block)
        return self._judged(self._tracked(blocks, total, progress))

    def _tracked(self, blocks: Iterable[np.ndarray], total: int, progress: bool) -> Iterable[np.ndarray]:
        return track(blocks, total, self.words.item, not progress, "scored")

    def judge_files(
        self, paths: Sequence[Any], workers: int = image_files.WORKERS, progress: bool = False
    ) -> tuple[Judgement, list[tuple[str, str]]]:
        """Judges any number of image files; while the device scores a block, the next files are decoded.

        Args:
          paths: the image files.
          workers: the number of threads that decode.
          progress: as in `judge`.

        Returns:
          The judgement, and (path, reason) for each unreadable file, which is judged `invalid`.

        Raises:
          UserError: there are no files.
        """
        calls.expect(Sequence, "a list of image files, such as ['a.png', 'b.png']; arrays are for judge", paths=paths)
        if not len(paths):
            raise UserError("no image files: expected at least one")
        problems: list[tuple[str, str]] = []
        blocks = images_modality.file_blocks(paths, self.spec, self.block, problems, workers)
        with contextlib.closing(blocks):
            return self._judged(self._tracked(blocks, len(paths), progress)), problems

    def reconstruct(self, images: Any) -> tuple[np.ndarray, np.ndarray]:
        """Returns (x, x_hat) of items as in a call, computed in one batch: float32 in [-1, 1], as `unit` returns."""
        return self.explained(images)[:2]

    def explained(self, images: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns (x, x_hat, map): as `reconstruct`, and their residual maps, [B, H, W] float32 in 0..2 for images."""
        raw = self.as_input(images)
        outputs = inference.explained(
            self.detector, self.pixels, self.variables, inference.pad(raw, inference.bucket(len(raw)))
        )
        x, x_hat, values = (np.asarray(leaf)[: len(raw)] for leaf in outputs)
        return x, x_hat, values

    def _judged(self, blocks: Iterable[np.ndarray]) -> Judgement:
        """Judges blocks no larger than the largest bucket; full blocks run side by side, one per device."""
        parts: list[dict[str, np.ndarray]] = []
        pending: tuple[dict[str, Array], np.ndarray] | None = None
        for group in itertools.chain(inference.groups(blocks, self._mesh.size), (None,)):
            started = None if group is None else (self._started(*group), inference.rows(group))
            if pending is not None:  # one group late, so that the device always has work while the host waits
                parts.append({name: np.asarray(value)[pending[1]] for name, value in pending[0].items()})
            pending = started
        scores, p_values = (np.concatenate([part[name] for part in parts]) for name in ("score", "p_value"))
        return Judgement(
            scores, p_values, scoring_calibration.verdicts(scores, self.threshold, self.calibration.review)
        )

    def _started(self, *blocks: np.ndarray) -> dict[str, Array]:
        """Starts computing `outputs` for one block, or for full blocks side by side, without waiting for the results.

        Each device runs the same program as a single device would, so that the scores are equal bit for bit.
        """
        if len(blocks) == 1:
            return self._outputs(self.variables, inference.pad(blocks[0], inference.bucket(len(blocks[0]))))
        size, devices = inference.BUCKETS[-1], self._mesh.size
        shards = {i: inference.pad(blocks[min(i, len(blocks) - 1)], size) for i in range(devices)}
        x = sharding.from_local_shards(shards, (devices * size, *blocks[0].shape[1:]), self._mesh)
        return inference.compiled_side_by_side(self._mesh, self.detector, self.parts, self.pixels, self._everywhere, x)

    def as_input(self, images: Any) -> np.ndarray:
        """Converts the argument of a call to raw items `[n, *input_shape]` for the compiled program.

        Raises:
          UserError: as in a call.
        """
        return self.modality.as_input(images, self.spec)

    def read(self, paths: Sequence[Any], progress: bool = False) -> tuple[np.ndarray, list[tuple[str, str]]]:
        """Reads image files as [n, H, W, C] of the training dtype, and (path, reason) for each unreadable file.

        An unreadable image is filled with NaN, all images being float32 then, so that it is judged `invalid`.
        """
        return images_modality.read_files(paths, self.spec, progress)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Scorer:
        """Loads a detector, see `ganomaly_jax.load`."""
        return load(directory)

    def save(self, directory: Path) -> None:
        """Writes a self-contained detector folder that `load` reads.

        It holds arrays (Orbax), JSON, and a manifest with the SHA-256 of each file, but neither pickles nor code.

        Raises:
          UserError: the folder cannot be written.
        """
        calls.expect(calls.PATH, "the folder to write, as in scorer.save('detector')", directory=directory)
        sealed_pytree.write(directory, self.variables, detector_meta.to_dict(self))


def load(directory: str | os.PathLike[str]) -> Scorer:
    """Loads the detector of a run's folder, or a detector folder.

    A folder from an untrusted source cannot execute code: only hashes, JSON values and arrays are read, and nothing is
    unpickled, imported or evaluated. The hashes detect damage but do not authenticate: an untrusted detector may have
    any weights and any threshold.

    Args:
      directory: the folder.

    Returns:
      The scorer.

    Raises:
      UserError: there is no detector, or its parts do not fit together.
      DamagedError: the detector is incomplete or was altered.
    """
    calls.expect_folder(directory, "scorer = gj.load('runs/mine')")
    folder = Path(directory)
    if folder.is_file():
        raise UserError(f"{directory} is a file: expected the folder of a run")
    if sealed_folder.exists(folder / layout.DETECTOR):
        folder = folder / layout.DETECTOR
    elif members := sweep.read_members(folder):
        member = sweep.member_folder(folder, members[0])
        raise UserError(f"{directory} holds {len(members)} members: name one of them, such as {member}")
    elif not sealed_folder.exists(folder, sealed_folder.MANIFEST):
        where = "is not a run's folder" if folder.is_dir() else "does not exist"
        raise UserError(
            f"{directory} {where}: expected the --workdir of a finished `ganomaly train`, or its {layout.DETECTOR}/"
        )
    sharding.local_devices()  # reports a missing backend before anything is put on it
    variables, meta = sealed_pytree.read(folder)
    variables.setdefault("statistics", {})  # a checkpoint does not store an empty dict
    try:
        settings = detector_meta.config_of(meta)
    except Exception as error:
        raise _unusable(folder, error) from error
    validation.check_score(settings)  # features may have to be registered first
    try:
        stored = detector_meta.from_dict(meta)
        detector_meta.check_scores(variables["calibration"])
        fields = {field.name: getattr(stored, field.name) for field in dataclasses.fields(stored)}
        scorer = Scorer(adapters.from_config(stored.config), jax.device_put(variables), **fields)
        # Traces the program without computing anything, so that shapes that do not fit are reported now and not at the
        # first image.
        item = jax.ShapeDtypeStruct((1, *scorer.input_shape), jnp.dtype(scorer.dtype))
        jax.eval_shape(scorer._outputs, scorer.variables, item)
    except Exception as error:  # a folder with a valid manifest may hold anything
        raise _unusable(folder, error) from error
    return scorer


def _unusable(folder: Path, error: Exception) -> UserError:
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    what = f"{kind}{error}".splitlines()[0][:200]
    return UserError(f"{folder} is not a detector that this version can use ({what}); write it again")
