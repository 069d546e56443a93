"""Meshes, shardings, and transforms that run one step on many devices, of one process or several.

A step is written once, for one replica, with an axis name; the transforms here spread it over a mesh. Every process
runs the same program on its own devices and provides only the data that these need (see `processes.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ganomaly_jax.core.errors import UserError

DATA_AXIS = "data"
MEMBER_AXIS = "member"


def local_devices() -> list[jax.Device]:
    """Returns the devices of this process.

    Raises:
      UserError: the backend named by JAX_PLATFORMS is unknown or not available.
    """
    try:
        return jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # the latter for a platform that is known and not installed
        reason = str(error).partition("\n")[0] or "its support is not installed"
        raise UserError(
            f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')!r}: no such device here ({reason}); unset it to "
            "use the devices that are available, or install support for it: pip install -e '.[cuda]' for an NVIDIA "
            "GPU, '.[tpu]' for a TPU"
        ) from None


def local_mesh(count: int = 0) -> Mesh:
    """Returns a mesh of local devices along one axis, `DATA_AXIS`.

    Args:
      count: number of devices, taken from the first on; 0 for all.

    Raises:
      UserError: there are fewer devices, or the requested backend is not available.
    """
    devices = local_devices()
    if count > len(devices):
        raise UserError(f"mesh.devices={count}: this process has only {len(devices)} devices; use 0 for all of them")
    return Mesh(np.asarray(devices[: count or None]), (DATA_AXIS,))


def global_mesh(count: int = 0) -> Mesh:
    """Returns a mesh of the devices of all processes along `DATA_AXIS`; in a single process, `local_mesh`.

    Args:
      count: number of devices; with several processes 0 or the number of all devices.

    Raises:
      UserError: there are fewer devices, or several processes would leave some of them unused.
    """
    if jax.process_count() == 1:
        return local_mesh(count)
    if count not in (0, jax.device_count()):
        raise UserError(
            f"mesh.devices={count}: {jax.process_count()} processes use all of their {jax.device_count()} devices (0)"
        )
    return Mesh(np.asarray(jax.devices()), (DATA_AXIS,))


def describe(mesh: Mesh) -> str:
    """Returns a short description of the mesh, such as `8 of 8 devices (cpu)`."""
    processes = jax.process_count()
    among = f" in {processes} processes" if processes > 1 else ""
    return f"{mesh.size} of {jax.device_count()} devices{among} ({mesh.devices.flat[0].device_kind})"


def member_mesh(members: int, count: int = 0) -> Mesh:
    """Returns a mesh of local devices along `MEMBER_AXIS`, for the members of a sweep.

    Args:
      members: number of members; no more devices than this are used.
      count: maximum number of devices; 0 for all.

    Raises:
      UserError: there are fewer than `count` devices.
    """
    return Mesh(local_mesh(count).devices[:members], (MEMBER_AXIS,))


def axis_name(mesh: Mesh) -> str | None:
    """Returns the name of the axis to average over, or None on a single device."""
    return DATA_AXIS if mesh.size > 1 else None


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Checks that the devices of the mesh divide a global batch.

    Raises:
      UserError: they do not; the message names the nearest sizes that work.
    """
    if batch_size % mesh.size:
        fit = batch_size // mesh.size * mesh.size
        names = f"{fit + mesh.size}" if not fit else f"{fit} or {fit + mesh.size}"
        raise UserError(f"a batch of {batch_size} cannot be divided over {mesh.size} devices; use {names}")


def check_batch_norm_group(group: int, mesh: Mesh) -> None:
    """Checks that groups of `group` devices divide the mesh; 0 (one group of all devices) always does.

    Raises:
      UserError: they do not; the message names the sizes that work.
    """
    if group and mesh.size % group:
        fit = ", ".join(str(size) for size in range(1, mesh.size + 1) if mesh.size % size == 0)
        raise UserError(f"mesh.batch_norm_group={group} does not divide {mesh.size} devices; use 0 or one of {fit}")


