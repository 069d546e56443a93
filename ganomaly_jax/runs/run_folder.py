"""Configuration, environment and lineage in a run's folder."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from ganomaly_jax import __version__
from ganomaly_jax.core import atomic_files, config_values
from ganomaly_jax.core.config import Config
from ganomaly_jax.core.errors import DamagedError, UserError
from ganomaly_jax.data import datasets
from ganomaly_jax.runs import layout
from ganomaly_jax.runs.resolution import Run

LINEAGE = "lineage"


def stored_config(workdir: Path) -> Config | None:
    """Returns the configuration of the run in this folder, None if there is no run.

    Raises:
      DamagedError: `config.json` exists but cannot be read.
    """
    path = workdir / layout.CONFIG
    try:
        return config_values.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError, RecursionError) as error:  # UserError and JSONDecodeError are ValueErrors
        raise DamagedError(f"{path} cannot be read ({error}); restore it or use another --workdir") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes JSON atomically; NaN and infinity are refused, since JSON does not have them."""
    atomic_files.write_text(path, json.dumps(values, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def environment(run: Run, data_hash: str, workdir: Path | None = None) -> dict[str, Any]:
    """Returns the content of `env.json`: versions, devices, hash of the data, seed.

    Args:
      run: the resolved run.
      data_hash: hash of its data.
      workdir: folder whose `env.json` may hold a lineage, which is kept; None for none.
    """
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
    """Creates the folder of a run, or checks that the run in it is the same.

    Raises:
      UserError: the folder holds another run (the message says what differs) or other data, or cannot be written.
    """
    stored = stored_config(workdir)
    if stored is not None:
        other = config_values.differences(stored, resolved)
        if other:
            raise UserError(
                f"{workdir} holds a run with another configuration: {'; '.join(other)}. "
                "Use another --workdir, or the same configuration to resume"
            )
        before = stored_environment(workdir).get("data_hash")
        advice = "Use another --workdir, or the same data to resume"
        datasets.check_unchanged(f"of the run in {workdir}", before, data_hash, advice)
    write_json(workdir / layout.CONFIG, config_values.to_dict(resolved))


def open_run(workdir: Path, run: Run, data_hash: str) -> dict[str, Any]:
    """Opens the folder of a run (see `open_workdir`), writes `env.json` into it and returns its content."""
    open_workdir(workdir, run.config, data_hash)
    values = environment(run, data_hash, workdir)
    write_json(workdir / layout.ENVIRONMENT, values)
    return values


def stored_environment(workdir: Path) -> dict[str, Any]:
    """Returns the content of `env.json`, empty if it is missing or cannot be read."""
    try:
        return json.loads((workdir / layout.ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
