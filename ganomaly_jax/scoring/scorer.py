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
from ganomaly_jax.data.audio import windows as audio_windows
from ganomaly_jax.data.images import decode, preprocess
from ganomaly_jax.data.images import files as image_files
from ganomaly_jax.data.lazy import LazyImages
from ganomaly_jax.data.rows import splits as row_splits
from ganomaly_jax.data.rows import tables
from ganomaly_jax.parallel import sharding
from ganomaly_jax.runs import checkpoint, layout, sweep
from ganomaly_jax.scoring import calibration as scoring_calibration
from ganomaly_jax.scoring import inference, tile_adapter
from ganomaly_jax.scoring.calibration import Calibration
from ganomaly_jax.scoring.spectrogram_adapter import SpectrogramDetector

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
class Scorer:
    """A trained detector, its preprocessing and its calibration. Made by `load`; call it with images.

    `dtype`, `low` and `high` are those of the training images: the type of the pixels and the values that become -1
    and +1.
    """

    detector: tile_adapter.Judge
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
    columns: tuple[str, ...] = ()
    """Of rows of sensors: their names, in the order in which they go in; `low` and `high` have a value for each."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(H, W, C) of one image; (D,) of a row of sensors, (T, D) of a window of rows; (T,) of a waveform."""
        return self.detector.shape

    @property
    def sound(self) -> bool:
        """Whether it judges waveforms; `low` and `high` then have a log10 of power for each band of frequency."""
        return isinstance(self.detector, SpectrogramDetector)

    @property
    def block(self) -> int:
        """Images that are held at once at most, a size of `program.BUCKETS`: fewer where they are large."""
        if not isinstance(self.detector, tile_adapter.TiledDetector | SpectrogramDetector):
            return inference.BUCKETS[-1]
        size = math.prod(self.input_shape) * np.dtype(self.dtype).itemsize
        return max((size_of for size_of in inference.BUCKETS if size_of * size <= _BLOCK_BYTES), default=1)

    @property
    def threshold(self) -> float:
        """Scores above it are anomalous."""
        return self.calibration.threshold

    @property
    def pixels(self) -> tuple[str, Any, Any]:
        """(dtype, low, high) of the training images."""
        return self.dtype, self.low, self.high

    def unit(self, x: Array) -> Array:
        """Raw pixels [B, H, W, C] as the networks take them, float32 in [-1, 1]. Pure.

        The type says what the values mean: that of the training images is scaled as they were; uint8 and uint16
        otherwise span their type; other floating point is taken as being in [-1, 1] already.

        Waveforms [B, T] become [B, bands, frames, 1], see `spectrogram.patches`.
        """
        return inference.unit(self.detector, self.pixels, x)

    def outputs(self, variables: dict[str, Any], x: Array) -> dict[str, Array]:
        """`score` and `p_value` [B] float32 of raw images x [B, H, W, C]; NaN where a pixel is NaN or Inf. Pure."""
        return inference.scored(self.detector, self.parts, self.pixels, variables, x)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of what the score is made of, see `scores.PARTS`."""
        return config_module.score_parts(self.config)

    def reading(self, source: str) -> Data:
        """How another source is read as this detector takes it: of tables its sensors, by their names."""
        found = dataclasses.replace(self.config.data, source=source)
        return dataclasses.replace(found, columns=tables.as_text(self.columns)) if self.columns else found

    @functools.cached_property
    def _outputs(self) -> Callable[..., Any]:
        return functools.partial(inference.compiled, self.detector, self.parts, self.pixels)

    @functools.cached_property
    def _mesh(self) -> Any:
        """The devices of this process; as many as the training was given, where that was less than all."""
        return sharding.local_mesh(min(self.config.mesh.devices, len(sharding.local_devices())))

    @functools.cached_property
    def _everywhere(self) -> dict[str, Any]:
        return jax.device_put(self.variables, sharding.replicated(self._mesh))

    def function(self) -> tuple[Callable[[dict[str, Any], Array], Array], dict[str, Any]]:
        """(fn, variables): `fn(variables, x)` is the pure scoring function to embed, x as `unit` takes it, scores [B].

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
        files = _files(images) if len(self.input_shape) == 3 else None
        if files is not None:
            return self.judge_files(files, progress=progress)[0]
        x, taken = (images, self._array) if isinstance(images, LazyImages) else (self._checked(images), self._sized)
        blocks = (taken(x[i : i + self.block]) for i in range(0, len(x), self.block))
        return self._judged(self._shown(blocks, len(x), progress))

    def _shown(self, blocks: Iterable[np.ndarray], total: int, progress: bool) -> Iterable[np.ndarray]:
        return track(blocks, total, config_module.items(self.config.data)[:-1], not progress, "scored")

    def judge_files(
        self, paths: Sequence[Any], workers: int = image_files.WORKERS, progress: bool = False
    ) -> tuple[Judgement, list[tuple[str, str]]]:
        """Of image files, any number: scores, p-values and verdicts, and (path, reason) of those that cannot be read.

        While the device scores a block of files, `workers` threads decode the next ones. `progress`: as in `judge`.

        Raises:
          UserError: no files.
        """
        if not len(paths):
            raise UserError("no image files: wanted at least one")
        problems: list[tuple[str, str]] = []

        def placed(block: tuple[Any, ...]) -> np.ndarray:
            problems.extend(block[2])
            return self._placed(*block[:3])

        height, width, channels = self.input_shape
        fit, like = self.config.data.fit, (self.dtype, self.low, self.high)
        decoded = image_files.decode_blocks(paths, self.block, height, width, channels, fit, like, workers)
        with contextlib.closing(decoded) as blocks:
            return self._judged(self._shown(map(placed, blocks), len(paths), progress)), problems

    def reconstruct(self, images: Any) -> tuple[np.ndarray, np.ndarray]:
        """(x, x_hat), each [B, H, W, C] float32 in [-1, 1]; for pictures, in one batch."""
        return self.explained(images)[:2]

    def explained(self, images: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(x, x_hat, map): as `reconstruct`, and `maps.residual_map` of both, [B, H, W] float32 in 0..2."""
        raw = self._array(images)
        found = inference.explained(
            self.detector, self.pixels, self.variables, inference.pad(raw, inference.bucket(len(raw)))
        )
        x, x_hat, values = (np.asarray(leaf)[: len(raw)] for leaf in found)
        return x, x_hat, values

    def _judged(self, blocks: Iterable[np.ndarray]) -> Judgement:
        """Of images as the program takes them, in blocks no larger than a bucket; full ones a device each."""
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
        """`outputs` of one block, or of full ones side by side, on their way: nothing is waited for.

        Each device then runs the very program that one device runs alone, so that the scores are the same to the bit.
        """
        if len(blocks) == 1:
            return self._outputs(self.variables, inference.pad(blocks[0], inference.bucket(len(blocks[0]))))
        size, devices = inference.BUCKETS[-1], self._mesh.size
        own = {i: inference.pad(blocks[min(i, len(blocks) - 1)], size) for i in range(devices)}
        x = sharding.from_local_shards(own, (devices * size, *blocks[0].shape[1:]), self._mesh)
        return inference.compiled_side_by_side(self._mesh, self.detector, self.parts, self.pixels, self._everywhere, x)

    def _array(self, given: Any) -> np.ndarray:
        return self._sized(self._checked(given))

    def _checked(self, given: Any) -> np.ndarray:
        """What the program takes, but for the size of images."""
        if self.sound:
            return audio_windows.as_input(given, self.config.data)
        if len(self.input_shape) < 3:
            return self.rows(given)
        files = _files(given)
        if files is not None:
            return self.read(files)[0]
        try:
            x = np.asarray(given)
        except ValueError:
            raise UserError("images of different shapes: wanted an array, or image files, which are resized") from None
        height, width, channels = self.input_shape
        if x.ndim == 3 and channels == 1 and x.shape[-1] > 1:  # not one image [H, W, 1]
            x = x[..., None]
        if x.ndim != 4 or x.shape[-1] != channels or not x.size:
            raise UserError(
                f"images of shape {x.shape}: wanted [B, {height}, {width}, {channels}], B at least 1, the shape that "
                "this detector was trained on (other sizes are resized, other numbers of channels are not guessed)"
            )
        if x.dtype.kind == "f" and x.dtype != self.dtype:
            x = x.astype(np.float32)
            # Not a NaN: that is the image's own fault and becomes a verdict.
            if self.dtype != "float32" and (np.abs(x) > 1).any():
                raise UserError(
                    f"floating-point images from {np.nanmin(x):g} to {np.nanmax(x):g}: wanted [-1, 1]; this detector "
                    f"was trained on {self.dtype} images, pass those or scale as 2 * (x - low) / (high - low) - 1"
                )
        elif x.dtype.kind == "u" and self.dtype == "float32":
            raise UserError(
                f"images of type {x.dtype}: wanted floating point from {self.low:g} to {self.high:g}, as in training; "
                "what other pixels mean in that range is not known"
            )
        elif x.dtype.kind not in "uf":
            raise UserError(f"images of type {x.dtype}: wanted {self.dtype}, as in training, or floating point")
        return x

    def _sized(self, x: np.ndarray) -> np.ndarray:
        """Images at the size of the network, resized by threads, as files are decoded."""
        if x.shape[1:] == self.input_shape:
            return x
        height, width, channels = self.input_shape

        def fitted(image: np.ndarray) -> np.ndarray:
            return preprocess.fit_image(image, height, width, channels, self.config.data.fit)

        with contextlib.closing(image_files.read_ahead(fitted, x)) as resized:
            return np.stack(list(resized))

    def rows(self, given: Any) -> np.ndarray:
        """Rows or windows of sensors as the program takes them, [n, D] or [n, T, D] float32; see `row_parts.as_input`.

        Raises:
          UserError: what is given has another shape, or this is a detector of images.
        """
        if len(self.input_shape) == 3 or self.sound:
            raise UserError(
                f"this detector is of {'sound' if self.sound else 'images'}: wanted files or arrays of these"
            )
        return row_splits.as_input(given, self.input_shape, self.columns, self.low, self.high, self.config.data)

    def read(self, paths: Sequence[Any], progress: bool = False) -> tuple[np.ndarray, list[tuple[str, str]]]:
        """Image files as [n, H, W, C] of the training type, and (path, reason) of those that cannot be read.

        An unreadable one is there as NaN (float32 then), so that it is scored as invalid and keeps its place.
        """
        height, width, channels = self.input_shape
        like = (self.dtype, self.low, self.high)
        read = image_files.decode_files(paths, height, width, channels, self.config.data.fit, progress, like)
        return self._placed(*read[:3]), read[2]

    def _placed(self, read: np.ndarray, kept: np.ndarray, problems: Sequence[Any]) -> np.ndarray:
        """Images of the training type at their places among those that could not be read."""
        if not problems:
            return read
        whole = np.zeros((len(kept) + len(problems), *read.shape[1:]), read.dtype)
        whole[kept] = read
        x = np.array(self.unit(jnp.asarray(whole))) if self.dtype != "float32" else whole
        x[np.setdiff1d(np.arange(len(x)), kept)] = np.nan
        return x

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Scorer:
        """The same as `ganomaly_jax.load`: the detector of a run's folder, or one that `save` wrote."""
        return load(directory)

    def save(self, directory: Path) -> None:
        """Write a self-contained folder that `load` reads, independent of the run: weights, configuration, calibration.

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
            **({"columns": self.columns} if self.columns else {}),
        }
        checkpoint.write(directory, self.variables, meta)


def _files(given: Any) -> Sequence[Any] | None:
    """An image file, a folder of them or a sequence of files as a sequence, None for images as arrays.

    Raises:
      UserError: a folder without image files, or nothing that could be images.
    """
    if isinstance(given, (str, os.PathLike)):
        if not os.path.isdir(given):
            return [given]
        if not (found := image_files.list_images(os.fspath(given))):
            raise UserError(f"no image files in {decode.shown(given)}")
        return found
    if hasattr(given, "dtype"):
        return None
    if not isinstance(given, Sequence):
        raise UserError(f"{type(given).__name__}: wanted images as an array, image files, or a folder of them")
    return given if len(given) and isinstance(given[0], (str, os.PathLike)) else None


def load(directory: str | os.PathLike[str]) -> Scorer:
    """The detector of a run's folder, or of a detector folder.

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
    elif team := sweep.stored(folder):
        raise UserError(
            f"{directory} holds {len(team)} members: name one of them, such as {sweep.folder(folder, team[0])}"
        )
    elif not (folder / sealed_folder.MANIFEST).exists():
        where = "is no run's folder" if folder.is_dir() else "does not exist"
        raise UserError(
            f"{directory} {where}: wanted the --workdir of a finished `ganomaly train`, or its {layout.DETECTOR}/"
        )
    sharding.local_devices()  # a backend that is not there is told before anything is put on it
    variables, meta = checkpoint.read(folder)
    variables.setdefault("statistics", {})  # an empty dict leaves no trace in a checkpoint
    try:
        settings = config_values.from_dict(meta["config"])
        if np.dtype(meta["dtype"]).kind not in "uf":
            raise ValueError(f"pixels of type {meta['dtype']}")
        scorer = Scorer(
            detector=tile_adapter.from_config(settings),
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
            columns=tuple(map(str, meta.get("columns", ()))),
        )
        named = 0 if scorer.sound or len(scorer.input_shape) == 3 else scorer.input_shape[-1]
        if len(scorer.columns) != named:
            raise ValueError(f"{len(scorer.columns)} names of columns for {scorer.input_shape}")
        # Sizes that do not fit would show only at the first image; nothing is computed here, and that one finds the
        # program traced.
        one = jax.ShapeDtypeStruct((1, *scorer.input_shape), jnp.dtype(scorer.dtype))
        jax.eval_shape(scorer._outputs, scorer.variables, one)
    except Exception as error:  # whatever a folder that was sealed like ours can hold
        what = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise UserError(f"{folder} is no detector that this version can use ({what}); write it again") from error
    return scorer


def _range(stored: Any) -> float | tuple[float, ...]:
    """`low` or `high` as it is stored: a number, or one for each sensor."""
    return tuple(map(float, stored)) if isinstance(stored, list) else float(stored)