def data_parallel(
    step: Callable[..., Any],
    mesh: Mesh,
    batch_axes: Sequence[int | None],
    donate: int | None = None,
    transform: str = "shard_map",
) -> Any:
    """Returns `step`, jitted, to run once per device, each on its shard of the batch.

    Args:
      step: function of arrays, written for one replica; its results have to be equal on all devices.
      mesh: the devices.
      batch_axes: for each argument the array axis that is sharded over the devices, None for replicated arguments.
      donate: index of the argument whose buffers the result may reuse.
      transform: `shard_map` or `pmap`. Both compute the same; `pmap` needs all devices in one process.
    """
    donated = () if donate is None else (donate,)
    if mesh.size == 1:
        return jax.jit(step, donate_argnums=donated)
    if transform == "pmap":
        return jax.jit(_pmapped(step, mesh, batch_axes), donate_argnums=donated)
    specs = tuple(PartitionSpec() if axis is None else _along(axis) for axis in batch_axes)
    # With check_vma=True, jax.grad with respect to replicated weights already sums over the axis; averaging afterwards
    # would leave gradients too large by the number of devices, which Adam hides.
    spread = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
    return jax.jit(spread, donate_argnums=donated)


def _pmapped(step: Callable[..., Any], mesh: Mesh, batch_axes: Sequence[int | None]) -> Callable[..., Any]:
    """Returns `step` under `jax.pmap`, reshaping the arguments that are sharded."""
    axes = tuple(batch_axes)
    mapped = jax.pmap(step, DATA_AXIS, in_axes=axes, out_axes=None, devices=list(mesh.devices.flat))

    def split(argument: Any, axis: int | None) -> Any:
        if axis is None:
            return argument
        shape = argument.shape
        return argument.reshape(*shape[:axis], mesh.size, shape[axis] // mesh.size, *shape[axis + 1 :])

    return lambda *arguments: mapped(*map(split, arguments, axes))


def row_parallel(function: Callable[[Any, Any], Any], mesh: Mesh) -> Callable[[Any, Any], Any]:
    """Returns `function(replicated, rows)`, spread over the mesh by rows.

    To be called under `jax.jit`. No device communicates: each row of a result may depend only on its own row of `rows`.
    """
    split = PartitionSpec(DATA_AXIS)
    return jax.shard_map(function, mesh=mesh, in_specs=(PartitionSpec(), split), out_specs=split, check_vma=False)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays of which every device of the mesh has a full copy."""
    return NamedSharding(mesh, PartitionSpec())


def partitioned(step: Callable[..., Any], mesh: Mesh, state: Any, batch_axes: Sequence[int | None]) -> Any:
    """Returns `step(state, *arguments) -> (state, results)`, jitted and partitioned by XLA.

    Args:
      step: function of the state and further arguments, written for the global batch.
      mesh: the devices.
      state: shardings of the state (see `state_shardings`), whose buffers are donated.
      batch_axes: for each further argument the array axis that is sharded, None for replicated arguments.
    """
    others = (replicated(mesh) if axis is None else NamedSharding(mesh, _along(axis)) for axis in batch_axes)
    return jax.jit(step, in_shardings=(state, *others), out_shardings=(state, replicated(mesh)), donate_argnums=0)


def take_local_rows(mesh: Mesh) -> Callable[[Array, Array], Array]:
    """Returns `take(images, rows)` for `partitioned`: each device indexes its own images by its shard of `rows`."""
    split = PartitionSpec(DATA_AXIS)
    return jax.shard_map(lambda images, rows: images[rows], mesh=mesh, in_specs=(split, split), out_specs=split)


def constrain(shardings: Any) -> Callable[[Any], Any]:
    """Returns a function that keeps a state at the given shardings inside a loop of `partitioned`."""
    return lambda state: jax.tree.map(jax.lax.with_sharding_constraint, state, shardings)


def state_shardings(tree: Any, mesh: Mesh, least: int) -> Any:
    """Returns shardings for the arrays of a state, splitting the large ones.

    Args:
      tree: pytree of arrays or shapes.
      mesh: the devices.
      least: minimum number of elements of an array that is split, along its largest axis that the devices divide. With
        0, and for arrays without such an axis, the array is replicated.
    """

    def choose(leaf: Any) -> NamedSharding:
        fit = [axis for axis, size in enumerate(leaf.shape) if size % mesh.size == 0]
        if not least or leaf.size < least or not fit:
            return replicated(mesh)
        return NamedSharding(mesh, _along(max(fit, key=leaf.shape.__getitem__)))

    return jax.tree.map(choose, tree)


def _along(axis: int) -> PartitionSpec:
    """Returns the partition spec of an array that is sharded along one axis."""
    return PartitionSpec(*[None] * axis, DATA_AXIS)


def member_parallel(step: Callable[..., Any], mesh: Mesh, per_member: Sequence[bool], donate: int | None = None) -> Any:
    """Returns `step` over the members of a sweep, jitted, each device running it on its share of the members.

    Args:
      step: function whose results all have a leading axis of members.
      mesh: mesh along `MEMBER_AXIS`.
      per_member: for each argument, True if its arrays have a leading axis of members (a multiple of the devices),
        False if all members share it.
      donate: index of the argument whose buffers the result may reuse.
    """
    donated = () if donate is None else (donate,)
    if mesh.size == 1:
        return jax.jit(step, donate_argnums=donated)
    specs = tuple(PartitionSpec(MEMBER_AXIS) if split else PartitionSpec() for split in per_member)
    spread = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(MEMBER_AXIS), check_vma=False)
    return jax.jit(spread, donate_argnums=donated)


def shard_members(tree: Any, mesh: Mesh) -> Any:
    """Places the arrays of a pytree on the mesh, sharded along their leading axis of members."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(MEMBER_AXIS)))


def place(tree: Any, shardings: Any) -> Any:
    """Places the arrays of a pytree on devices; every process passes the same arrays and transfers only its shards.

    Args:
      tree: pytree of arrays.
      shardings: pytree of shardings of the same structure.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def from_host(leaf: Any, sharding: NamedSharding) -> Array:
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, host.__getitem__)

    return jax.tree.map(from_host, tree, shardings)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Places a full copy of the arrays of a pytree on every device of the mesh."""
    return place(tree, jax.tree.map(lambda _: replicated(mesh), tree))


def shard_batch(batch: Array | np.ndarray, mesh: Mesh, axis: int) -> Array:
    """Places an array on the mesh, sharded along `axis`."""
    return place(batch, NamedSharding(mesh, _along(axis)))


def shard_rows(array: Any, rows: np.ndarray, mesh: Mesh) -> Array:
    """Places `array[rows]` on the mesh, sharded along the first axis.

    Args:
      array: array-like that may load rows on demand; a process reads only the rows of its own devices.
      rows: indices [n], n a multiple of the devices.
      mesh: the devices.
    """
    sharding = NamedSharding(mesh, PartitionSpec(DATA_AXIS))

    def read(index: Any) -> np.ndarray:
        return array[rows[index[0]]]

    return jax.make_array_from_callback((len(rows), *array.shape[1:]), sharding, read)


def local_shards(mesh: Mesh) -> list[int]:
    """Returns the indices along the mesh of the devices of this process, which are those of its shards of a batch."""
    return [i for i, device in enumerate(mesh.devices.flat) if device.process_index == jax.process_index()]


def from_local_shards(parts: Mapping[int, np.ndarray], shape: Sequence[int], mesh: Mesh) -> Array:
    """Returns a global array, sharded along its first axis, assembled from the shards of each process.

    Args:
      parts: the shards of this process by their index (see `local_shards`).
      shape: shape of the global array.
      mesh: the devices.
    """
    rows = shape[0] // mesh.size

    def read(index: Any) -> np.ndarray:
        return parts[(index[0].start or 0) // rows]

    return jax.make_array_from_callback(tuple(shape), NamedSharding(mesh, PartitionSpec(DATA_AXIS)), read)


def batch_struct(shape: Sequence[int], dtype: Any, mesh: Mesh) -> jax.ShapeDtypeStruct:
    """Returns shape, dtype and sharding of what `from_local_shards` makes, to compile for."""
    return jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=NamedSharding(mesh, PartitionSpec(DATA_AXIS)))


def to_host(tree: Any) -> Any:
    """Returns the arrays of a pytree as NumPy arrays, gathered from the devices of all processes."""

    def gather(leaf: Any) -> np.ndarray:
        if isinstance(leaf, Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            assert isinstance(leaf.sharding, NamedSharding)
            leaf = jax.jit(_identity, out_shardings=NamedSharding(leaf.sharding.mesh, PartitionSpec()))(leaf)
        return np.asarray(leaf)

    return jax.tree.map(gather, tree)


def _identity(x: Array) -> Array:
    """Returns its argument, to be jitted with another sharding of the result."""
    return x
