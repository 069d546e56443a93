"""One step on many devices. The step is written once, for one replica, with an axis name; here it is spread."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ganomaly_jax.errors import UserError

AXIS = "data"
MEMBER = "member"


def local_devices() -> list[jax.Device]:
    """The devices of this process.

    Raises:
      UserError: the backend that JAX_PLATFORMS asks for is unknown or absent.
    """
    try:
        return jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # the latter for a platform that is known and not installed
        reason = str(error).partition("\n")[0] or "its support is not installed"
        raise UserError(
            f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')!r}: no such device here ({reason}); unset it to take "
            "what there is, or install what it needs: pip install -e '.[cuda]' for an NVIDIA GPU, '.[tpu]' for a TPU"
        ) from None


def local_mesh(count: int = 0) -> Mesh:
    """A mesh of the first `count` local devices, 0 for all, along one axis, `AXIS`.

    Raises:
      UserError: there are not so many, or none of the backend that is asked for.
    """
    devices = local_devices()
    if count > len(devices):
        raise UserError(f"mesh.devices={count}: there are {len(devices)} local devices")
    return Mesh(np.asarray(devices[: count or None]), (AXIS,))


def member_mesh(members: int, count: int = 0) -> Mesh:
    """A mesh along `MEMBER` of the local devices that so many members can use, at most `count` of them (0: all).

    Raises:
      UserError: there are not so many devices.
    """
    return Mesh(local_mesh(count).devices[:members], (MEMBER,))


def axis_name(mesh: Mesh) -> str | None:
    """The axis to average over, or None on a single device, where there is nothing to average."""
    return AXIS if mesh.size > 1 else None


def check_batch(batch_size: int, mesh: Mesh) -> None:
    """Refuse a global batch that the devices do not divide.

    Raises:
      UserError: naming the batches that fit.
    """
    if batch_size % mesh.size:
        fit = batch_size // mesh.size * mesh.size
        names = f"{fit + mesh.size}" if not fit else f"{fit} or {fit + mesh.size}"
        raise UserError(f"a batch of {batch_size} does not divide over {mesh.size} devices; take {names}")


def data_parallel(
    step: Callable[..., Any], mesh: Mesh, batch_axes: Sequence[int | None], donate: int | None = None
) -> Any:
    """`step` under `jax.jit`, to run once a device, each on its part of the batch.

    `batch_axes` gives for each argument the array axis that is split over the devices, None for what every device
    holds whole; all results are equal on all devices. `donate` is the argument whose memory the result may reuse.
    """
    donated = () if donate is None else (donate,)
    if mesh.size == 1:
        return jax.jit(step, donate_argnums=donated)
    specs = tuple(PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, AXIS) for axis in batch_axes)
    # With check_vma=True, jax.grad by replicated weights sums over the axis by itself, and averaging afterwards gives
    # gradients as many times too large as there are devices, which Adam hides.
    spread = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
    return jax.jit(spread, donate_argnums=donated)


def member_parallel(step: Callable[..., Any], mesh: Mesh, own: Sequence[bool], donate: int | None = None) -> Any:
    """`step` over several models under `jax.jit`, each device running it on its share of them.

    `own` says of each argument whether its arrays have a leading axis of members, which is dealt out (a multiple of the
    devices), or are the same for all; the results have that axis.
    """
    donated = () if donate is None else (donate,)
    if mesh.size == 1:
        return jax.jit(step, donate_argnums=donated)
    specs = tuple(PartitionSpec(MEMBER) if mine else PartitionSpec() for mine in own)
    spread = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(MEMBER), check_vma=False)
    return jax.jit(spread, donate_argnums=donated)


def put_members(tree: Any, mesh: Mesh) -> Any:
    """The arrays of a pytree, dealt out along their leading axis of members."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(MEMBER)))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The arrays of a pytree, whole on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def put_batch(batch: Array | np.ndarray, mesh: Mesh, axis: int) -> Array:
    """An array split along `axis` over the devices of the mesh."""
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS)))
