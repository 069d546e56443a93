"""One step on many devices, of one process or of several.

The step is written once, for one replica, with an axis name; here it is spread. Every process runs the same program on
its own devices and puts only what these need (`hosts.py` starts the processes and lets them agree).
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
        raise UserError(f"mesh.devices={count}: there are {len(devices)} local devices; take as many, or 0 for all")
    return Mesh(np.asarray(devices[: count or None]), (AXIS,))


def global_mesh(count: int = 0) -> Mesh:
    """`local_mesh`, or among several processes the devices of all of them.

    Raises:
      UserError: as `local_mesh`; a part of the devices of several processes.
    """
    if jax.process_count() == 1:
        return local_mesh(count)
    if count not in (0, jax.device_count()):
        raise UserError(
            f"mesh.devices={count}: {jax.process_count()} processes use all of their {jax.device_count()} devices"
        )
    return Mesh(np.asarray(jax.devices()), (AXIS,))


def describe(mesh: Mesh) -> str:
    """`8 of 8 devices (cpu)`."""
    processes = jax.process_count()
    among = f" in {processes} processes" if processes > 1 else ""
    return f"{mesh.size} of {jax.device_count()} devices{among} ({mesh.devices.flat[0].device_kind})"


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


def check_group(group: int, mesh: Mesh) -> None:
    """Refuse groups of batch norm that the devices do not divide into.

    Raises:
      UserError: naming the groups that fit.
    """
    if group and mesh.size % group:
        fit = ", ".join(str(size) for size in range(1, mesh.size + 1) if mesh.size % size == 0)
        raise UserError(f"mesh.batch_norm_group={group} does not divide {mesh.size} devices; take 0 or one of {fit}")


def data_parallel(
    step: Callable[..., Any],
    mesh: Mesh,
    batch_axes: Sequence[int | None],
    donate: int | None = None,
    transform: str = "shard_map",
) -> Any:
    """`step` under `jax.jit`, to run once a device, each on its part of the batch.

    `batch_axes` gives for each argument the array axis that is split over the devices, None for what every device
    holds whole; all results are equal on all devices. `donate` is the argument whose memory the result may reuse.
    `transform` is `shard_map` or `pmap`, which compute the same; with `pmap` all devices are of this process.
    """
    donated = () if donate is None else (donate,)
    if mesh.size == 1:
        return jax.jit(step, donate_argnums=donated)
    if transform == "pmap":
        return jax.jit(_pmapped(step, mesh, batch_axes), donate_argnums=donated)
    specs = tuple(PartitionSpec() if axis is None else _along(axis) for axis in batch_axes)
    # With check_vma=True, jax.grad by replicated weights sums over the axis by itself, and averaging afterwards gives
    # gradients as many times too large as there are devices, which Adam hides.
    spread = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
    return jax.jit(spread, donate_argnums=donated)


def _pmapped(step: Callable[..., Any], mesh: Mesh, batch_axes: Sequence[int | None]) -> Callable[..., Any]:
    axes = tuple(batch_axes)
    mapped = jax.pmap(step, AXIS, in_axes=axes, out_axes=None, devices=list(mesh.devices.flat))

    def cut(argument: Any, axis: int | None) -> Any:
        if axis is None:
            return argument
        shape = argument.shape
        return argument.reshape(*shape[:axis], mesh.size, shape[axis] // mesh.size, *shape[axis + 1 :])

    return lambda *arguments: mapped(*map(cut, arguments, axes))


def side_by_side(function: Callable[[Any, Any], Any], mesh: Mesh) -> Callable[[Any, Any], Any]:
    """`function(whole, rows)` run once a device, each on its part of `rows` alone; the results' rows are together.

    Under `jax.jit`. The rows of a result depend on their own row of `rows`, and nothing is sent between the devices.
    """
    split = PartitionSpec(AXIS)
    return jax.shard_map(function, mesh=mesh, in_specs=(PartitionSpec(), split), out_specs=split, check_vma=False)


def everywhere(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device of the mesh holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def partitioned(step: Callable[..., Any], mesh: Mesh, state: Any, batch_axes: Sequence[int | None]) -> Any:
    """`step(state, *arguments)` to (state, results), written for the whole batch, under `jax.jit`: XLA parts it.

    `state` are the shardings of its first argument, whose memory the first result takes over (`divided`), `batch_axes`
    those of the others as in `data_parallel`.
    """
    whole = NamedSharding(mesh, PartitionSpec())
    others = (whole if axis is None else NamedSharding(mesh, _along(axis)) for axis in batch_axes)
    return jax.jit(step, in_shardings=(state, *others), out_shardings=(state, whole), donate_argnums=0)


def own_rows(mesh: Mesh) -> Callable[[Array, Array], Array]:
    """`take(images, rows)` for `partitioned`: each device takes, of its own images, those at its own part of `rows`."""
    split = PartitionSpec(AXIS)
    return jax.shard_map(lambda images, rows: images[rows], mesh=mesh, in_specs=(split, split), out_specs=split)


def constrained(shardings: Any) -> Callable[[Any], Any]:
    """For `partitioned`: a state that stays where `shardings` say through a loop."""
    return lambda state: jax.tree.map(jax.lax.with_sharding_constraint, state, shardings)


def divided(tree: Any, mesh: Mesh, least: int) -> Any:
    """Shardings for the arrays of a state: from `least` elements on along the largest axis that the devices divide.

    0, and arrays without such an axis: whole on every device.
    """

    def place(leaf: Any) -> NamedSharding:
        fit = [axis for axis, size in enumerate(leaf.shape) if size % mesh.size == 0]
        if not least or leaf.size < least or not fit:
            return NamedSharding(mesh, PartitionSpec())
        return NamedSharding(mesh, _along(max(fit, key=leaf.shape.__getitem__)))

    return jax.tree.map(place, tree)


def _along(axis: int) -> PartitionSpec:
    return PartitionSpec(*[None] * axis, AXIS)


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


def put(tree: Any, shardings: Any) -> Any:
    """The arrays of a pytree, each as its sharding says; every process gives the same ones and puts its own part."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def own(leaf: Any, sharding: NamedSharding) -> Array:
        held = np.asarray(leaf)
        return jax.make_array_from_callback(held.shape, sharding, held.__getitem__)

    return jax.tree.map(own, tree, shardings)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The arrays of a pytree, whole on every device of the mesh."""
    return put(tree, jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), tree))


def put_batch(batch: Array | np.ndarray, mesh: Mesh, axis: int) -> Array:
    """An array split along `axis` over the devices of the mesh."""
    return put(batch, NamedSharding(mesh, _along(axis)))


def put_rows(array: Any, rows: np.ndarray, mesh: Mesh) -> Array:
    """`array[rows]` split along its first axis over the devices; a process takes only its own part of `array`.

    `array` may be read on demand.
    """
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))

    def own(index: Any) -> np.ndarray:
        return array[rows[index[0]]]

    return jax.make_array_from_callback((len(rows), *array.shape[1:]), sharding, own)


def own_parts(mesh: Mesh) -> list[int]:
    """Which parts of a batch are this process's: the places of its devices along the mesh."""
    return [i for i, device in enumerate(mesh.devices.flat) if device.process_index == jax.process_index()]


def put_parts(parts: Mapping[int, np.ndarray], shape: Sequence[int], mesh: Mesh) -> Array:
    """An array of that shape, split along its first axis over the devices, from the parts of `own_parts`."""
    rows = shape[0] // mesh.size

    def own(index: Any) -> np.ndarray:
        return parts[(index[0].start or 0) // rows]

    return jax.make_array_from_callback(tuple(shape), NamedSharding(mesh, PartitionSpec(AXIS)), own)


def rows_like(shape: Sequence[int], dtype: Any, mesh: Mesh) -> jax.ShapeDtypeStruct:
    """Shape, type and place of what `put_parts` makes, to compile for."""
    return jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=NamedSharding(mesh, PartitionSpec(AXIS)))


def whole(tree: Any) -> Any:
    """The arrays of a pytree as numpy arrays, put together from the devices of all processes."""

    def together(leaf: Any) -> np.ndarray:
        if isinstance(leaf, Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            assert isinstance(leaf.sharding, NamedSharding)
            leaf = jax.jit(_same, out_shardings=NamedSharding(leaf.sharding.mesh, PartitionSpec()))(leaf)
        return np.asarray(leaf)

    return jax.tree.map(together, tree)


def _same(x: Array) -> Array:
    return x
