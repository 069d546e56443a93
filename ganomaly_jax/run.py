"""A run's folder: its resolved configuration, its data, and where it was made."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ganomaly_jax import __version__, audio, audio_parts, config, config_check, data, files, row_parts, sources, tiling
from ganomaly_jax.config import Config
from ganomaly_jax.data import Dataset, Split
from ganomaly_jax.errors import DamagedError, UserError

CONFIG = "config.json"
ENVIRONMENT = "env.json"
LINEAGE = "lineage"


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """What a configuration becomes once its data are seen: nothing automatic is left in `config`."""

    config: Config
    dataset: Dataset
    split: Split
    notes: tuple[str, ...]
    """Sentences that the user should see before the training starts."""
    scaling: tuple[Any, Any] | None = None
    """Of rows of sensors: the values of each that become -1 and +1; of sound of each band, or of all patches."""

    @property
    def pixels(self) -> tuple[str, Any, Any]:
        """(dtype, low, high) of the images; of rows low and high of each sensor."""
        if self.scaling is not None:
            return str(self.dataset.images.dtype), *self.scaling
        return str(self.dataset.images.dtype), self.config.data.low, self.config.data.high


def resolve(
    settings: Config, arrays: Any = None, devices: int = 1, progress: bool = False, shared: bool = False
) -> Run:
    """Load and split the data and fill in what the configuration leaves to them.

    `arrays` stands in for `data.source`; for that and `shared` see `sources.load`. A batch larger than the training
    part becomes the largest that the part and the `devices` allow, with a note.

    Raises:
      UserError: a configuration or data that cannot work.
    """
    config_check.check(settings)
    dataset = sources.load(settings.data, arrays, progress, shared)
    resolved = copy.deepcopy(settings)
    notes: tuple[str, ...] = ()
    scaling: tuple[Any, Any] | None = None
    if dataset.recordings:
        audio.check(settings)
        split = audio_parts.split(dataset, settings.data, settings.seed)
        scaling = audio_parts.scaled(dataset, split)
        resolved.data = audio.resolved(settings.data, dataset)
    elif dataset.spans is not None:
        row_parts.check(settings)
        if dataset.scaling is not None:
            split, scaling = data.split(dataset, settings.data, settings.seed), dataset.scaling
        else:
            split = row_parts.split(dataset, settings.data)
            dataset, scaling, notes = row_parts.scaled(dataset, split, settings)
        resolved.data = row_parts.resolved(settings.data, dataset)
    else:
        split = data.split(dataset, settings.data, settings.seed)
        resolved.data.height, resolved.data.width, resolved.data.channels = dataset.images.shape[1:]
        resolved.data.low, resolved.data.high = data.value_range(dataset, split.train)
        if min(dataset.images.shape[1:3]) < settings.data.tile:
            size = "x".join(map(str, dataset.images.shape[1:3]))
            raise UserError(f"data.tile={settings.data.tile}: the images are {size}, wanted tiles that lie within them")
    config_check.check_shape(resolved)
    where = _grid(resolved.data)
    inputs, what = len(split.train) * (where.count if where else 1), "tiles of training" if where else "training"
    if inputs < settings.train.batch_size:
        fits = inputs // devices * devices
        if fits < 2:
            raise UserError(f"{inputs} {what} images do not fill a batch on {devices} devices")
        resolved.train.batch_size = fits
        notes += (f"batch {settings.train.batch_size} -> {fits}: there are only {inputs} {what} images",)
    return Run(resolved, dataset, split, notes, scaling)


def _grid(settings: config.Data) -> tiling.Grid | None:
    return tiling.grid(settings.height, settings.width, settings.tile, settings.overlap) if settings.tile else None


def of_inputs(this: Run) -> Run:
    """The run whose images are what the network takes: with `data.tile` all tiles of the images, of sound the patches
    of its spectrogram, else the run itself.

    The tiles of an image are all in the part that the image is in. Those of the calibration part are in random order,
    so that the first of them are of many images.
    """
    if this.dataset.recordings and this.scaling is not None:
        patches = audio.items(this.dataset.images, this.config.data, *this.scaling)
        return dataclasses.replace(
            this, dataset=dataclasses.replace(this.dataset, images=patches, spans=None), scaling=(-1.0, 1.0)
        )
    where = _grid(this.config.data)
    if where is None:
        return this
    dataset, split = this.dataset, this.split
    several = np.repeat(np.arange(len(dataset.labels)), where.count)
    tiles = dataclasses.replace(
        dataset,
        images=tiling.items(dataset.images, where),
        labels=dataset.labels[several],
        parts=None if dataset.parts is None else dataset.parts[several],
        paths=tuple(dataset.paths[i] for i in several),
    )
    calibration = tiling.of_images(split.calibration, where)
    parts = dataclasses.replace(
        split,
        train=tiling.of_images(split.train, where),
        calibration=np.random.default_rng(0).permutation(calibration),
        test=tiling.of_images(split.test, where),
        labels=np.repeat(split.labels, where.count),
    )
    return dataclasses.replace(this, dataset=tiles, split=parts)


def total_steps(settings: Config, images: int) -> int:
    """Steps of the whole training on that many images."""
    return settings.train.steps or settings.train.epochs * (images // settings.train.batch_size)


def stored_config(workdir: Path) -> Config | None:
    """The configuration of the run in this folder, None where there is no run.

    Raises:
      DamagedError: `config.json` is there and cannot be read.
    """
    path = workdir / CONFIG
    try:
        return config.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError) as error:  # UserError and JSONDecodeError are ValueErrors
        raise DamagedError(f"{path} cannot be read ({error}); restore it or start in another --workdir") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write JSON whole or not at all; NaN and infinity are refused, they are not JSON."""
    files.write_text(path, json.dumps(values, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def environment(run: Run, data_hash: str, workdir: Path | None = None) -> dict[str, Any]:
    """What `env.json` holds: versions, devices, hash of the data, seed; and the lineage that the one in `workdir` has,
    where the run goes on from another one's weights."""
    import jax

    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "chex", "pillow")
    versions = {"ganomaly-jax": __version__, "python": platform.python_version()}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    devices = jax.local_devices()
    return {
        "versions": versions,
        "devices": [device.device_kind for device in devices],
        "platform": devices[0].platform,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
        "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
        "data_hash": data_hash,
        "images": len(run.dataset.images),
        "seed": run.config.seed,
    } | (
        {} if workdir is None else {key: value for key, value in stored_environment(workdir).items() if key == LINEAGE}
    )


def open_workdir(workdir: Path, resolved: Config, data_hash: str) -> None:
    """Make the folder of a run, or make sure that the run in it is the one asked for.

    Raises:
      UserError: the folder holds another run (says what differs), other data, or cannot be written.
    """
    stored = stored_config(workdir)
    if stored is not None:
        other = config.differences(stored, resolved)
        if other:
            raise UserError(
                f"{workdir} holds a run of another configuration: {'; '.join(other)}. "
                "Take another --workdir, or the same configuration to go on"
            )
        before = stored_environment(workdir).get("data_hash")
        if before is not None and before != data_hash:
            raise UserError(
                f"{workdir} holds a run on other data: their hash was {before[:12]}, now it is {data_hash[:12]}. "
                "Take another --workdir, or the same data to go on"
            )
    write_json(workdir / CONFIG, config.to_dict(resolved))


def stored_environment(workdir: Path) -> dict[str, Any]:
    """`env.json` of a run, empty where it is missing or cannot be read."""
    try:
        return json.loads((workdir / ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
