"""Devices: the mesh over which a batch is split, and values placed on it."""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from jaxtyping import Array, PyTree

from vtune_jax.errors import UserError


def assert_devices() -> None:
    """Starts JAX's devices.

    Raises:
        UserError: there are none of the kind that is asked for.
    """
    try:
        jax.devices()
    # A platform that cannot be started is told by either, the second without a word.
    except (RuntimeError, AssertionError) as error:
        asked = os.environ.get("JAX_PLATFORMS", "")
        said = str(error).strip().partition("\n")[0][:160]
        raise UserError(
            f"JAX can start no device{f' for JAX_PLATFORMS={asked}' if asked else ''}{f' ({said})' if said else ''}",
            "unset JAX_PLATFORMS, or see what `vtune-jax doctor` says",
        ) from error


def data_mesh(batch: int) -> Mesh | None:
    """A mesh of all devices in a row, over which a batch is split; None where there is only one device.

    Raises:
        UserError: the batch does not divide by the number of devices.
    """
    devices = jax.devices()
    if len(devices) == 1:
        return None
    if batch % len(devices):
        raise UserError(
            f"a batch of {batch} rows cannot be split over {len(devices)} devices",
            f"set data.batch to a multiple of {len(devices)}",
        )
    return Mesh(np.array(devices), ("data",))


def in_rows(mesh: Mesh, axis: int = 0) -> Sharding:
    """Where values lie whose rows, along this axis, are split over the devices of the mesh."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, "data"))


def place_rows(arrays: dict[str, Any], mesh: Mesh | None, axis: int = 0) -> dict[str, Any]:
    """A batch whose rows are split over the devices of the mesh.

    Args:
        arrays: of this process: its part of the rows.
        mesh: of all processes' devices; None leaves placing to whoever reads the arrays.
        axis: of the rows.
    """
    if mesh is None:
        return arrays
    place = in_rows(mesh, axis)
    return {name: jax.make_array_from_process_local_data(place, array) for name, array in arrays.items()}


def constrain(array: Array, mesh: Mesh | None, place: Callable[[Mesh], Sharding]) -> Array:
    """Inside a program: the same array, placed like this on the mesh; without a mesh nothing is asked."""
    return array if mesh is None else jax.lax.with_sharding_constraint(array, place(mesh))


def everywhere(mesh: Mesh | None) -> Sharding:
    """Where values lie that every device of the mesh holds whole; the one device where there is no mesh."""
    return SingleDeviceSharding(jax.local_devices()[0]) if mesh is None else NamedSharding(mesh, PartitionSpec())


def template(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Shapes, dtypes and placement of what `replicate` gives, for arrays or their shapes; nothing is computed."""
    place = everywhere(mesh)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree)


def replicate(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """The same values on every device of the mesh; without a mesh, on the only device.

    Values are placed explicitly even on a single device: a jitted step would otherwise compile twice, once for fresh
    arrays and once for arrays that a checkpoint or the step itself has placed.
    """
    if mesh is None:
        return jax.device_put(tree, jax.local_devices()[0])
    everywhere = NamedSharding(mesh, PartitionSpec())
    if jax.process_count() == 1:
        return jax.device_put(tree, everywhere)

    def on_all_hosts(leaf: Any) -> Array:
        # Each process has the value and copies it to its own devices; nothing is sent between processes.
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, everywhere, lambda index: host[index])

    return jax.tree.map(on_all_hosts, tree)
